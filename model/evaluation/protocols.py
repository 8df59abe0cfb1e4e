"""Validation loss, in nats per character, under a named protocol. Two losses compare only under the same protocol.

windowed  (letter a)  zero state at the start of each crop of 256 characters, crops do not overlap: what models with a
                      fixed context window report.
stateful  (letter b)  one pass over the whole part, the state carried from character to character: what the service
                      does, and the protocol of every loss that is not labelled otherwise.
dynamic   (letter c)  the stateful pass by a model that continues to learn from the text it has read: see
                      model.evaluation.dynamic_evaluation.
items               of the items of a list, each alone and its end counted as a character: see
                    model.evaluation.item_losses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from model.config import PROTOCOLS, EvaluationProtocol, protocol_name
from model.errors import ConfigError
from model.evaluation.dynamic_evaluation import dynamic_loss
from model.evaluation.native_reader import native_reader
from model.network.char_rnn import CharRNN
from model.network.sampling import SamplingParams, as_batch
from model.stepper import Block, Stepper
from model.text.corpus import Ids

Bounds = NDArray[np.int64]
"""The first or last positions of spans of a text, (B,)."""

CROP = 256
"""Characters of a crop of the windowed protocol."""

WARM_UP = 512
"""Characters that a span in the middle of a text reads before the first one that counts."""

_CHUNK = 512  # characters of each span that are computed at once
_BLOCK_STEPS = 64


def loss(network: CharRNN, ids: Ids, protocol: EvaluationProtocol = "stateful", crop: int = CROP) -> float:
    """Return the mean negative log-likelihood of ids[1:], in nats per character.

    The stateful protocol reads the text as up to 64 spans side by side, for speed. A span that starts in the middle
    first reads the WARM_UP characters before it without counting them, which brings its state to that of a single
    pass; the result differs from a single pass by less than 0.0005 nats (a test checks it).

    Args:
        network: The network to measure; it is not changed.
        ids: The text, at least 2 ids.
        protocol: How the network reads it.
        crop: Characters of a crop, for the windowed protocol.
    """
    if protocol == "dynamic":
        return dynamic_loss(network, ids)
    with torch.inference_mode(), _evaluation_mode(network):
        if protocol == "windowed":
            return _crop_loss(network, ids, crop)
        n = len(ids) - 1
        n_spans = min(64, max(1, n // (4 * WARM_UP)))
        bounds = np.array([n * i // n_spans for i in range(n_spans + 1)])
        return _span_loss(network, ids, bounds[:-1], bounds[1:], WARM_UP)


def sampled_loss(network: CharRNN, ids: Ids, max_characters: int) -> float:
    """Return the stateful loss on a sample of the text: 32 evenly spaced spans of `max_characters` in total.

    A text that is not longer than that is read whole.
    """
    n = len(ids) - 1
    if max_characters >= n:
        return loss(network, ids)
    n_spans = min(32, max_characters)
    starts = np.array([n * i // n_spans for i in range(n_spans)])
    with torch.inference_mode(), _evaluation_mode(network):
        return _span_loss(network, ids, starts, starts + max_characters // n_spans, WARM_UP // 4)


def stepper_loss(stepper: Stepper, ids: Ids) -> float:
    """Return the stateful loss by a stepper: as served, with its arithmetic and its rounded weights.

    The stepper's slots are overwritten.
    """
    n, rows = len(ids) - 1, min(stepper.n_slots, max(1, (len(ids) - 1) // (4 * WARM_UP)))
    bounds = np.array([n * i // rows for i in range(rows + 1)])
    return _stepper_span_loss(stepper, ids, bounds[:-1], bounds[1:], WARM_UP)


def bits(nats: float) -> float:
    """Convert nats per character to bits per character."""
    return nats / math.log(2)


def parse_protocols(text: str) -> tuple[EvaluationProtocol, ...]:
    """Read a list of protocols: names or letters, separated by commas; "abc" is read as "a,b,c".

    Raises:
        ConfigError: A name is unknown, or there is none.
    """
    letters_only = bool(text) and set(text) <= set("abc")
    names = list(text) if letters_only else [part.strip() for part in text.split(",")]
    try:
        parsed = {protocol_name(name) for name in names}
        if not parsed <= set(PROTOCOLS):
            raise ConfigError("the protocol of lists, which a text has not", field="protocol")
    except ConfigError as e:
        expected = f"{', '.join(PROTOCOLS)} separated by commas, or their letters a, b, c"
        raise ConfigError(field="protocols", value=text, expected=expected) from e
    return tuple(p for p in PROTOCOLS if p in parsed)


@contextmanager
def _evaluation_mode(network: CharRNN) -> Iterator[None]:
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


def _span_loss(network: CharRNN, ids: Ids, starts: Bounds, ends: Bounds, warm_up: int) -> float:
    """Return the mean loss of predicting ids[start + 1 .. end] over all spans, read side by side.

    Each span first reads up to `warm_up` characters that are not counted. Only a chunk of each span is in memory: the
    text may be larger than memory.
    """
    with native_reader(network, len(starts)) as stepper:
        if stepper is not None:
            return _stepper_span_loss(stepper, ids, starts, ends, warm_up)
    device = network.head.weight.device
    first_read = np.maximum(starts - warm_up, 0)
    width = int((ends - first_read).max())
    first, last = (torch.from_numpy(bound - first_read).to(device) for bound in (starts, ends))
    state = network.zero_state(len(starts))
    total = torch.zeros((), dtype=torch.float64, device=device)
    for t in range(0, width, _CHUNK):
        offsets = np.arange(t, min(t + _CHUNK, width) + 1)
        positions = np.minimum(first_read[:, None] + offsets[None, :], len(ids) - 1)
        chunk = torch.from_numpy(ids[positions].astype(np.int64)).to(device)  # (B, T + 1)
        x, y = chunk[:, :-1], chunk[:, 1:]
        logits, state = network(x, state)
        losses = F.cross_entropy(logits.flatten(0, 1).float(), y.flatten(), reduction="none").view_as(y)  # (B, T)
        at = torch.arange(t, t + y.shape[1], device=device)[None, :]
        counted = (at >= first[:, None]) & (at < last[:, None])
        total += torch.where(counted, losses, 0.0).sum(dtype=torch.float64)
    return float(total / int((ends - starts).sum()))


def _stepper_span_loss(stepper: Stepper, ids: Ids, starts: Bounds, ends: Bounds, warm_up: int) -> float:
    """Return what `_span_loss` does, by a stepper with a slot for each span."""
    n, rows = len(ids) - 1, len(starts)
    first_read = np.maximum(starts - warm_up, 0)
    slots = np.arange(rows, dtype=np.int32)
    for slot in slots.tolist():
        stepper.write(slot, None)
    total, width = 0.0, int((ends - first_read).max())
    sampling = as_batch([SamplingParams(temperature=0)] * rows)
    for t in range(0, width, _BLOCK_STEPS):
        offsets = np.arange(t, min(t + _BLOCK_STEPS, width))[:, None]
        unbounded = first_read + offsets  # (K, B)
        positions = np.minimum(unbounded, n - 1)
        result = stepper.run(
            Block(
                slots=slots,
                steps=np.full(rows, len(offsets), np.int32),
                forced_ids=ids[positions].astype(np.int32),
                random_values=np.zeros(positions.shape),
                sampling=sampling,
                score_ids=ids[positions + 1].astype(np.int32),
            )
        )
        counted = (unbounded >= starts) & (unbounded < ends)
        total -= float(result.logprobs[counted].sum(dtype=np.float64))
    return total / int((ends - starts).sum())


def _crop_loss(network: CharRNN, ids: Ids, crop: int) -> float:
    """Return the mean loss over crops that each start with the zero state; a remainder is not read."""
    device = network.head.weight.device
    crop = min(crop, len(ids) - 1)
    n = (len(ids) - 1) // crop
    total = 0.0
    for first in range(0, n, 64):
        last = min(first + 64, n)
        chunk = torch.from_numpy(ids[first * crop : last * crop + 1].astype(np.int64)).to(device)
        x, y = chunk[:-1].view(-1, crop), chunk[1:].view(-1, crop)
        logits, _ = network(x, network.zero_state(len(x)))
        total += float(F.cross_entropy(logits.flatten(0, 1).float(), y.flatten(), reduction="sum"))
    return total / (n * crop)
