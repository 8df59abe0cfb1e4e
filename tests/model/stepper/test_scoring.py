"""Texts that are read side by side have the log-probabilities of the blocks, bit for bit, whoever is beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.config import ModelConfig, WeightPrecision
from model.native.library import available_instruction_sets, library_path, load_library
from model.network.char_rnn import CharRNN
from model.stepper import scoring
from model.stepper.cpu import CpuStepper
from model.stepper.reference import ReferenceStepper
from model.stepper.scoring import EncodedItems, PackedScoring, PackedTexts, score_texts
from model.text.vocab import Vocabulary

pytestmark = pytest.mark.usefixtures("native_code")
V = 11
END = 3
TASKS = Path("/proc/self/task")
PRECISIONS: list[WeightPrecision] = ["fp32", "int8"]


def network(hidden: int = 40, layers: int = 2, item_end: int | None = None) -> CharRNN:
    torch.manual_seed(5)
    made = CharRNN(ModelConfig(V, n_hidden=hidden, n_layers=layers, n_embed=8)).eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter.mul_(2.0)
    made.item_end = item_end
    return made


def texts(n: int = 150, seed: int = 1) -> list[NDArray[np.int32]]:
    """Texts of which many begin alike, some are equal, and one is long."""
    rng = np.random.default_rng(seed)
    stems = [rng.integers(0, V, rng.integers(1, 40)) for _ in range(12)]
    made = [np.concatenate([stems[rng.integers(12)], rng.integers(0, V, rng.integers(0, 30))]) for _ in range(n)]
    made += [made[0], made[7], rng.integers(0, V, 300), rng.integers(0, V, 1)]
    return [text.astype(np.int32) for text in made]


def packed(chosen: list[NDArray[np.int32]], is_sorted: bool = True, first: int = END) -> PackedTexts:
    order = sorted(range(len(chosen)), key=lambda i: chosen[i].tolist()) if is_sorted else list(range(len(chosen)))
    lengths = np.array([len(text) for text in chosen])
    return PackedTexts.of(np.concatenate(chosen), lengths, np.array(order), first)


def by_text(of: PackedTexts, logprobs: NDArray[np.float32]) -> list[bytes]:
    """The bits of each text's log-probabilities, in the order of the caller."""
    starts = of.scored_starts
    result = {int(i): logprobs[starts[at] : starts[at + 1]].tobytes() for at, i in enumerate(of.order)}
    return [result[i] for i in range(len(of))]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("hidden", "layers"), [(40, 2), (16, 1), (33, 3)])
@pytest.mark.parametrize("item_end", [None, END])
def test_the_bits_are_those_of_blocks(
    hidden: int, layers: int, item_end: int | None, precision: WeightPrecision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With few and many rows, in parts of any length, on one thread and two, in any order; slots do not change."""
    chosen, made = texts(), network(hidden, layers, item_end)
    expected = by_text(packed(chosen), scoring._score_in_blocks(CpuStepper(made, 64, precision), packed(chosen)))
    rng = np.random.default_rng(3)
    for threads, most, is_sorted in ((1, 512, True), (2, 512, True), (2, 20, True), (2, 512, False)):
        monkeypatch.setattr(scoring, "MOST_ROWS", most)
        stepper = CpuStepper(made, 1, precision, threads=threads)
        state = rng.standard_normal(stepper.state_shape).astype(np.float32)
        stepper.write(0, state)
        of = packed(chosen, is_sorted)
        reading = PackedScoring(stepper, of)
        while reading.run(int(rng.integers(1, 400))):
            pass
        assert by_text(of, reading.logprobs) == expected
        assert stepper.read(0).tobytes() == state.tobytes()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_instruction_sets_have_the_same_bits(precision: WeightPrecision) -> None:
    """As for blocks."""
    of = packed(texts(40))
    sets = available_instruction_sets(load_library(library_path()))
    result = {name: score_texts(CpuStepper(network(), 1, precision, instruction_set=name), of) for name in sets}
    assert len({logprobs.tobytes() for logprobs in result.values()}) == 1


def test_equal_beginnings_are_read_once() -> None:
    """The steps are as many as there are different beginnings, each fed once."""
    chosen = texts(100)
    fed = {(END, *text[:n].tolist()) for text in chosen for n in range(len(text))}
    reading = PackedScoring(CpuStepper(network(), 1), packed(chosen))
    steps = 0
    while made := reading.run(1000):
        steps += made
    assert steps == len(fed) < sum(map(len, chosen)) // 2


@pytest.mark.skipif(not TASKS.is_dir(), reason="the system does not list the threads of a process")
def test_no_more_cores_are_used_than_allowed() -> None:
    """Threads of the stepper begin with the first run that may use them; they change no bit."""
    chosen, result = packed(texts()), []
    for n_cores in (1, 2, 0):
        stepper, n_before = CpuStepper(network(hidden=96), 1, threads=3), len(list(TASKS.iterdir()))
        scoring = PackedScoring(stepper, chosen)
        while scoring.run(5000, n_cores):
            pass
        result.append((len(list(TASKS.iterdir())) - n_before, scoring.logprobs.tobytes()))
        stepper.close()
    assert [n for n, _ in result] == [0, 1, 2]
    assert len({logprobs for _, logprobs in result}) == 1


def test_a_stepper_that_has_only_blocks_reads_texts_too() -> None:
    """With fewer slots than texts, of a network of a text: the states before it do not matter."""
    chosen = texts(30)
    reference = ReferenceStepper(network(), 7)
    first, again = (score_texts(reference, packed(chosen)) for _ in range(2))
    assert first.tobytes() == again.tobytes()
    assert np.abs(first - score_texts(CpuStepper(network(), 1), packed(chosen))).max() < 1e-4


def test_bad_arrays_are_refused() -> None:
    """The C code reads none that it cannot."""
    stepper = CpuStepper(network(), 1)
    ids, starts, logprobs = np.array([1, 2, 3, 4], np.int32), np.array([0, 2, 4]), np.empty(2, np.float32)
    for bad in (
        (ids.astype(np.int64), starts, logprobs),
        (ids, starts.astype(np.int32), logprobs),
        (ids, starts, np.empty(3, np.float32)),
        (ids, np.array([0, 3, 4]), logprobs),
        (ids, np.array([0, 5, 4]), logprobs),
        (ids, np.array([1, 2, 4]), logprobs),
        (np.array([1, 2, 3, V], np.int32), starts, logprobs),
        (np.array([1, 2, 3, -1], np.int32), starts, logprobs),
        (ids[:0], starts[:1], logprobs[:0]),
    ):
        with pytest.raises(ValueError, match="expected"):
            stepper.begin_scoring(*bad)


def test_what_is_closed_says_so() -> None:
    """A scoring that is closed, twice, and one whose stepper is."""
    stepper = CpuStepper(network(), 1)
    arrays = np.array([1, 2, 3, 4], np.int32), np.array([0, 4]), np.empty(3, np.float32)
    one, other = stepper.begin_scoring(*arrays), stepper.begin_scoring(*arrays)
    one.close()
    one.close()
    with pytest.raises(ValueError, match="the scoring is closed"):
        one.run(10)
    stepper.close()
    with pytest.raises(ValueError, match="the stepper is closed"):
        other.run(10)
    other.close()


def test_items_are_encoded_to_the_first_character_that_none_can_have() -> None:
    """Each as `encode` does; all characters that it cannot have are named."""
    vocab = Vocabulary("\nabc")
    items = ["abc", "", "axbyc", "x", "a\nb", "cab", "abx"]
    encoded = EncodedItems.of(vocab, items)
    assert encoded.unknown == {2: "xy", 3: "x", 4: "\n", 6: "x"}
    assert encoded.lengths.tolist() == [3, 0, 1, 0, 1, 3, 2]
    assert vocab.decode(encoded.ids) == "abc" + "a" + "a" + "cab" + "ab"
    of = encoded.pack(vocab)
    read = {int(i): vocab.decode(of.ids[of.starts[at] : of.starts[at + 1]]) for at, i in enumerate(of.order)}
    assert [read[i] for i in range(7)] == [f"\n{item}\n" for item in ["abc", "", "a", "", "a", "cab", "ab"]]
