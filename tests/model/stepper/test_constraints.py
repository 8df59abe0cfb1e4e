"""Constrained texts: always whole, batch-invariant, drawn from the model's distribution over what is allowed."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.config import ModelConfig, WeightPrecision
from model.errors import StructuredOutputError
from model.network.char_rnn import CharRNN
from model.network.sampling import SamplingParams, as_batch, random_values
from model.stepper import SAMPLE, Block, Stepper
from model.stepper.cpu import CpuStepper
from model.stepper.generate import generate, write
from model.stepper.reference import ReferenceStepper
from model.structured_outputs.automaton import Automaton
from model.structured_outputs.masks import Constraints, RowConstraint
from model.structured_outputs.specification import StructuredOutputs
from model.text.vocab import Vocabulary
from tests.conftest import ALPHABET, random_checkpoint
from tests.model.structured_outputs.specifications import patterns, random_schema, written_texts
from tests.random_batching import Progress, advance, random_texts, variant_texts

pytestmark = pytest.mark.usefixtures("native_code")
JSON_VOCAB = Vocabulary("\n" + "".join(map(chr, range(0x20, 0x7F))))
PATTERNS = ("[a-f]{3,9}", "(?:tea|coffee|milk)!", "a*b", r"\w+( \w+)*\n", "(?:ab?c){2,}", "[^a-x]{1,4}", ".{0,40}e")
TEXTS_PER_SPECIFICATION = 40


def compiled(pattern: str, vocab: Vocabulary = ALPHABET) -> Automaton:
    return StructuredOutputs("regex", pattern).compile(vocab)


AUTOMATA = [compiled(pattern) for pattern in PATTERNS]


def stepper_of(name: str, n_slots: int, network: CharRNN, threads: int = 1) -> Stepper:
    if name == "reference":
        return ReferenceStepper(network.double(), n_slots, torch.float64)
    precision: WeightPrecision = "int8" if name == "cpu-i8" else "fp32"
    return CpuStepper(network, n_slots, precision, threads)


STEPPERS = ("cpu-f32", "cpu-i8", "reference")


def loud_network(vocab: Vocabulary, hidden: int = 16) -> CharRNN:
    return random_checkpoint(n_hidden=hidden, n_layers=1, alphabet=vocab).network()


@pytest.fixture(scope="module")
def stepper() -> Stepper:
    return CpuStepper(loud_network(ALPHABET), TEXTS_PER_SPECIFICATION)


@pytest.fixture(scope="module")
def json_stepper() -> Stepper:
    return CpuStepper(loud_network(JSON_VOCAB), TEXTS_PER_SPECIFICATION)


@settings(max_examples=200)
@given(pattern=patterns(), seed=st.integers(0, 2**32))
def test_every_text_of_a_pattern_matches_wholly(stepper: Stepper, pattern: str, seed: int) -> None:
    """200 patterns, any parameters, budgets from the shortest match upward: `re` matches all, and nothing is cut."""
    try:
        automaton = compiled(pattern)
    except StructuredOutputError:
        assume(False)
    for text, done in written_texts(stepper, automaton, Random(seed), TEXTS_PER_SPECIFICATION, 40):
        assert re.fullmatch(pattern, ALPHABET.decode(done.ids)), ALPHABET.decode(done.ids)
        assert len(done.ids) <= text.length
        assert done.is_stopped


@pytest.mark.parametrize("seed", range(50))
def test_every_text_of_a_schema_is_valid(json_stepper: Stepper, seed: int) -> None:
    """50 schemas, the same: each text is JSON that a validator accepts, at every budget."""
    rng = Random(seed)
    schema: dict[str, Any] = random_schema(rng)
    automaton = StructuredOutputs("json", schema).compile(JSON_VOCAB)
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    for _, done in written_texts(json_stepper, automaton, rng, TEXTS_PER_SPECIFICATION, 60):
        jsonschema.validate(json.loads(JSON_VOCAB.decode(done.ids)), schema, format_checker=checker)


def test_without_the_distances_texts_are_cut(stepper: Stepper) -> None:
    """The control: the same automata whose states all claim to be ends. Their texts run into their budgets."""
    n_cut = 0
    for i, automaton in enumerate(AUTOMATA):
        blind = replace(automaton, distances=np.zeros_like(automaton.distances))
        for whole in (True, False):
            for text, done in written_texts(stepper, automaton if whole else blind, Random(i), 40, 3):
                is_match = bool(re.fullmatch(PATTERNS[i], ALPHABET.decode(done.ids)))
                assert is_match or not whole
                n_cut += not is_match
                assert len(done.ids) <= text.length
    assert n_cut > 20


@pytest.mark.parametrize("name", STEPPERS)
def test_constrained_texts_are_the_same_alone_and_in_random_batches(name: str) -> None:
    """Batch invariance beside other automata and none: ids, log-probabilities, masks, states, where a text stops."""
    rng = Random(3)
    net = loud_network(ALPHABET, hidden=40)
    texts = random_texts(rng, 70, len(ALPHABET), automata=AUTOMATA)
    assert {t.automaton is None for t in texts} == {True, False}
    assert variant_texts(stepper_of(name, 13, net, threads=3), stepper_of(name, 1, net), texts, rng, k=4) == []


@pytest.mark.parametrize("name", STEPPERS)
def test_a_block_with_constraints_changes_no_other_row(name: str) -> None:
    """Unconstrained rows have the bits of a block without any constraint."""
    rng, net = Random(5), loud_network(ALPHABET, hidden=40)
    plain = random_texts(rng, 8, len(ALPHABET))
    constrained = [replace(t, automaton=rng.choice(AUTOMATA), length=60) for t in random_texts(rng, 8, len(ALPHABET))]
    results = []
    for others in ([], constrained):
        stepper = stepper_of(name, 16, net)
        texts = plain + others

        progress = [Progress() for _ in texts]
        advance(stepper, texts, progress, list(range(len(texts))), [t.steps for t in texts])
        for slot, done in enumerate(progress):
            done.state = stepper.read(slot)
        results.append([done.bits() for done in progress[: len(plain)]])
    assert results[0] == results[1]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_stepper_writes_what_the_plain_loop_writes(pattern: str) -> None:
    """In float64 to the character, with every kind of parameter; and the removed probability is the same."""
    net, automaton = loud_network(ALPHABET).double(), compiled(pattern)
    rng = Random(pattern)
    for t in random_texts(rng, 12, len(ALPHABET)):
        prompt = ALPHABET.decode(t.prompt)
        bias = {ALPHABET.characters[id]: value for id, value in t.bias.items()}
        budget = automaton.shortest + rng.randint(0, 20)
        expected = generate(net, ALPHABET, prompt, budget, t.params, 7, logit_bias=bias, automaton=automaton)
        for steps in (1, 5, 64):
            stepper = ReferenceStepper(net, 1, torch.float64)
            parts = write(stepper, ALPHABET, prompt, budget, t.params, 7, steps, logit_bias=bias, automaton=automaton)
            assert "".join(parts) == expected.text
        assert re.fullmatch(pattern, expected.text)


def sampled_once(stepper: Stepper, prompt: list[int], constraint: RowConstraint, n: int) -> Counter[int]:
    """How often each id was drawn after a prompt: n draws, all rows at once."""
    counts: Counter[int] = Counter()
    for start in range(0, n, stepper.n_slots):
        rows = min(stepper.n_slots, n - start)
        for slot in range(rows):
            stepper.write(slot, None)
        forced_ids = np.full((len(prompt), rows), SAMPLE, np.int32)
        forced_ids[:] = np.array(prompt, np.int32)[:, None]
        numbers = random_values(list(range(start, start + rows)), [0] * rows, len(prompt))
        block = Block(
            slots=np.arange(rows, dtype=np.int32),
            steps=np.full(rows, len(prompt), np.int32),
            forced_ids=forced_ids,
            random_values=numbers,
            sampling=as_batch([SamplingParams()] * rows),
            constraints=Constraints.of([constraint] * rows),
        )
        counts.update(stepper.run(block).ids[-1].tolist())
    return counts


@pytest.mark.parametrize("name", ["cpu-f32", "cpu-i8"])
@pytest.mark.parametrize(("pattern", "budget"), [("[a-m]+", 9), ("(?:tea|toast|tom{30}|a|[e-z]!)", 5)])
def test_what_is_sampled_is_the_models_distribution_given_what_is_allowed(name: str, pattern: str, budget: int) -> None:
    """Chi-square over 100,000 draws against the network's softmax, restricted and normalized; budgets count."""
    n, prompt = 100_000, [3, 9, 4]
    checkpoint = random_checkpoint(n_hidden=16, n_layers=1)
    net, automaton = checkpoint.network(), compiled(pattern)
    with torch.no_grad():
        net.head.weight.mul_(0.25)  # flat enough that all allowed ids are drawn
    stepper = stepper_of(name, 500, net, threads=2)
    with torch.inference_mode():
        if name == "cpu-f32":
            logits, _ = net.double()(torch.tensor([prompt]), net.zero_state(1))
            probabilities = logits[0, -1].softmax(dim=0).numpy()
        else:  # the arithmetic of 8 bits has a distribution of its own, which scores read
            probabilities = _scored(stepper, prompt, len(ALPHABET))
    allowed = automaton.allowed(0, budget)
    assert not allowed[ALPHABET.characters.index("!")]
    expected = np.where(allowed, probabilities, 0.0)
    expected *= n / expected.sum()
    drawn = sampled_once(stepper, prompt, RowConstraint(automaton, 0, budget), n)
    counts = np.array([drawn[id] for id in range(len(ALPHABET))])
    assert counts[~allowed].sum() == 0
    chi_square = float((((counts - expected) ** 2)[allowed] / expected[allowed]).sum())
    degrees = int(allowed.sum()) - 1
    assert chi_square < degrees + 5 * (2 * degrees) ** 0.5


def _scored(stepper: Stepper, prompt: list[int], vocab: int) -> NDArray[np.float64]:
    """The distribution after a prompt, from the log-probability of each id."""
    logprobs = []
    for id in range(vocab):
        stepper.write(0, None)
        score_ids = np.full((len(prompt), 1), -1, np.int32)
        score_ids[-1] = id
        block = Block(
            slots=np.zeros(1, np.int32),
            steps=np.full(1, len(prompt), np.int32),
            forced_ids=np.array(prompt, np.int32)[:, None].copy(),
            random_values=np.zeros((len(prompt), 1)),
            sampling=as_batch([SamplingParams()]),
            score_ids=score_ids,
        )
        logprobs.append(float(stepper.run(block).logprobs[-1, 0]))
    distribution: NDArray[np.float64] = np.exp(np.array(logprobs))
    return distribution


@pytest.mark.parametrize("name", STEPPERS)
def test_the_removed_probability_is_that_of_what_was_not_allowed(name: str) -> None:
    """Each step reports the log-probability of the allowed ids together, whatever the sampling parameters are."""
    net, automaton = loud_network(ALPHABET), compiled("[a-f]{12}")
    stepper = stepper_of(name, 4, net)
    texts = random_texts(Random(1), 4, len(ALPHABET))

    for slot, t in enumerate(texts):
        text, done = replace(t, automaton=automaton, length=12), Progress()
        stepper.write(slot, None)
        advance(stepper, [text], [done], [slot], [text.steps])
        ids = [*text.prompt, *done.ids]
        with torch.inference_mode():
            logits, _ = net.double()(torch.tensor([ids[:-1]]), net.zero_state(1))
        probabilities = logits[0, len(text.prompt) - 1 :].softmax(dim=1)
        allowed = torch.from_numpy(automaton.allowed(0, 12))
        expected = probabilities[:, allowed].sum(dim=1).log().tolist()
        assert done.mask_logprobs == pytest.approx(expected, abs=0.3 if name == "cpu-i8" else 1e-3)


@pytest.mark.parametrize(
    "change",
    [{"rows": 1}, {"states": 99}, {"states": -1}, {"budgets": 2}],
    ids=lambda change: next(iter(change)) + str(next(iter(change.values()))),
)
def test_a_block_with_a_constraint_that_is_none_is_refused(change: dict[str, int]) -> None:
    """The native stepper refuses it before any row has moved."""
    stepper = CpuStepper(loud_network(ALPHABET), 1)
    constraints = Constraints.of([RowConstraint(compiled("a{3}"), 0, 3)])
    assert constraints is not None
    (name, value) = next(iter(change.items()))
    changed: dict[str, Any] = {name: np.array([value], np.int32)}
    bad = replace(constraints, **changed)
    block = Block(
        slots=np.zeros(1, np.int32),
        steps=np.full(1, 2, np.int32),
        forced_ids=np.array([[1], [SAMPLE]], np.int32),
        random_values=np.zeros((2, 1)),
        sampling=as_batch([SamplingParams()]),
        constraints=bad,
    )
    with pytest.raises(ValueError, match="constraints: row 0"):
        stepper.run(block)
    assert not stepper.read(0).any()


def test_the_layout_of_another_vocabulary_is_refused() -> None:
    """An automaton of another vocabulary cannot be run."""
    stepper = CpuStepper(CharRNN(ModelConfig(9, 16, 1, 8)), 1)
    block = Block(
        slots=np.zeros(1, np.int32),
        steps=np.ones(1, np.int32),
        forced_ids=np.ones((1, 1), np.int32),
        random_values=np.zeros((1, 1)),
        sampling=as_batch([SamplingParams()]),
        constraints=Constraints.of([RowConstraint(compiled("a"), 0, 1)]),
    )
    with pytest.raises(ValueError, match="another vocabulary"):
        stepper.run(block)
