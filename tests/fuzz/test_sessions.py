"""Damaged sessions, turns and prefix states: an error with a reason for who uses one, and nothing for anybody else."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from model.network.state import HiddenState
from model.stepper.choose import choose
from service.engine.engine import Engine
from service.errors import ServiceError
from service.generation.running import RunningGeneration
from service.generation.service import GenerationOptions, GenerationService
from service.models.manager import ModelManager
from service.schemas import GenerateRequest
from service.store.memory import MemorySessions
from service.store.prefixes import STRIDE, MemoryPrefixes, prefix_keys
from service.store.sessions import _HEAD_3, digest, new_session_id
from tests.conftest import ALPHABET, random_checkpoint
from tests.fuzz.mutation import failures, mutated, mutated_state
from tests.servers import eventually
from tests.service.engine.requests import read, request
from tests.service.models.loaded import with_engine

TINY = random_checkpoint(n_layers=2, n_hidden=6)
PROMPT = ("to be or not to be " * STRIDE)[: STRIDE + 50]


class Service:
    """A worker without HTTP, and what it has stored of three sessions."""

    def __init__(self) -> None:
        stepper, _ = choose(TINY.network(), n_slots=4)
        self.engine = Engine(stepper, TINY.vocab, TINY.fingerprint, max_waiting=20, block_s=0.001)
        self.engine.start()
        manager = ModelManager()
        manager.serve(with_engine(self.engine, stepper))
        self.store, self.prefixes = MemorySessions(1e9, 1e9), MemoryPrefixes()
        # A damaged turn may be very long: it is given little time.
        self.generation, self.hurried = (
            GenerationService(manager, self.store, self.prefixes, GenerationOptions(10**8, 60.0, 0.0, 40, max_s=s))
            for s in (60.0, 0.25)
        )
        self.neighbour = read(self.engine.submit(request(max_chars=40, seed=9)))[0]
        self.stored = [self._fields(id) for id in (self._finished(), self._interrupted(), self._constrained())]
        self.text = self._read(self.generation.generate(_body(prompt=PROMPT, max_chars=20, seed=3)))
        _, self.key = prefix_keys(TINY.fingerprint, self.engine.numerics, ALPHABET.encode(PROMPT))[-1]
        cached = self.prefixes.get_first([self.key])
        assert cached is not None
        self.prefix = cached[1]

    def _finished(self) -> str:
        first = self.generation.generate(_body(prompt="to be", max_chars=9, seed=1))
        session_id: str = first.start_info()["session_id"]
        self._read(first)
        self._read(self.generation.generate(_body(prompt="or", max_chars=30, session_id=session_id)))
        return session_id

    def _interrupted(self) -> str:
        running = self.generation.generate(_body(prompt="to be", max_chars=2000, seed=1))
        session_id: str = running.start_info()["session_id"]
        for n, _ in enumerate(running.chunks(5.0)):
            if n == 3:
                break
        running._is_over = True  # what is left of a generation whose process is killed
        running.close()
        running._policy.abandon()
        return session_id

    def _constrained(self) -> str:
        running = self.generation.generate(
            _body(prompt="to be", max_chars=30, seed=1, structured_outputs={"regex": "[a-f]{3,}!"})
        )
        session_id: str = running.start_info()["session_id"]
        self._read(running)
        return session_id

    def _fields(self, session_id: str) -> dict[str, Any]:
        name = digest(session_id)
        return {"record": self.store._records[name], **self.store._turns[name]}

    def put(self, fields: dict[str, Any]) -> str:
        """Store the fields as a session, and return its id."""
        session_id = new_session_id()
        self.store._records[digest(session_id)] = fields["record"]
        self.store._turns[digest(session_id)] = {name: value for name, value in fields.items() if name != "record"}
        return session_id

    def _read(self, running: RunningGeneration) -> str:
        try:
            text = "".join(chunk.text for chunk in running.chunks(5.0) if chunk is not None)
            running.finish()
            return text
        finally:
            running.close()

    def use(self, act: Callable[[], object]) -> None:
        """Do something while another client's text is generated.

        Raises:
            AssertionError: The other text is not what it is alone, or an error has no reason or no status.
        """
        neighbour = self.engine.submit(request(max_chars=40, seed=9))
        try:
            act()
        except ServiceError as e:
            answer = json.dumps(e.as_dict(), ensure_ascii=False, allow_nan=False).encode()
            if e.status == 500 or len(str(e)) < 10:
                raise AssertionError(f"an error without a reason: {answer.decode()}") from e
        assert read(neighbour)[0] == self.neighbour, "another client's text was changed"

    def damaged_session(self, rng: random.Random) -> Callable[[], None]:
        """Damage one field of a session or its turn, and use the session in some way."""
        fields = dict(rng.choice(self.stored))
        name = rng.choice([name for name in ("record", "turn", "start", "before", "end") if fields.get(name)])
        if name in ("record", "start", "before") and rng.random() < 0.7:
            layout, seed, length, n_generated = _HEAD_3.unpack_from(fields[name])
            state, rest = fields[name][_HEAD_3.size :][:length], fields[name][_HEAD_3.size + length :]
            state = mutated_state(state, rng)
            fields[name] = _HEAD_3.pack(layout, seed, len(state), n_generated) + state + rest
        else:
            fields[name] = mutated(fields[name], rng)
        session_id = self.put(fields)
        position = rng.randrange(60)
        acts: list[Callable[[], object]] = [
            lambda: self._read(self.hurried.generate(_body(session_id=session_id, max_chars=5))),
            lambda: self._read(
                self.hurried.generate(_body(session_id=session_id, max_chars=5, position=position, prompt="or"))
            ),
            lambda: self._read(self.hurried.resume(session_id, None)),
            lambda: self._read(self.hurried.resume(session_id, position)),
            lambda: self.hurried.fork(session_id, rng.choice((None, position)), None),
            lambda: _displayed(self.store, session_id),
        ]
        act = rng.choice(acts)
        return lambda: self.use(act)

    def damaged_prefix(self, rng: random.Random) -> Callable[[], None]:
        """Damage the cached state of a prompt; whoever sends the prompt gets the text that belongs to it."""
        state = rng.choice((mutated, mutated_state))(self.prefix, rng)
        self.prefixes.put(self.key, state)

        def act() -> None:
            text = self._read(self.generation.generate(_body(prompt=PROMPT, max_chars=20, seed=3)))
            assert text == self.text or _is_plausible(state, self.prefix), f"the prompt has another text: {text!r}"

        return lambda: self.use(act)


def _is_plausible(data: bytes, original: bytes) -> bool:
    """Whether a state differs in numbers that a state may have: nobody can tell that they are wrong."""
    state, right = HiddenState.from_bytes(data), HiddenState.from_bytes(original)
    same = (state.next_input, state.position, state.fingerprint, state.numerics)
    return same == (right.next_input, right.position, right.fingerprint, right.numerics)


def _displayed(store: MemorySessions, session_id: str) -> None:
    session, turn = store.load(session_id)
    if session is not None:
        json.dumps([session.recent_text, session.position, session.seed], ensure_ascii=False, allow_nan=False).encode()
    if turn is not None:
        json.dumps([turn.recent_before.text, turn.status], ensure_ascii=False, allow_nan=False).encode()


def _body(**fields: Any) -> GenerateRequest:
    return GenerateRequest.model_validate(fields)


@cache
def service() -> Service:
    return Service()


def test_damaged_sessions_fail_alone() -> None:
    """Sessions, turns and what belongs to them, in whatever way they are used."""
    assert failures(service().damaged_session) == []
    eventually(lambda: service().engine.in_flight == 0)


def test_damaged_prefixes_change_no_text() -> None:
    """A cached state that is damaged is read again."""
    assert failures(service().damaged_prefix) == []
    eventually(lambda: service().engine.in_flight == 0)


def test_without_the_checks_the_damage_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: with the checks of a state off, the same damage ends in internal errors."""
    monkeypatch.setattr(Engine, "check_state", lambda *_: None)
    monkeypatch.setattr(Engine, "_check", lambda *_: None)
    damaged = Service()
    assert failures(damaged.damaged_session, 200)
    damaged.engine.stop()
