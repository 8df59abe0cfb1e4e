"""Protocol (c): dynamic evaluation. The model goes on learning from the text that it is measured on.

Each window is predicted first and learnt from after, so no character helps to predict itself. Source: Krause et al.
(2018), "Dynamic Evaluation of Neural Sequence Models": gradient descent with a pull back to the trained weights; each
step's size is set by the gradients that the part itself has shown so far, so nothing else need be stored.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch.nn import functional as F

from model.network.char_rnn import CharRNN, detach
from model.text.corpus import Ids

WINDOW = 32
RATE = 2e-3
PULL = 2e-3
_MEMORY = 0.999  # of the running mean of squared gradients


def dynamic_loss(network: CharRNN, ids: Ids, *, rate: float = RATE, pull: float = PULL, window: int = WINDOW) -> float:
    """Protocol (c) on ids[1:], nats per character: one pass, state carried, every character counted once.

    `rate` is of each window's step, `pull` of the way back to the trained weights in it. The network itself is not
    changed. One text at a time cannot be computed side by side: this takes about ten times as long as (b).
    """
    learner = copy.deepcopy(network).requires_grad_(True)
    parameters = list(learner.parameters())
    trained = [p.detach().clone() for p in parameters]
    squares = [torch.zeros_like(p) for p in parameters]
    state, total, n = learner.zero_state(1), 0.0, len(ids) - 1
    for i, t in enumerate(range(0, n, window)):
        chunk = torch.from_numpy(ids[t : min(t + window, n) + 1].astype(np.int64)).to(parameters[0].device)[None]
        logits, state = learner(chunk[:, :-1], detach(state))
        nats = F.cross_entropy(logits[0].float(), chunk[0, 1:])
        total += float(nats.detach()) * (chunk.shape[1] - 1)
        gradients = torch.autograd.grad(nats, parameters)
        with torch.no_grad():
            correction = 1 - _MEMORY ** (i + 1)
            for p, start, g, square in zip(parameters, trained, gradients, squares, strict=True):
                square.mul_(_MEMORY).addcmul_(g, g, value=1 - _MEMORY)
                p.addcdiv_(g, (square / correction).sqrt_().add_(1e-4), value=-rate)
                p.lerp_(start, pull)
    return total / n
