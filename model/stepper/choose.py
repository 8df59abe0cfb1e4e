"""Choose the stepper that runs a model on this machine."""

from __future__ import annotations

from model.config import Device, WeightPrecision
from model.network.char_rnn import CharRNN
from model.stepper import Stepper
from model.stepper.cpu import CpuStepper, Unsupported
from model.stepper.cuda import CudaError, CudaStepper, driver
from model.stepper.cuda.self_test import chars_per_second, compare, probe
from model.stepper.reference import ReferenceStepper


def choose(
    network: CharRNN, n_slots: int, device: Device = "auto", precision: WeightPrecision = "fp32"
) -> tuple[Stepper, str]:
    """Create the fastest stepper for a model on this machine.

    A GPU serves if it computes the CPU's bits, and faster. Otherwise the CPU serves, whatever the device is called in
    the settings: a service on a CPU is better than none.

    Args:
        network: The model.
        n_slots: The size of the stepper's state table.
        device: "cpu", "cuda", or "auto" for a GPU if there is one.
        precision: Of the weights; the reference stepper computes in float32.

    Returns:
        The stepper, and the reason for the choice in words.
    """
    if uses_cpu(device):
        return _on_cpu(network, n_slots, precision)
    try:
        return _on_gpu(network, n_slots, precision)
    except (CudaError, Unsupported) as error:
        stepper, reason = _on_cpu(network, n_slots, precision)
        return stepper, f"{reason}; not on a GPU: {error}"


def uses_cpu(device: Device) -> bool:
    """Whether a CPU runs models, because the setting says so or no GPU can be there."""
    return device == "cpu" or (device == "auto" and not driver.is_installed())


def _on_cpu(network: CharRNN, n_slots: int, precision: WeightPrecision) -> tuple[Stepper, str]:
    try:
        return CpuStepper(network, n_slots, precision), f"native, {precision}"
    except Unsupported as error:
        return ReferenceStepper(network, n_slots), f"reference, because {error}"


def _on_gpu(network: CharRNN, n_slots: int, precision: WeightPrecision) -> tuple[Stepper, str]:
    """The GPU's stepper, tried in another process, compared with the CPU's, and faster.

    Raises:
        CudaError: There is no usable GPU, it computes something else, or it is slower.
        Unsupported: The kernels do not run this model.
    """
    probe()
    vocab_size = network.config.vocab_size
    stepper = CudaStepper(network, n_slots, precision)
    try:
        cpu = CpuStepper(network, n_slots, precision)
        compare(stepper, cpu, vocab_size)
        rates = [(chars_per_second(s, 1, vocab_size), chars_per_second(s, n_slots, vocab_size)) for s in (stepper, cpu)]
        cpu.close()
        (one, all_slots), (cpu_one, cpu_all) = rates
        speed = f"{one:,.0f} characters/s for one text and {all_slots:,.0f} for {n_slots}"
        speed += f", the CPU {cpu_one:,.0f} and {cpu_all:,.0f}"
        if all_slots < cpu_all:
            raise CudaError(f"{stepper.device} is slower: {speed}")
        for slot in range(n_slots):
            stepper.write(slot, None)
    except BaseException:
        stepper.close()
        raise
    return stepper, f"{stepper.device}, {precision}: {speed}"
