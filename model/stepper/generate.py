"""One text at a time: the plain loop that every fast path is tested against, and the same loop over a stepper.

`generate` is the loop of every course: read a character, compute the distribution, draw the next. `write` draws the
same text from a stepper in blocks. The service, which runs many texts at once, must equal it to the character.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from model.network.char_rnn import CharRNN
from model.network.penalties import (
    LogitBias,
    adjusted_logits,
    advance_window,
    new_window,
    prompt_codes,
    stack_windows,
)
from model.network.sampling import SamplingParams, as_batch, as_tensors, random_values, sample
from model.stepper import SAMPLE, Block, Stepper
from model.structured_outputs.automaton import Automaton
from model.structured_outputs.masks import Constraints, RowConstraint
from model.text.vocab import Vocabulary


@dataclass(frozen=True, slots=True)
class Generated:
    """The text that followed a prompt, and why it ended."""

    text: str  # without the stop string that ended it
    finish_reason: Literal["length", "stop"]
    mask_logprob: float = 0.0  # of a constrained text: the log-probability that the masks left, over all characters


@torch.inference_mode()
def generate(
    network: CharRNN,
    vocab: Vocabulary,
    prompt: str,
    max_chars: int,
    params: SamplingParams | None = None,
    seed: int = 0,
    stop: Sequence[str] = (),
    min_chars: int = 0,
    logit_bias: Mapping[str, float] | None = None,
    automaton: Automaton | None = None,
) -> Generated:
    """Continue a prompt by up to max_chars characters, one network call per character.

    Args:
        network: The network.
        vocab: Its vocabulary.
        prompt: The text to continue.
        max_chars: How many characters to generate.
        params: The sampling parameters; None draws from the distribution as it is.
        seed: The seed of the text.
        stop: The text ends before the first of these strings.
        min_chars: A stop string that begins before so many characters were generated does not count.
        logit_bias: Is added to the logits of characters.
        automaton: What the text must match wholly, within max_chars.

    Raises:
        UnknownCharacters: The prompt has characters that the vocabulary lacks.
    """
    params = params or SamplingParams()
    sampling = as_tensors(as_batch([params]))
    biases = LogitBias.of([bias_by_id(vocab, logit_bias or {})])
    bias = None if biases is None else torch.from_numpy(biases.dense(1, len(vocab)))
    codes = prompt_codes(vocab.encode(prompt)).tolist()
    state = network.zero_state(1)
    ids = [vocab.start, *vocab.encode(prompt).tolist()]
    for id in ids[:-1]:
        _, state = network(torch.tensor([[id]]), state)
    next_input, text = ids[-1], ""
    constraint_state, mask_logprob = 0, 0.0
    for n in range(max_chars):
        if automaton is not None and not automaton.may_continue(constraint_state, max_chars - n):
            return Generated(text, "stop", mask_logprob)
        logits, state = network(torch.tensor([[next_input]]), state)  # (1, 1, V)
        random_value = torch.from_numpy(random_values([seed], [len(prompt) + n], 1)[:, 0])
        window = torch.tensor([codes], dtype=torch.int64) if params.has_penalties and codes else None
        adjusted = None
        if window is not None or bias is not None:
            adjusted = adjusted_logits(logits[:, 0], window, bias, sampling)
        if automaton is not None:
            is_refused = torch.from_numpy(~automaton.allowed(constraint_state, max_chars - n))
            probabilities = logits[0, 0].double().softmax(dim=0)
            mask_logprob += float(probabilities[~is_refused].sum().log())
            adjusted = (logits[:, 0] if adjusted is None else adjusted).masked_fill(is_refused, -torch.inf)
        sampled, _ = sample(logits[:, 0], random_value, sampling, adjusted=adjusted)
        next_input = int(sampled)
        codes.append(next_input)
        text += vocab.characters[next_input]
        complete = [s for s in stop if text.endswith(s) and len(text) - len(s) >= min_chars]
        if complete:
            return Generated(text[: len(text) - len(max(complete, key=len))], "stop")
        if automaton is not None:
            constraint_state = automaton.advance(constraint_state, [next_input])
    return Generated(
        text, "length" if automaton is None else automaton.finish_reason(constraint_state, 0), mask_logprob
    )


def write(
    stepper: Stepper,
    vocab: Vocabulary,
    prompt: str,
    max_chars: int,
    params: SamplingParams | None = None,
    seed: int = 0,
    block_steps: int = 32,
    start: int = 0,
    logit_bias: Mapping[str, float] | None = None,
    before: Sequence[int] = (),
    automaton: Automaton | None = None,
) -> Iterator[str]:
    """Continue a prompt on slot 0 of a stepper, and yield the text of each block.

    Args:
        stepper: Its slot 0 is overwritten.
        vocab: The vocabulary of the stepper's network.
        prompt: The text to continue.
        max_chars: How many characters to write.
        params: The sampling parameters; None draws from the distribution as it is.
        seed: The seed of the text.
        block_steps: The most steps of a block. It changes no character.
        start: The position of the prompt's first character, for a text whose beginning is not read.
        logit_bias: Is added to the logits of characters.
        before: The codes of the prompt for the penalties (model.network.penalties), if part of it was generated
            before; by default all of it was read.
        automaton: What the text must match wholly, within max_chars.

    Raises:
        UnknownCharacters: The prompt has characters that the vocabulary lacks.
    """
    stepper.write(0, None)
    params = params or SamplingParams()
    ids = vocab.encode(prompt)
    window = new_window(params, np.array(before, np.int32) if len(before) else prompt_codes(ids))
    bias = LogitBias.of([bias_by_id(vocab, logit_bias or {})])
    to_feed = np.array([vocab.start, *ids], dtype=np.int32)
    position, remaining, constraint_state = start, max_chars, 0
    while remaining and (automaton is None or automaton.may_continue(constraint_state, remaining)):
        steps = min(block_steps, len(to_feed) - 1 + remaining)
        fed = to_feed[:steps]
        block = one_row_block(0, fed, steps, random_values([seed], [position], steps), params)
        is_read = automaton is not None and steps >= len(to_feed)
        constraints = Constraints.of(
            [RowConstraint(automaton, constraint_state, remaining) if automaton and is_read else None]
        )
        block = replace(block, windows=stack_windows([window]), logit_bias=bias, constraints=constraints)
        result = stepper.run(block)
        steps = int(result.steps[0])
        if result.constraints is not None:
            constraint_state = int(result.constraints.states[0])
        new = result.ids[len(fed) - 1 : steps, 0] if len(fed) == len(to_feed) else result.ids[:0, 0]
        to_feed = to_feed[steps:] if len(to_feed) > steps else result.ids[steps - 1 : steps, 0]
        position, remaining = position + steps, remaining - len(new)
        window = advance_window(params, window, new)
        if len(new):
            yield vocab.decode(new)


def bias_by_id(vocab: Vocabulary, logit_bias: Mapping[str, float]) -> dict[int, float]:
    """A bias by character as one by id.

    Raises:
        UnknownCharacters: The vocabulary lacks a character.
    """
    return dict(zip(vocab.encode("".join(logit_bias)).tolist(), logit_bias.values(), strict=True))


def one_row_block(
    slot: int,
    feed: Sequence[int] | NDArray[np.integer],
    steps: int,
    numbers: NDArray[np.float64] | None = None,
    params: SamplingParams | None = None,
    score_ids: Sequence[int] | NDArray[np.integer] | None = None,
) -> Block:
    """Make a block of one row that is fed `feed` and then what it samples.

    Args:
        slot: The row's slot.
        feed: (n,) ids to feed first, n >= 1.
        steps: The number of steps in all, at least n.
        numbers: (steps, 1) the random numbers; None for a block whose sampled ids do not matter.
        params: The row's sampling parameters; None: greedy.
        score_ids: (steps,) the ids to report the log-probabilities of.
    """
    forced_ids = np.full((steps, 1), SAMPLE, dtype=np.int32)
    forced_ids[: len(feed), 0] = feed
    return Block(
        slots=np.array([slot], dtype=np.int32),
        steps=np.array([steps], dtype=np.int32),
        forced_ids=forced_ids,
        random_values=np.zeros((steps, 1)) if numbers is None else numbers,
        sampling=as_batch([params or SamplingParams(temperature=0)]),
        score_ids=None if score_ids is None else np.array(score_ids, dtype=np.int32)[:, None],
    )
