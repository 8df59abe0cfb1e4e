"""Items are scored exactly and generated in an order that only the seed decides."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from model.config import ModelConfig, WeightPrecision
from model.errors import ConfigError
from model.network.char_rnn import CharRNN
from model.network.sampling import SamplingParams
from model.stepper import items as items_module
from model.stepper.cpu import CpuStepper
from model.stepper.generate import write
from model.stepper.items import (
    LANES,
    PATIENCE,
    Candidates,
    GeneratedItem,
    ItemCollector,
    ItemConstraints,
    ItemStart,
    Lane,
    generate_items,
    take_candidates,
)
from model.stepper.reference import ReferenceStepper
from model.stepper.scoring import score_items
from model.text.items.layout import ItemLayout
from model.text.items.record import ItemRecord
from model.text.items.splitting import item_hashes
from model.text.vocab import Vocabulary

pytestmark = pytest.mark.usefixtures("native_code")
VOCAB = Vocabulary("\nabc")


def network(end_bias: float = 1.0, scale: float = 2.0) -> CharRNN:
    """A network whose items are short where the bias of the end is large."""
    torch.manual_seed(11)
    made = CharRNN(ModelConfig(len(VOCAB), n_hidden=24, n_embed=8)).eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter.mul_(scale)
    made.head.bias[0] = end_bias
    made.item_end = VOCAB.start
    return made


def record(*training_items: str) -> ItemRecord:
    """The record of a list with these training items."""
    hashes = np.sort(item_hashes(training_items))
    return ItemRecord(ItemLayout("lines"), len(training_items), 0, 0, len(training_items), train_hashes=hashes)


def generated(
    constraints: ItemConstraints,
    seed: int = 1,
    known: ItemRecord | None = None,
    made: CharRNN | None = None,
    n_slots: int = LANES,
    precision: WeightPrecision = "fp32",
) -> tuple[list[GeneratedItem], dict[str, Any]]:
    """The items, and how it ended."""
    collector = ItemCollector(constraints, known or record("a", "b"))
    stepper = CpuStepper(made or network(), n_slots, precision)
    return list(generate_items(stepper, VOCAB, collector, SamplingParams(), seed)), collector.outcome()


def every_item(longest: int) -> Iterator[str]:
    """All items of up to so many characters."""
    for n in range(longest + 1):
        yield from map("".join, itertools.product("abc", repeat=n))


def test_the_probabilities_of_all_items_add_up_to_one() -> None:
    """Of a model whose items are short: the sum over every item there is, ends counted."""
    scores = score_items(CpuStepper(network(end_bias=12.0, scale=0.5), 64), VOCAB, list(every_item(5)))
    assert len(scores) == 364
    assert math.fsum(math.exp(score.logprob) for score in scores) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_item_has_the_same_probability_in_every_batch(precision: Any) -> None:
    """Bit for bit: alone, among hundreds of others, in another order, and with few slots."""
    texts = [item for n, item in enumerate(every_item(6)) if n % 5 == 0] + ["abc" * 40]
    together = list(score_items(CpuStepper(network(), 64, precision), VOCAB, texts))
    backwards = list(score_items(CpuStepper(network(), 7, precision), VOCAB, texts[::-1]))[::-1]
    assert together == backwards
    one = CpuStepper(network(), 1, precision)
    assert [score_items(one, VOCAB, [text])[0] for text in texts[::9]] == together[::9]


def test_scores_are_those_of_the_definition() -> None:
    """Surprisal, its mean, and the most surprising character are those of the network's softmax."""
    made = network()
    (score,) = scores = score_items(ReferenceStepper(made, 4), VOCAB, ["abca"])
    ids = torch.tensor([[VOCAB.start, *VOCAB.encode("abca").tolist()]])
    logits, _ = made(ids, made.zero_state(1))
    nats = -torch.log_softmax(logits[0].double(), dim=-1)[range(5), [*VOCAB.encode("abca").tolist(), VOCAB.start]]
    assert score.bits == pytest.approx(float(nats.sum()) / math.log(2), abs=1e-4)
    assert score.bits_per_character == pytest.approx(score.bits / 5)
    position, peak = score.peak
    assert position == int(nats.argmax())
    assert peak == pytest.approx(float(nats.max()) / math.log(2), abs=1e-4)
    assert scores.statistic("bits").tolist() == [score.bits]
    assert scores.statistic("peak_bits").tolist() == [score.peak[1]]


def test_characters_that_the_vocabulary_lacks_are_infinitely_surprising() -> None:
    """They are named, and the place of the first is the most surprising one."""
    known, unknown = score_items(CpuStepper(network(), 4), VOCAB, ["ab", "abxcy"])
    assert (known.unknown, unknown.unknown) == ("", "xy")
    assert unknown.bits == math.inf
    assert unknown.peak == (2, math.inf)
    assert unknown.logprobs[:2] == known.logprobs[:2]


def test_an_item_with_the_end_of_an_item_is_impossible() -> None:
    """It is not scored as two items: the place of the end is infinitely surprising, and the end is named."""
    stepper = CpuStepper(network(), 4)
    whole, *broken = score_items(stepper, VOCAB, ["abca", "ab\nca", "ab\nx", "x\n"])
    assert [score.unknown for score in broken] == ["\n", "\nx", "x\n"]
    assert [score.peak for score in broken] == [(2, math.inf), (2, math.inf), (0, math.inf)]
    assert broken[0].logprobs[:2] == whole.logprobs[:2]


PENALTIES = [
    (SamplingParams(repetition_penalty=1.7), {}),
    (SamplingParams(frequency_penalty=1.5, presence_penalty=-0.5, penalty_window=3), {}),
    (SamplingParams(0.8, presence_penalty=2), {"\n": -1.5, "a": 3.0}),
    (SamplingParams(), {"b": -100.0}),
]


@pytest.mark.parametrize("prefix", ["", "acb"])
@pytest.mark.parametrize(("params", "bias"), PENALTIES)
@pytest.mark.parametrize("block_steps", [3, 32])
def test_penalties_and_bias_hold_for_each_item_alone(
    prefix: str, params: SamplingParams, bias: dict[str, float], block_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Items are what a text of the lane's seed is, with a window that begins with the prefix and ends with the item."""
    monkeypatch.setattr(items_module, "_BLOCK_STEPS", block_steps)
    constraints = ItemConstraints(4 * LANES, unique=False, min_chars=0, prefix=prefix)
    collector, stepper = ItemCollector(constraints, record("a")), CpuStepper(network(), LANES)
    items = list(generate_items(stepper, VOCAB, collector, params, 5, bias))
    for lane in (0, 1, 40):
        position = 0
        for item in items[lane::LANES]:
            seed, one = items_module._lane_seed(5, lane), CpuStepper(network(), 1)
            text = "".join(write(one, VOCAB, prefix, 200, params, seed, start=position, logit_bias=bias))
            assert item.text == prefix + text.partition("\n")[0]
            position += len(item.text) + 1
    plain, _ = generated(constraints, seed=5)
    assert [item.text for item in items] != [item.text for item in plain]


def test_only_the_seed_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the number of slots, nor the length of blocks; fewer items are the first of more; other seeds give others."""
    texts = [item.text for item in generated(ItemConstraints(200))[0]]
    assert len(texts) == len(set(texts)) == 200
    assert [item.text for item in generated(ItemConstraints(200), n_slots=90)[0]] == texts
    assert [item.text for item in generated(ItemConstraints(20))[0]] == texts[:20]
    assert [item.text for item in generated(ItemConstraints(200), seed=2)[0]] != texts
    for steps in (1, 7):
        monkeypatch.setattr(items_module, "_BLOCK_STEPS", steps)
        assert [item.text for item in generated(ItemConstraints(200))[0]] == texts
    monkeypatch.setattr(items_module, "_BUFFERED", 1)
    assert [item.text for item in generated(ItemConstraints(200))[0]] == texts


@pytest.mark.parametrize("prefix", ["", "a", "ab"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_item_comes_with_the_probability_that_scoring_gives_it(
    prefix: str, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, its prefix and its end included, whatever the blocks are."""
    items, _ = generated(ItemConstraints(100, prefix=prefix), precision=precision)
    scores = score_items(CpuStepper(network(), 64, precision), VOCAB, [item.text for item in items])
    assert [item.logprob for item in items] == [score.logprob for score in scores]
    assert all(item.text.startswith(prefix) for item in items)
    monkeypatch.setattr(items_module, "_BLOCK_STEPS", 3)
    assert generated(ItemConstraints(100, prefix=prefix), precision=precision)[0] == items


def test_candidates_are_taken_round_by_round() -> None:
    """Candidate j * LANES + l is the j-th of lane l, however many each lane has at a time."""
    rng = random.Random(4)
    start = ItemStart.read(CpuStepper(network(), 1), VOCAB)
    for n_lanes in (LANES, LANES, 40, 1):
        lanes = [Lane(VOCAB, ItemConstraints(1), SamplingParams(), 1, i, start) for i in range(n_lanes)]
        expected: list[tuple[str, float]] = []
        made, taken = [0] * n_lanes, list[tuple[str, float]]()
        for _ in range(12):
            for number, lane in enumerate(lanes):
                for _ in range(rng.choice([0, 0, 1, 3])):
                    text, value = "abc"[made[number] % 3] * (1 + number % 4), made[number] * LANES + number
                    lane.advance(text + "\n", np.full(len(text) + 1, value, np.float32))
                    made[number] += 1
            n_last = len(taken)
            candidates = take_candidates(lanes, len(taken))
            taken += zip(candidates.texts, candidates.logprobs, strict=True)
            while len(expected) % LANES < n_lanes and len(expected) // LANES < made[len(expected) % LANES]:
                number = len(expected)
                text = "abc"[number // LANES % 3] * (1 + number % LANES % 4)
                expected.append((text, number * (len(text) + 1)))
            assert taken == expected
            assert len(taken) >= n_last
        assert len(taken) > (n_lanes if n_lanes < LANES else LANES) - 1


@pytest.mark.parametrize("unique", [True, False])
@pytest.mark.parametrize("novel", [True, False])
@pytest.mark.parametrize("batch", [1, 7, 5000])
def test_candidates_are_accepted_one_after_the_other(unique: bool, novel: bool, batch: int) -> None:
    """In batches of any size: the items, the counts and the end are those of one decision after the other."""
    rng = random.Random(8)
    known = record("a", "b", "ca", "abc")
    for n, n_letters in ((1, 2), (40, 2), (40, 3), (400, 3)):
        constraints = ItemConstraints(n, unique, novel, min_chars=1, max_chars=4)
        texts = ["".join(rng.choices("abc"[:n_letters], k=rng.randrange(6))) for _ in range(3000)]
        accepted: list[str] = []
        rejected: Counter[str] = Counter()
        since = n_read = 0
        for text in texts:
            if len(accepted) == n or since == PATIENCE:
                break
            n_read += 1
            reason = (
                "too_long"
                if len(text) > 4
                else "too_short"
                if not text
                else "duplicate"
                if unique and text in accepted
                else "seen"
                if novel and text in {"a", "b", "ca", "abc"}
                else None
            )
            since = since + 1 if reason else 0
            if reason:
                rejected[reason] += 1
            else:
                accepted.append(text)
        collector = ItemCollector(constraints, known)
        items: list[GeneratedItem] = []
        for at in range(0, len(texts), batch):
            some = texts[at : at + batch]
            items += collector.offer(Candidates(some, [float(at + i) for i in range(len(some))]))
        assert [item.text for item in items] == accepted
        assert all(texts[int(item.logprob)] == item.text for item in items)
        assert [item.seen_in_training for item in items] == [text in {"a", "b", "ca", "abc"} for text in accepted]
        outcome = collector.outcome()
        assert (outcome["candidates"], outcome["rejected"]) == (n_read, dict(rejected))
        assert collector.n_chars == sum(len(text) + (len(text) <= 4) for text in texts[:n_read])


def test_the_items_are_a_sample_of_the_model() -> None:
    """Without conditions, the share of each short item is its probability."""
    items, outcome = generated(ItemConstraints(6000, unique=False, min_chars=0))
    assert outcome["rejected"] == {}
    for score in score_items(CpuStepper(network(), 64), VOCAB, ["", "a", "b", "c", "ab"]):
        p, share = math.exp(score.logprob), sum(item.text == score.text for item in items) / 6000
        assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / 6000) + 1e-4, score.text


def test_every_constraint_is_kept() -> None:
    """Lengths, novelty and uniqueness hold for each item; what was seen in training says so."""
    known = record("a", "b", "ca", "abc")
    items, outcome = generated(ItemConstraints(150, min_chars=1, max_chars=5), known=known)
    assert outcome["finish_reason"] == "complete"
    assert all(1 <= len(item.text) <= 5 for item in items)
    assert {item.text for item in items if item.seen_in_training} == {"a", "b", "ca", "abc"} & {i.text for i in items}
    novel, outcome = generated(ItemConstraints(150, novel=True, max_chars=5), known=known)
    assert not {item.text for item in novel} & {"a", "b", "ca", "abc"}
    held_out = ("c", "aa", "cb")
    both = replace(known, held_out_hashes=np.sort(item_hashes(held_out)))
    usual, _ = generated(ItemConstraints(150, max_chars=5), known=both)
    assert {item.text for item in usual if item.seen_in_training} == {"a", "b", "ca", "abc"}
    assert {item.text for item in novel} & set(held_out)
    novel, _ = generated(ItemConstraints(150, novel=True, max_chars=5), known=both)
    assert not {item.text for item in novel} & {"a", "b", "ca", "abc", *held_out}
    assert outcome["rejected"]["seen"] > 0
    assert outcome["generated"] + sum(outcome["rejected"].values()) == outcome["candidates"]


def test_constraints_that_cannot_be_met_end_with_what_there_is() -> None:
    """A model of few short items gives each of them once, and says that it has no more."""
    items, outcome = generated(ItemConstraints(500, max_chars=2))
    assert {item.text for item in items} <= set(every_item(2))
    assert outcome["finish_reason"] == "exhausted"
    assert outcome["generated"] == len(items) < 14
    assert outcome["candidates"] >= PATIENCE


def test_items_that_never_end_are_given_up() -> None:
    """A model that never ends an item gives none, and generation ends."""
    items, outcome = generated(ItemConstraints(5, max_chars=20), made=network(end_bias=-1e4))
    assert items == []
    assert outcome["rejected"] == {"too_long": PATIENCE}


@pytest.mark.parametrize(
    ("constraints", "known", "message"),
    [
        (
            ItemConstraints(3),
            None,
            "items: the model was trained on a text, so it has no items, expected a model of a list",
        ),
        (ItemConstraints(3, novel=True), record(), "novel: the checkpoint has no hashes of its training items"),
        (ItemConstraints(3, min_chars=9, max_chars=8), record("a"), "min_chars: got 9, expected at most max_chars, 8"),
        (
            ItemConstraints(3, prefix="abc", max_chars=2),
            record("a"),
            "prefix: got 'abc', expected at most max_chars, 2",
        ),
        (ItemConstraints(3, prefix="a\nb"), record("a"), r"prefix: got 'a\\nb', expected a text without '\\n'"),
    ],
)
def test_constraints_that_no_model_or_not_this_one_can_meet(
    constraints: ItemConstraints, known: ItemRecord | None, message: str
) -> None:
    """The error names what would be accepted."""
    with pytest.raises(ConfigError, match=message):
        constraints.check(known, VOCAB)
