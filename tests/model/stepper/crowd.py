"""The harness of law 1: texts played alone, one character a block, and in random crowds, must be equal to the bit.

It knows a stepper by its protocol only, so that every stepper is held to the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import numpy as np
from numpy.typing import NDArray

from model.sampling import SamplingParams, uniforms
from model.stepper import FREE, Block, Stepper


@dataclass(frozen=True)
class Text:
    prompt: list[int]  # at least one id
    length: int  # ids to be sampled
    seed: int
    params: SamplingParams


@dataclass
class Played:
    """What became of a text so far: it is fed the prompt, then what it sampled."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[np.float32] = field(default_factory=list)
    fed: int = 0
    state: NDArray[np.floating] | None = None

    def bits(self) -> tuple[list[int], bytes, bytes]:
        assert self.state is not None
        return self.ids, np.array(self.logprobs).tobytes(), self.state.tobytes()


def random_texts(count: int, vocab: int, rng: Random) -> list[Text]:
    def params() -> SamplingParams:
        return SamplingParams(
            temperature=rng.choice([0.0, 0.7, 1.0, 1.3]),
            top_k=rng.choice([0, 0, 3, vocab]),
            top_p=rng.choice([1.0, 1.0, 0.8]),
            min_p=rng.choice([0.0, 0.0, 0.05]),
        )

    def prompt() -> list[int]:
        return [rng.randrange(vocab) for _ in range(rng.randint(1, 20))]

    return [Text(prompt(), rng.randint(1, 30), rng.randrange(2**63), params()) for _ in range(count)]


def block_of(texts: list[Text], played: list[Played], slots: list[int], steps: list[int]) -> Block:
    """The next `steps[i]` steps of each text; the arrays are as long as the longest needs."""
    rows, longest = len(texts), max(steps)
    forced = np.full((longest, rows), FREE, np.int32)
    numbers = np.zeros((longest, rows))
    for i, (text, so_far) in enumerate(zip(texts, played, strict=True)):
        known = text.prompt + so_far.ids
        for k in range(steps[i]):
            if so_far.fed + k < len(known):
                forced[k, i] = known[so_far.fed + k]
        numbers[: steps[i], i] = uniforms([text.seed], [so_far.fed], steps[i])[:, 0]
    return Block(
        slots=np.array(slots, np.int32),
        steps=np.array(steps, np.int32),
        forced=forced,
        uniforms=numbers,
        temperature=np.array([t.params.temperature for t in texts]),
        top_k=np.array([t.params.top_k for t in texts], np.int32),
        top_p=np.array([t.params.top_p for t in texts]),
        min_p=np.array([t.params.min_p for t in texts]),
    )


def advance(stepper: Stepper, texts: list[Text], played: list[Played], slots: list[int], steps: list[int]) -> None:
    produced = stepper.run(block_of(texts, played, slots, steps))
    for i, (text, so_far) in enumerate(zip(texts, played, strict=True)):
        for k in range(steps[i]):
            if so_far.fed + 1 >= len(text.prompt):
                so_far.ids.append(int(produced.ids[k, i]))
                so_far.logprobs.append(produced.logprobs[k, i])
            so_far.fed += 1


def remaining(text: Text, so_far: Played) -> int:
    """Steps until the text has its length."""
    return len(text.prompt) - 1 + text.length - so_far.fed


def alone(stepper: Stepper, texts: list[Text]) -> list[Played]:
    """Each text by itself, in slot 0, a character a block."""
    done = []
    for text in texts:
        so_far = Played()
        stepper.write(0, None)
        while remaining(text, so_far):
            advance(stepper, [text], [so_far], [0], [1])
        so_far.state = stepper.read(0)
        done.append(so_far)
    return done


def in_crowds(stepper: Stepper, texts: list[Text], rng: Random) -> list[Played]:
    """Texts join free slots at random, run in random company for random numbers of steps, are cut, moved to another
    slot through read and write, and leave when they are done."""
    played = [Played() for _ in texts]
    slot_of: dict[int, int] = {}
    waiting = list(range(len(texts)))
    rng.shuffle(waiting)
    while waiting or slot_of:
        free = [s for s in range(stepper.n_slots) if s not in slot_of.values()]
        rng.shuffle(free)
        while waiting and free and rng.random() < 0.8:
            slot_of[waiting[-1]] = free.pop()
            stepper.write(slot_of[waiting[-1]], played[waiting[-1]].state)
            waiting.pop()
        company = [i for i in slot_of if rng.random() < 0.8]
        if not company:
            continue
        rng.shuffle(company)
        steps = [rng.randint(1, min(12, remaining(texts[i], played[i]))) for i in company]
        chosen, slots = [texts[i] for i in company], [slot_of[i] for i in company]
        advance(stepper, chosen, [played[i] for i in company], slots, steps)
        for i in company:
            done = remaining(texts[i], played[i]) == 0
            if done or rng.random() < 0.1:
                played[i].state = stepper.read(slot_of.pop(i))
                if not done:
                    waiting.insert(rng.randrange(len(waiting) + 1), i)
    return played


def different(one: list[Played], other: list[Played]) -> list[int]:
    """Which texts are not equal to the bit."""
    return [i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a.bits() != b.bits()]
