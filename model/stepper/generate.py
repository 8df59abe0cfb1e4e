"""One text at a time: the oracle that every fast path is held to, and the same loop over a stepper.

`generate` is the plain course loop: read a character, look at the distribution, draw the next. `write` draws the same
text from a stepper in blocks; the service, which runs many texts at once, must equal it to the character.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from model.network.char_rnn import CharRNN
from model.network.sampling import SamplingParams, random_values, sample
from model.stepper import SAMPLE, Block, Stepper
from model.text.vocab import Vocabulary


@dataclass(frozen=True, slots=True)
class Generated:
    """What the oracle made of a prompt."""

    text: str  # ends before the stop string, if one was met
    finish_reason: str  # "length" or "stop"


@torch.inference_mode()
def generate(
    network: CharRNN,
    vocab: Vocabulary,
    prompt: str,
    max_chars: int,
    params: SamplingParams | None = None,
    seed: int = 0,
    stop: Sequence[str] = (),
) -> Generated:
    """Continue a prompt by up to max_chars characters.

    Raised: UnknownCharacters for a prompt that the vocabulary cannot spell.
    """
    p = params or SamplingParams()
    knobs = [torch.tensor([v]) for v in (p.temperature, p.top_k, p.top_p, p.min_p)]
    state = network.zero_state(1)
    ids = [vocab.start, *vocab.encode(prompt).tolist()]
    for id in ids[:-1]:
        _, state = network(torch.tensor([[id]]), state)
    next_input, text = ids[-1], ""
    for n in range(max_chars):
        logits, state = network(torch.tensor([[next_input]]), state)  # (1, 1, V)
        uniform = torch.from_numpy(random_values([seed], [len(prompt) + n], 1)[:, 0])
        drawn, _ = sample(logits[:, 0], uniform, *knobs)
        next_input = int(drawn)
        text += vocab.characters[next_input]
        met = [s for s in stop if text.endswith(s)]
        if met:
            return Generated(text[: len(text) - len(max(met, key=len))], "stop")
    return Generated(text, "length")


def write(
    stepper: Stepper,
    vocab: Vocabulary,
    prompt: str,
    max_chars: int,
    params: SamplingParams | None = None,
    seed: int = 0,
    block_steps: int = 32,
    start: int = 0,
) -> Iterator[str]:
    """Continue a prompt on slot 0 of a stepper, a block at a time; yields the text of each block.

    `start` is the position of the prompt's first character, for a text whose beginning is not read.
    """
    stepper.write(0, None)
    to_feed = np.array([vocab.start, *vocab.encode(prompt)], dtype=np.int32)
    position, remaining = start, max_chars
    while remaining:
        steps = min(block_steps, len(to_feed) - 1 + remaining)
        fed = to_feed[:steps]
        produced = stepper.run(
            one_row_block(0, fed, steps, random_values([seed], [position], steps), params or SamplingParams())
        )
        new = produced.ids[len(fed) - 1 : steps, 0] if len(fed) == len(to_feed) else produced.ids[:0, 0]
        to_feed = to_feed[steps:] if len(to_feed) > steps else produced.ids[steps - 1 : steps, 0]
        position, remaining = position + steps, remaining - len(new)
        if len(new):
            yield vocab.decode(new)


def one_row_block(
    slot: int, fed: Sequence[int] | np.ndarray, steps: int, numbers: np.ndarray, params: SamplingParams
) -> Block:
    """A block of one row that is fed `fed` and then what it samples, `steps` in all."""
    forced_ids = np.full((steps, 1), SAMPLE, dtype=np.int32)
    forced_ids[: len(fed), 0] = fed
    return Block(
        slots=np.array([slot], dtype=np.int32),
        steps=np.array([steps], dtype=np.int32),
        forced_ids=forced_ids,
        random_values=numbers,
        temperature=np.array([params.temperature], dtype=np.float64),
        top_k=np.array([params.top_k], dtype=np.int32),
        top_p=np.array([params.top_p], dtype=np.float64),
        min_p=np.array([params.min_p], dtype=np.float64),
    )
