"""What every session store promises; the same tests over memory and real Redises: one, a cluster, by a sentinel."""

from __future__ import annotations

import contextlib
import json
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from model.errors import StateError
from model.network.sampling import SamplingParams
from model.network.state import HiddenState
from service.errors import KeyReused, SessionBusy, SessionConflict, UnknownSession, UnreadableSession
from service.settings import SettingsError
from service.store.connect import close, connect
from service.store.memory import MemorySessions
from service.store.redis import RedisSessions
from service.store.redis_server import find_server_program, require_supported_version
from service.store.sessions import Session, SessionStore, TurnRecord, digest, new_session_id, new_token
from tests.contract.servers import Processes, oldest_redis, start_cluster, start_sentinel
from tests.servers import RedisServer


@pytest.fixture(scope="module")
def valkey_urls() -> Iterator[dict[str, str]]:
    """Yield the addresses of the embedded Valkey: one server, a cluster, and a master behind a sentinel."""
    yield from _running(find_server_program())


@pytest.fixture(scope="module")
def redis_urls() -> Iterator[dict[str, str]]:
    """Yield the same addresses of the oldest Redis that is supported."""
    yield from _running(oldest_redis())


def _running(program: str) -> Iterator[dict[str, str]]:
    server, processes = RedisServer(program=program), Processes(program)
    try:
        server.start()
        yield {"one": server.url, "cluster": start_cluster(processes), "sentinel": start_sentinel(processes)}
    finally:
        processes.remove()
        server.remove()


_STORES = ["memory", *(f"{server} {way}" for server in ("valkey", "redis") for way in ("one", "cluster", "sentinel"))]


@dataclass
class Kind:
    """One kind of store."""

    make: Callable[..., SessionStore]  # ttl_s, turn_ttl_s
    pass_time: Callable[[float], None]  # so many seconds, on the store's clock


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def advance(self, seconds: float) -> None:
        self.now += seconds


@contextlib.contextmanager
def _kind(request: pytest.FixtureRequest, store: str) -> Iterator[Kind]:
    if store == "memory":
        clock = Clock()
        yield Kind(lambda ttl_s=60, turn_ttl_s=60: MemorySessions(ttl_s, turn_ttl_s, lambda: clock.now), clock.advance)
        return
    server, way = store.split()
    client = connect(request.getfixturevalue(f"{server}_urls")[way])
    require_supported_version(client)
    pass_time = time.sleep  # a real Redis has no other clock
    yield Kind(lambda ttl_s=60, turn_ttl_s=60: RedisSessions(client, ttl_s, turn_ttl_s), pass_time)
    close(client)


@pytest.fixture(params=_STORES)
def kind(request: pytest.FixtureRequest) -> Iterator[Kind]:
    with _kind(request, request.param) as kind:
        yield kind


@pytest.fixture(params=["memory", "valkey", "redis"])
def kinds(request: pytest.FixtureRequest) -> Iterator[list[Kind]]:
    """All the stores of one server, for which a test waits once."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(_kind(request, store)) for store in _STORES if store.startswith(request.param)]


@pytest.fixture
def sessions(kind: Kind) -> SessionStore:
    return kind.make()


def session(position: int = 7, seed: int = 3, recent_text: str = "früh\n") -> Session:
    values = np.random.default_rng(position).normal(size=(2, 1, 8)).astype(np.float32)
    state = HiddenState(values, next_input=4, position=position, fingerprint="f" * 16, numerics="n")
    return Session(state, seed, recent_text, generated=0b01101)


def record(start: int = 0, **more: Any) -> TurnRecord:
    sampling = SamplingParams(0.9, top_k=3)
    made = {"start_position": start, "prompt": "é", "max_chars": 50, "sampling": sampling, "stop": ["ü"], "seed": 3}
    made |= {"fingerprint": "f" * 16, "numerics": "n"}
    return TurnRecord(**{**made, **more})


def saved(sessions: SessionStore, what: Session, key: str = "") -> str:
    id = new_session_id()
    token = sessions.acquire(id, is_new=True, lease_s=10).token
    assert sessions.begin(id, token, record(key=key), None, 10)
    assert sessions.commit(id, token, what, "length")
    return id


def loaded(sessions: SessionStore, id: str) -> Session:
    session, _ = sessions.load(id)
    assert session is not None
    return session


def test_a_session_comes_back_with_the_bits_it_had(sessions: SessionStore) -> None:
    """What is committed is what is loaded, to the bit, and so is what the next turn is given, and the turn itself."""
    id = saved(sessions, session())
    leased = sessions.acquire(id, lease_s=10)
    for result in (loaded(sessions, id), leased.session):
        assert result is not None
        assert result.to_bytes() == session().to_bytes()
    assert leased.turn is not None
    assert (leased.turn.record, leased.turn.start, leased.turn.finish_reason) == (record(), None, "length")


def test_a_session_says_its_model(sessions: SessionStore) -> None:
    """Also before its first save, by the turn that runs; without a name, and where there is nothing, the default."""
    assert sessions.model_of(new_session_id()) is None
    assert sessions.model_of(saved(sessions, session())) == "default"
    assert session().to_bytes()[0] == 3  # as before there were names: versions can be mixed and rolled back
    assert b'"model"' not in record().to_bytes()
    id = new_session_id()
    token = sessions.acquire(id, is_new=True, lease_s=10).token
    sessions.begin(id, token, record(model="names-of-places"), None, 10)
    assert sessions.model_of(id) == "names-of-places"
    named = replace(session(), model="n" * 63)
    sessions.commit(id, token, named, "length")
    assert sessions.model_of(id) == "n" * 63
    assert loaded(sessions, id).to_bytes() == named.to_bytes()
    assert loaded(sessions, id).recent_text == named.recent_text


def test_what_is_not_there_is_said(sessions: SessionStore) -> None:
    """An unknown session loads as None, cannot be acquired, and deleting it deletes nothing."""
    id = new_session_id()
    assert sessions.load(id)[0] is None
    assert sessions.delete(id) is False
    for force in (False, True):
        with pytest.raises(UnknownSession):
            sessions.acquire(id, lease_s=10, force=force)


def test_of_two_writers_one_wins(sessions: SessionStore) -> None:
    """While one holds the lease nobody else gets it; twenty at once: one."""
    id = saved(sessions, session())
    won, lost = [], []

    def writer() -> None:
        try:
            won.append(sessions.acquire(id, lease_s=10).token)
        except SessionConflict:
            lost.append(1)

    threads = [threading.Thread(target=writer) for _ in range(20)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert (len(won), len(lost)) == (1, 19)
    assert sessions.commit(id, won[0], session(9), "length")
    assert loaded(sessions, id).position == 9


@pytest.mark.parametrize("how", ["its lease ran out", "by force", "by the turn's own key"])
def test_who_was_taken_over_cannot_write(kind: Kind, how: str) -> None:
    """The old one is told at its next write of any kind, and what the new one stores stays."""
    sessions = kind.make()
    id = saved(sessions, session())
    old = sessions.acquire(id, lease_s=10).token
    sessions.begin(id, old, record(7, key="k" * 32), session(), 0.05 if how == "its lease ran out" else 10)
    if how == "its lease ran out":
        kind.pass_time(0.1)
    new = sessions.acquire(id, lease_s=10, force=how == "by force", key="k" * 32 if "key" in how else "").token
    writes: list[Callable[[], object]] = [
        lambda: sessions.commit(id, old, session(100), "length"),
        lambda: sessions.save(id, old, session(100), 10),
        lambda: sessions.renew(id, old, 10),
        lambda: sessions.begin(id, old, record(100), None, 10),
    ]
    for write in writes:
        with pytest.raises(SessionConflict):
            write()
    sessions.abandon(id, old)
    assert sessions.commit(id, new, session(8), "length")
    assert loaded(sessions, id).position == 8


def test_a_renewed_lease_lasts(kinds: list[Kind]) -> None:
    """A turn that takes longer than its lease keeps it by renewing it, and by saving."""
    lease_s = 2.0
    turns = []
    for kind in kinds:
        sessions = kind.make()
        id = saved(sessions, session())
        turns.append((sessions, id, sessions.acquire(id, lease_s=lease_s).token))
    for way in ("renew", "save", "renew"):
        kinds[0].pass_time(lease_s * 0.4)
        for sessions, id, token in turns:
            if way == "renew":
                assert sessions.renew(id, token, lease_s)
            else:
                assert sessions.save(id, token, session(8), lease_s)
            with pytest.raises(SessionConflict):
                sessions.acquire(id, lease_s=1)


def test_an_interrupted_turn_leaves_what_resuming_it_needs(kind: Kind) -> None:
    """After two saves and a death: its record, the state before it, the last save and the one before."""
    sessions = kind.make()
    id = saved(sessions, session(7))
    token = sessions.acquire(id, lease_s=10).token
    sessions.begin(id, token, record(7), session(7), 10)
    assert sessions.save(id, token, session(20), 10)
    _, turn = sessions.load(id)
    assert turn is not None
    assert (turn.is_running, turn.status) == (True, "running")
    assert sessions.save(id, token, session(30), 0.05)
    kind.pass_time(0.1)
    _, turn = sessions.load(id)
    assert turn is not None
    assert (turn.is_running, turn.status) == (False, "interrupted")
    leased = sessions.acquire(id, lease_s=10)
    assert leased.turn is not None
    assert leased.turn.record == record(7)
    assert leased.turn.finish_reason == ""
    positions = [s.position if s else None for s in (leased.turn.start, leased.turn.previous_save, leased.session)]
    assert positions == [7, 20, 30]


def test_a_turn_that_begins_elsewhere_takes_the_session_there(sessions: SessionStore) -> None:
    """A rewound turn: from its begin on, no state of the branch that was left is to be found."""
    id = saved(sessions, session(50))
    token = sessions.acquire(id, lease_s=10).token
    sessions.begin(id, token, record(7), session(7), 10)
    assert loaded(sessions, id).position == 7
    sessions.abandon(id, token)
    token = sessions.acquire(id, lease_s=10).token
    sessions.begin(id, token, record(0), None, 10)
    assert sessions.load(id)[0] is None


def test_an_abandoned_lease_leaves_all_as_it_was(sessions: SessionStore) -> None:
    """Free at once and unchanged, the remembered turn too; abandoning again is nothing."""
    id = saved(sessions, session())
    token = sessions.acquire(id, lease_s=10).token
    sessions.abandon(id, token)
    sessions.abandon(id, token)
    leased = sessions.acquire(id, lease_s=10)
    assert leased.session is not None
    assert leased.session.to_bytes() == session().to_bytes()
    assert leased.turn is not None
    assert leased.turn.record == record()


def test_a_new_session_that_was_abandoned_never_was(sessions: SessionStore) -> None:
    """Nothing is stored before the turn begins."""
    id = new_session_id()
    leased = sessions.acquire(id, is_new=True, lease_s=10)
    assert (leased.session, leased.turn) == (None, None)
    sessions.abandon(id, leased.token)
    assert sessions.load(id)[0] is None
    with pytest.raises(UnknownSession):
        sessions.acquire(id, lease_s=10)


@pytest.mark.parametrize("is_created", [False, True])
def test_a_session_may_begin_with_its_turn(sessions: SessionStore, is_created: bool) -> None:
    """With a random id, one write does what a lease and a turn's beginning do: all that follows is the same."""
    id, token = new_session_id(), new_token()
    if is_created:
        sessions.create_turn(id, token, record(), 10)
    else:
        token = sessions.acquire(id, is_new=True, lease_s=10).token
        assert sessions.begin(id, token, record(), None, 10)
    session_, turn = sessions.load(id)
    assert session_ is None
    assert turn is not None
    assert (turn.record, turn.start, turn.previous_save, turn.status) == (record(), None, None, "running")
    with pytest.raises(SessionBusy):
        sessions.acquire(id, lease_s=10)
    with pytest.raises(SessionConflict):
        sessions.renew(id, "of another", 10)
    assert sessions.renew(id, token, 10)
    assert sessions.save(id, token, session(8), 10)
    assert sessions.save(id, token, session(9), 10)
    other = sessions.acquire(id, lease_s=10, force=True)
    assert other.turn is not None
    assert other.turn.previous_save is not None
    assert (other.session is not None, other.turn.previous_save.position) == (True, 8)
    with pytest.raises(SessionConflict):
        sessions.commit(id, token, session(9), "length")
    assert sessions.commit(id, other.token, session(9), "length")
    assert sessions.acquire(id, lease_s=10).has_key is False


def test_a_turn_that_is_discarded_leaves_nothing(sessions: SessionStore) -> None:
    """Neither its prompt nor its key; the session is where it was, and one that began with the turn never was."""
    a, b = "a" * 32, "b" * 32
    id = saved(sessions, session(), key=a)
    token = sessions.acquire(id, lease_s=10).token
    assert sessions.begin(id, token, record(7, key=b), session(), 10)
    sessions.discard(id, "of another")
    assert sessions.load(id)[1] is not None
    sessions.discard(id, token)
    sessions.discard(id, token)
    assert loaded(sessions, id).to_bytes() == session().to_bytes()
    assert sessions.load(id)[1] is None
    for key, is_known in ((a, True), (b, False)):
        leased = sessions.acquire(id, lease_s=10, key=key)
        assert (leased.turn, leased.has_key) == (None, is_known)
        sessions.abandon(id, leased.token)
    new = new_session_id()
    token = sessions.acquire(new, is_new=True, lease_s=10).token
    sessions.begin(new, token, record(), None, 10)
    sessions.discard(new, token)
    assert sessions.load(new) == (None, None)
    assert sessions.delete(new) is False


def test_committing_twice_is_committing_once(sessions: SessionStore) -> None:
    """A commit whose answer was lost may be sent again."""
    id = saved(sessions, session())
    token = sessions.acquire(id, lease_s=10).token
    sessions.begin(id, token, record(7), session(), 10)
    for _ in range(2):
        assert sessions.commit(id, token, session(9), "stop")
    assert loaded(sessions, id).position == 9


def test_deleting_forgets_all(sessions: SessionStore) -> None:
    """A deleted session is gone for its readers; its running writer is told that nothing is there."""
    id = saved(sessions, session())
    token = sessions.acquire(id, lease_s=10).token
    sessions.begin(id, token, record(7), session(), 10)
    assert sessions.delete(id) is True
    assert sessions.load(id)[0] is None
    assert sessions.save(id, token, session(8), 10) is False
    assert sessions.commit(id, token, session(8), "length") is False
    assert sessions.load(id)[0] is None


def test_keys_of_earlier_turns_are_known(sessions: SessionStore) -> None:
    """The last turn's key and those before are remembered; another's is not."""
    a, b, c = "a" * 32, "b" * 32, "c" * 32
    id = saved(sessions, session(), key=a)
    leased = sessions.acquire(id, lease_s=10, key=a)
    assert leased.turn is not None
    assert (leased.turn.record.key, leased.has_key) == (a, True)
    sessions.begin(id, leased.token, record(7, key=b), session(), 10)
    sessions.commit(id, leased.token, session(8), "length")
    leased = sessions.acquire(id, lease_s=10, key=a)
    assert leased.turn is not None
    assert (leased.turn.record.key, leased.has_key) == (b, True)
    sessions.abandon(id, leased.token)
    assert sessions.acquire(id, lease_s=10, key=c).has_key is False


def test_a_key_of_another_request_takes_nothing_over(sessions: SessionStore) -> None:
    """It is compared before the lease is taken, so the running turn writes on; the same request takes over."""
    key = "k" * 32
    id = saved(sessions, session())
    running = sessions.acquire(id, lease_s=10).token
    assert sessions.begin(id, running, record(7, key=key, request="one"), session(), 10)
    for request in ("another", ""):
        with pytest.raises(KeyReused, match="used for another request"):
            sessions.acquire(id, lease_s=10, key=key, request=request)
    assert sessions.save(id, running, session(8), 10)
    again = sessions.acquire(id, lease_s=10, key=key, request="one")
    assert again.token != running
    with pytest.raises(SessionConflict):
        sessions.save(id, running, session(9), 10)


def test_a_salt_is_made_once(sessions: SessionStore) -> None:
    """Whoever asks first makes it, twenty at once: all get the same; another key has another."""
    key, salts = digest(new_session_id()), []
    threads = [threading.Thread(target=lambda: salts.append(sessions.idempotency_salt(key))) for _ in range(20)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(set(salts)) == 1
    assert sessions.idempotency_salt(digest(new_session_id())) != salts[0]


def test_a_fork_is_a_session(sessions: SessionStore) -> None:
    """What is created can be loaded and acquired, with no turn to remember."""
    id = new_session_id()
    sessions.create(id, session(12))
    assert loaded(sessions, id).position == 12
    assert sessions.acquire(id, lease_s=10).turn is None


def test_sessions_and_turns_expire(kinds: list[Kind]) -> None:
    """What nobody uses for its time to live is forgotten; use starts a session's time anew, not its turn's."""
    stores = [kind.make(ttl_s=2, turn_ttl_s=1) for kind in kinds]
    ids = [(saved(store, session()), saved(store, session())) for store in stores]
    for _ in range(5):
        kinds[0].pass_time(0.5)
        for store, (used, _unused) in zip(stores, ids, strict=True):
            loaded(store, used)
    for store, (used, unused) in zip(stores, ids, strict=True):
        assert store.load(used)[1] is None
        assert store.load(unused) == (None, None)


def test_nobody_gets_a_session_by_looking_into_redis(redis_server: RedisServer) -> None:
    """Keys hold a digest of the session's id, never the id."""
    client = connect(redis_server.url)
    id = saved(RedisSessions(client, ttl_s=60, turn_ttl_s=60), session())
    keys = [k.decode() for k in client.keys("*")]
    assert f"lh:{{{digest(id)}}}" in keys
    assert not any(id in k for k in keys)


def test_older_layouts_are_read() -> None:
    """Records of layouts 1 and 2, as earlier versions wrote them, are the same session; an unknown layout is named."""
    new = replace(session(), generated=0)
    state, recent_text = new.state.to_bytes(), new.recent_text.encode()
    header = json.dumps({"seed": 3, "state_bytes": len(state)}).encode()
    old = Session.from_bytes(struct.pack("<BH", 1, len(header)) + header + state + recent_text)
    assert old.to_bytes() == new.to_bytes()
    old = Session.from_bytes(struct.pack("<BQI", 2, 3, len(state)) + state + recent_text)
    assert old.to_bytes() == new.to_bytes()
    with pytest.raises(StateError, match=r"layout '63', expected one of \[1, 2, 3, 4\]"):
        Session.from_bytes(b"c" + new.to_bytes())


@pytest.mark.parametrize("version", ["6.0.20", "5.0.7"])
def test_an_older_redis_is_refused_by_its_version(version: str) -> None:
    """A server below 6.2 is an error that names its version; one that cannot be reached is not an error yet."""

    class OldServer:
        def info(self, section: str) -> dict[str, str]:
            return {"redis_version": version}

    with pytest.raises(SettingsError, match=f"Redis {version}; expected 6.2 or newer"):
        require_supported_version(OldServer())
    require_supported_version(connect("unix:///nowhere/redis.sock"))


@pytest.mark.parametrize("cut", [0, 1, 5, 20, 100])
def test_damaged_records_are_refused(cut: int) -> None:
    """Cut anywhere, a record raises StateError and nothing else."""
    with pytest.raises(StateError):
        Session.from_bytes(session().to_bytes()[:cut])
    with pytest.raises(StateError):
        TurnRecord.from_bytes(record().to_bytes()[:cut])


def test_an_unreadable_session_is_refused_and_can_be_deleted(redis_server: RedisServer) -> None:
    """A layout of a later version: 409, by every operation that reads; no lease is left, and deleting works."""
    client = connect(redis_server.url)
    sessions = RedisSessions(client, ttl_s=60, turn_ttl_s=60)
    id = saved(sessions, session())
    client.set(f"lh:{{{digest(id)}}}", b"\x63" + session().to_bytes()[1:])
    for read in (lambda: sessions.load(id), lambda: sessions.acquire(id, lease_s=10)):
        with pytest.raises(UnreadableSession, match="layout '63', expected one of"):
            read()
    assert client.hget(f"lh:{{{digest(id)}}}:turn", "until") == b"0"
    assert sessions.delete(id)
    client.close()
