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

from model.config import BF16_ORDERS, WEIGHT_PRECISIONS, Bf16Order, ModelConfig, TrainConfig, WeightPrecision
from model.native import build as build_module
from model.native.build import compile_to
from model.native.library import INSTRUCTION_SETS, flags
from model.network.char_rnn import CharRNN
from model.network.native_pass import NativePass
from model.network.sampling import SamplingParams, as_batch
from model.stepper import SAMPLE, Block
from model.stepper.cpu import CpuStepper
from model.stepper.cpu.pack_weights import pack

pytestmark = pytest.mark.usefixtures("native_code")
ROWS, STEPS, VOCAB = 13, 20, 70
PROGRAMS = ("run_block", "run_training_pass")
Emulated = dict[str, list[str]]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    """The commands that run the programs of this folder as Arm programs."""
    qemu = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if qemu is None:
        pytest.skip("no qemu-aarch64 here: install Debian's qemu-user")
    if not importlib.util.find_spec("ziglang"):
        pytest.skip("no cross compiler here: install the Python package ziglang")
    folder = tmp_path_factory.mktemp("aarch64")
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl"]
    options = tuple(option for option in flags() if option not in ("-shared", "-fvisibility=hidden", "-fPIC"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_module, "instruction_sets", lambda: INSTRUCTION_SETS["aarch64"])
        units = build_module.compile_units(compiler, options, folder)
    for name in PROGRAMS:
        compile_to(folder / name, compiler, (*options, "-static"), Path(__file__).with_name(f"{name}.c"), *units)
    return {name: [qemu, str(folder / name)] for name in PROGRAMS}


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
    emulated: Emulated, shape: tuple[int, int], precision: WeightPrecision, instruction_set: str, tmp_path: Path
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
    command = [*emulated["run_block"], instruction_set, str(tmp_path / "model")]
    arm = subprocess.run(command, capture_output=True, check=True).stdout
    stepper = CpuStepper(network, ROWS, precision)
    result = stepper.run(block)
    states = b"".join(stepper.read(row).tobytes() for row in range(ROWS))
    assert arm == result.ids.tobytes() + result.logprobs.tobytes() + states


@pytest.mark.parametrize("instruction_set", ["neon_dotprod", "neon"])
@pytest.mark.parametrize("bf16", [None, *BF16_ORDERS])
@pytest.mark.parametrize("shape", [(1, 5, 80), (3, 4, 13), (8, 5, 80), (50, 3, 40)])
@pytest.mark.parametrize("embed_dropout", [0.0, 0.2])
def test_a_training_pass_on_arm_gives_the_bits_of_this_cpu(
    emulated: Emulated,
    shape: tuple[int, int, int],
    bf16: Bf16Order | None,
    embed_dropout: float,
    instruction_set: str,
    tmp_path: Path,
) -> None:
    """Loss, state and gradients of a window with dropout, and with rows that begin again inside it."""
    torch.manual_seed(9)
    rows, steps, hidden = shape
    net = CharRNN(ModelConfig(11, hidden, 2, 6))
    config = TrainConfig(dropout=0.3, weight_drop=0.2, embed_dropout=embed_dropout)
    ids, targets = torch.randint(11, (rows, steps)), torch.randint(11, (rows, steps))
    starts, state = torch.rand(rows, steps) < 0.2, torch.randn(2, 2, rows, hidden)
    made = NativePass(net, config, bf16)
    gradients, after, _ = made.run(ids, targets, (state[0], state[1]), torch.Generator().manual_seed(4), starts)

    a = made._arrays
    head = [*shape[:2], 2, hidden, 6, 11, a.products, a.embed_threshold, a.weight_threshold, a.output_threshold]
    sizes = {("embed", 0): rows * 6} | {("weights", i): 4 * hidden**2 for i in range(2)}
    sizes |= {("output", i): rows * steps * hidden for i in range(2)}
    with (tmp_path / "pass").open("wb") as file:
        file.write(np.array(head, np.int32).tobytes())
        for tensor in (ids, targets, starts):
            file.write(tensor.numpy().tobytes())
        for name, size in sizes.items():
            draws = made._draws[name].numpy().tobytes() if name in made._draws else b"\0" * size
            file.write(draws[:size])
        for tensor in (state, *net.parameters()):
            file.write(tensor.detach().numpy().tobytes())
    command = [*emulated["run_training_pass"], instruction_set, str(tmp_path / "pass")]
    arm = subprocess.run(command, capture_output=True, check=True).stdout
    expected = b"".join(tensor.numpy().tobytes() for tensor in (*after, *gradients))
    assert arm == np.float64(a.loss).tobytes() + expected
