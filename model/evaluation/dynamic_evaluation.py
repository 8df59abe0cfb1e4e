"""The dynamic protocol: the model continues to learn from the text that it is measured on.

Each window is predicted first and learned from afterwards, so no character helps to predict itself. Source: Krause et
al. (2018), "Dynamic Evaluation of Neural Sequence Models": gradient descent with decay towards the trained weights; the
step of each weight is scaled by the gradients seen so far on this text, so no statistics of the training are stored.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch.nn import functional as F

from model.network.char_rnn import CharRNN, detach
from model.text.corpus import Ids

WINDOW = 32
LEARNING_RATE = 2e-3
DECAY = 2e-3
_SQUARES_DECAY = 0.999  # of the running mean of squared gradients


def dynamic_loss(
    network: CharRNN,
    ids: Ids,
    *,
    learning_rate: float = LEARNING_RATE,
    decay: float = DECAY,
    window: int = WINDOW,
) -> float:
    """Return the dynamic loss of ids[1:], in nats per character: one pass, state carried, every character counted once.

    Spans cannot be read side by side, so this takes about ten times as long as the stateful protocol.

    Args:
        network: The network to measure; it is not changed, a copy learns.
        ids: The text, at least 2 ids.
        learning_rate: Of each window's step.
        decay: The fraction of the way back to the trained weights, in each step.
        window: Characters between two steps.
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
            correction = 1 - _SQUARES_DECAY ** (i + 1)
            for p, start, g, square in zip(parameters, trained, gradients, squares, strict=True):
                square.mul_(_SQUARES_DECAY).addcmul_(g, g, value=1 - _SQUARES_DECAY)
                p.addcdiv_(g, (square / correction).sqrt_().add_(1e-4), value=-learning_rate)
                p.lerp_(start, decay)
    return total / n
