"""Validation loss, in nats per character, under named protocols. A number without its letter means nothing.

(a) zero state, crops of 256 that overlap nowhere: what models with a fixed window report.
(b) one pass over the whole part, state carried, every character counted once: ours.
(c) dynamic evaluation: (b) by a model that goes on learning from what it has been shown; in model/dynamic.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from model.network.char_rnn import CharRNN
from model.network.sampling import SamplingParams, as_batch
from model.stepper import Block, Stepper
from model.text.corpus import Ids

Protocol = Literal["a", "b"]
Bounds = NDArray[np.int64]
CROP = 256
LEAD = 512
_CHUNK = 512  # characters of a stream that are computed at once
_BLOCK_STEPS = 64


@torch.inference_mode()
def loss(network: CharRNN, ids: Ids, protocol: Protocol = "b", crop: int = CROP) -> float:
    """Mean negative log-likelihood of ids[1:], nats per character; `crop` is protocol (a)'s, 256 where nothing is said.

    Protocol (b) is read as up to 64 spans side by side, for speed. A span that starts in the middle first reads the
    LEAD characters before it without counting them, which brings it to the state that one long pass would have there;
    the result differs from that of a single pass by less than 0.0005 nats (a test holds it).
    """
    n = len(ids) - 1
    with _evaluating(network):
        if protocol == "a":
            return _crops(network, ids, crop)
        streams = min(64, max(1, n // (4 * LEAD)))
        bounds = np.array([n * i // streams for i in range(streams + 1)])
        return _spans(network, ids, bounds[:-1], bounds[1:], LEAD)


@torch.inference_mode()
def look(network: CharRNN, ids: Ids, characters: int) -> float:
    """Protocol (b) on a sample: 32 evenly placed spans of `characters` in all. For looks during training."""
    n = len(ids) - 1
    if characters >= n:
        return loss(network, ids)
    streams = min(32, characters)
    starts = np.array([n * i // streams for i in range(streams)])
    with _evaluating(network):
        return _spans(network, ids, starts, starts + characters // streams, LEAD // 4)


def loss_as_served(stepper: Stepper, ids: Ids) -> float:
    """Protocol (b) by a stepper, with its arithmetic and its rounded weights. Overwrites its slots."""
    n, rows = len(ids) - 1, min(stepper.n_slots, max(1, (len(ids) - 1) // (4 * LEAD)))
    bounds = np.array([n * i // rows for i in range(rows + 1)])
    starts, ends = bounds[:-1], bounds[1:]
    begins = np.maximum(starts - LEAD, 0)
    slots = np.arange(rows, dtype=np.int32)
    for slot in slots.tolist():
        stepper.write(slot, None)
    total, width = 0.0, int((ends - begins).max())
    for t in range(0, width, _BLOCK_STEPS):
        reach = begins + np.arange(t, min(t + _BLOCK_STEPS, width))[:, None]  # (K, B)
        at = np.minimum(reach, n - 1)
        result = stepper.run(
            Block(
                slots=slots,
                steps=np.full(rows, len(reach), np.int32),
                forced_ids=ids[at].astype(np.int32),
                random_values=np.zeros(reach.shape),
                sampling=as_batch([SamplingParams(temperature=0)] * rows),
                score_ids=ids[at + 1].astype(np.int32),
            )
        )
        counted = (reach >= starts) & (reach < ends)
        total -= float(result.logprobs[counted].sum(dtype=np.float64))
    return total / n


def bits(nats: float) -> float:
    """Nats per character -> bits per character."""
    return nats / math.log(2)


@contextmanager
def _evaluating(network: CharRNN) -> Iterator[None]:
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


def _spans(network: CharRNN, ids: Ids, starts: Bounds, ends: Bounds, lead: int) -> float:
    """Mean loss of predicting ids[start + 1 .. end] over all spans, side by side, each after an uncounted lead.

    Only a chunk of each span is ever held: the part may be larger than memory.
    """
    device = network.head.weight.device
    begins = np.maximum(starts - lead, 0)
    width = int((ends - begins).max())
    first, last = (torch.from_numpy(at - begins).to(device) for at in (starts, ends))
    state = network.zero_state(len(starts))
    total = torch.zeros((), dtype=torch.float64, device=device)
    for t in range(0, width, _CHUNK):
        reach = np.arange(t, min(t + _CHUNK, width) + 1)
        within = np.minimum(begins[:, None] + reach[None, :], len(ids) - 1)
        chunk = torch.from_numpy(ids[within].astype(np.int64)).to(device)  # (B, T + 1)
        x, y = chunk[:, :-1], chunk[:, 1:]
        logits, state = network(x, state)
        each = F.cross_entropy(logits.flatten(0, 1).float(), y.flatten(), reduction="none").view_as(y)  # (B, T)
        at = torch.arange(t, t + y.shape[1], device=device)[None, :]
        counted = (at >= first[:, None]) & (at < last[:, None])
        total += torch.where(counted, each, 0.0).sum(dtype=torch.float64)
    return float(total / int((ends - starts).sum()))


def _crops(network: CharRNN, ids: Ids, crop: int) -> float:
    device = network.head.weight.device
    crop = min(crop, len(ids) - 1)
    n = (len(ids) - 1) // crop
    total = 0.0
    for rows in range(0, n, 64):
        last = min(rows + 64, n)
        chunk = torch.from_numpy(ids[rows * crop : last * crop + 1].astype(np.int64)).to(device)
        x, y = chunk[:-1].view(-1, crop), chunk[1:].view(-1, crop)
        logits, _ = network(x, network.zero_state(len(x)))
        total += float(F.cross_entropy(logits.flatten(0, 1).float(), y.flatten(), reduction="sum"))
    return total / (n * crop)
