"""The device of a setting."""

from __future__ import annotations

from typing import Literal

import torch

from model.config import Device


def resolve_device(device: Device) -> Literal["cpu", "cuda"]:
    """Return the device that a setting stands for on this machine: "auto" is a GPU where there is one."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device
