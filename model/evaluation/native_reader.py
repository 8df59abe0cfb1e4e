"""The native stepper as a reader of texts: several times as fast as torch's layers on a CPU, to rounding the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from model.network.char_rnn import CharRNN
from model.network.native_pass import supports_native_pass
from model.stepper.cpu import CpuStepper


@contextmanager
def native_reader(network: CharRNN, n_slots: int) -> Iterator[CpuStepper | None]:
    """Open a stepper in float32 for a network, and close it at the end.

    Yields:
        The stepper; None where only torch can read: other cells, a GPU, no native code, a weight that is no number.
    """
    stepper = None
    if supports_native_pass(network) and all(bool(p.isfinite().all()) for p in network.parameters()):
        stepper = CpuStepper(network, n_slots)
    try:
        yield stepper
    finally:
        if stepper is not None:
            stepper.close()
