"""The harness of law 1: texts played alone and in random crowds must be equal to the bit.

It knows a stepper by its protocol only, so that every stepper is held to the same. A crowd has all that the engine
does to a text: it joins a running block, runs in changing company for changing numbers of steps, is cut and goes on in
another slot, and may be cancelled, which leaves it as it is after any of its steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import numpy as np
from numpy.typing import NDArray

from model.network.sampling import SamplingParams, as_batch, random_values
from model.stepper import SAMPLE, Block, BlockResult, Stepper


@dataclass(frozen=True)
class Text:
    prompt: list[int]  # at least one id; the first is the next_input one
    length: int  # ids to be sampled
    seed: int
    params: SamplingParams

    @property
    def steps(self) -> int:
        return len(self.prompt) - 1 + self.length


@dataclass
class Played:
    """What became of a text so far: it is fed the prompt, then what it sampled."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # NaN never: only those of sampled ids
    fed: int = 0
    state: NDArray[np.floating] | None = None

    def bits(self) -> tuple[list[int], list[float], int, bytes]:
        assert self.state is not None
        return self.ids, self.logprobs, self.fed, self.state.tobytes()


def random_texts(rng: Random, count: int, vocab: int, longest: int = 30) -> list[Text]:
    def params() -> SamplingParams:
        return SamplingParams(
            temperature=rng.choice([0.0, 0.5, 1.0, 1.7]),
            top_k=rng.choice([0, 0, 3, vocab]),
            top_p=rng.choice([1.0, 1.0, 0.8]),
            min_p=rng.choice([0.0, 0.0, 0.05]),
        )

    def prompt() -> list[int]:
        return [rng.randrange(vocab) for _ in range(rng.randint(1, 20))]

    return [Text(prompt(), rng.randint(1, longest), rng.randrange(2**63), params()) for _ in range(count)]


def block_of(texts: list[Text], played: list[Played], slots: list[int], steps: list[int]) -> Block:
    """The next `steps[i]` steps of each text; the arrays are as long as the longest needs."""
    longest = max(steps)
    forced_ids = np.full((longest, len(texts)), SAMPLE, np.int32)
    for i, (text, so_far) in enumerate(zip(texts, played, strict=True)):
        n = len(text.prompt)
        end = so_far.fed + steps[i]
        known = text.prompt[so_far.fed : end] + so_far.ids[max(0, so_far.fed - n) : max(0, end - n)]
        forced_ids[: len(known), i] = known
    return Block(
        slots=np.array(slots, np.int32),
        steps=np.array(steps, np.int32),
        forced_ids=forced_ids,
        random_values=random_values([t.seed for t in texts], [p.fed for p in played], longest),
        sampling=as_batch([t.params for t in texts]),
    )


def advance(stepper: Stepper, texts: list[Text], played: list[Played], slots: list[int], steps: list[int]) -> None:
    produced = stepper.run(block_of(texts, played, slots, steps))
    for i, (text, so_far) in enumerate(zip(texts, played, strict=True)):
        first = max(0, len(text.prompt) - 1 - so_far.fed)  # the first step that samples
        so_far.ids += produced.ids[first : steps[i], i].tolist()
        so_far.logprobs += produced.logprobs[first : steps[i], i].tolist()
        so_far.fed += steps[i]


def alone(stepper: Stepper, text: Text, steps: int | None = None, k: int = 1) -> Played:
    """A text by itself, in slot 0, k characters a block; all of it, or its first steps only."""
    so_far, left = Played(), text.steps if steps is None else steps
    stepper.write(0, None)
    while so_far.fed < left:
        advance(stepper, [text], [so_far], [0], [min(k, left - so_far.fed)])
    so_far.state = stepper.read(0)
    return so_far


def in_crowds(stepper: Stepper, texts: list[Text], rng: Random, longest_block: int = 12) -> list[Played]:
    """All texts, in random crowds of up to as many as there are slots; see the module's head."""
    played = [Played() for _ in texts]
    slot_of: dict[int, int] = {}
    free = list(range(stepper.n_slots))
    waiting = list(range(len(texts)))
    rng.shuffle(waiting)
    while waiting or slot_of:
        rng.shuffle(free)
        while waiting and free and rng.random() < 0.9:
            i = waiting.pop()
            slot_of[i] = free.pop()
            stepper.write(slot_of[i], played[i].state)
        present = rng.choice([0.1, 0.8, 1.0])
        company = [i for i in slot_of if rng.random() < present]
        if not company:
            continue
        rng.shuffle(company)
        most = rng.randint(1, longest_block)
        steps = [min(most, texts[i].steps - played[i].fed) for i in company]
        if rng.random() < 0.3:
            steps = [rng.randint(1, n) for n in steps]
        chosen, slots = [texts[i] for i in company], [slot_of[i] for i in company]
        advance(stepper, chosen, [played[i] for i in company], slots, steps)
        for i in company:
            is_over = played[i].fed == texts[i].steps or rng.random() < 0.01  # cancelled
            if is_over or rng.random() < 0.1:
                played[i].state = stepper.read(slot_of[i])
                free.append(slot_of.pop(i))
                if not is_over:
                    waiting.insert(rng.randrange(len(waiting) + 1), i)
    return played


def different(one: list[Played], other: list[Played]) -> list[int]:
    """Which texts are not equal to the bit."""
    return [i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a.bits() != b.bits()]


def differences(crowd: Stepper, lone: Stepper, texts: list[Text], rng: Random, k: int = 1) -> list[int]:
    """Which texts are not the same in crowds on one stepper as alone on another: ids, log-probabilities or state."""
    played = in_crowds(crowd, texts, rng)
    return different(played, [alone(lone, t, p.fed, k) for t, p in zip(texts, played, strict=True)])


class Careless:
    """A stepper whose first row moves by one unit in the last place where more than eight rows run: to be noticed."""

    name, numerics = "careless", "careless"

    def __init__(self, inner: Stepper) -> None:
        self.inner, self.n_slots = inner, inner.n_slots
        self.read, self.write = inner.read, inner.write

    def run(self, block: Block) -> BlockResult:
        produced = self.inner.run(block)
        if len(block.slots) > 8:
            slot = int(block.slots[0])
            state = self.inner.read(slot)
            state[0, 0, 0] = np.nextafter(state[0, 0, 0], np.float32(1))
            self.inner.write(slot, state)
        return produced
