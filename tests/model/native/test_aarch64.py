"""The kernels for 64-bit Arm, cross-compiled with zig and run by qemu: the bits are those of this CPU.

Needs the Python package ziglang and Debian's qemu-user; without them the tests are skipped.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import WEIGHT_PRECISIONS, ModelConfig, WeightPrecision
from model.native import build as build_module
from model.native.build import compile_to
from model.native.library import INSTRUCTION_SETS, flags
from model.network.char_rnn import CharRNN
from model.network.sampling import SamplingParams, as_batch
from model.stepper import SAMPLE, Block
from model.stepper.cpu import CpuStepper
from model.stepper.cpu.pack import pack

pytestmark = pytest.mark.usefixtures("native_code")
ROWS, STEPS, VOCAB = 13, 20, 70
PROGRAM = Path(__file__).with_name("run_block.c")


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs run_block.c as an Arm program."""
    qemu = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if qemu is None:
        pytest.skip("no qemu-aarch64 here: install Debian's qemu-user")
    if not importlib.util.find_spec("ziglang"):
        pytest.skip("no cross compiler here: install the Python package ziglang")
    program = tmp_path_factory.mktemp("aarch64") / "run_block"
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl"]
    options = tuple(option for option in flags() if option not in ("-shared", "-fvisibility=hidden", "-fPIC"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_module, "instruction_sets", lambda: INSTRUCTION_SETS["aarch64"])
        units = build_module.compile_units(compiler, options, program.parent)
    compile_to(program, compiler, (*options, "-static"), PROGRAM, *units)
    return [qemu, str(program)]


def write_model(path: Path, network: CharRNN, precision: WeightPrecision, threads: int, block: Block) -> None:
    """Write what run_block.c reads."""
    config, packed = network.config, pack(network, precision)
    head = [config.n_layers, config.n_hidden, config.vocab_size, precision == "int8", threads, ROWS, STEPS]
    arrays: list[np.ndarray] = []
    for i, weights in enumerate(packed.weights):
        arrays += [weights, packed.initial[i], packed.scale[i] if packed.scale else np.zeros(0, np.float32)]
    arrays += [block.forced_ids, block.random_values, block.sampling]
    with path.open("wb") as file:
        file.write(np.array(head, np.int32).tobytes())
        for array in arrays:
            file.write(np.array(array.nbytes, np.int32).tobytes() + array.tobytes())


@pytest.mark.parametrize("instruction_set", ["neon_dotprod", "neon"])
@pytest.mark.parametrize("precision", WEIGHT_PRECISIONS)
@pytest.mark.parametrize("shape", [(64, 2), (37, 1), (260, 1)])
def test_arm_gives_the_bits_of_this_cpu(
    emulated: list[str], shape: tuple[int, int], precision: WeightPrecision, instruction_set: str, tmp_path: Path
) -> None:
    """Ids, log-probabilities and states of a block with forced and sampled ids, filters and two threads."""
    torch.manual_seed(5)
    network = CharRNN(ModelConfig(VOCAB, shape[0], shape[1], 24))
    rng = np.random.default_rng(8)
    forced_ids = rng.integers(0, VOCAB, (STEPS, ROWS)).astype(np.int32)
    forced_ids[4:] = SAMPLE
    samplings = [SamplingParams(), SamplingParams(0.7, 20, 0.9, 0.01), SamplingParams(0)]
    block = Block(
        slots=np.arange(ROWS, dtype=np.int32),
        steps=np.full(ROWS, STEPS, np.int32),
        forced_ids=forced_ids,
        random_values=rng.random((STEPS, ROWS)),
        sampling=as_batch([samplings[row % 3] for row in range(ROWS)]),
    )
    write_model(tmp_path / "model", network, precision, 2, block)
    arm = subprocess.run([*emulated, instruction_set, str(tmp_path / "model")], capture_output=True, check=True).stdout
    stepper = CpuStepper(network, ROWS, precision)
    result = stepper.run(block)
    states = b"".join(stepper.read(row).tobytes() for row in range(ROWS))
    assert arm == result.ids.tobytes() + result.logprobs.tobytes() + states
