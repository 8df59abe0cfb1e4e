"""longhand doctor: what this machine and this installation are, how fast they are, and what is wrong with them.

It connects to the Redis that is configured, and changes nothing.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import torch

import model
from model.arguments import ArgumentParser
from model.checkpoints import file_format, registry
from model.config import PRESETS, Device, ModelConfig
from model.errors import ModelError
from model.network.char_rnn import CharRNN
from model.network.sampling import SamplingParams, as_batch
from model.stepper import SAMPLE, Block, Stepper
from model.stepper.choose import choose
from model.stepper.cuda import KERNELS, compiler, driver
from model.stepper.cuda.self_test import probe
from model.text import default_text
from service.settings import Settings, SettingsError, read_settings
from service.store.connect import connect
from service.store.redis_server import describe_server, find_server_program

_ROWS, _STEPS, _SECONDS = 64, 32, 2.0
_VOCABULARY = 96  # of the network that is measured when no model is promoted
_FREE_GB = 1.0
_MEMORY_GB = 1.0


class Problem(Exception):
    """Raised by a check when something is wrong; the message says what, and what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print one line for each check, then the problems; return 1 if there are any."""
    parser = ArgumentParser(prog="longhand doctor", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=get_args(Device), help="as the setting DEVICE; cuda: a GPU is required")
    options = parser.parse_args(argv)
    problems = 0
    for name, check in _checks(options.device):
        try:
            line = check()
        except (Problem, SettingsError, ModelError) as error:
            problems += 1
            line = f"PROBLEM: {error}"
        print(f"{name:<10}{line}", flush=True)
    print(f"{'result':<10}{f'{problems} problem{chr(115) * (problems != 1)}' if problems else 'nothing is wrong'}")
    return 1 if problems else 0


def _checks(device: Device | None) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield every check with its name; each returns a line or raises."""
    yield "longhand", lambda: f"{model.__version__} in {Path(model.__file__).parent.parent}"
    yield "machine", _machine
    yield "python", _python
    yield "torch", _torch
    settings: list[Settings] = []

    def read() -> str:
        settings.append(read_settings())
        return "can be read from the environment"

    yield "settings", read
    usable = settings[0] if settings else Settings.model_construct()
    device = device or usable.device
    if device == "cuda" or (device == "auto" and driver.is_installed()):
        yield "gpu", _gpu
        yield "kernels", _kernels
    yield "data", lambda: _data(usable)
    yield "redis", lambda: _redis(usable)
    yield "model", lambda: _model(usable)
    yield "text", _text
    stepper: list[Stepper] = []
    yield "stepper", lambda: _stepper(usable, device, stepper)
    if stepper:
        yield "speed", lambda: _speed(stepper[0])


def _machine() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    if memory < _MEMORY_GB:
        raise Problem(f"{memory:.1f} GB of memory, expected at least {_MEMORY_GB:g} GB")
    return f"{platform.system()} {platform.release()}, {platform.machine()}, {cores} cores, {memory:.0f} GB of memory"


def _python() -> str:
    return f"{platform.python_version()}, {sys.executable}"


def _torch() -> str:
    version = str(torch.__version__)
    if torch.version.cuda is None:
        return f"{version}, the build without CUDA"
    if torch.cuda.is_available():
        return f"{version}, CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}"
    return f"{version}, the build with CUDA {torch.version.cuda}, but no GPU can be used: the CPU build would do"


def _data(settings: Settings) -> str:
    folder = settings.longhand_home.resolve()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise Problem(f"{existing} cannot be written to; set LONGHAND_HOME to another folder")
    free = shutil.disk_usage(existing).free / 1e9
    if free < _FREE_GB:
        raise Problem(f"{folder}: {free:.1f} GB of disk are free, expected at least {_FREE_GB:g} GB")
    return f"{folder}{'' if folder.exists() else ', not there yet'}; {free:.0f} GB of disk are free"


def _redis(settings: Settings) -> str:
    if settings.redis_url:
        return f"{describe_server(connect(settings.redis_url))}, the server that REDIS_URL names"
    program = find_server_program()
    done = subprocess.run([program, "--version"], capture_output=True, text=True)
    if done.returncode:
        raise Problem(f"{program} does not run: {done.stderr.strip()}")
    version = re.search(r"^(\w+) .*?v=([\d.]+)", done.stdout)
    return f"embedded, {' '.join(version.groups()) if version else program}; it keeps its data in the data folder"


def _model(settings: Settings) -> str:
    path = registry.promoted_path(settings.checkpoint_dir)
    if path is None:
        return "none is promoted yet: longhand serve trains one, longhand train as well"
    config = file_format.load(path).config
    return f"{path.name}, {config.cell} of {config.n_layers} x {config.n_hidden}"


def _text() -> str:
    if default_text.is_here():
        return "the default text is here"
    return "the default text is not here: the first start downloads it, or trains on a file that you name"


def _gpu() -> str:
    try:
        gpu = driver.Gpu()
        memory = f"{gpu.free_bytes() >> 20} of {gpu.memory_bytes >> 20} MiB free"
        result = (
            f"{gpu.name}, {gpu.architecture}, {gpu.processors} multiprocessors, {memory}, driver for CUDA {gpu.cuda}"
        )
        gpu.close()
        probe()
    except driver.CudaError as error:
        raise Problem(f"{error}. Texts are generated on the CPU") from error
    return f"{result}; it computes the bits of the CPU"


def _kernels() -> str:
    """What each kernel uses, as the driver reports it."""
    try:
        gpu = driver.Gpu()
        module = gpu.load(compiler.cubin(gpu.architecture))
        used = {name: module.resources(name) for name in KERNELS if gpu.capability >= (8, 0) or "many_i8" not in name}
        module.close()
        gpu.close()
    except driver.CudaError as error:
        raise Problem(str(error)) from error
    spilled = {name: r.local_bytes for name, r in used.items() if r.local_bytes}
    registers, shared = max(r.registers for r in used.values()), max(r.shared_bytes for r in used.values())
    spills = ", ".join(f"{name} {n}" for name, n in spilled.items()) or "none"
    return f"{len(used)} kernels, at most {registers} registers and {shared >> 10} KiB shared; spilled bytes: {spills}"


def _stepper(settings: Settings, device: Device, chosen: list[Stepper]) -> str:
    path = registry.promoted_path(settings.checkpoint_dir)
    if path is not None:
        checkpoint = file_format.load(path)
        network, precision = checkpoint.network(), checkpoint.weight_precision(settings.precision)
    else:
        shape = {name: value for name, value in PRESETS["quick"].items() if name in ModelConfig.__dataclass_fields__}
        network = CharRNN(ModelConfig(vocab_size=_VOCABULARY, **shape))
        precision = "int8" if settings.precision == "auto" else settings.precision  # as of a trained model
    stepper, reason = choose(network, _ROWS, device, precision)
    chosen.append(stepper)
    if reason.startswith("reference"):
        advice = "where there is a C compiler, python -m model.native.build compiles the native code"
        raise Problem(f"{reason}; texts take several times as long. {advice}")
    if device == "cuda" and not stepper.name.startswith("cuda"):
        raise Problem(f"{reason}; docs/gpu.md says what a GPU needs")
    return reason


def _speed(stepper: Stepper) -> str:
    """Generate for two seconds: half of the time one text, half of it as many as there are slots."""
    one, many = (_characters_per_second(stepper, rows) for rows in (1, stepper.n_slots))
    return f"{one:,.0f} characters per second in one text, {many:,.0f} in {stepper.n_slots} texts together"


def _characters_per_second(stepper: Stepper, rows: int) -> float:
    forced_ids = np.full((_STEPS, rows), SAMPLE, np.int32)
    forced_ids[0] = 0
    for slot in range(rows):
        stepper.write(slot, None)
    block = Block(
        slots=np.arange(rows, dtype=np.int32),
        steps=np.full(rows, _STEPS, np.int32),
        forced_ids=forced_ids,
        random_values=np.random.default_rng(0).random((_STEPS, rows)),
        sampling=as_batch([SamplingParams()] * rows),
    )
    stepper.run(block)  # the first block is slower
    blocks, start = 0, time.monotonic()
    while time.monotonic() - start < _SECONDS / 2:
        stepper.run(block)
        blocks += 1
    return blocks * _STEPS * rows / (time.monotonic() - start)
