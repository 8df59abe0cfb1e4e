"""Texts in random crowds on a stepper: the harness of law 1, for any stepper."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from model.sampling import SamplingParams, uniforms
from model.stepper import FREE, Block, Stepper


@dataclass
class Text:
    """A text to be made: its prompt's ids (the first is the pending one), how it is drawn, how long it gets."""

    prompt: list[int]
    params: SamplingParams
    seed: int
    length: int  # characters drawn
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    fed: int = 0
    state: NDArray[np.floating] | None = None

    @property
    def steps_left(self) -> int:
        return len(self.prompt) - 1 + self.length - self.fed

    def forced(self, k: int) -> list[int]:
        known = [*self.prompt, *self.ids]
        return known[self.fed : self.fed + k]


def random_texts(rng: np.random.Generator, count: int, vocab_size: int, longest: int = 60) -> list[Text]:
    return [
        Text(
            prompt=rng.integers(0, vocab_size, rng.integers(1, 12)).tolist(),
            params=SamplingParams(
                temperature=float(rng.choice([0.0, 0.5, 1.0, 1.7])),
                top_k=int(rng.choice([0, 0, 3, 10])),
                top_p=float(rng.choice([1.0, 1.0, 0.8])),
                min_p=float(rng.choice([0.0, 0.0, 0.05])),
            ),
            seed=int(rng.integers(0, 2**62)),
            length=int(rng.integers(1, longest)),
        )
        for _ in range(count)
    ]


def advance(stepper: Stepper, rows: dict[int, Text], k: int) -> None:
    """One block of up to k steps for these slots."""
    texts = list(rows.values())
    k = min(k, max(t.steps_left for t in texts))
    forced = np.full((k, len(texts)), FREE, dtype=np.int32)
    for b, text in enumerate(texts):
        fed = text.forced(k)
        forced[: len(fed), b] = fed
    steps = np.array([min(k, t.steps_left) for t in texts], dtype=np.int32)
    produced = stepper.run(
        Block(
            slots=np.array(list(rows), dtype=np.int32),
            steps=steps,
            forced=forced,
            uniforms=uniforms([t.seed for t in texts], [t.fed for t in texts], k),
            temperature=np.array([t.params.temperature for t in texts], dtype=np.float64),
            top_k=np.array([t.params.top_k for t in texts], dtype=np.int32),
            top_p=np.array([t.params.top_p for t in texts], dtype=np.float64),
            min_p=np.array([t.params.min_p for t in texts], dtype=np.float64),
        )
    )
    for b, text in enumerate(texts):
        n = int(steps[b])
        first = max(0, len(text.prompt) - 1 - text.fed)
        known = len(text.prompt) + len(text.ids) - 1 - text.fed  # ids that this block was told
        new = slice(max(first, known), n)
        text.ids += produced.ids[new, b].tolist()
        text.logprobs += produced.logprobs[new, b].tolist()
        text.fed += n


def alone(stepper: Stepper, text: Text) -> Text:
    """The same text, made with nothing beside it, in blocks of 5."""
    made = Text(text.prompt, text.params, text.seed, text.length)
    stepper.write(0, None)
    while made.steps_left:
        advance(stepper, {0: made}, 5)
    made.state = stepper.read(0)
    return made


def in_a_crowd(stepper: Stepper, texts: list[Text], rng: np.random.Generator) -> None:
    """Make all texts at once: random joins, blocks of random length, cuts to another slot by way of read and write."""
    waiting, running = list(texts), dict[int, Text]()
    free = list(rng.permutation(stepper.n_slots))
    while waiting or running:
        for _ in range(int(rng.integers(0, 1 + min(len(waiting), len(free))))) if running else range(bool(waiting)):
            slot = int(free.pop())
            stepper.write(slot, None)
            running[slot] = waiting.pop()
        advance(stepper, running, int(rng.choice([1, 2, 5, 16])))
        for slot, text in list(running.items()):
            if not text.steps_left:
                text.state = stepper.read(slot)
                free.append(running.pop(slot) and slot)
            elif free and rng.random() < 0.1:
                moved = int(free.pop(0))
                stepper.write(moved, stepper.read(slot))
                free.append(running.pop(slot) and slot)
                running[moved] = text


def differences(stepper: Stepper, texts: list[Text], rng: np.random.Generator) -> int:
    """How many of these texts are not the same in a crowd as alone: ids, log-probabilities or final state, bitwise."""
    in_a_crowd(stepper, texts, rng)
    different = 0
    for text in texts:
        lone = alone(stepper, text)
        assert text.state is not None
        assert lone.state is not None
        same = text.ids == lone.ids and text.logprobs == lone.logprobs and np.array_equal(text.state, lone.state)
        different += not same
    return different
