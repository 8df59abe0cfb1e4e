"""The native stepper against the float64 network, against itself alone and in batches, and against bad input."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from model.config import Cell, ModelConfig, WeightPrecision
from model.native import build as build_module
from model.native.build import build, compile_to, compilers
from model.native.library import available_instruction_sets, flags, library_path, load_library
from model.network.char_rnn import CharRNN
from model.network.sampling import SamplingBatch, SamplingParams, as_batch, as_tensors, sample
from model.stepper import SAMPLE, Block, BlockResult, Interrupt
from model.stepper.cpu import CpuStepper, Unsupported
from model.stepper.cpu.pack_weights import Packed, PackedNetwork
from model.stepper.reference import ReferenceStepper
from tests.random_batching import (
    Progress,
    Text,
    VariantStepper,
    block_of,
    differing,
    random_texts,
    run_in_random_batches,
    variant_texts,
)
from tests.servers import eventually

PRECISIONS: list[WeightPrecision] = ["fp32", "int8"]
pytestmark = pytest.mark.usefixtures("native_code")


def network(vocab: int = 65, hidden: int = 64, layers: int = 2, embed: int = 16, cell: Cell = "lstm") -> CharRNN:
    return copy.deepcopy(_network(vocab, hidden, layers, embed, cell))


@lru_cache
def _network(vocab: int, hidden: int, layers: int, embed: int, cell: Cell) -> CharRNN:
    torch.manual_seed(7)
    made = CharRNN(ModelConfig(vocab, hidden, layers, embed, cell)).double()
    with torch.no_grad():
        made.head.weight.mul_(6.0)  # as decided as a trained one
        made.head.bias.uniform_(-1.0, 1.0)
    return made


def plain_block(rows: int, steps: int, vocab: int = 65, slots: list[int] | None = None) -> Block:
    rng = np.random.default_rng(rows * 1000 + steps)
    forced_ids = np.full((steps, rows), SAMPLE, np.int32)
    forced_ids[0] = rng.integers(0, vocab, rows)
    return Block(
        slots=np.arange(rows, dtype=np.int32) if slots is None else np.array(slots, np.int32),
        steps=np.full(rows, steps, np.int32),
        forced_ids=forced_ids,
        random_values=rng.random((steps, rows)),
        sampling=as_batch([SamplingParams()] * rows),
    )


def uneven_block(rows: int, steps: int) -> Block:
    """A plain block whose rows end at different steps."""
    row_steps = np.random.default_rng(1).integers(1, steps + 1, rows).astype(np.int32)
    return replace(plain_block(rows, steps), steps=row_steps)


def sampling(block: Block, row: int, **values: float) -> SamplingBatch:
    """The block's parameters, those of one row changed."""
    changed = block.sampling.copy()
    for name, value in values.items():
        changed[name][row] = value
    return changed


def bits(stepper: CpuStepper, result: BlockResult) -> tuple[bytes, ...]:
    states = [stepper.read(slot).tobytes() for slot in range(stepper.n_slots)]
    return result.ids.tobytes(), result.logprobs.tobytes(), *states


@pytest.mark.parametrize("shape", [(65, 64, 2, 16), (5, 1, 1, 1), (33, 7, 3, 4), (300, 100, 1, 8), (65, 48, 8, 16)])
def test_agrees_with_the_float64_network(shape: tuple[int, int, int, int]) -> None:
    """After 50 forced_ids steps states and log-probabilities of fp32 are the float64 network's within 1e-5."""
    vocab, hidden, layers, embed = shape
    net, rows, steps = network(vocab, hidden, layers, embed), 9, 50
    block = plain_block(rows, steps, vocab)
    block.forced_ids[:] = np.random.default_rng(3).integers(0, vocab, (steps, rows))
    with torch.no_grad():
        logits, state = net(torch.tensor(block.forced_ids.T.astype(np.int64)), net.zero_state(rows))
    stepper = CpuStepper(net, rows)
    result = stepper.run(block)
    expected = torch.stack(state).permute(2, 0, 1, 3).numpy()  # (B, S, L, H)
    assert np.abs(np.stack([stepper.read(b) for b in range(rows)]) - expected).max() < 1e-5
    logprobs = torch.log_softmax(logits[:, -1], dim=-1).numpy()
    assert np.abs(result.logprobs[-1] - logprobs[np.arange(rows), result.ids[-1]]).max() < 1e-5
    assert (result.ids[:-1] == block.forced_ids[1:]).all()
    assert np.isnan(result.logprobs[:-1]).all()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("shape", [(65, 64, 2), (37, 21, 3)])
def test_every_text_is_the_same_alone_and_in_random_batches(
    precision: WeightPrecision, threads: int, shape: tuple[int, int, int]
) -> None:
    """Batch invariance: joins, leaves, cuts and cancels change no bit of ids, log-probabilities and states."""
    vocab, hidden, layers = shape
    net, rng = network(vocab, hidden, layers), Random(threads)
    texts = random_texts(rng, 70, vocab)
    batched = CpuStepper(net, rng.choice([13, 64]), precision, threads)
    assert variant_texts(batched, CpuStepper(net, 1, precision, threads=1), texts, rng) == []


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 8, 11, 13, 64, 97, 200])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_size_of_a_batch_gives_the_same_bits(rows: int, precision: WeightPrecision) -> None:
    """Every tile of the kernel gives a row what the kernel for one row gives it (K past a block of 256 too)."""
    net = network(hidden=260, layers=2)
    block = plain_block(200, 3)
    one, many = CpuStepper(net, 1, precision, threads=1), CpuStepper(net, rows, precision, threads=2)
    result = many.run(_columns(block, range(rows)))
    for row in {0, rows // 2, rows - 1}:
        one.write(0, None)
        single = one.run(_columns(block, [row], slots=[0]))
        assert single.ids[:, 0].tobytes() == result.ids[:, row].tobytes()
        assert single.logprobs[:, 0].tobytes() == result.logprobs[:, row].tobytes()
        assert one.read(0).tobytes() == many.read(row).tobytes()


@pytest.mark.parametrize("threads", [2, 3, 5])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_threads_that_give_each_other_rows_change_no_bit(threads: int, precision: WeightPrecision) -> None:
    """A thread that has nothing left to do gets half of another one's rows, which end at different steps."""
    net, rows, block = network(hidden=260, layers=2), 200, uneven_block(200, 40)
    alone, together = (CpuStepper(net, rows, precision, threads=n) for n in (1, threads))
    for _ in range(3):
        assert bits(together, together.run(block)) == bits(alone, alone.run(block))


def test_a_thread_without_work_gets_rows_of_another_one() -> None:
    """A run then has more groups of rows than threads: sooner or later, one thread ends before the others."""
    stepper, block = CpuStepper(network(hidden=260, layers=2), 200, threads=3), plain_block(200, 200)

    def n_groups() -> int:
        stepper.run(block)
        return int(stepper._library.lh_groups(stepper._handle))

    if not n_groups():
        pytest.skip(f"with {stepper.instruction_set} threads share the phases of a step")
    eventually(lambda: n_groups() > 3)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_interrupt_at_any_time_changes_no_bit(threads: int, precision: WeightPrecision) -> None:
    """Runs that another thread ends at any step, each row going on where it was, give what one run gives."""
    net, rows, steps = network(hidden=260, layers=2), 60, 200
    block = uneven_block(rows, steps)
    whole = CpuStepper(net, rows, precision, threads=1)
    expected, cut = whole.run(block), CpuStepper(net, rows, precision, threads=threads)
    interrupt, is_over = Interrupt(), threading.Event()
    interrupt.set()  # so that at least the first run does not end by itself

    def set_now_and_then() -> None:
        for i in itertools.count():
            if is_over.wait(0.0002 * (i % 7)):
                return
            interrupt.set()

    setter = threading.Thread(target=set_now_and_then)
    setter.start()
    made, runs = np.zeros(rows, np.int32), 0
    ids, logprobs = np.zeros_like(expected.ids), np.zeros_like(expected.logprobs)
    while (left := np.flatnonzero(made < block.steps)).size:
        part = _columns(block, left.tolist())
        at = np.minimum(made[left] + np.arange(steps)[:, None], steps - 1)
        forced_ids, random_values = np.full_like(part.forced_ids, SAMPLE), block.random_values[at, left]
        forced_ids[0] = np.where(made[left] > 0, ids[made[left] - 1, left], block.forced_ids[0, left])
        part = replace(part, steps=block.steps[left] - made[left], forced_ids=forced_ids, random_values=random_values)
        result = cut.run(part, interrupt=interrupt)
        interrupt.clear()
        assert (result.steps >= 1).all()
        for column, row in enumerate(left):
            n = result.steps[column]
            ids[made[row] : made[row] + n, row] = result.ids[:n, column]
            logprobs[made[row] : made[row] + n, row] = result.logprobs[:n, column]
        made[left] += result.steps
        runs += 1
    is_over.set()
    setter.join()
    is_counted = np.arange(steps)[:, None] < block.steps
    assert runs > 1
    assert ids[is_counted].tobytes() == expected.ids[is_counted].tobytes()
    assert logprobs[is_counted].tobytes() == expected.logprobs[is_counted].tobytes()
    assert all(cut.read(slot).tobytes() == whole.read(slot).tobytes() for slot in range(rows))


@pytest.mark.parametrize("stepper", ["cpu", "reference"])
def test_an_interrupt_ends_a_run_after_its_least_steps(stepper: str) -> None:
    """At most one step later; rows that have fewer make those. Cleared, it ends no run."""
    net = network(hidden=96, layers=1)
    runner = CpuStepper(net, 30, threads=2) if stepper == "cpu" else ReferenceStepper(net, 30)
    steps = np.array([40, 9, 30] * 10, np.int32)
    block, interrupt = replace(plain_block(30, 40), steps=steps, least_steps=12), Interrupt()
    assert runner.run(block, interrupt=interrupt).steps.tolist() == steps.tolist()
    interrupt.set()
    result = runner.run(block, interrupt=interrupt)
    assert (result.steps >= np.minimum(steps, 12)).all()
    assert (result.steps <= np.minimum(steps, 13)).all()
    assert result.steps_run == result.steps.max()
    interrupt.clear()
    assert runner.run(block, interrupt=interrupt).steps.tolist() == steps.tolist()


def _columns(block: Block, columns: range | list[int], slots: list[int] | None = None) -> Block:
    pick = list(columns)
    return Block(
        slots=np.array(slots if slots is not None else pick, np.int32),
        steps=np.ascontiguousarray(block.steps[pick]),
        forced_ids=np.ascontiguousarray(block.forced_ids[:, pick]),
        random_values=np.ascontiguousarray(block.random_values[:, pick]),
        sampling=block.sampling[pick],
    )


def test_the_harness_notices_a_stepper_that_is_not_invariant() -> None:
    """One ulp in one number of one row, in batches above 8 only, is found."""
    net, rng = network(), Random(5)
    texts = random_texts(rng, 70, 65)
    assert variant_texts(VariantStepper(CpuStepper(net, 64)), CpuStepper(net, 1), texts, rng) != []


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_state_read_and_written_continues_as_if_it_had_stayed(precision: WeightPrecision) -> None:
    """write(read()) is exact, in another slot and another stepper as well; None is the zero state."""
    net = network()
    here, there = CpuStepper(net, 3, precision), CpuStepper(net, 5, precision)
    here.run(plain_block(1, 9, slots=[2]))
    state = here.read(2)
    there.write(4, state)
    assert there.read(4).tobytes() == state.tobytes()
    stayed, moved = here.run(plain_block(1, 8, slots=[2])), there.run(plain_block(1, 8, slots=[4]))
    assert stayed.ids.tobytes() == moved.ids.tobytes()
    assert here.read(2).tobytes() == there.read(4).tobytes()
    there.write(4, None)
    assert not there.read(4).any()


def test_rows_without_steps_left_are_unchanged() -> None:
    """A row with fewer steps keeps the state it had after its last one; a slot outside the block keeps its own."""
    net = network()
    stepper, short = CpuStepper(net, 4), CpuStepper(net, 4)
    stepper.run(plain_block(4, 1)), short.run(plain_block(4, 1))
    block = plain_block(3, 10)
    block.steps[:] = [10, 2, 6]
    stepper.run(block)
    twos = np.full(3, 2, np.int32)
    short.run(replace(block, steps=twos, forced_ids=block.forced_ids[:2], random_values=block.random_values[:2]))
    assert stepper.read(1).tobytes() == short.read(1).tobytes()
    assert stepper.read(3).tobytes() == short.read(3).tobytes()
    assert stepper.read(0).tobytes() != short.read(0).tobytes()


any_logits = st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=70)
equal_logits = st.lists(st.sampled_from([0.0, 1.0, -2.5]), min_size=2, max_size=9)


@settings(max_examples=400, deadline=None)
@given(
    logits=any_logits | equal_logits,
    uniform=st.floats(0, 1, exclude_max=True),
    temperature=st.just(0.0) | st.just(1.0) | st.floats(0.05, 5),
    top_k=st.integers(0, 75),
    top_p=st.just(1.0) | st.floats(0, 1),
    min_p=st.just(0.0) | st.floats(0, 1),
    typical_p=st.just(1.0) | st.floats(0.001, 1),
)
def test_sampling_is_that_of_the_model_package(
    logits: list[float], uniform: float, temperature: float, top_k: int, top_p: float, min_p: float, typical_p: float
) -> None:
    """The id is the one that sampling draws, unless a number lies within 1e-9 of a border; the log-probability too.

    With 200 further ids of probability zero it is the same: few ids are ranked by counting, many by a heap.
    """
    scores = np.array(logits, np.float32)
    params = SamplingParams(temperature, top_k, top_p, min_p, typical_p)
    if temperature > 0:
        _assume_no_border(scores.astype(np.float64), uniform, params)
    id, logprob = _native_sample(scores, uniform, params)
    expected_id, expected_logprob = _torch_sample(scores, uniform, params)
    assert id == expected_id
    assert abs(logprob - expected_logprob) <= 1e-6 * max(1.0, abs(expected_logprob))
    assert _native_sample(np.append(scores, np.full(200, -1e5, np.float32)), uniform, params) == (id, logprob)


def _native_sample(logits: np.ndarray, random_value: float, params: SamplingParams) -> tuple[int, float]:
    library, row, logprob = load_library(library_path()), as_batch([params]), np.zeros(1, np.float32)
    id = library.lh_sample(None, logits.ctypes.data, len(logits), row.ctypes.data, random_value, logprob.ctypes.data)
    return id, float(logprob[0])


def _torch_sample(logits: np.ndarray, random_value: float, params: SamplingParams) -> tuple[int, float]:
    number = torch.tensor([random_value], dtype=torch.float64)
    ids, logprobs = sample(torch.tensor(logits)[None], number, as_tensors(as_batch([params])))
    return int(ids), float(logprobs)


def _assume_no_border(scores: np.ndarray, uniform: float, params: SamplingParams) -> None:
    """Gives up on cases where rounding decides: what is kept, or which id the uniform number falls to."""
    gaps = np.diff(np.sort(scores)) / params.temperature
    assume(not ((gaps > 0) & (gaps < 1e-9)).any())  # equal probabilities of unequal logits: which comes first?
    weights = np.exp((scores - scores.max()) / params.temperature)
    order = np.argsort(-weights, kind="stable")
    top = weights[order][: params.top_k or None]
    before = np.cumsum(top) - top
    if params.top_p < 1:
        assume(np.abs(before[1:] / top.sum() - params.top_p).min(initial=1) > 1e-9)
    if params.min_p > 0:
        assume(np.abs(weights[weights < 1] - params.min_p).min(initial=1) > 1e-9)
    kept = top[((before < params.top_p * top.sum()) | (params.top_p >= 1)) & (top >= params.min_p)]
    chosen = np.zeros_like(weights)
    chosen[order[: len(kept)]] = kept
    chosen[order[0]] = weights[order[0]]
    if params.typical_p < 1:
        chosen = _typical(chosen, params.typical_p)
    cumulative = np.cumsum(chosen) / chosen.sum()
    assume(np.abs(cumulative - uniform).min() > 1e-9)


def _typical(weights: np.ndarray, typical_p: float) -> np.ndarray:
    """What locally typical sampling keeps of the weights; gives up where rounding decides."""
    q = weights / weights.sum()
    information = -np.log(q, out=np.full_like(q, -np.inf), where=q > 0)
    entropy = (q[q > 0] * information[q > 0]).sum()
    distance = np.where(q > 0, np.abs(information - entropy), np.inf)
    order = np.argsort(distance, kind="stable")
    mass = np.cumsum(q[order])
    assume(np.abs(mass - typical_p).min() > 1e-9)
    last = distance[order[min(int((mass < typical_p).sum()), len(q) - 1)]]
    same = weights == weights[order[min(int((mass < typical_p).sum()), len(q) - 1)]]
    assume(same.all() or np.abs(distance[~same & (q > 0)] - last).min(initial=1) > 1e-9)
    return np.where(distance <= last, weights, 0.0)


def test_a_large_vocabulary_is_filtered_alike() -> None:
    """65,536 ids, with and without filters: the same ids as model.network.sampling."""
    rng = np.random.default_rng(2)
    logits = rng.normal(size=65536).astype(np.float32) * 3
    for params in (SamplingParams(), SamplingParams(0.8, 40, 0.95, 0.0), SamplingParams(1, 0, 0.9, 0.001, 0.5)):
        for uniform in rng.random(3):
            assert _native_sample(logits, uniform, params)[0] == _torch_sample(logits, uniform, params)[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: replace(b, slots=np.array([0, 4], np.int32)), r"slots\[1\] is not a slot"),
        (lambda b: replace(b, slots=np.array([-1, 1], np.int32)), r"slots\[0\] is not a slot"),
        (lambda b: replace(b, slots=np.array([1, 1], np.int32)), r"slots\[1\] is there twice"),
        (lambda b: replace(b, steps=np.array([3, 0], np.int32)), r"steps\[1\]"),
        (lambda b: replace(b, steps=np.array([4, 1], np.int32)), r"steps\[0\]"),
        (lambda b: replace(b, forced_ids=np.full((3, 2), SAMPLE, np.int32)), r"forced_ids\[0, 0\] is SAMPLE"),
        (
            lambda b: replace(b, forced_ids=np.array([[1, 1], [2, 65], [1, 1]], np.int32)),
            r"forced_ids\[1, 1\] is not an id",
        ),
        (
            lambda b: replace(b, forced_ids=np.array([[1, 1], [2, -2], [1, 1]], np.int32)),
            r"forced_ids\[1, 1\] is not an id",
        ),
        (lambda b: replace(b, random_values=np.ones((3, 2))), r"random_values\[0, 0\]"),
        (lambda b: replace(b, random_values=np.full((3, 2), np.nan)), r"random_values\[0, 0\]"),
        (lambda b: replace(b, sampling=sampling(b, 1, temperature=np.nan)), r"sampling\[1\]"),
        (lambda b: replace(b, sampling=sampling(b, 0, temperature=np.inf)), r"sampling\[0\]"),
        (lambda b: replace(b, sampling=sampling(b, 0, top_k=-1)), r"sampling\[0\]"),
        (lambda b: replace(b, sampling=sampling(b, 1, top_p=-0.1)), r"sampling\[1\]"),
        (lambda b: replace(b, sampling=sampling(b, 1, min_p=np.nan)), r"sampling\[1\]"),
        (lambda b: replace(b, sampling=sampling(b, 0, typical_p=0.0)), r"sampling\[0\]"),
        (lambda b: replace(b, score_ids=np.full((3, 2), 65, np.int32)), r"score_ids\[0, 0\] is not an id"),
        (lambda b: replace(b, score_ids=np.zeros((2, 2), np.int32)), "score_ids: got"),
        (lambda b: replace(b, slots=np.array([0, 1], np.int64)), "slots: got int64"),
        (lambda b: replace(b, forced_ids=b.forced_ids.T), "forced_ids|slots"),
        (lambda b: replace(b, random_values=np.asfortranarray(b.random_values)), "not contiguous"),
        (lambda b: replace(b, sampling=as_batch([SamplingParams()] * 3)), "sampling: got"),
        (lambda b: replace(b, sampling=np.zeros(2)), "sampling: got float64"),
    ],
)
def test_a_bad_block_is_refused_and_moves_nothing(change: object, words: str) -> None:
    """ValueError names what is wrong; no state has changed."""
    stepper = CpuStepper(network(), 4)
    stepper.run(plain_block(4, 2))
    before = [stepper.read(slot).tobytes() for slot in range(4)]
    assert callable(change)
    with pytest.raises(ValueError, match=words):
        stepper.run(change(plain_block(2, 3)))
    assert [stepper.read(slot).tobytes() for slot in range(4)] == before


def test_bad_states_slots_and_weights_are_refused() -> None:
    """ValueError for a state of another shape or type or with a NaN, for a slot that is not there, for NaN weights."""
    stepper = CpuStepper(network(), 2)
    good = stepper.read(0)
    poisoned = good.copy()
    poisoned[1, 0, 3] = np.nan
    for state in (good[:, :1], good.astype(np.float64), poisoned):
        with pytest.raises(ValueError, match="finite float32"):
            stepper.write(0, state)
    for slot in (-1, 2):
        with pytest.raises(ValueError, match="slot: got"):
            stepper.read(slot)
    for value in (np.nan, np.inf, 1e39):
        net = network()
        net.rnn.weight_hh_l1.data[3, 3] = value
        with pytest.raises(ValueError, match=r"rnn\.weight_hh_l1"):
            CpuStepper(net, 2)


def test_what_it_cannot_run_is_unsupported_with_the_reason(tmp_path: Path) -> None:
    """gru, rnn, a table past its bound and a library that is not built raise Unsupported, which says so."""
    with pytest.raises(Unsupported, match="this model is gru"):
        CpuStepper(network(cell="gru"), 2)
    with pytest.raises(Unsupported, match="MiB"), torch.device("meta"):
        CpuStepper(CharRNN(ModelConfig(65536, 1500, 1, 1)), 2)
    with pytest.raises(Unsupported, match="not built"):
        CpuStepper(network(), 2, library=tmp_path / "none.so")


def test_closing_twice_is_fine_and_a_closed_stepper_says_so() -> None:
    """close is idempotent; afterwards every call raises ValueError instead of touching freed memory."""
    stepper = CpuStepper(network(hidden=128), 40, threads=2)
    stepper.run(plain_block(40, 2))
    stepper.close()
    stepper.close()
    with pytest.raises(ValueError, match="closed"):
        stepper.run(plain_block(40, 2))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_memory_of_a_closed_stepper_leaves_no_trace_in_the_next_one(precision: WeightPrecision) -> None:
    """A stepper of the same size takes over that memory: its states begin at zero, and it computes its own bits."""
    packed = PackedNetwork.of(network(), precision)
    assert isinstance(packed.packed, Packed)
    arrays = packed.packed.arrays()

    def fill(memory: Mapping[str, memoryview]) -> None:
        for name, array in arrays.items():
            memory[name][:] = array.tobytes()

    kept_open = CpuStepper(packed, 30, precision)
    expected = bits(kept_open, kept_open.run(plain_block(30, 40)))
    for network_to_load in [packed, replace(packed, packed=fill), replace(packed, packed=fill)]:
        stepper = CpuStepper(network_to_load, 30, precision)
        assert not any(stepper.read(slot).any() for slot in range(30))
        assert bits(stepper, stepper.run(plain_block(30, 40))) == expected
        stepper.close()


def test_two_steppers_run_at_once() -> None:
    """Steppers of two models, each on its own thread, while both share the cores, produce what they produce alone."""
    nets = [network(hidden=96, layers=1), network(hidden=64, layers=3)]
    expected = [bits(s, s.run(plain_block(30, 40))) for s in (CpuStepper(n, 30, threads=1) for n in nets)]
    got: list[tuple[bytes, ...]] = [(), ()]

    def play(i: int) -> None:
        for _ in range(5):
            stepper = CpuStepper(nets[i], 30, threads=2)
            got[i] = bits(stepper, stepper.run(plain_block(30, 40)))
            assert got[i] == expected[i]
            stepper.close()

    workers = [threading.Thread(target=play, args=(i,)) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert got == expected


def _other_builds() -> dict[str, tuple[list[str] | None, tuple[str, ...]]]:
    """Name -> compiler (None where it is not there) and flags."""
    named = {command[-1] if "ziglang" not in command else "zig": command for command in compilers()}
    zig = [sys.executable, "-m", "ziglang", "cc"] if importlib.util.find_spec("ziglang") else None
    main = compilers()[0] if compilers() else None
    optimised = tuple(f for f in flags() if f != "-O3")
    return {
        "O1": (main, (*optimised, "-O1")),
        "O2": (main, (*optimised, "-O2")),
        "gcc": (named.get("gcc"), flags()),
        "clang": (named.get("clang"), flags()),
        "zig": (zig, flags()),
    }


@pytest.mark.parametrize("name", ["O1", "O2", "gcc", "clang", "zig"])
def test_another_build_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    """The bits depend on the source: not on the compiler or the optimisation, in any instruction set of the CPU."""
    compiler, options = _other_builds()[name]
    if compiler is None:
        pytest.skip(f"no {name} here")
    compile_to(tmp_path / "other.so", compiler, options)
    net = network(hidden=37, layers=2)
    for precision in PRECISIONS:
        steppers = [CpuStepper(net, 8, precision)] + [
            CpuStepper(net, 8, precision, library=tmp_path / "other.so", instruction_set=instruction_set)
            for instruction_set in available_instruction_sets(load_library(tmp_path / "other.so"))
        ]
        texts = random_texts(Random(1), 7, 65)
        expected, *others = [run_in_random_batches(stepper, texts, Random(2)) for stepper in steppers]
        assert [differing(expected, other) for other in others] == [[]] * len(others)


def test_building_again_writes_nothing_and_failures_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second build is a no-op; with no compiler --optional says why and exits with 0, without it with 1."""
    made = library_path().stat().st_mtime_ns
    assert "up to date" in build()
    assert library_path().stat().st_mtime_ns == made
    monkeypatch.setattr(build_module, "library_path", lambda: tmp_path / "kernel.so")
    monkeypatch.setattr(build_module, "compilers", list)
    for arguments, code in ((["build", "--optional"], 0), (["build"], 1)):
        monkeypatch.setattr(sys, "argv", arguments)
        assert build_module.main() == code
        assert "no C compiler" in capsys.readouterr().err


def test_int8_costs_at_most_a_thousandth_of_a_nat() -> None:
    """On a network trained for a moment on a made-up language, int8's loss is within 0.001 nats of float64's."""
    ids, vocab = _made_up_text()
    net = _trained(ids, vocab)
    rows, steps = 32, 60
    starts = np.arange(rows) * 90
    window = np.stack([ids[s : s + steps + 1] for s in starts]).astype(np.int32)  # (B, K + 1)
    with torch.no_grad():
        logits, _ = net(torch.tensor(window[:, :-1].astype(np.int64)), net.zero_state(rows))
    logprobs = torch.log_softmax(logits, dim=-1).numpy()
    following = window[:, 1:, None].astype(np.int64)
    targets = np.take_along_axis(logprobs, following, axis=2)[:, :, 0]  # (B, K)
    block = plain_block(rows, steps, vocab)
    block = replace(
        block,
        forced_ids=np.ascontiguousarray(window[:, :-1].T),
        score_ids=np.ascontiguousarray(window[:, 1:].T),
    )
    result = CpuStepper(net, rows, "int8").run(block)
    assert abs((targets.T - result.logprobs).mean()) <= 0.001
    assert -targets.mean() < 0.7 * np.log(vocab)  # it did learn


def _made_up_text() -> tuple[np.ndarray, int]:
    rng = Random(4)
    syllables = ["ka", "lo", "mi", "ren", "tu", "sha", "vel", "o", "pir"]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(60)]
    text = " ".join(rng.choice(words) + rng.choice(["", "", "", ",", ".\n"]) for _ in range(4000))
    letters = {c: i for i, c in enumerate(sorted(set(text)))}
    return np.array([letters[c] for c in text]), len(letters)


def _trained(ids: np.ndarray, vocab: int) -> CharRNN:
    torch.manual_seed(1)
    net = CharRNN(ModelConfig(vocab, 64, 2, 16))
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for step in range(120):
        starts = np.random.default_rng(step).integers(0, len(ids) - 41, 32)
        batch = torch.tensor(np.stack([ids[s : s + 41] for s in starts]))
        logits, _ = net(batch[:, :-1], net.zero_state(32))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return net.double()


def test_random_batches_are_well_formed() -> None:
    """The harness feeds the prompt, then what was sampled, and draws each position's own uniform number."""
    text = Text(prompt=[3, 1, 4], length=5, seed=9, params=SamplingParams())
    block = block_of([text], [Progress(steps=1)], [0], [4])
    assert block.forced_ids[:, 0].tolist() == [1, 4, SAMPLE, SAMPLE]
    whole = block_of([text], [Progress()], [0], [5])
    assert (block.random_values[:, 0] == whole.random_values[1:, 0]).all()
