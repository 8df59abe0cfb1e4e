"""The device of a setting."""

from __future__ import annotations

from typing import Literal

import torch

from model.config import Device
from model.errors import ConfigError


def resolve_device(device: Device) -> Literal["cpu", "cuda"]:
    """Return the device that a setting stands for on this machine: "auto" is a GPU where there is one.

    Raises:
        ConfigError: It is "cuda", and torch finds no GPU.
    """
    if device == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if device == "cuda":
        expected = "cpu or auto, since torch finds no GPU on this machine"
        raise ConfigError(field="device", value=device, expected=expected)
    return "cpu"
