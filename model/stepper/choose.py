"""Choose the stepper that runs a model on this machine."""

from __future__ import annotations

from model.config import Device, WeightPrecision
from model.network.char_rnn import CharRNN
from model.network.device import resolve_device
from model.stepper import Stepper
from model.stepper.cpu import CpuStepper, Unsupported
from model.stepper.cuda import CudaStepper
from model.stepper.generate import one_row_block
from model.stepper.reference import ReferenceStepper


def choose(
    network: CharRNN, n_slots: int, device: Device = "auto", precision: WeightPrecision = "fp32"
) -> tuple[Stepper, str]:
    """Create the fastest stepper for a model on this machine.

    Args:
        network: The model.
        n_slots: The size of the stepper's state table.
        device: "cpu", "cuda", or "auto" for a GPU if there is one.
        precision: Of the native stepper's weights; the other steppers compute in float32.

    Returns:
        The stepper, and the reason for the choice in words.
    """
    if resolve_device(device) == "cuda":
        return _on_gpu(network, n_slots)
    try:
        stepper = CpuStepper(network, n_slots, precision)
        return stepper, f"native, {precision}"
    except Unsupported as e:
        return ReferenceStepper(network, n_slots), f"reference, because {e}"


def _on_gpu(network: CharRNN, n_slots: int) -> tuple[Stepper, str]:
    """The CUDA graphs if they can run a first block; else the reference stepper, which runs on any GPU."""
    try:
        stepper = CudaStepper(network, n_slots)
        stepper.run(one_row_block(0, [0], 1))
        stepper.write(0, None)
        return stepper, "CUDA graphs"
    except Exception as e:
        return ReferenceStepper(network, n_slots, device="cuda"), f"reference on the GPU, because {e}"
