"""Random operations on sessions against a plain oracle: a session is nothing but its text, its seed and its model.

`pytest tests/service/generation/test_sessions_stateful.py --hypothesis-profile=many` runs 10,000 sequences, not 60.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, multiple, rule

from model.checkpoints.file_format import Checkpoint
from model.network.penalties import prompt_codes
from model.network.sampling import SamplingParams
from model.stepper.choose import choose
from model.stepper.generate import write
from model.structured_outputs.specification import StructuredOutputs
from service.engine.engine import Engine
from service.errors import NoTurn, SessionConflict, TurnInterrupted, UnknownSession
from service.generation.running import RunningGeneration
from service.generation.service import GenerationOptions, GenerationService
from service.models.loaded_model import LoadedModel
from service.models.manager import ModelManager
from service.schemas import GenerateRequest
from service.store.memory import MemorySessions
from service.store.prefixes import MemoryPrefixes
from tests.conftest import ALPHABET, random_checkpoint
from tests.servers import eventually
from tests.service.models.loaded import with_engine

MODELS = [random_checkpoint(n_layers=1, n_hidden=6, seed=s) for s in (1, 2)]
RECENT_TEXT_CHARS = 40


def start_engine(checkpoint: Checkpoint) -> Engine:
    stepper, _ = choose(checkpoint.network(), n_slots=4)
    engine = Engine(stepper, checkpoint.vocab, checkpoint.fingerprint, max_waiting=20, block_s=0.002)
    # Blocks of a fixed length: what has been saved when a worker dies must not depend on the clock.
    engine._scheduler._steps_in = lambda seconds: 3  # type: ignore[method-assign]
    engine.start()
    return engine


@cache
def engines() -> list[list[Engine]]:
    """[worker][model]; they are kept for all sequences of operations."""
    return [[start_engine(checkpoint) for checkpoint in MODELS] for _ in range(2)]


class Model(LoadedModel):
    """A model whose engine is used again after it has been freed."""

    def free(self) -> None:
        assert self.n_leases == 0
        assert self._on_freed is not None
        self._on_freed(self)


ALONE = [choose(checkpoint.network(), n_slots=1)[0] for checkpoint in MODELS]


Form = str | None
FORMS = {
    pattern: StructuredOutputs("regex", pattern).compile(ALPHABET)
    for pattern in ("[a-e]{2,7}!?", "(?:[a-m] |[n-z]{3})*", "tea|coffee")
}
"""Structured outputs of turns, as far as their length allows them."""


@dataclass
class Plain:
    """The oracle's session: what its model has read, from which position, and the text as its client sees it."""

    id: str
    seed: int
    model: int
    read: str = ""
    read_from: int = 0
    text: str = ""
    turn_start: int = 0  # the last turn can be put back to here
    before: tuple[str, int, int] = ("", 0, 0)  # read, read_from, model before the last turn
    prompt: str = ""
    payload: dict[str, Any] = field(default_factory=dict)
    interrupted: bool = False
    codes: list[int] = field(default_factory=list)  # of `text`, for penalties: what was generated, what was read

    def next(self, model: int, prompt: str, n: int, params: SamplingParams, form: Form = None) -> str:
        """What must come after `prompt`; begins the oracle's turn."""
        self.before = (self.read, self.read_from, self.model)
        if model != self.model:
            self.read = self.text[-RECENT_TEXT_CHARS:]
            self.read_from = len(self.text) - len(self.read)
            self.model = model
        self.turn_start, self.prompt = len(self.text), prompt
        before = self.codes + prompt_codes(ALPHABET.encode(prompt)).tolist()
        automaton = None if form is None or FORMS[form].shortest > n else FORMS[form]
        alone = write(
            *(ALONE[model], ALPHABET, self.read + prompt, n, params, self.seed),
            start=self.read_from,
            before=before,
            automaton=automaton,
        )
        return "".join(alone)

    def record(self, generated: str, prompt: str = "") -> None:
        self.read += prompt + generated
        self.text += prompt + generated
        self.codes += prompt_codes(ALPHABET.encode(prompt)).tolist() + ALPHABET.encode(generated).tolist()

    def back_to(self, position: int) -> None:
        """Forget what came after a position of the last turn."""
        cut = len(self.text) - position
        self.text = self.text[:position]
        self.codes = self.codes[:position]
        if position == self.turn_start:
            self.read, self.read_from, self.model = self.before
        elif cut:
            self.read = self.read[:-cut]


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    top_k=st.sampled_from([0, 3]),
    top_p=st.sampled_from([0.8, 1.0]),
    typical_p=st.sampled_from([0.6, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, 0.7]),
    presence_penalty=st.sampled_from([0.0, 1.0]),
    penalty_window=st.sampled_from([3, RECENT_TEXT_CHARS]),
)
TEXT = st.text(st.sampled_from(ALPHABET.characters), max_size=6)
LENGTH = st.integers(0, 25)
FORM = st.sampled_from([None, None, *FORMS])


class Sessions(RuleBasedStateMachine):
    """Two workers, two models, one store."""

    sessions = Bundle("sessions")

    def __init__(self) -> None:
        super().__init__()
        self.store = self.make_store()
        self.model = 0
        self.managers = [ModelManager(), ModelManager()]
        options = GenerationOptions(1000, 60.0, 0.0, RECENT_TEXT_CHARS)
        self.workers = [GenerationService(manager, self.store, MemoryPrefixes(), options) for manager in self.managers]
        self.swap(0)

    def make_store(self) -> Any:
        return MemorySessions(60.0, 60.0)

    def swap(self, model: int) -> None:
        self.model = model
        for worker, manager in enumerate(self.managers):
            manager.serve(with_engine(engines()[worker][model], kind=Model))

    def ask(self, prompt: str, n: int, p: SamplingParams, form: Form = None, **more: Any) -> GenerateRequest:
        if form is not None and FORMS[form].shortest <= n:
            more["structured_outputs"] = {"regex": form}
        return GenerateRequest.model_validate({"prompt": prompt, "max_chars": n, **p.as_dict(), **more})

    def read(self, running: RunningGeneration, at_least: int | None = None) -> str:
        """A turn's text, to its end and committed, or the chunks until so much is there."""
        text = ""
        for chunk in running.chunks(5.0):
            text += chunk.text if chunk else ""
            if at_least is not None and len(text) >= at_least:
                return text
        if at_least is None:
            assert running.finish().saved
            running.close()
        return text

    def kill(self, running: RunningGeneration) -> None:
        """What is left of a generation when its process is killed: nothing more is stored."""
        running._is_over = True
        running.close()

    @rule(
        target=sessions,
        worker=st.integers(0, 1),
        prompt=TEXT,
        n=LENGTH,
        params=PARAMS,
        form=FORM,
        seed=st.integers(0, 5),
    )
    def begin(self, worker: int, prompt: str, n: int, params: SamplingParams, form: Form, seed: int) -> Plain:
        running = self.workers[worker].generate(self.ask(prompt, n, params, form, seed=seed))
        plain = Plain(running.start_info()["session_id"], seed, self.model)
        expected = plain.next(self.model, prompt, n, params, form)
        assert self.read(running) == expected
        plain.record(expected, prompt)
        return plain

    @rule(plain=sessions, worker=st.integers(0, 1), prompt=TEXT, n=LENGTH, params=PARAMS, form=FORM)
    def go_on(self, plain: Plain, worker: int, prompt: str, n: int, params: SamplingParams, form: Form) -> None:
        request = self.ask(prompt, n, params, form, session_id=plain.id)
        if plain.interrupted:
            with pytest.raises(TurnInterrupted):
                self.workers[worker].generate(request)
            return
        expected = plain.next(self.model, prompt, n, params, form)
        running = self.workers[worker].generate(request)
        assert running.start_info()["position"] == len(plain.text) + len(prompt)
        assert self.read(running) == expected
        plain.record(expected, prompt)

    @rule(
        plain=sessions,
        worker=st.integers(0, 1),
        n=st.integers(1, 25),
        params=PARAMS,
        form=FORM,
        at=st.integers(0, 25),
        dies=st.booleans(),
    )
    def cut(self, plain: Plain, worker: int, n: int, params: SamplingParams, form: Form, at: int, dies: bool) -> None:
        """The worker dies in mid-stream, or the client leaves; then the stream is asked for again elsewhere."""
        if plain.interrupted:
            return
        expected = plain.next(self.model, "", n, params, form)
        running = self.workers[worker].generate(self.ask("", n, params, form, session_id=plain.id))
        seen = self.read(running, at_least=min(at, len(expected)))
        if dies:
            self.kill(running)
        else:
            running.close()
        rest = self.read(self.workers[1 - worker].resume(plain.id, len(plain.text) + len(seen)))
        assert seen + rest == expected
        plain.record(expected)

    @rule(
        plain=sessions, worker=st.integers(0, 1), n=st.integers(1, 25), params=PARAMS, form=FORM, at=st.integers(0, 25)
    )
    def die(self, plain: Plain, worker: int, n: int, params: SamplingParams, form: Form, at: int) -> None:
        """The worker dies and nobody asks for the stream: the client has seen a part."""
        if plain.interrupted:
            return
        expected = plain.next(self.model, "", n, params, form)
        running = self.workers[worker].generate(self.ask("", n, params, form, session_id=plain.id))
        seen = self.read(running, at_least=max(0, min(at, len(expected) - 1)))
        self.kill(running)
        running._policy.abandon()  # as if its lease had run out
        assert expected.startswith(seen)
        plain.record(seen)
        plain.interrupted = True

    @rule(plain=sessions, worker=st.integers(0, 1), back=st.integers(0, 25), leaves=st.booleans())
    def read_again(self, plain: Plain, worker: int, back: int, leaves: bool) -> None:
        """A turn that has ended is read again, to its end or not: the session stays where it is."""
        if plain.interrupted or plain.model != self.model:
            return
        first = plain.turn_start + len(plain.prompt)
        after = max(first, len(plain.text) - back)
        try:
            running = self.workers[worker].resume(plain.id, after)
        except NoTurn:
            return  # a fork's
        expected = plain.text[after:]
        if leaves:
            assert expected.startswith(self.read(running, at_least=0))
            running.close()
        else:
            assert self.read(running) == expected

    @rule(plain=sessions, worker=st.integers(0, 1), back=st.integers(0, 40), n=LENGTH, params=PARAMS)
    def rewind(self, plain: Plain, worker: int, back: int, n: int, params: SamplingParams) -> None:
        position = len(plain.text) - back
        request = self.ask("", n, params, session_id=plain.id, position=max(position, 0))
        try:
            running = self.workers[worker].generate(request)
        except SessionConflict:
            # Only where the turn did not reach, or was written by a model that could not write it again.
            assert position < plain.turn_start or (plain.model != self.model and position > plain.turn_start)
            return
        assert max(position, 0) >= plain.turn_start
        plain.back_to(max(position, 0))
        plain.interrupted = False
        expected = plain.next(self.model, "", n, params)
        assert self.read(running) == expected
        plain.record(expected)

    @rule(target=sessions, plain=sessions, worker=st.integers(0, 1))
    def fork(self, plain: Plain, worker: int) -> Any:
        if plain.interrupted:
            return multiple()
        try:
            id, session = self.workers[worker].fork(plain.id, None, None)
        except Exception:
            assert not plain.text
            return multiple()
        assert session.position == len(plain.text)
        twin = Plain(id, plain.seed, plain.model, plain.read, plain.read_from, plain.text, len(plain.text))
        twin.codes = list(plain.codes)
        twin.before = (plain.read, plain.read_from, plain.model)
        return twin

    @rule(plain=consumes(sessions), worker=st.integers(0, 1))
    def delete(self, plain: Plain, worker: int) -> None:
        assert self.store.delete(plain.id)
        with pytest.raises(UnknownSession):
            self.workers[worker].generate(self.ask("", 1, SamplingParams(), session_id=plain.id))
        with pytest.raises(UnknownSession):
            self.workers[worker].resume(plain.id, None)

    @rule()
    def another_model_is_promoted(self) -> None:
        self.swap(1 - self.model)

    def teardown(self) -> None:
        """However generations ended: no text is left running, no model is kept, every replaced one is freed."""
        for manager in self.managers:
            assert (manager.n_retired, manager.current.n_leases) == (0, 0)
        eventually(lambda: all(engine.in_flight == 0 for worker in engines() for engine in worker))


TestSessions = Sessions.TestCase
