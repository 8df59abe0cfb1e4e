"""A checkpoint's self-test: a short text that its trainer saw it write, and that every reader must see again.

The fingerprint says that the weights are those that were saved. This says that they still mean the same: that the code
which reads them, here, makes of them the model that was judged. The text is greedy and computed in float64 by the plain
loop, so that machines and libraries agree on it: they differ by far less than two characters' probabilities do.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from model.checkpoints.file_format import Checkpoint
from model.errors import CheckpointError
from model.network.sampling import SamplingParams
from model.stepper import Stepper
from model.stepper.generate import generate, one_row_block, write

CHARS = 32
_GREEDY = SamplingParams(temperature=0)
_APART_FLOAT32 = 1e-3  # nats a character, in the mean: many times what rounding makes of it
_APART = {"cpu-i8": 0.1}


def with_self_test(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with what it writes recorded."""
    return replace(checkpoint, self_test=_written(checkpoint))


def check(checkpoint: Checkpoint) -> None:
    """Raised: CheckpointError when the model does not write what its trainer recorded."""
    if not checkpoint.self_test:
        return
    written = _written(checkpoint)
    if written != checkpoint.self_test:
        raise CheckpointError(f"self-test: wrote {written!r}, its trainer recorded {checkpoint.self_test!r}")


def warm(stepper: Stepper, checkpoint: Checkpoint) -> None:
    """Let a stepper write once, so that what it does lazily is done, and read the self-test's text beside the network.

    What is compared is the log-probability of the network's likeliest character after each of the text.
    Raised: CheckpointError when they are far apart.
    """
    for _ in write(stepper, checkpoint.vocab, "", CHARS, _GREEDY):
        pass
    ids, likeliest, expected = _likeliest(checkpoint)
    stepper.write(0, None)
    found = stepper.run(one_row_block(0, ids, len(ids), score_ids=likeliest)).logprobs[:, 0]
    stepper.write(0, None)
    apart, most = float(np.abs(found - expected).mean()), _APART.get(stepper.name, _APART_FLOAT32)
    if not apart <= most:
        raise CheckpointError(
            f"self-test: the stepper {stepper.name} is {apart:.3g} nats a character from the network in float64, "
            f"expected at most {most:g}"
        )


def _likeliest(checkpoint: Checkpoint) -> tuple[list[int], NDArray[np.int64], NDArray[np.float64]]:
    """The self-test's ids, and the likeliest id after each with its log-probability, by the plain network."""
    network = checkpoint.network(torch.float64)
    ids = [checkpoint.vocab.start, *checkpoint.vocab.encode(checkpoint.self_test).tolist()]
    with torch.inference_mode():
        logits, _ = network(torch.tensor([ids]), network.zero_state(1))
        logprobs, likeliest = logits[0].log_softmax(-1).max(-1)
    return ids, likeliest.numpy(), logprobs.numpy()


def _written(checkpoint: Checkpoint) -> str:
    return generate(checkpoint.network(torch.float64), checkpoint.vocab, "", CHARS, _GREEDY).text
