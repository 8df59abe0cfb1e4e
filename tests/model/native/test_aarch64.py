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

from model.config import BF16_ORDERS, WEIGHT_PRECISIONS, Bf16Order, ModelConfig, WeightPrecision
from model.native import build as build_module
from model.native.build import compile_to
from model.native.library import INSTRUCTION_SETS, flags
from model.network import native_layer
from model.network.char_rnn import CharRNN
from model.network.sampling import SamplingParams, as_batch
from model.stepper import SAMPLE, Block
from model.stepper.cpu import CpuStepper
from model.stepper.cpu.pack_weights import pack

pytestmark = pytest.mark.usefixtures("native_code")
ROWS, STEPS, VOCAB = 13, 20, 70
PROGRAMS = ("run_block", "run_lstm_layer")
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
@pytest.mark.parametrize("rows", [1, 3, 8, 50])
def test_a_training_step_on_arm_gives_the_bits_of_this_cpu(
    emulated: Emulated, rows: int, bf16: Bf16Order | None, instruction_set: str, tmp_path: Path
) -> None:
    """Outputs and gradients of a window of the LSTM layer, with rows that begin again inside it."""
    torch.manual_seed(9)
    steps, hidden, vocab = 5, 80, 11
    ids, starts = torch.randint(vocab, (rows, steps)), torch.rand(rows, steps) < 0.2
    inputs, weights = torch.randn(vocab, 4 * hidden), torch.randn(4 * hidden, hidden) / hidden**0.5
    h0, c0, d_h = torch.randn(rows, hidden), torch.randn(rows, hidden), torch.randn(rows, steps, hidden)
    saved = {"ids": ids, "inputs": inputs, "weights": weights, "h0": h0, "c0": c0, "starts": starts}
    head = np.array([rows, steps, hidden, native_layer._PRODUCTS.index(bf16), vocab], np.int32).tobytes()
    arrays = b"".join(tensor.numpy().tobytes() for tensor in (*saved.values(), d_h))
    (tmp_path / "layer").write_bytes(head + arrays)
    command = [*emulated["run_lstm_layer"], instruction_set, str(tmp_path / "layer")]
    arm = subprocess.run(command, capture_output=True, check=True).stdout

    made = {"h": torch.empty(rows, steps, hidden), "c": torch.empty(rows, steps, hidden)}
    made |= {"gates": torch.empty(rows, steps, 4 * hidden)}
    gradients = {"d_gates": torch.empty(rows, steps, 4 * hidden), "d_inputs": torch.zeros_like(inputs)}
    native_layer._call("lh_lstm_forward", d_h.shape, bf16, saved | made)
    native_layer._call("lh_lstm_backward", d_h.shape, bf16, saved | made | gradients | {"d_h": d_h})
    assert arm == b"".join(tensor.numpy().tobytes() for tensor in (made | gradients).values())
