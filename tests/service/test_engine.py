"""The engine: law 1 with requests coming and going, stops, states, the line, the slots."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from model.checkpoints.file_format import Checkpoint
from model.network.sampling import SamplingParams
from model.network.state import HiddenState
from model.stepper import Stepper
from model.stepper.cpu import CpuStepper, Unsupported
from model.stepper.generate import generate, write
from model.stepper.reference import ReferenceStepper
from service.engine.engine import Engine
from service.engine.sequence import Sequence
from service.engine.stop_strings import StopScanner
from service.engine.stream import Chunk, End, Failed, StateCapture
from service.errors import Draining, Overloaded
from tests.conftest import ALPHABET
from tests.servers import eventually

STEPPERS: dict[str, Callable[[Checkpoint, int], Stepper]] = {
    "reference": lambda c, n: ReferenceStepper(c.network(), n),
    "native fp32": lambda c, n: CpuStepper(c.network(), n, "fp32"),
    "native int8": lambda c, n: CpuStepper(c.network(), n, "int8"),
}


@pytest.fixture(params=STEPPERS)
def kind(request: pytest.FixtureRequest, tiny: Checkpoint) -> str:
    kind: str = request.param
    try:
        STEPPERS[kind](tiny, 1)
    except Unsupported as e:
        pytest.skip(str(e))
    return kind


@pytest.fixture
def engine(tiny: Checkpoint, kind: str) -> Iterator[Engine]:
    engine = make(tiny, kind)
    engine.start()
    yield engine
    engine.stop()


def make(tiny: Checkpoint, kind: str, n_slots: int = 4, max_waiting: int = 100, block_s: float = 0.005) -> Engine:
    stepper = STEPPERS[kind](tiny, n_slots)
    return Engine(stepper, tiny.vocab, tiny.fingerprint, max_waiting=max_waiting, block_s=block_s)


def ask(
    prompt: str = "", n: int = 50, seed: int = 1, stop: tuple[str, ...] = (), after: HiddenState | None = None,
    params: SamplingParams | None = None, snapshot_every_s: float | None = None, deadline: float | None = None
) -> Sequence:  # fmt: skip
    next_input = ALPHABET.start if after is None else after.next_input
    return Sequence(
        to_feed=np.array([next_input, *ALPHABET.encode(prompt)], dtype=np.int32),
        position=0 if after is None else after.position,
        remaining=n,
        params=params or SamplingParams(),
        seed=seed,
        values=None if after is None else after.values,
        stops=StopScanner(stop),
        snapshot_every_s=snapshot_every_s,
        deadline=deadline,
    )


def read(sequence: Sequence) -> tuple[str, list[Chunk], End]:
    pieces: list[Chunk] = []
    while True:
        item = sequence.stream.get(timeout_s=30)
        assert item is not None
        if isinstance(item, Failed):
            raise item.error
        assert not isinstance(item, StateCapture)
        if isinstance(item, End):
            return "".join(p.text for p in pieces), pieces, item
        pieces.append(item)


def test_every_text_is_the_one_made_alone(tiny: Checkpoint, engine: Engine, kind: str) -> None:
    """Law 1 through the engine: 80 texts on 4 slots, submitted from 8 threads, some cut short by their readers."""
    rng = random.Random(0)
    asked = []
    for seed in range(80):
        prompt = "".join(rng.choices(ALPHABET.characters, k=rng.randrange(0, 40)))
        params = SamplingParams(rng.choice([0.0, 0.7, 1.0]), rng.choice([0, 5]), rng.choice([1.0, 0.9]))
        asked.append((prompt, rng.randrange(1, 120), seed, params, rng.random() < 0.2))
    results: dict[int, str] = {}

    def client(mine: list[int]) -> None:
        for i in mine:
            prompt, n, seed, params, leaves = asked[i]
            sequence = ask(prompt, n, seed, params=params)
            engine.submit(sequence)
            if leaves:
                sequence.stream.close()
            results[i] = read(sequence)[0]

    threads = [threading.Thread(target=client, args=(list(range(k, 80, 8)),)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    alone = STEPPERS[kind](tiny, 1)
    for i, (prompt, n, seed, params, leaves) in enumerate(asked):
        expected = "".join(write(alone, ALPHABET, prompt, n, params, seed))
        assert expected.startswith(results[i]) if leaves else results[i] == expected


def test_equals_the_oracle(tiny: Checkpoint) -> None:
    """In float64 the engine writes what the plain loop over the network writes."""
    network = tiny.network(torch.float64)
    stepper = ReferenceStepper(network, 4, torch.float64)
    engine = Engine(stepper, tiny.vocab, tiny.fingerprint, max_waiting=100)
    engine.start()
    sequences = [ask("to be " * (i % 3), 40, seed=i, stop=("e", "a t")) for i in range(20)]
    for s in sequences:
        engine.submit(s)
    for i, s in enumerate(sequences):
        expected = generate(network, ALPHABET, "to be " * (i % 3), 40, seed=i, stop=("e", "a t"))
        text, _, end = read(s)
        assert (text, end.finish_reason) == (expected.text, expected.finish_reason)
    engine.stop()


@pytest.mark.parametrize("cut", [1, 7, 100, 199])
def test_going_on_is_the_same_as_not_having_stopped(engine: Engine, cut: int) -> None:
    """200 characters at once are the same as some and then the rest, and so is the state after them, bitwise."""
    whole, first = ask("hello", 200), ask("hello", cut)
    engine.submit(whole)
    engine.submit(first)
    text, _, end = read(whole)
    start, _, half = read(first)
    second = ask("", 200 - cut, after=half.state)
    engine.submit(second)
    rest, _, last = read(second)
    assert start + rest == text
    assert end.state is not None
    assert last.state is not None
    assert end.state.to_bytes() == last.state.to_bytes()


def test_a_stop_string_over_two_blocks_ends_the_text_before_it(tiny: Checkpoint, kind: str) -> None:
    """Whatever the blocks' length, a stop ends the text at the same place, and the state is that of what was shown."""
    for block_ms in (0.01, 5, 1000):  # blocks of one character, of some, of all
        engine = make(tiny, kind, block_s=block_ms / 1000)
        engine.start()
        free = ask("hello", 200)
        engine.submit(free)
        text = read(free)[0]
        for stop in (text[60:63], text[10:18], text[0:1]):
            sequence = ask("hello", 200, stop=(stop,))
            engine.submit(sequence)
            shown, pieces, end = read(sequence)
            assert end.finish_reason == "stop"
            assert shown == text[: text.index(stop)]
            assert not pieces or pieces[-1].position == 5 + len(shown)
            assert sum(len(p.logprobs) for p in pieces) == len(shown)
            assert end.state is not None
            onwards = ask("", 20, after=end.state)
            engine.submit(onwards)
            assert read(onwards)[0] == text[len(shown) : len(shown) + 20]
        engine.stop()


def test_what_was_held_back_is_shown_when_no_stop_comes(engine: Engine) -> None:
    """A text that ends in the middle of a possible stop string is whole."""
    free = ask("hello", 30)
    engine.submit(free)
    text = read(free)[0]
    held = ask("hello", 30, stop=(text[-3:] + "!!!",))
    engine.submit(held)
    assert read(held)[0] == text


def test_snapshots_stand_at_their_piece(engine: Engine) -> None:
    """A snapshot's state is that of the text up to its piece's end: going on from it gives the rest."""
    sequence = ask("hello", 150, snapshot_every_s=0.0, stop=("zzzz",))
    engine.submit(sequence)
    text, pieces, _ = read(sequence)
    with_snapshot = [p for p in pieces if p.snapshot is not None]
    assert with_snapshot
    for piece in with_snapshot:
        assert piece.snapshot is not None
        assert piece.snapshot.position == piece.position
        onwards = ask("", 155 - piece.position, after=piece.snapshot)
        engine.submit(onwards)
        assert read(onwards)[0] == text[piece.position - 5 :]


def test_a_prompt_alone_can_be_read(engine: Engine) -> None:
    """max_chars 0 writes nothing and leaves the state after the prompt."""
    for prompt in ("hello", ""):
        sequence = ask(prompt, 0)
        engine.submit(sequence)
        text, _, end = read(sequence)
        assert (text, end.finish_reason) == ("", "length")
        assert end.state is not None
        assert end.state.position == len(prompt)


def test_a_full_line_is_refused_before_any_work(tiny: Checkpoint) -> None:
    """With every slot and place taken a text is refused at once, and nothing of it stays behind."""
    engine = make(tiny, "reference", n_slots=2, max_waiting=3)  # not started: nobody leaves
    for _ in range(5):
        engine.submit(ask())
    refused = ask()
    with pytest.raises(Overloaded, match="2 slots and all 3 places"):
        engine.submit(refused)
    assert engine.in_flight == 5
    engine.start()
    eventually(lambda: engine.in_flight == 0)
    engine.stop()


def test_a_refusal_says_how_long_the_line_takes(tiny: Checkpoint) -> None:
    """Retry-After is what waits over the pace that was measured: 1 before there is one, 60 at most."""
    engine = make(tiny, "reference", n_slots=1, max_waiting=1)  # not started: the pace is ours to set
    engine.submit(ask(n=10**8))
    engine.submit(ask(n=10**8))
    for pace, expected in ((0.0, 1), (10**12, 1), (10**7, 20), (10.0, 60)):
        engine._scheduler.chars_per_s = pace
        with pytest.raises(Overloaded) as refused:
            engine.submit(ask())
        assert refused.value.retry_after_s == expected
    engine.start()
    for sequence in list(engine._inbox) or list(engine._scheduler.waiting):
        sequence.stream.close()
    eventually(lambda: engine._scheduler.chars_per_s != 10.0)
    assert engine._steps_in_line <= 10**8
    engine.stop()


def test_first_come_is_first_served(tiny: Checkpoint) -> None:
    """Slots are given in the order of the line, whoever asks for how much."""
    engine = make(tiny, "reference", n_slots=2)
    order = random.Random(3)
    texts = [ask("a" * order.randrange(60), order.randrange(1, 80), seed=i) for i in range(30)]
    admitted: list[Sequence] = []
    admit = engine._scheduler.admit

    def watched() -> list[tuple[int, Sequence]]:
        new = admit()
        admitted.extend(sequence for _, sequence in new)
        return new

    engine._scheduler.admit = watched  # type: ignore[method-assign]
    for text in texts:
        engine.submit(text)
    engine.start()
    for text in texts:
        read(text)
    assert admitted == texts
    assert engine._steps_in_line == 0
    engine.stop()


def test_a_deadline_counts_in_the_line_too(tiny: Checkpoint) -> None:
    """A text whose time is up while it waits ends there: its slot-mate may go on for ever."""
    engine = make(tiny, "reference", n_slots=1)
    endless, late = ask("a", 10**8), ask("b", 5, deadline=0.0)
    engine.submit(endless)
    engine.start()
    assert isinstance(endless.stream.get(timeout_s=30), Chunk)
    engine.submit(late)
    assert read(late)[2] == End("timeout", None)
    engine.stop()


def test_closing_a_stream_frees_its_slot(engine: Engine) -> None:
    """A reader that leaves, running or in the line, gives its place up at the next block."""
    endless = [ask("a", 10**8, seed=i) for i in range(8)]
    for s in endless:
        engine.submit(s)
    assert isinstance(endless[0].stream.get(timeout_s=30), Chunk)
    for s in endless:
        s.stream.close()
        s.stream.close()
    eventually(lambda: engine.in_flight == 0)
    after = ask("hello", 20)
    engine.submit(after)
    assert len(read(after)[0]) == 20


def test_a_deadline_ends_a_text_where_it_is(engine: Engine) -> None:
    """A text whose time is up ends with what it has, and its state can be gone on from."""
    sequence = ask("a", 10**8, deadline=time.monotonic() + 0.2)
    engine.submit(sequence)
    text, _, end = read(sequence)
    assert end.finish_reason == "timeout"
    assert end.state is not None
    assert end.state.position == 1 + len(text) > 1
    onwards = ask("", 20, after=end.state)
    whole = ask("a", len(text) + 20)
    engine.submit(onwards)
    engine.submit(whole)
    assert text + read(onwards)[0] == read(whole)[0]


def test_an_engine_that_stops_says_so(tiny: Checkpoint) -> None:
    """What runs, what waits, and what comes, is told that the worker stops."""
    engine = make(tiny, "reference", n_slots=1)
    running, waiting = ask("a", 10**8), ask("a", 5)
    engine.submit(running)
    engine.submit(waiting)
    engine.start()
    assert isinstance(running.stream.get(timeout_s=30), Chunk)
    engine.stop()
    for sequence in (running, waiting):
        with pytest.raises(Draining):
            read(sequence)
    with pytest.raises(Draining):
        engine.submit(ask())


def test_an_error_of_ours_ends_its_texts_and_not_the_engine(tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that fails fails its own readers; the next text is written as ever."""
    engine = make(tiny, "reference")
    run = ReferenceStepper.run
    failures = iter([True])

    def once(self: ReferenceStepper, block: object) -> object:
        if next(failures, False):
            raise RuntimeError("a bug")
        return run(self, block)  # type: ignore[arg-type]

    monkeypatch.setattr(ReferenceStepper, "run", once)
    hit, after = ask("a", 5), ask("a", 5)
    engine.submit(hit)
    engine.start()
    with pytest.raises(RuntimeError, match="a bug"):
        read(hit)
    engine.submit(after)
    assert len(read(after)[0]) == 5
    engine.stop()
