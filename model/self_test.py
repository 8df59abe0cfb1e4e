"""A checkpoint's self-test: a short text that its trainer saw it write, and that every reader must see again.

The fingerprint says that the weights are those that were saved. This says that they still mean the same: that the code
which reads them, here, makes of them the model that was judged. The text is greedy and computed in float64 by the plain
loop, so that machines and libraries agree on it: they differ by far less than two characters' probabilities do.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from model.checkpoint import Checkpoint
from model.errors import CheckpointError
from model.generate import generate, write
from model.sampling import SamplingParams
from model.stepper import Stepper

CHARS = 32
_GREEDY = SamplingParams(temperature=0)
_AGREE = 4  # characters; a stepper in float32 may part from the float64 text later, at a near tie


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
    """Let a stepper write the self-test's text once: what it does lazily is done, and it can be seen to work.

    Raised: CheckpointError when it begins in another way.
    """
    written = "".join(write(stepper, checkpoint.vocab, "", CHARS, _GREEDY))
    stepper.write(0, None)
    agree = 0 if stepper.name == "cpu-i8" else _AGREE  # eight bits may part from the first character on
    if not written.startswith(checkpoint.self_test[:agree]):
        raise CheckpointError(
            f"self-test: the stepper {stepper.name} wrote {written!r}, the trainer recorded {checkpoint.self_test!r}"
        )


def _written(checkpoint: Checkpoint) -> str:
    return generate(checkpoint.network(torch.float64), checkpoint.vocab, "", CHARS, _GREEDY).text
