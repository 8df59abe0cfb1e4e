"""The self-test of a checkpoint: a short text that its trainer generated, and that every reader must generate again.

The fingerprint proves that the weights are those that were saved. The self-test proves that the code that reads them
computes the model that was validated. The text is greedy and computed in float64 by the plain loop, so that different
machines and libraries agree on it: their differences are far smaller than those between characters' probabilities.
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
"""The length of the text."""
_GREEDY = SamplingParams(temperature=0)
_TOLERANCE_FLOAT32 = 1e-3  # nats per character, mean difference: many times the effect of rounding
_TOLERANCE = {"cpu-i8": 0.1, "cuda-i8": 0.1}


def record(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with the text that it generates as its self-test."""
    return replace(checkpoint, self_test=_generate(checkpoint))


def verify_checkpoint(checkpoint: Checkpoint) -> None:
    """Generate the self-test's text again. A checkpoint without a self-test passes.

    Raises:
        CheckpointError: The text is another one.
    """
    if not checkpoint.self_test:
        return
    text = _generate(checkpoint)
    if text != checkpoint.self_test:
        expected = f"{checkpoint.self_test!r}, which its trainer recorded"
        raise CheckpointError(f"generated {text!r}", field="self-test", value=text, expected=expected)


def verify_stepper(stepper: Stepper, checkpoint: Checkpoint) -> None:
    """Compare a stepper with the network in float64 on the self-test's text, and warm the stepper up.

    After each character of the text, the log-probability of the network's most probable next character is compared.
    Slot 0 has the zero state afterwards.

    Raises:
        CheckpointError: The mean difference is larger than rounding explains.
    """
    for _ in write(stepper, checkpoint.vocab, "", CHARS, _GREEDY):
        pass  # do what is done lazily, such as the capture of a CUDA graph, before the first request
    ids, most_probable, expected_logprobs = _most_probable(checkpoint)
    stepper.write(0, None)
    logprobs = stepper.run(one_row_block(0, ids, len(ids), score_ids=most_probable)).logprobs[:, 0]
    stepper.write(0, None)
    difference = float(np.abs(logprobs - expected_logprobs).mean())
    tolerance = _TOLERANCE.get(stepper.name, _TOLERANCE_FLOAT32)
    if not difference <= tolerance:  # a NaN is not within the tolerance either
        raise CheckpointError(
            f"the stepper {stepper.name} differs from the network in float64 by {difference:.3g} nats per character",
            field="self-test",
            value=difference,
            expected=f"at most {tolerance:g}",
        )


def _most_probable(checkpoint: Checkpoint) -> tuple[list[int], NDArray[np.int64], NDArray[np.float64]]:
    """Return the self-test's ids (T,), and the network's most probable id after each with its log-probability."""
    network = checkpoint.network(torch.float64)
    ids = [checkpoint.vocab.start, *checkpoint.vocab.encode(checkpoint.self_test).tolist()]
    with torch.inference_mode():
        logits, _ = network(torch.tensor([ids]), network.zero_state(1))
        logprobs, most_probable = logits[0].log_softmax(-1).max(-1)
    return ids, most_probable.numpy(), logprobs.numpy()


def _generate(checkpoint: Checkpoint) -> str:
    return generate(checkpoint.network(torch.float64), checkpoint.vocab, "", CHARS, _GREEDY).text
