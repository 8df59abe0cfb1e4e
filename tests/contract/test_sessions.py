"""What every session store promises; the same tests over memory and over a real Redis."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import cast

import numpy as np
import pytest

from model.state import HiddenState
from service.errors import SessionConflict, UnknownSession
from service.store.memory import MemorySessions
from service.store.redis import RedisSessions, connect
from service.store.sessions import Session, SessionStore, key_of, new_session_id
from tests.servers import RedisServer


@pytest.fixture(params=["memory", "redis"])
def sessions(request: pytest.FixtureRequest) -> SessionStore:
    if request.param == "memory":
        return MemorySessions(ttl_s=60)
    server: RedisServer = request.getfixturevalue("redis_server")
    return RedisSessions(connect(server.url), ttl_s=60)


def session(position: int = 7, seed: int = 3, tail: str = "früh\n") -> Session:
    values = np.random.default_rng(position).normal(size=(2, 1, 8)).astype(np.float32)
    return Session(HiddenState(values, pending=4, position=position, fingerprint="f" * 16, numerics="n"), seed, tail)


def saved(sessions: SessionStore, what: Session) -> str:
    id = new_session_id()
    token, _ = sessions.begin(id, is_new=True, lease_s=10)
    sessions.commit(id, token, what)
    return id


def test_a_session_comes_back_with_the_bits_it_had(sessions: SessionStore) -> None:
    """What is committed is what is loaded, to the bit, and so is what the next turn is given."""
    id = saved(sessions, session())
    _, begun = sessions.begin(id, is_new=False, lease_s=10)
    for found in (sessions.load(id), begun):
        assert found is not None
        assert found.to_bytes() == session().to_bytes()


def test_what_is_not_there_is_said(sessions: SessionStore) -> None:
    """An unknown session loads as None, cannot be begun, and deleting it deletes nothing."""
    id = new_session_id()
    assert sessions.load(id) is None
    assert sessions.delete(id) is False
    with pytest.raises(UnknownSession):
        sessions.begin(id, is_new=False, lease_s=10)


def test_of_two_writers_one_wins(sessions: SessionStore) -> None:
    """While one holds the lease nobody else gets it; twenty at once: one."""
    id = saved(sessions, session())
    won, lost = [], []

    def writer() -> None:
        try:
            won.append(sessions.begin(id, is_new=False, lease_s=10)[0])
        except SessionConflict:
            lost.append(1)

    threads = [threading.Thread(target=writer) for _ in range(20)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert (len(won), len(lost)) == (1, 19)
    sessions.commit(id, won[0], session(9))
    found = sessions.load(id)
    assert found is not None
    assert found.state.position == 9


def test_a_lease_that_ran_out_cannot_write(sessions: SessionStore) -> None:
    """The slow one is told, and what the quick one stored stays."""
    id = saved(sessions, session())
    slow, _ = sessions.begin(id, is_new=False, lease_s=0.05)
    time.sleep(0.1)
    quick, _ = sessions.begin(id, is_new=False, lease_s=10)
    writes: list[Callable[[], None]] = [
        lambda: sessions.commit(id, slow, session(100)),
        lambda: sessions.renew(id, slow, 10),
    ]
    for write in writes:
        with pytest.raises(SessionConflict):
            write()
    sessions.abandon(id, slow)
    sessions.commit(id, quick, session(8))
    found = sessions.load(id)
    assert found is not None
    assert found.state.position == 8


def test_a_renewed_lease_lasts(sessions: SessionStore) -> None:
    """A turn that takes longer than its lease keeps it by asking."""
    id = saved(sessions, session())
    token, _ = sessions.begin(id, is_new=False, lease_s=0.2)
    for _ in range(4):
        time.sleep(0.1)
        sessions.renew(id, token, 0.2)
    sessions.commit(id, token, session(8))


def test_an_abandoned_turn_leaves_the_session_as_it_was(sessions: SessionStore) -> None:
    """After abandon, the session is free at once and unchanged; abandoning again is nothing."""
    id = saved(sessions, session())
    token, _ = sessions.begin(id, is_new=False, lease_s=10)
    sessions.abandon(id, token)
    sessions.abandon(id, token)
    token, begun = sessions.begin(id, is_new=False, lease_s=10)
    assert begun is not None
    assert begun.to_bytes() == session().to_bytes()


def test_a_new_session_that_was_abandoned_never_was(sessions: SessionStore) -> None:
    """Nothing is stored before the first commit."""
    id = new_session_id()
    token, begun = sessions.begin(id, is_new=True, lease_s=10)
    assert begun is None
    sessions.abandon(id, token)
    assert sessions.load(id) is None


def test_deleting_forgets_all(sessions: SessionStore) -> None:
    """A deleted session is gone for its readers and its running writer."""
    id = saved(sessions, session())
    token, _ = sessions.begin(id, is_new=False, lease_s=10)
    assert sessions.delete(id) is True
    assert sessions.load(id) is None
    with pytest.raises(SessionConflict):
        sessions.commit(id, token, session(8))
    assert sessions.load(id) is None


def test_sessions_expire(redis_server: RedisServer) -> None:
    """A session that nobody uses for its time to live is forgotten; use starts the time anew."""
    for store in (MemorySessions(ttl_s=1), RedisSessions(connect(redis_server.url), ttl_s=1)):
        used, unused = saved(store, session()), saved(store, session())
        for _ in range(3):
            time.sleep(0.5)
            assert store.load(used) is not None
        assert store.load(unused) is None


def test_nobody_gets_a_session_by_looking_into_redis(redis_server: RedisServer) -> None:
    """Keys hold a digest of the session's id, never the id."""
    client = connect(redis_server.url)
    id = saved(RedisSessions(client, ttl_s=60), session())
    keys = [bytes(k).decode() for k in cast(list[bytes], client.keys("*"))]
    assert f"lh:{{{key_of(id)}}}" in keys
    assert not any(id in k for k in keys)
