"""The instruction sets of the native library: which one runs, and that all of them compute the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import BF16_ORDERS, WEIGHT_PRECISIONS, Bf16Order, ModelConfig, TrainConfig, WeightPrecision
from model.errors import ConfigError
from model.native.build import compile_to, compilers
from model.native.library import (
    INSTRUCTION_SET_VARIABLE,
    available_instruction_sets,
    choose_instruction_set,
    flags,
    instruction_sets,
    library_path,
    load_library,
)
from model.network import native_pass
from model.network.char_rnn import CharRNN
from model.network.sampling import SamplingParams, as_batch
from model.stepper import SAMPLE, Block
from model.stepper.cpu import CpuStepper, Unsupported

pytestmark = pytest.mark.usefixtures("native_code")
ROWS, STEPS, VOCAB = 50, 6, 70
SAMPLINGS = [SamplingParams(), SamplingParams(0.7, 20, 0.9, 0.01), SamplingParams(0), SamplingParams(1.3)]


def network(hidden: int, layers: int) -> CharRNN:
    torch.manual_seed(11)
    return CharRNN(ModelConfig(VOCAB, hidden, layers, 24))


def block(rows: int) -> Block:
    """The first rows of a block of ROWS."""
    rng = np.random.default_rng(5)
    forced_ids = np.full((STEPS, ROWS), SAMPLE, np.int32)
    forced_ids[0] = rng.integers(0, VOCAB, ROWS)
    random_values = rng.random((STEPS, ROWS))
    return Block(
        slots=np.arange(rows, dtype=np.int32),
        steps=np.full(rows, STEPS, np.int32),
        forced_ids=np.ascontiguousarray(forced_ids[:, :rows]),
        random_values=np.ascontiguousarray(random_values[:, :rows]),
        sampling=as_batch([SAMPLINGS[row % len(SAMPLINGS)] for row in range(rows)]),
    )


def bits(stepper: CpuStepper, rows: int) -> list[bytes]:
    """Ids, log-probabilities and state of each of the first rows, as bytes."""
    for row in range(rows):
        stepper.write(row, None)
    result = stepper.run(block(rows))
    return [
        result.ids[:, row].tobytes() + result.logprobs[:, row].tobytes() + stepper.read(row).tobytes()
        for row in range(rows)
    ]


@pytest.mark.parametrize("shape", [(512, 2), (64, 1), (21, 3)])
@pytest.mark.parametrize("precision", WEIGHT_PRECISIONS)
def test_every_instruction_set_gives_the_same_bits(precision: WeightPrecision, shape: tuple[int, int]) -> None:
    """Of every set that this CPU has, for 1 to 50 rows and 1 and 2 threads: ids, log-probabilities and states."""
    net = network(*shape)
    sets = available_instruction_sets(load_library(library_path()))
    expected = bits(CpuStepper(net, ROWS, precision, threads=1, instruction_set=sets[-1]), ROWS)
    for instruction_set in sets[:-1]:
        for threads in (1, 2):
            stepper = CpuStepper(net, ROWS, precision, threads, instruction_set=instruction_set)
            for rows in (1, 2, 3, 4, 5, 6, 7, 8, 11, 13, 16, 17, 32, 33, ROWS):
                assert bits(stepper, rows) == expected[:rows], (instruction_set, threads, rows)


@pytest.mark.parametrize("bf16", [None, *BF16_ORDERS])
# rows: of one tile, of two and three, none of which is full; units: a part of a tile, blocks that are no whole panel
@pytest.mark.parametrize("shape", [(1, 2, 16), (3, 5, 40), (8, 4, 320), (17, 3, 80), (32, 2, 64), (50, 3, 72)])
@pytest.mark.parametrize("layers", [1, 2])
def test_every_instruction_set_gives_the_same_bits_in_training(
    shape: tuple[int, int, int], layers: int, bf16: Bf16Order | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss, states and gradients of a window with all dropout; vdpbf16ps, tiles and fma, where the CPU has them.

    Values go down to denormals, which a pass takes as zero.
    """
    torch.manual_seed(6)
    rows, steps, hidden = shape
    net = CharRNN(ModelConfig(13, hidden, layers, 9))
    for parameter in net.parameters():
        parameter.data *= torch.pow(10.0, -torch.rand(parameter.shape) * 38)
    config = TrainConfig(dropout=0.3, embed_dropout=0.2 if hidden == 40 else 0.0, weight_drop=0.2)
    state = tuple(torch.randn(layers, rows, hidden) for _ in range(2))
    ids, starts = torch.randint(13, (rows, steps + 1)), torch.rand(rows, steps) < 0.2
    sets = available_instruction_sets(load_library(library_path()))
    results = []
    for instruction_set in sets:
        monkeypatch.setattr(
            native_pass, "native_library", lambda s=instruction_set: (load_library(library_path()), s.encode())
        )
        generator = torch.Generator().manual_seed(3)
        made = native_pass.NativePass(net, config, bf16)
        gradients, after, loss = made.run(ids[:, :-1], ids[:, 1:], state, generator, starts)
        results.append([tensor.numpy().tobytes() for tensor in (loss, *after, *gradients)])
    for instruction_set, result in zip(sets, results, strict=True):
        assert result == results[-1], instruction_set


def test_avx_vnni_gives_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code for AVX-VNNI, with its instruction in the encoding of AVX-512: few CPUs have both."""
    library = load_library(library_path())
    if "avx512_vnni" not in available_instruction_sets(library):
        pytest.skip("this CPU has no AVX-512 VNNI")
    if not compilers():
        pytest.skip("no C compiler here")
    one_set = {"avx512_vnni": instruction_sets()["avx512_vnni"]}
    monkeypatch.setattr("model.native.build.instruction_sets", lambda: one_set)
    compile_to(tmp_path / "narrow.so", compilers()[0], (*flags(), "-DLONGHAND_256"))
    net = network(100, 2)
    for precision in WEIGHT_PRECISIONS:
        narrow = CpuStepper(net, ROWS, precision, library=tmp_path / "narrow.so", instruction_set="avx512_vnni")
        for rows in (1, 2, 3, 5, ROWS):
            assert bits(narrow, rows) == bits(CpuStepper(net, ROWS, precision), rows)


def test_the_best_instruction_set_runs_unless_the_environment_names_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variable the first available set; with it that one; a name that the CPU lacks is a ConfigError."""
    monkeypatch.delenv(INSTRUCTION_SET_VARIABLE, raising=False)
    library = load_library(library_path())
    sets = available_instruction_sets(library)
    assert sets[-1] == "plain"
    assert choose_instruction_set(library) == sets[0] != "plain"
    for instruction_set in sets:
        monkeypatch.setenv(INSTRUCTION_SET_VARIABLE, instruction_set)
        assert CpuStepper(network(8, 1), 1).instruction_set == instruction_set
    monkeypatch.setenv(INSTRUCTION_SET_VARIABLE, "altivec")
    with pytest.raises(ConfigError, match=r"altivec.*plain"):
        CpuStepper(network(8, 1), 1)


@pytest.mark.parametrize("sets", [["plain"], []])
def test_a_library_without_a_set_for_this_cpu_is_not_used(sets: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain C is slower than torch, so it never runs unless it is named; a library may lack that, too."""
    monkeypatch.delenv(INSTRUCTION_SET_VARIABLE, raising=False)
    monkeypatch.setattr("model.native.library.available_instruction_sets", lambda library: sets)
    with pytest.raises(Unsupported, match="AVX2"):
        CpuStepper(network(8, 1), 1)
