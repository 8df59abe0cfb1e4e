"""Which stepper runs a model here, and why."""

from __future__ import annotations

from typing import Literal

import torch

from model.network import CharRNN
from model.stepper import Stepper
from model.stepper.cpu import CpuStepper, Unsupported
from model.stepper.reference import ReferenceStepper

Precision = Literal["fp32", "int8"]


def choose(network: CharRNN, n_slots: int, device: str = "auto", precision: Precision = "fp32") -> tuple[Stepper, str]:
    """The fastest stepper for this model on this machine, and the reason in words.

    device: "auto" takes a GPU where there is one. precision applies to the native stepper; the others compute in
    float32.
    """
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        return ReferenceStepper(network, n_slots, device="cuda"), "reference on the GPU"
    try:
        stepper = CpuStepper(network, n_slots, precision)
        return stepper, f"native, {precision}"
    except Unsupported as e:
        return ReferenceStepper(network, n_slots), f"reference, for {e}"
