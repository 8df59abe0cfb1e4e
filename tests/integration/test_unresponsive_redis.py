"""A Redis that accepts connections and never answers: its timeout is waited for now and then, not by every request."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from service.store.connect import PAUSE_S, TIMEOUT_S, CircuitBreaker
from tests.servers import RedisServer, Service, eventually

N = 12


@pytest.fixture
def mute() -> Iterator[RedisServer]:
    server = RedisServer()
    server.start()
    yield server
    server.send_signal(signal.SIGCONT)
    server.remove()


def test_a_mute_redis_does_not_hold_each_request(store: Path, mute: RedisServer) -> None:
    """The rate limits, the session store, the prefix states and the queue share one client's circuit breaker."""
    limits = {"RATE_LIMIT": "100000/minute", "CHARS_LIMIT": "999999999/minute"}
    with Service(CHECKPOINT_DIR=str(store), REDIS_URL=mute.url, **limits) as service:
        session_id = service.generate(max_chars=3)["session_id"]
        mute.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        for _ in range(N):
            assert service.generate(prompt="a" * 5000, max_chars=3)["saved"] is False
            refused = service.post(session_id=session_id, max_chars=3)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
            assert service.client.post("/score", json={"text": "to be"}).status_code == 200
        # Each request uses Redis once to three times. If one command in a pause waits, the wait is TIMEOUT_S of every
        # TIMEOUT_S + PAUSE_S, and the requests of a pause are many.
        assert time.monotonic() - began < N * TIMEOUT_S
        mute.send_signal(signal.SIGCONT)
        eventually(lambda: service.post(session_id=session_id, max_chars=3).status_code == 200)


def test_one_command_tries_and_the_others_fail_at_once() -> None:
    """After a failure; when it succeeds all are sent again, and an error that is an answer changes nothing."""
    now = 0.0
    breaker = CircuitBreaker(lambda: now)
    sent: list[str] = []

    def command(name: str, error: Exception | None = None) -> str:
        sent.append(name)
        if error is not None:
            raise error
        return name

    with pytest.raises(redis.ResponseError):
        breaker.call(lambda: command("answered", redis.ResponseError()))
    with pytest.raises(redis.TimeoutError):
        breaker.call(lambda: command("mute", redis.TimeoutError()))
    with pytest.raises(redis.ConnectionError, match="a moment ago"):
        breaker.call(lambda: command("not sent"))
    now += PAUSE_S

    def trial() -> str:
        with pytest.raises(redis.ConnectionError, match="a moment ago"):
            breaker.call(lambda: command("beside the trial"))
        return command("trial")

    assert breaker.call(trial) == "trial"
    assert breaker.call(lambda: command("again")) == "again"
    assert sent == ["answered", "mute", "trial", "again"]
