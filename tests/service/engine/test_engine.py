"""The engine: batch invariance with requests coming and going, stop strings, states, the queue, the slots."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from model.checkpoints.file_format import Checkpoint
from model.network.sampling import SamplingParams
from model.stepper import Block, BlockResult, CpuBound, Interrupt, Stepper, StepperError
from model.stepper.cpu import CpuStepper, Unsupported
from model.stepper.generate import generate, write
from model.stepper.reference import ReferenceStepper
from model.structured_outputs.specification import StructuredOutputs
from service.engine.engine import Engine
from service.engine.observer import IterationStats, NullObserver
from service.engine.sequence import Sequence
from service.engine.stream import Chunk, End, StateCapture, Stream
from service.errors import Draining, QueueFull, ServiceError
from tests.conftest import ALPHABET
from tests.servers import eventually
from tests.service.engine.requests import read, request

STEPPERS: dict[str, Callable[[Checkpoint, int], Stepper]] = {
    "reference": lambda c, n: ReferenceStepper(c.network(), n),
    "native fp32": lambda c, n: CpuStepper(c.network(), n, "fp32"),
    "native int8": lambda c, n: CpuStepper(c.network(), n, "int8"),
}
ENDLESS = 10**8
AUTOMATA = [
    StructuredOutputs("regex", pattern).compile(ALPHABET)
    for pattern in ("[a-e]{2,7}!?", "(?:[a-m] |[n-z]{3})*", "(?:tea|coffee)[.!' ]{4}|[^t]{40}")
]


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


def test_every_text_is_the_one_generated_alone(tiny: Checkpoint, engine: Engine, kind: str) -> None:
    """Batch invariance through the engine: 80 texts on 4 slots, from 8 threads, some cancelled, most with a form."""
    rng = random.Random(0)
    cases = []
    for seed in range(80):
        prompt = "".join(rng.choices(ALPHABET.characters, k=rng.randrange(0, 40)))
        sampling = SamplingParams(rng.choice([0.0, 0.7, 1.0]), rng.choice([0, 5]), rng.choice([1.0, 0.9]))
        n, leaves = rng.randrange(1, 120), rng.random() < 0.2
        form = rng.choice([None, *AUTOMATA])
        cases.append((prompt, n + (form.shortest if form is not None else 0), seed, sampling, leaves, form))
    results: dict[int, str] = {}

    def client(mine: list[int]) -> None:
        for i in mine:
            prompt, n, seed, sampling, leaves, form = cases[i]
            stream = engine.submit(request(prompt, n, seed, sampling=sampling, automaton=form))
            if leaves:
                stream.close()
            results[i] = read(stream)[0]

    threads = [threading.Thread(target=client, args=(list(range(k, 80, 8)),)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    alone = STEPPERS[kind](tiny, 1)
    for i, (prompt, n, seed, sampling, leaves, form) in enumerate(cases):
        expected = "".join(write(alone, ALPHABET, prompt, n, sampling, seed, automaton=form))
        assert expected.startswith(results[i]) if leaves else results[i] == expected


def test_a_budget_in_which_no_end_can_be_reached(tiny: Checkpoint) -> None:
    """The request is refused before it is queued."""
    engine = make(tiny, "reference")
    form = AUTOMATA[0]
    with pytest.raises(ValueError, match="budget"):
        engine.submit(replace(request(max_chars=1, automaton=form), max_chars=0))
    assert engine.in_flight == 0


def test_equals_the_plain_loop(tiny: Checkpoint) -> None:
    """In float64 the engine generates what the plain loop over the network generates."""
    network = tiny.network(torch.float64)
    stepper = ReferenceStepper(network, 4, torch.float64)
    engine = Engine(stepper, tiny.vocab, tiny.fingerprint, max_waiting=100)
    engine.start()
    prompts = ["to be " * (i % 3) for i in range(20)]
    streams = [engine.submit(request(p, 40, seed=i, stop=("e", "a t"))) for i, p in enumerate(prompts)]
    for i, (prompt, stream) in enumerate(zip(prompts, streams, strict=True)):
        expected = generate(network, ALPHABET, prompt, 40, seed=i, stop=("e", "a t"))
        text, _, end = read(stream)
        assert (text, end.finish_reason) == (expected.text, expected.finish_reason)
    engine.stop()


def test_a_text_ends_with_the_id_that_it_is_to_end_with(engine: Engine) -> None:
    """It is the last character, with its log-probability; what a block generated past it is not seen."""
    text, chunks, _ = read(engine.submit(request("hello", 400)))
    logprobs = [logprob for chunk in chunks for logprob in chunk.logprobs.tolist()]
    for character in sorted(set(text)):
        id = int(ALPHABET.encode(character)[0])
        ended, chunks, end = read(engine.submit(replace(request("hello", 400), end_id=id)))
        assert ended == text[: text.index(character) + 1]
        assert [logprob for chunk in chunks for logprob in chunk.logprobs.tolist()] == logprobs[: len(ended)]
        assert (end.finish_reason, end.state, chunks[-1].position) == ("stop", None, 5 + len(ended))
    last = max(set(text), key=text.index)
    before = replace(request("hello", text.index(last)), end_id=int(ALPHABET.encode(last)[0]))
    ended, _, end = read(engine.submit(before))
    assert (ended, end.finish_reason) == (text[: text.index(last)], "length")


def test_the_parts_of_a_text_are_not_counted_as_texts(tiny: Checkpoint) -> None:
    """Their characters are; their waiting, first chunks and ends are not those of requests."""
    stats: list[IterationStats] = []

    class Recorder(NullObserver):
        def on_iteration(self, stats_: IterationStats) -> None:
            stats.append(stats_)

    stepper = ReferenceStepper(tiny.network(), 2)
    engine = Engine(stepper, tiny.vocab, tiny.fingerprint, max_waiting=4, observer=Recorder())
    engine.start()
    read(engine.submit(replace(request("hello", 30), is_part=True)))
    eventually(lambda: sum(s.generated_chars for s in stats) == 30)
    assert not any(s.finish_reasons or s.queue_times_s or s.first_chunk_times_s for s in stats)
    read(engine.submit(request("hello", 30)))
    eventually(lambda: any(s.finish_reasons for s in stats))
    assert sum(len(s.first_chunk_times_s) for s in stats) == 1
    engine.stop()


@pytest.mark.parametrize("cut", [1, 7, 100, 199])
def test_continuing_is_the_same_as_not_having_stopped(engine: Engine, cut: int) -> None:
    """200 characters at once are the same as some and then the rest, and so is the state after them, bit for bit."""
    whole, first = engine.submit(request("hello", 200)), engine.submit(request("hello", cut))
    text, _, end = read(whole)
    start, _, half = read(first)
    rest, _, last = read(engine.submit(request("", 200 - cut, after=half.state)))
    assert start + rest == text
    assert end.state is not None
    assert last.state is not None
    assert end.state.to_bytes() == last.state.to_bytes()


@pytest.mark.parametrize("needed", [[10], [150, 40], [40, 150], [1, 60, 20]])
def test_a_text_is_as_long_as_its_reader_needs(engine: Engine, needed: list[int]) -> None:
    """The need may change while the text is generated; the text then ends where it is, and its state continues it."""
    text = read(engine.submit(request("hello", 250)))[0]
    group = engine.open_group()
    stream = group.stream(0)
    stream.needed_chars = needed[0]
    engine.submit(request("hello", 200), stream)
    sent, n_read = "", 0
    while True:
        event = group.get(30)
        assert event is not None
        if isinstance(event[1], End):
            break
        assert isinstance(event[1], Chunk)
        sent, n_read = sent + event[1].text, n_read + 1
        stream.needed_chars = needed[min(n_read, len(needed) - 1)]
    assert min(needed) <= len(sent) <= max(needed)
    assert text.startswith(sent)
    assert event[1].finish_reason == "length"
    assert sent + read(engine.submit(request("", 20, after=event[1].state)))[0] == text[: len(sent) + 20]
    engine.close_group(group)


def test_requests_that_are_submitted_together_run_together(tiny: Checkpoint) -> None:
    """The first block has all of them; those without a place are not queued."""
    engine = make(tiny, "reference", n_slots=3, max_waiting=2)
    engine.submit(request())
    together = [(request("hello", 5, seed=i), Stream()) for i in range(6)]
    assert engine.submit_many(together) == 4
    with pytest.raises(QueueFull, match="3 slots and all 2 places"):
        engine.submit_many(together[4:])
    assert engine.in_flight == 5
    rows: list[int] = []
    run = engine._stepper.run
    engine._stepper.run = lambda block, *rest: rows.append(len(block.slots)) or run(block, *rest)  # type: ignore[method-assign, func-returns-value]
    engine.start()
    assert [len(read(stream)[0]) for _, stream in together[:4]] == [5] * 4
    assert rows[0] == 3
    assert together[4][1].get(timeout_s=0) is None
    engine.stop()


def test_a_stop_string_over_two_blocks_ends_the_text_before_it(tiny: Checkpoint, kind: str) -> None:
    """Whatever the blocks' length, a stop ends the text at the same place, and the state is that of what was sent."""
    for block_ms in (0.01, 5, 1000):  # blocks of one character, of some, of all
        engine = make(tiny, kind, block_s=block_ms / 1000)
        engine.start()
        text = read(engine.submit(request("hello", 200)))[0]
        for stop in (text[60:63], text[10:18], text[0:1]):
            sent, chunks, end = read(engine.submit(request("hello", 200, stop=(stop,))))
            assert end.finish_reason == "stop"
            assert sent == text[: text.index(stop)]
            assert not chunks or chunks[-1].position == 5 + len(sent)
            assert sum(len(chunk.logprobs) for chunk in chunks) == len(sent)
            assert end.state is not None
            onwards = engine.submit(request("", 20, after=end.state))
            assert read(onwards)[0] == text[len(sent) : len(sent) + 20]
        engine.stop()


def test_what_was_held_back_is_sent_when_no_stop_comes(engine: Engine) -> None:
    """A text that ends in the middle of a possible stop string is whole."""
    text = read(engine.submit(request("hello", 30)))[0]
    assert read(engine.submit(request("hello", 30, stop=(text[-3:] + "!!!",))))[0] == text


def test_a_snapshot_is_the_state_at_the_end_of_its_chunk(engine: Engine) -> None:
    """A snapshot's state is that of the text up to its chunk's end: continuing from it gives the rest."""
    text, chunks, _ = read(engine.submit(request("hello", 150, snapshot_every_s=0.0, stop=("zzzz",))))
    with_snapshot = [chunk for chunk in chunks if chunk.snapshot is not None]
    assert with_snapshot
    for chunk in with_snapshot:
        assert chunk.snapshot is not None
        assert chunk.snapshot.position == chunk.position
        onwards = engine.submit(request("", 155 - chunk.position, after=chunk.snapshot))
        assert read(onwards)[0] == text[chunk.position - 5 :]


def test_a_capture_is_the_state_at_its_position(engine: Engine) -> None:
    """Captured states, in the prompt and in the text, come in order, and continuing from each gives the rest."""
    text = read(engine.submit(request("hello you", 60)))[0]
    stream = engine.submit(request("hello you", 60, captures={4: "early", 9: "prompt", 30: "late"}))
    captures = []
    while not isinstance(item := stream.get(timeout_s=30), End):
        if isinstance(item, StateCapture):
            captures.append(item)
    assert [(c.key, c.state.position) for c in captures] == [("early", 4), ("prompt", 9), ("late", 30)]
    for capture in captures:
        position = capture.state.position
        onwards = engine.submit(request("hello you"[position:], 60 - max(0, position - 9), after=capture.state))
        assert read(onwards)[0] == text[max(0, position - 9) :]


def test_a_prompt_alone_can_be_read(engine: Engine) -> None:
    """max_chars 0 generates nothing and leaves the state after the prompt."""
    for prompt in ("hello", ""):
        text, _, end = read(engine.submit(request(prompt, 0)))
        assert (text, end.finish_reason) == ("", "length")
        assert end.state is not None
        assert end.state.position == len(prompt)


def test_a_request_is_rejected_when_the_queue_is_full(tiny: Checkpoint) -> None:
    """With every slot and place taken a request is rejected at once, and nothing of it stays behind."""
    engine = make(tiny, "reference", n_slots=2, max_waiting=3)  # not started: no sequence ends
    for _ in range(5):
        engine.submit(request())
    with pytest.raises(QueueFull, match="2 slots and all 3 places"):
        engine.submit(request())
    assert engine.in_flight == 5
    engine.start()
    eventually(lambda: engine.in_flight == 0)
    engine.stop()


def test_a_rejection_says_when_to_retry(tiny: Checkpoint) -> None:
    """Retry-After is the steps of the queue over the measured speed; it counts what waits, not what runs."""
    engine = make(tiny, "reference", n_slots=1, max_waiting=1)
    engine.start()
    first = engine.submit(request(max_chars=ENDLESS))
    assert isinstance(first.get(timeout_s=30), Chunk)
    second = engine.submit(request(max_chars=1))
    with pytest.raises(QueueFull) as rejected:
        engine.submit(request())
    assert rejected.value.retry_after_s == 1  # the queue is one step
    second.close()
    eventually(lambda: engine.in_flight == 1)
    engine.submit(request(max_chars=ENDLESS))
    with pytest.raises(QueueFull) as rejected:
        engine.submit(request())
    assert rejected.value.retry_after_s == 60
    engine.stop()


def test_first_come_is_first_served(tiny: Checkpoint) -> None:
    """Slots are given in the order of the queue, whoever asks for how much."""
    engine = make(tiny, "reference", n_slots=2)
    order = random.Random(3)
    requests = [request("a" * order.randrange(60), order.randrange(1, 80), seed=i) for i in range(30)]
    admitted: list[object] = []
    admit = engine._scheduler.admit

    def watched() -> list[tuple[int, Sequence]]:
        new = admit()
        admitted.extend(sequence.request for _, sequence in new)
        return new

    engine._scheduler.admit = watched  # type: ignore[method-assign]
    streams = [engine.submit(element) for element in requests]
    engine.start()
    for stream in streams:
        read(stream)
    assert admitted == requests
    assert engine._queued_steps == 0
    engine.stop()


def test_a_deadline_counts_in_the_queue_too(tiny: Checkpoint) -> None:
    """A request whose time is up while it waits ends there, even if the running one never ends."""
    engine = make(tiny, "reference", n_slots=1)
    endless = engine.submit(request("a", ENDLESS))
    engine.start()
    assert isinstance(endless.get(timeout_s=30), Chunk)
    assert read(engine.submit(request("b", 5, deadline=0.0)))[2] == End("timeout", None)
    engine.stop()


def test_closing_a_stream_frees_its_slot(engine: Engine) -> None:
    """A reader that leaves, while it runs or waits, gives its place up at the next block."""
    endless = [engine.submit(request("a", ENDLESS, seed=i)) for i in range(8)]
    assert isinstance(endless[0].get(timeout_s=30), Chunk)
    for stream in endless:
        stream.close()
        stream.close()
    eventually(lambda: engine.in_flight == 0)
    assert len(read(engine.submit(request("hello", 20)))[0]) == 20


def test_a_deadline_ends_a_text_where_it_is(engine: Engine) -> None:
    """A text whose time is up ends with what it has, and can be continued from its state."""
    text, _, end = read(engine.submit(request("a", ENDLESS, deadline=time.monotonic() + 0.2)))
    assert end.finish_reason == "timeout"
    assert end.state is not None
    assert end.state.position == 1 + len(text) > 1
    onwards = engine.submit(request("", 20, after=end.state))
    whole = engine.submit(request("a", len(text) + 20))
    assert text + read(onwards)[0] == read(whole)[0]


def test_an_engine_that_stops_ends_every_sequence(tiny: Checkpoint) -> None:
    """What runs, what waits and what comes gets the error that the worker shuts down."""
    engine = make(tiny, "reference", n_slots=1)
    running, waiting = engine.submit(request("a", ENDLESS)), engine.submit(request("a", 5))
    engine.start()
    assert isinstance(running.get(timeout_s=30), Chunk)
    engine.stop()
    for stream in (running, waiting):
        with pytest.raises(Draining):
            read(stream)
    with pytest.raises(Draining):
        engine.submit(request())


def test_a_bug_ends_its_sequences_and_not_the_engine(tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that fails ends its own sequences; the next text is generated as usual."""
    engine = make(tiny, "reference")
    run = ReferenceStepper.run
    failures = iter([True])

    def fail_once(self: ReferenceStepper, *arguments: object) -> object:
        if next(failures, False):
            raise RuntimeError("a bug")
        return run(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ReferenceStepper, "run", fail_once)
    failed = engine.submit(request("a", 5))
    engine.start()
    with pytest.raises(ServiceError, match="internal error") as raised:
        read(failed)
    assert str(raised.value.__cause__) == "a bug"
    assert len(read(engine.submit(request("a", 5)))[0]) == 5
    engine.stop()


class LongRunStepper:
    """A stepper whose runs take until they are interrupted, or until the test lets them end."""

    def __init__(self, inner: CpuBound) -> None:
        self.inner, self.blocks, self.may_end = inner, list[Block](), threading.Event()
        self.interrupt: Interrupt | None = None

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def cores_for(self, block: Block) -> int:
        """Return what the inner stepper does."""
        return self.inner.cores_for(block)

    def run(self, block: Block, n_cores: int = 0, interrupt: Interrupt | None = None) -> BlockResult:
        """Wait, then run as far as the inner stepper does."""
        assert interrupt is not None
        self.interrupt = interrupt
        self.blocks.append(block)
        eventually(lambda: bool(interrupt) or self.may_end.is_set())
        return self.inner.run(block, n_cores, interrupt)


@pytest.fixture
def long_runs(tiny: Checkpoint) -> Iterator[tuple[Engine, LongRunStepper]]:
    """An engine of two slots that runs a block for a text, and its stepper."""
    stepper = LongRunStepper(ReferenceStepper(tiny.network(), 2))
    engine = Engine(stepper, tiny.vocab, tiny.fingerprint, max_waiting=9)  # type: ignore[arg-type]
    engine.start()
    engine.submit(request("hello", ENDLESS))
    eventually(lambda: len(stepper.blocks) == 1)
    yield engine, stepper
    stepper.may_end.set()
    engine.stop()


def test_a_request_interrupts_a_block_if_a_slot_is_free(
    long_runs: tuple[Engine, LongRunStepper], tiny: Checkpoint
) -> None:
    """It is in the next block at once. One that would wait for a slot interrupts nothing. The texts are the same."""
    engine, stepper = long_runs
    assert not stepper.interrupt
    second = engine.submit(request("to be", 200))
    eventually(lambda: len(stepper.blocks) == 2)
    assert [block.slots.size for block in stepper.blocks] == [1, 2]
    third = engine.submit(request("or not", 200))
    assert not stepper.interrupt
    stepper.may_end.set()
    alone = ReferenceStepper(tiny.network(), 1)
    for stream, prompt in ((second, "to be"), (third, "or not")):
        assert read(stream)[0] == "".join(write(alone, ALPHABET, prompt, 200, SamplingParams(), 1))


def test_a_part_interrupts_no_block(long_runs: tuple[Engine, LongRunStepper]) -> None:
    """Nobody waits for its first character; a text that comes after it can have its slot."""
    engine, stepper = long_runs
    group = engine.open_group()
    engine.submit(replace(request("to be", 9), is_part=True), group.stream(0))
    assert not stepper.interrupt
    engine.submit(request("to be", 9))
    eventually(lambda: len(stepper.blocks) == 2)
    engine.close_group(group)


def test_texts_of_one_request_interrupt_a_block_only_for_free_slots(
    long_runs: tuple[Engine, LongRunStepper],
) -> None:
    """They keep the slots that they have, so the ones that follow wait as others do."""
    engine, stepper = long_runs
    group = engine.open_group()
    engine.submit(request("to be", 9), group.stream(0))
    eventually(lambda: len(stepper.blocks) == 2)
    engine.submit(request("to be", 9), group.stream(1))
    assert not stepper.interrupt
    engine.submit(request("to be", 9))
    assert not stepper.interrupt
    engine.close_group(group)


class FailingStepper:
    """A stepper whose device fails at the second block."""

    def __init__(self, inner: Stepper, *, is_final: bool) -> None:
        self.inner, self.is_final, self.blocks = inner, is_final, 0
        self.name, self.numerics, self.n_slots = inner.name, inner.numerics, inner.n_slots
        self.read, self.write = inner.read, inner.write

    def run(self, block: Block) -> BlockResult:
        """Fail once, or from then on."""
        self.blocks += 1
        if self.blocks == 2 or (self.is_final and self.blocks > 2):
            raise StepperError("the device is gone", is_final=self.is_final)
        return self.inner.run(block)


@pytest.mark.parametrize("is_final", [True, False])
def test_a_device_that_fails(tiny: Checkpoint, is_final: bool) -> None:
    """For good: every text ends with Draining, so clients go on elsewhere, and the process ends; else those texts."""
    lost = threading.Event()
    stepper = FailingStepper(ReferenceStepper(tiny.network(), 2), is_final=is_final)
    engine = Engine(stepper, tiny.vocab, tiny.fingerprint, max_waiting=9, block_s=0.005, on_device_lost=lost.set)
    engine.start()
    running = [engine.submit(request(max_chars=ENDLESS)) for _ in range(4)]  # two of them wait
    for stream in running[: 4 if is_final else 1]:
        with pytest.raises(Draining if is_final else ServiceError):
            read(stream)
    if is_final:
        assert lost.wait(10)
        with pytest.raises(Draining):
            engine.submit(request(max_chars=3))
    else:
        for stream in running:
            stream.close()
        text, *_ = read(engine.submit(request(max_chars=3)))
        assert len(text) == 3
        assert not lost.is_set()
    engine.stop()
