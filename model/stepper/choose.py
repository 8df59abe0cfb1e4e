"""Which stepper runs a model here, and why."""

from __future__ import annotations

import numpy as np

from model.config import Device, WeightPrecision
from model.network.char_rnn import CharRNN
from model.network.device import resolve_device
from model.network.sampling import SamplingParams
from model.stepper import Stepper
from model.stepper.cpu import CpuStepper, Unsupported
from model.stepper.cuda import CudaStepper
from model.stepper.generate import one_row_block
from model.stepper.reference import ReferenceStepper


def choose(
    network: CharRNN, n_slots: int, device: Device = "auto", precision: WeightPrecision = "fp32"
) -> tuple[Stepper, str]:
    """The fastest stepper for this model on this machine, and the reason in words.

    device: "auto" takes a GPU where there is one. precision applies to the native stepper; the others compute in
    float32.
    """
    if resolve_device(device) == "cuda":
        return _on_gpu(network, n_slots)
    try:
        stepper = CpuStepper(network, n_slots, precision)
        return stepper, f"native, {precision}"
    except Unsupported as e:
        return ReferenceStepper(network, n_slots), f"reference, for {e}"


def _on_gpu(network: CharRNN, n_slots: int) -> tuple[Stepper, str]:
    """The graphs, if they run a first block; whatever keeps them from it, the reference runs on any GPU."""
    try:
        stepper = CudaStepper(network, n_slots)
        stepper.run(one_row_block(0, np.array([0], np.int32), 1, np.zeros((1, 1)), SamplingParams()))
        stepper.write(0, None)
        return stepper, "CUDA graphs"
    except Exception as e:
        return ReferenceStepper(network, n_slots, device="cuda"), f"reference on the GPU, for {e}"
