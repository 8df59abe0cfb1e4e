"""Random batching, the harness that tests batch invariance: texts are equal bit for bit alone and in random batches.

It knows a stepper by its protocol only, so every stepper passes the same test. A random batching does to a text all
that the engine does: the text joins a running batch, advances in changing company for changing numbers of steps, is
interrupted and continues in another slot, and may be cancelled after any of its steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random

import numpy as np
from numpy.typing import NDArray

from model.network.penalties import LogitBias, prompt_codes, stack_windows
from model.network.sampling import SamplingParams, as_batch, random_values
from model.stepper import SAMPLE, Block, BlockResult, CpuBound, Interrupt, Stepper
from model.structured_outputs.automaton import Automaton
from model.structured_outputs.masks import Constraints, RowConstraint


@dataclass(frozen=True)
class Text:
    """What is to be generated."""

    prompt: list[int]  # at least one id; the first is the next_input of a new text
    length: int  # ids to be sampled
    seed: int
    params: SamplingParams
    bias: dict[int, float] = field(default_factory=dict)
    automaton: Automaton | None = None  # what the sampled ids must be

    @property
    def steps(self) -> int:
        """The steps that the whole text takes at most."""
        return len(self.prompt) - 1 + self.length


@dataclass
class Progress:
    """What has been generated of a text: it is fed the prompt, then the sampled ids."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # of the sampled ids
    steps: int = 0
    state: NDArray[np.floating] | None = None
    automaton_state: int = 0
    mask_logprobs: list[float] = field(default_factory=list)  # of the sampled ids of a constrained text
    is_stopped: bool = False  # nothing can follow

    def bits(self) -> tuple[list[int], list[float], int, bytes, int, list[float]]:
        """All of it, for a comparison bit for bit."""
        assert self.state is not None
        return (
            *(self.ids, self.logprobs, self.steps, self.state.tobytes()),
            *(self.automaton_state, self.mask_logprobs),
        )

    def is_over(self, text: Text) -> bool:
        """Whether the text is whole."""
        return self.is_stopped or self.steps == text.steps


def random_texts(
    rng: Random, count: int, vocab: int, longest: int = 30, automata: Sequence[Automaton] = ()
) -> list[Text]:
    """Texts with random prompts, lengths, seeds and sampling parameters, most of them with one of the automata."""

    def params() -> SamplingParams:
        return SamplingParams(
            temperature=rng.choice([0.0, 0.5, 1.0, 1.7]),
            top_k=rng.choice([0, 0, 3, vocab]),
            top_p=rng.choice([1.0, 1.0, 0.8]),
            min_p=rng.choice([0.0, 0.0, 0.05]),
            typical_p=rng.choice([1.0, 1.0, 0.7]),
            repetition_penalty=rng.choice([1.0, 1.0, 1.3, 0.8]),
            frequency_penalty=rng.choice([0.0, 0.0, 0.5, -0.5]),
            presence_penalty=rng.choice([0.0, 0.0, 1.0]),
            penalty_window=rng.choice([1, 5, 64]),
        )

    def bias() -> dict[int, float]:
        return {rng.randrange(vocab): rng.uniform(-5, 5) for _ in range(rng.choice([0, 0, 1, 4]))}

    def prompt() -> list[int]:
        return [rng.randrange(vocab) for _ in range(rng.randint(1, 20))]

    def constrained(text: Text) -> Text:
        automaton = rng.choice([None, *automata])
        if automaton is None:
            return text
        return replace(text, automaton=automaton, length=automaton.shortest + rng.randint(0, longest))

    texts = [Text(prompt(), rng.randint(1, longest), rng.randrange(2**63), params(), bias()) for _ in range(count)]
    return [constrained(text) for text in texts] if automata else texts


def block_of(texts: list[Text], progress: list[Progress], slots: list[int], steps: list[int]) -> Block:
    """The block of the next `steps[i]` steps of each text; its arrays are as long as the longest needs."""
    longest = max(steps)
    forced_ids = np.full((longest, len(texts)), SAMPLE, np.int32)
    for i, (text, done) in enumerate(zip(texts, progress, strict=True)):
        n = len(text.prompt)
        end = done.steps + steps[i]
        known = text.prompt[done.steps : end] + done.ids[max(0, done.steps - n) : max(0, end - n)]
        forced_ids[: len(known), i] = known
    return Block(
        slots=np.array(slots, np.int32),
        steps=np.array(steps, np.int32),
        forced_ids=forced_ids,
        random_values=random_values([t.seed for t in texts], [p.steps for p in progress], longest),
        sampling=as_batch([t.params for t in texts]),
        windows=stack_windows([window_of(t, p) for t, p in zip(texts, progress, strict=True)]),
        logit_bias=LogitBias.of([t.bias for t in texts]),
        constraints=Constraints.of([_constraint_of(*row) for row in zip(texts, progress, steps, strict=True)]),
    )


def _constraint_of(text: Text, done: Progress, steps: int) -> RowConstraint | None:
    if text.automaton is None or done.steps + steps < len(text.prompt):
        return None
    return RowConstraint(text.automaton, done.automaton_state, text.length - len(done.ids))


def window_of(text: Text, done: Progress) -> NDArray[np.int32]:
    """The codes of everything before the next id that is sampled, whatever the text's penalties are."""
    read = prompt_codes(np.array(text.prompt[1:], np.int32))
    return np.concatenate([read, np.array(done.ids, np.int32)]).astype(np.int32)


def advance(
    stepper: Stepper,
    texts: list[Text],
    progress: list[Progress],
    slots: list[int],
    steps: list[int],
    interrupt_after: int | None = None,
) -> None:
    """Run one block, and add its results to the progress of each text.

    Args:
        stepper: Has the texts.
        texts: Of the block's rows.
        progress: Of each text; changed.
        slots: Of each text.
        steps: Of each text.
        interrupt_after: Interrupt the run after so many steps, if the stepper can be interrupted; None: do not.
    """
    block = block_of(texts, progress, slots, steps)
    if interrupt_after is not None and isinstance(stepper, CpuBound):
        interrupt = Interrupt()
        interrupt.set()
        result = stepper.run(replace(block, least_steps=interrupt_after), interrupt=interrupt)
    else:
        result = stepper.run(block)
    made = result.steps.tolist()
    for i, (text, done) in enumerate(zip(texts, progress, strict=True)):
        first = max(0, len(text.prompt) - 1 - done.steps)  # the first step that samples
        done.ids += result.ids[first : made[i], i].tolist()
        done.logprobs += result.logprobs[first : made[i], i].tolist()
        done.steps += made[i]
        if text.automaton is not None and result.constraints is not None and done.ids:
            done.automaton_state = int(result.constraints.states[i])
            done.mask_logprobs += result.constraints.logprobs[first : made[i], i].tolist()
            done.is_stopped = not text.automaton.may_continue(done.automaton_state, text.length - len(done.ids))


def run_alone(stepper: Stepper, text: Text, steps: int | None = None, k: int = 1) -> Progress:
    """Generate a text alone, in slot 0, in blocks of k steps; the whole text, or its first `steps` steps."""
    progress, total = Progress(), text.steps if steps is None else steps
    stepper.write(0, None)
    while progress.steps < total and not progress.is_stopped:
        advance(stepper, [text], [progress], [0], [min(k, total - progress.steps)])
    progress.state = stepper.read(0)
    return progress


def run_in_random_batches(stepper: Stepper, texts: list[Text], rng: Random, longest_block: int = 12) -> list[Progress]:
    """Generate all texts in random batches of up to as many as there are slots; the module's docstring says more."""
    progress = [Progress() for _ in texts]
    slot_of: dict[int, int] = {}
    free = list(range(stepper.n_slots))
    waiting = list(range(len(texts)))
    rng.shuffle(waiting)
    while waiting or slot_of:
        rng.shuffle(free)
        while waiting and free and rng.random() < 0.9:
            i = waiting.pop()
            slot_of[i] = free.pop()
            stepper.write(slot_of[i], progress[i].state)
        present = rng.choice([0.1, 0.8, 1.0])
        batch = [i for i in slot_of if rng.random() < present]
        if not batch:
            continue
        rng.shuffle(batch)
        most = rng.randint(1, longest_block)
        steps = [min(most, texts[i].steps - progress[i].steps) for i in batch]
        if rng.random() < 0.3:
            steps = [rng.randint(1, n) for n in steps]
        slots = [slot_of[i] for i in batch]
        interrupt_after = rng.randint(1, longest_block) if rng.random() < 0.2 else None
        advance(stepper, [texts[i] for i in batch], [progress[i] for i in batch], slots, steps, interrupt_after)
        for i in batch:
            is_over = progress[i].is_over(texts[i]) or rng.random() < 0.01  # cancelled
            if is_over or rng.random() < 0.1:
                progress[i].state = stepper.read(slot_of[i])
                free.append(slot_of.pop(i))
                if not is_over:
                    waiting.insert(rng.randrange(len(waiting) + 1), i)
    return progress


def differing(one: list[Progress], other: list[Progress]) -> list[int]:
    """The indices of the texts that are not equal bit for bit."""
    return [i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a.bits() != b.bits()]


def variant_texts(batched: Stepper, single: Stepper, texts: list[Text], rng: Random, k: int = 1) -> list[int]:
    """The indices of the texts that are not the same in random batches on one stepper as alone on another.

    Ids, log-probabilities and states are compared.
    """
    progress = run_in_random_batches(batched, texts, rng)
    return differing(progress, [run_alone(single, t, p.steps, k) for t, p in zip(texts, progress, strict=True)])


class VariantStepper:
    """The control: a stepper whose first row changes by one unit in the last place if more than eight rows run."""

    name, numerics = "variant", "variant"

    def __init__(self, inner: Stepper) -> None:
        self.inner, self.n_slots = inner, inner.n_slots
        self.read, self.write = inner.read, inner.write

    def run(self, block: Block) -> BlockResult:
        """Advance the block's rows, and change the state of the first."""
        result = self.inner.run(block)
        if len(block.slots) > 8:
            slot = int(block.slots[0])
            state = self.inner.read(slot)
            state[0, 0, 0] = np.nextafter(state[0, 0, 0], np.float32(1))
            self.inner.write(slot, state)
        return result
