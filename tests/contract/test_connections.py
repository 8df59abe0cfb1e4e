"""The edges of connecting: passwords and addresses of every kind, servers that cannot be used, failovers, closing."""

from __future__ import annotations

import gc
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
import redis
from rq.utils import utcformat

from service.access.limits import RateLimiter
from service.errors import RateLimited, SessionBusy, StoreUnavailable
from service.jobs.worker import worker_alive
from service.redis_url import check_url, sentinel_parts
from service.settings import SettingsError
from service.store import redis_server as server_check
from service.store.connect import close, connect
from service.store.redis import RedisSessions
from service.store.redis_server import find_server_program
from service.store.sessions import digest, new_session_id
from tests.contract.servers import Processes, oldest_redis, start_cluster, start_sentinel
from tests.contract.test_sessions import loaded, saved, session
from tests.servers import ROOT, RedisServer, Worker, eventually

SPECIAL = "p@ss:w/o%rd?#[ü"


@pytest.fixture
def processes() -> Iterator[Processes]:
    processes = Processes(find_server_program())
    yield processes
    processes.remove()


@pytest.fixture(scope="module")
def lasting() -> Iterator[Processes]:
    """Processes that no test ends: a cluster takes seconds before it answers."""
    processes = Processes(find_server_program())
    yield processes
    processes.remove()


@pytest.fixture(scope="module")
def urls(lasting: Processes) -> dict[str, str]:
    """The addresses of servers of every kind, whose password has characters that a URL may not have."""
    port, admin = lasting.start()
    admin.config_set("requirepass", SPECIAL)
    one, cluster = f"redis://127.0.0.1:{port}", start_cluster(lasting, SPECIAL)
    return {
        way: _in(url, SPECIAL)
        for way, url in (("one", one), ("cluster", cluster), ("sentinel", start_sentinel(lasting, SPECIAL)))
    }


def _in(url: str, password: str, user: str = "") -> str:
    """Put a user and a password into a URL, percent-encoded."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{quote(user, safe='')}:{quote(password, safe='')}@{rest.rpartition('@')[2]}"


def _start(url: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Start the service on a Redis with which it cannot work, and wait for its end."""
    settings = {**os.environ, "REDIS_URL": url, "PORT": "1", **environment}
    command = [sys.executable, "-m", "service.server"]
    return subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("way", ["one", "cluster", "sentinel"])
def test_a_password_of_any_characters(urls: dict[str, str], way: str) -> None:
    """Percent-encoded in the URL, it opens every kind of server, to the sessions and to the rate limiter."""
    url = urls[way]
    check_url(url)
    client = connect(url)
    store = RedisSessions(client, ttl_s=60, turn_ttl_s=60)
    assert loaded(store, saved(store, session(9))).position == 9
    clients = [client, connect(url)]
    one, other = (RateLimiter("2/hour", element) for element in clients)
    for limiter in (one, other):
        limiter.require_working("RATE_LIMIT")
        limiter.hit("shared")
    with pytest.raises(RateLimited):
        one.hit("shared")
    for element in clients:
        close(element)


def test_parts_of_a_sentinel_url() -> None:
    """User, password and service are decoded; IPv6 addresses are in brackets; what would be ignored is refused."""
    sentinels, service, options = sentinel_parts("redis+sentinel://us%40er:p%2Fw@a,[::1]:5,c:7/my%20master/3")
    assert sentinels == [("a", 26379), ("::1", 5), ("c", 7)]
    assert service == "my master"
    assert options == {"db": 3, "username": "us@er", "password": "p/w"}
    assert sentinel_parts("redis+sentinel://[::1],[fe80::1]:5/m")[0] == [("::1", 26379), ("fe80::1", 5)]
    assert sentinel_parts("redis+sentinel://a,b/NAME")[2] == {"db": 0, "username": None, "password": None}
    for url in ("a/", "a/m/x", "a,,b/m", "a:port/m", "[::1/m", ":secret@a/m?ssl=true", ":secret@a/m#1"):
        with pytest.raises(ValueError, match=r".") as error:
            check_url(f"redis+sentinel://{url}")
        assert "secret" not in str(error.value)


def test_one_of_several_sentinels_is_enough(urls: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate is limited through the sentinel that answers; the one that does not costs no second."""
    url = urls["sentinel"].replace("@127", "@127.0.0.1:1,127")
    pauses_s: list[float] = []
    monkeypatch.setattr("redis.retry.sleep", pauses_s.append)
    client = connect(url)
    limiter = RateLimiter("1/hour", client)
    limiter.hit("client")
    with pytest.raises(RateLimited):
        limiter.hit("client")
    assert sum(pauses_s) < 1
    close(client)


@pytest.mark.parametrize("scheme", ["redis+cluster", "rediss+cluster", "a user without rights", "a wrong password"])
def test_a_start_that_cannot_work_ends_with_one_line(processes: Processes, scheme: str) -> None:
    """A cluster that does not answer, a refused password, a limiter that may not count: the reason, and no secret."""
    secret = secrets.token_hex(8)
    port, client = processes.start()
    if "cluster" in scheme:
        url, expected = f"{scheme}://:{secret}@127.0.0.1:1", "REDIS_URL=...: the server cannot be used"
    elif scheme == "a wrong password":
        client.config_set("requirepass", "another")
        url, expected = f"redis://:{secret}@127.0.0.1:{port}", "REDIS_URL: the server refuses the user or the password"
    else:
        client.acl_setuser("reader", enabled=True, passwords=[f"+{secret}"], categories=["+@all", "-@scripting"])
        url, expected = f"redis://reader:{secret}@127.0.0.1:{port}", "RATE_LIMIT: the Redis of REDIS_URL cannot count"
    ended = _start(url, RATE_LIMIT="3/hour")
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"error   {expected}")
    assert ended.stderr.count("\n") == 1
    assert secret not in ended.stderr + ended.stdout


def test_an_old_server_is_named(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its version and the one that is needed, beside the setting."""
    monkeypatch.setattr(server_check, "MINIMUM_VERSION", (99, 1))
    with pytest.raises(SettingsError, match=r"JOBS_REDIS_URL: the server is Redis .*; expected 99.1 or newer"):
        server_check.require_usable("JOBS_REDIS_URL", redis_server.url)


def test_a_cluster_that_is_gone(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions answer that the store is unavailable, which is a 503; the rate limiter lets everyone pass."""
    monkeypatch.setattr("service.store.connect.PAUSE_S", 0.1)
    url = start_cluster(processes)
    client = connect(url)
    store, limiter = RedisSessions(client, ttl_s=60, turn_ttl_s=60), RateLimiter("1/hour", client)
    id = saved(store, session())
    processes.kill()
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            store.load(id)
        limiter.hit("client")
        time.sleep(0.1)  # so long the store does not ask the servers again
    close(client)


@pytest.mark.parametrize("way", ["one", "cluster", "sentinel"])
def test_a_closed_client_leaves_no_connection_open(urls: dict[str, str], way: str) -> None:
    """Neither to the server, nor to the node that named the cluster's nodes, nor to a sentinel."""
    url = urls[way]
    gc.collect()
    gc.disable()  # it would close what was left open
    try:
        before = _sockets()
        client = connect(url)
        client.set("key", "value")
        assert len(_sockets()) > len(before)
        close(client)
        assert _sockets() == before
    finally:
        gc.enable()


def _sockets() -> set[str]:
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            links.append(os.readlink(entry))
        except OSError:  # the descriptor of the listing itself
            continue
    return {link for link in links if link.startswith("socket:")}


def _is_limited(limiter: RateLimiter) -> bool:
    try:
        limiter.hit("client")
    except RateLimited:
        return True
    return False


class Address:
    """An address that moves from one server to another, as a service name of a managed Redis does.

    New connections go to the current server; those that are open stay with theirs.
    """

    def __init__(self, folder: Path) -> None:
        self._link = folder / "current.sock"
        self.url = f"unix://{self._link}"

    def point_to(self, socket: Path) -> None:
        new = self._link.with_suffix(".new")
        new.symlink_to(socket)
        new.rename(self._link)


@pytest.mark.parametrize("kind", ["valkey", "redis"])
def test_sessions_are_back_after_a_failover(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    """An open connection to the old primary answers READONLY and is dropped; no call fails once the address moved."""
    program = find_server_program() if kind == "valkey" else oldest_redis()
    processes, address = Processes(program), Address(tmp_path)
    request.addfinalizer(processes.remove)
    sockets = [tmp_path / "a.sock", tmp_path / "b.sock"]
    options = ["--appendonly", "no", "--repl-diskless-sync-delay", "0"]  # no wait for more replicas
    (port, first), (_, second) = (processes.start(*options, "--unixsocket", str(s)) for s in sockets)
    second.replicaof("127.0.0.1", port)
    eventually(lambda: second.info("replication")["master_link_status"] == "up")
    address.point_to(sockets[0])
    client = connect(address.url)
    store, limiter = RedisSessions(client, ttl_s=60, turn_ttl_s=60), RateLimiter("2/hour", client)
    id = saved(store, session(5))
    limiter.hit("client")
    assert first.wait(1, 5000) == 1
    # The swap: from now on the old primary answers every write of an open connection with READONLY.
    second.replicaof("NO", "ONE")
    address.point_to(sockets[1])
    first.replicaof("127.0.0.1", int(second.connection_pool.connection_kwargs["port"]))
    assert loaded(store, id).position == 5
    assert loaded(store, saved(store, session(7))).position == 7
    eventually(lambda: _is_limited(limiter))
    assert client.info("replication")["role"] == "master"
    close(client)


def test_a_lease_does_not_grow_when_the_clock_is_set_back(redis_server: RedisServer) -> None:
    """An hour less on Redis's clock is an hour more on the lease of a dead process: it counts as ended; others hold."""
    client = connect(redis_server.url)
    store, id = RedisSessions(client, ttl_s=60, turn_ttl_s=60), new_session_id()
    store.acquire(id, is_new=True, lease_s=10)
    with pytest.raises(SessionBusy):
        store.acquire(id, is_new=True, lease_s=10)
    client.hincrby(f"lh:{{{digest(id)}}}:turn", "until", 3_600_000)
    assert store.acquire(id, is_new=True, lease_s=10).token
    with pytest.raises(SessionBusy):
        store.acquire(id, is_new=True, lease_s=1)
    close(client)


def test_a_heartbeat_from_the_future_is_none(empty_redis: redis.Redis, redis_server: RedisServer) -> None:
    """After the clock was set back, a worker that died before does not count as alive until that hour has passed."""
    worker = Worker(REDIS_URL=redis_server.url)
    worker.start()
    eventually(lambda: worker_alive(empty_redis))
    worker.kill()
    (key,) = empty_redis.keys("rq:worker:*")
    for hours, is_alive in ((0, True), (1, False), (-1, False)):
        empty_redis.hset(key, "last_heartbeat", utcformat(datetime.now(UTC) + timedelta(hours=hours)))
        assert worker_alive(empty_redis) is is_alive
