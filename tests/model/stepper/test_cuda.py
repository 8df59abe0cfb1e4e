"""The GPU's kernels: on an emulated GPU, which checks every access, and on a real one where there is one."""

from __future__ import annotations

import ctypes
import gc
import os
import re
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from model import native
from model.checkpoints.file_format import Checkpoint
from model.config import ModelConfig, WeightPrecision
from model.network.char_rnn import CharRNN
from model.network.penalties import LogitBias
from model.network.sampling import SamplingParams, as_batch
from model.stepper import NO_SCORE, SAMPLE, Block, Stepper, StepperError, cuda
from model.stepper.choose import choose
from model.stepper.cpu import CpuStepper, Unsupported
from model.stepper.cuda import TILES, CudaError, CudaStepper, compiler, driver, self_test
from model.stepper.cuda.block import CAPACITY
from model.stepper.generate import one_row_block
from model.structured_outputs.automaton import compile_tree
from model.structured_outputs.masks import Constraints, RowConstraint
from model.structured_outputs.syntax import parse
from tests import cuda_emulator
from tests.conftest import ALPHABET, random_checkpoint
from tests.cuda_emulator import EmulatedGpu
from tests.random_batching import VariantStepper, random_texts, variant_texts

CHARS = int(os.environ.get("EMULATED_CHARS", "1500"))
pytestmark = pytest.mark.usefixtures("native_code")
V = len(ALPHABET)


def has_gpu() -> bool:
    """Whether a real GPU can be used."""
    try:
        driver.Gpu().close()
    except CudaError:
        return False
    return True


@pytest.fixture(
    params=["emulated", pytest.param("real", marks=pytest.mark.skipif(not has_gpu(), reason="no GPU here"))]
)
def gpu(request: pytest.FixtureRequest) -> EmulatedGpu | None:
    """Where CudaStepper runs: on the emulated GPU, or a real one."""
    return request.getfixturevalue("emulated_gpu") if request.param == "emulated" else None


def test_the_sampling_parameters_are_those_of_the_declaration() -> None:
    """The kernels read a row of parameters by place: the names in their enum are the fields, in their order."""
    source = (Path(cuda.__file__).parent / "src/kernels.cu").read_text()
    (names,) = re.findall(r"enum \{\s*(TEMPERATURE[\w\s,]*?),\s*SAMPLING_FIELDS\s*\}", source)
    assert re.split(r",\s*", names.lower()) == [parameter.name for parameter in SamplingParams.fields()]


def test_every_filter_and_penalty_is_asked_for_in_c_and_cuda() -> None:
    """Both skip their rules when none is set: a parameter that is missing there does nothing when it is set alone."""
    c = (Path(native.__file__).parent / "src/kernels/sampling.h").read_text()
    kernels = (Path(cuda.__file__).parent / "src/sampling.cuh").read_text()
    for kind in ("filters", "penalties"):
        expected = {p.name for p in SamplingParams.fields() if (p.is_filter if kind == "filters" else p.is_penalty)}
        (in_c,) = re.findall(rf"sampling_has_{kind}\(const sampling_t \*s\)\s*\{{(.*?)\}}", c, re.DOTALL)
        assert set(re.findall(r"s->(\w+)", in_c)) == expected
        variable = "is_filtered" if kind == "filters" else "has_penalties"
        (in_cuda,) = re.findall(rf"const bool {variable} = (.*?);", kernels, re.DOTALL)
        assert set(re.findall(r"params\[(\w+)\]", in_cuda)) == {name.upper() for name in expected}


def random_network(vocab_size: int, n_hidden: int, n_layers: int, item_end: int | None = None) -> CharRNN:
    """A network whose gates are far from their middle."""
    torch.manual_seed(vocab_size + n_hidden)
    network = CharRNN(ModelConfig(vocab_size, n_hidden, n_layers, n_embed=8))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.7)
    network.item_end = item_end
    return network.eval()


def random_block(rng: np.random.Generator, n_slots: int, rows: int, steps: int, vocab_size: int) -> Block:
    """The block of the self-test with the parameters of random texts."""
    block = self_test.random_block(n_slots, rows, steps, vocab_size, int(rng.integers(1 << 30)))
    params = [t.params for t in random_texts(Random(int(rng.integers(1 << 30))), rows, vocab_size)]
    return replace(block, sampling=as_batch(params))


def assert_same(block: Block, one: Stepper, other: Stepper) -> None:
    """Both steppers give the same bits for a block, in the results and in the states."""
    a, b = one.run(block), other.run(block)
    assert np.array_equal(a.steps, b.steps)
    is_counted = np.arange(len(a.ids))[:, None] < b.steps
    assert np.array_equal(a.ids[is_counted], b.ids[is_counted])
    assert np.array_equal(a.logprobs[is_counted], b.logprobs[is_counted], equal_nan=True)
    if b.constraints is not None:
        assert a.constraints is not None
        assert np.array_equal(a.constraints.states, b.constraints.states)
        assert np.array_equal(a.constraints.logprobs[is_counted], b.constraints.logprobs[is_counted])
    for slot in range(one.n_slots):
        assert one.read(slot).tobytes() == other.read(slot).tobytes()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("kernel", TILES)
@pytest.mark.parametrize(
    ("network", "n_slots", "rows"),
    [
        (random_network(30, 24, 2), 40, 23),
        (random_network(7, 33, 1, item_end=3), 70, 70),  # H is no multiple of anything; items end
        (random_network(90, 70, 3), 9, 9),
        (random_network(1100, 16, 1), 3, 3),  # more ids than shared memory holds
    ],
    ids=["2x24", "1x33 items", "3x70", "1x16 large vocabulary"],
)
def test_the_bits_are_those_of_the_cpu(
    gpu: EmulatedGpu | None, network: CharRNN, n_slots: int, rows: int, kernel: str, precision: WeightPrecision
) -> None:
    """Ids, log-probabilities and states, for every kernel, size, precision and sampling parameter."""
    rng, vocab_size = np.random.default_rng(5), network.config.vocab_size
    on_gpu, on_cpu = CudaStepper(network, n_slots, precision, kernel=kernel), CpuStepper(network, n_slots, precision)
    assert on_gpu.numerics == on_cpu.numerics
    for _ in range(2):
        assert_same(random_block(rng, n_slots, rows, 18, vocab_size), on_gpu, on_cpu)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_every_text_is_the_same_alone_and_in_random_batches(
    gpu: EmulatedGpu | None, precision: WeightPrecision
) -> None:
    """Batch invariance: joins, leaves, cuts, cancels, the number of rows and the blocks' lengths change no bit."""
    rng, network = Random(2), random_checkpoint("lstm").network()
    batched, single = (CudaStepper(network, n, precision) for n in (40, 1))
    texts = random_texts(rng, CHARS // 25, V)
    assert variant_texts(batched, single, texts, rng, k=5) == []


def test_the_harness_notices_a_stepper_that_is_not_invariant(gpu: EmulatedGpu | None, tiny: Checkpoint) -> None:
    """The negative control of the test above."""
    rng = Random(2)
    batched, single = (CudaStepper(tiny.network(), n) for n in (40, 1))
    assert variant_texts(VariantStepper(batched), single, random_texts(rng, 40, V), rng, k=5) != []


def test_a_block_longer_than_the_buffers_is_the_same(gpu: EmulatedGpu | None, tiny: Checkpoint) -> None:
    """Blocks past CAPACITY steps are cut inside, in prompts, in texts and between: nothing of it shows."""
    steps, rng = 2 * CAPACITY + 30, np.random.default_rng(1)
    reads, lengths = [1, CAPACITY, CAPACITY + 1, steps, 300], [steps, CAPACITY, CAPACITY + 1, steps, 40]
    forced_ids = np.full((steps, 5), SAMPLE, np.int32)
    for b, read in enumerate(reads):
        forced_ids[:read, b] = rng.integers(0, V, read)
    block = Block(
        slots=np.arange(5, dtype=np.int32), steps=np.array(lengths, np.int32), forced_ids=forced_ids,
        random_values=rng.random((steps, 5)), sampling=as_batch([SamplingParams(repetition_penalty=1.2)] * 5),
        score_ids=np.where(rng.random((steps, 5)) < 0.1, 3, NO_SCORE).astype(np.int32),
    )  # fmt: skip
    assert_same(block, CudaStepper(tiny.network(), 5), CpuStepper(tiny.network(), 5))


def test_more_biases_than_the_buffers_hold(gpu: EmulatedGpu | None, tiny: Checkpoint) -> None:
    """The buffers grow, the graphs are captured again, and the next block is right, too."""
    rng = np.random.default_rng(3)
    on_gpu, on_cpu = CudaStepper(tiny.network(), 4), CpuStepper(tiny.network(), 4)
    biases = [{i: float(rng.normal()) for i in range(V)} for _ in range(4)]
    for n in (1, CAPACITY):
        block = replace(random_block(rng, 4, 4, n, V), logit_bias=LogitBias.of(biases))
        assert_same(block, on_gpu, on_cpu)


def test_a_state_moves_between_cpu_and_gpu(gpu: EmulatedGpu | None, tiny: Checkpoint) -> None:
    """A text that one began goes on on the other with the same characters; large states, too."""
    network, rng = tiny.network(), np.random.default_rng(4)
    on_gpu, on_cpu = CudaStepper(network, 1, "int8"), CpuStepper(network, 1, "int8")
    state = rng.normal(scale=1e4, size=on_gpu.state_shape).astype(np.float32)
    state[0] = np.tanh(state[0])
    for stepper in (on_gpu, on_cpu):
        stepper.write(0, state)
    assert_same(one_row_block(0, [1, 2, 3], 9), on_gpu, on_cpu)
    on_cpu.write(0, on_gpu.read(0))
    assert_same(one_row_block(0, [4], 20), on_gpu, on_cpu)


def test_rows_with_constraints_run_beside_others(gpu: EmulatedGpu | None, tiny: Checkpoint) -> None:
    """On the CPU, with the same bits; the other rows of the block on the GPU."""
    automaton = compile_tree(parse("(ab|c)+ (x|yz){2,4}"), ALPHABET.characters, "regex")
    block = random_block(np.random.default_rng(2), 9, 8, 12, V)
    block.forced_ids[1:] = SAMPLE
    constraints = [RowConstraint(automaton, 0, 20) if row % 2 else None for row in range(8)]
    on_gpu, on_cpu = CudaStepper(tiny.network(), 9), CpuStepper(tiny.network(), 9)
    assert_same(replace(block, constraints=Constraints.of(constraints)), on_gpu, on_cpu)
    assert_same(replace(block, constraints=Constraints.of([RowConstraint(automaton, 0, 20)] * 8)), on_gpu, on_cpu)


def test_an_invalid_block_is_refused_as_by_the_cpu(emulated_gpu: EmulatedGpu, tiny: Checkpoint) -> None:
    """The same message, and no row has moved."""
    good = random_block(np.random.default_rng(1), 4, 3, 5, V)
    bad = [
        replace(good, slots=np.array([0, 1, 4], np.int32)),
        replace(good, slots=np.array([0, 1, 1], np.int32)),
        replace(good, steps=np.array([5, 0, 5], np.int32)),
        replace(good, steps=np.array([5, 6, 5], np.int32)),
        replace(good, forced_ids=np.full((5, 3), SAMPLE, np.int32)),
        replace(good, forced_ids=np.full((5, 3), V, np.int32)),
        replace(good, forced_ids=np.full((5, 3), -2, np.int32)),
        replace(good, random_values=np.full((5, 3), 1.0)),
        replace(good, random_values=np.full((5, 3), np.nan)),
        replace(
            good, sampling=as_batch([SamplingParams(), SamplingParams(temperature=float("nan")), SamplingParams()])
        ),
        replace(good, sampling=as_batch([SamplingParams(typical_p=0.0)] * 3)),
        replace(good, score_ids=np.full((5, 3), V, np.int32)),
        replace(good, windows=np.full((3, 2), V, np.int32)),
        replace(good, logit_bias=LogitBias.of([{}, {V: 1.0}, {}])),
        replace(good, logit_bias=LogitBias.of([{}, {1: float("inf")}, {}])),
        replace(good, slots=np.array([0, 1, 2], np.int64)),
        replace(good, random_values=np.zeros((4, 3))),
    ]
    on_gpu, on_cpu = CudaStepper(tiny.network(), 4), CpuStepper(tiny.network(), 4)
    before = [on_gpu.read(slot).tobytes() for slot in range(4)]
    for block in bad:
        with pytest.raises(ValueError, match=": ") as from_cpu:
            on_cpu.run(block)
        with pytest.raises(ValueError, match=": ") as from_gpu:
            on_gpu.run(block)
        assert str(from_gpu.value).split(":")[0] == str(from_cpu.value).split(":")[0]
    assert before == [on_gpu.read(slot).tobytes() for slot in range(4)]
    for slot in (-1, 4):
        with pytest.raises(ValueError, match="slot"):
            on_gpu.read(slot)
    with pytest.raises(ValueError, match="state"):
        on_gpu.write(0, np.full(on_gpu.state_shape, np.nan, np.float32))


def test_a_closed_stepper_holds_no_memory(emulated_gpu: EmulatedGpu, tiny: Checkpoint) -> None:
    """All of the GPU's memory is free again, also when there was not enough of it; and closing twice is nothing."""
    gc.collect()  # steppers of earlier tests
    before = emulated_gpu.allocated()
    stepper = CudaStepper(tiny.network(), 4)
    assert emulated_gpu.allocated() > before
    stepper.close()
    stepper.close()
    with pytest.raises(
        CudaError, match=r"not enough GPU memory: \d+ MiB were needed, \d+ MiB of emulated GPU are free"
    ):
        CudaStepper(tiny.network(), 1_000_000)
    assert emulated_gpu.allocated() == before
    with pytest.raises(ValueError, match="closed"):
        stepper.read(0)


def test_the_kernels_arguments_have_pythons_layout(emulated_gpu: EmulatedGpu, tiny: Checkpoint) -> None:
    """As many bytes as the C structure has, whose fields all have eight."""
    assert ctypes.sizeof(CudaStepper(tiny.network(), 1)._arguments) == emulated_gpu.arguments_bytes()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("SYNC(); /* the chunk is there for every thread, and every thread is done with the one before */", "", "race"),
        ("copy_wait<STAGES - 2>();", "copy_wait<STAGES>();", ""),  # the bits differ, or an id is none
        ("if (id == ENDED) continue;\n            float gates[4];", "float gates[4];", "outside"),
        ("t.input_stride + word + k", "t.input_stride + word + k + a.stride * 4096", "outside"),
        ("t.first + row, panel * 16 + half / 4 + unit", "t.first, panel * 16 + half / 4 + unit", "race"),
        (
            "const Ptr<uint32_t> weights = t.weights + half;",
            "const Ptr<uint32_t> weights = t.weights + half + 1;",
            "misaligned",
        ),
    ],
    ids=["missing barrier", "missing wait", "ended row", "out of bounds", "two threads, one unit", "misaligned"],
)
def test_a_planted_fault_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Checkpoint, old: str, new: str, message: str
) -> None:
    """The controls of every test above: the emulator names a forbidden access, or the bits differ."""
    if cuda_emulator.COMPILER is None:
        pytest.skip("no C++ compiler here: the CUDA kernels cannot be emulated")
    library = cuda_emulator.build(tmp_path / "driver", old, new, optimize=False)
    monkeypatch.setattr(driver, "LIBRARY", str(library))
    monkeypatch.setenv(compiler.CACHE_VARIABLE, str(library.parent))
    stepper = CudaStepper(tiny.network(), 6, kernel="few")
    with pytest.raises((CudaError, AssertionError)) as caught:
        assert_same(random_block(np.random.default_rng(1), 6, 6, 9, V), stepper, CpuStepper(tiny.network(), 6))
    assert message in str(caught.value)
    assert not message or caught.type is CudaError


# ---- failures: the CPU serves, and says why ----


@pytest.fixture
def in_processes(
    emulated_driver: Path, emulated_gpu: EmulatedGpu, monkeypatch: pytest.MonkeyPatch
) -> pytest.MonkeyPatch:
    """The emulated GPU for this process and for those that it starts."""
    for name, value in cuda_emulator.environment(emulated_driver).items():
        monkeypatch.setenv(name, value)
    self_test.tried.cache_clear()
    return monkeypatch


FAILURES = {
    "no device": "the NVIDIA driver finds no GPU",
    "old driver": "the NVIDIA driver is too old: it has CUDA 11.4, expected 12.0 or later",
    "no memory": "not enough GPU memory",
    "wrong result": "emulated GPU does not compute what the CPU computes",
    "launch fails": "CUDA_ERROR_LAUNCH_FAILED",
    "sticky:3": "CUDA_ERROR_LAUNCH_FAILED",
    "crashes": "the process that tried the GPU ended with status -6",
    "hangs": "the GPU did not answer in 5 s",
}


@pytest.mark.parametrize("fault", [fault for fault in FAILURES if fault not in ("crashes", "hangs")])
def test_a_gpu_that_fails_is_replaced_by_the_cpu(
    emulated_gpu: EmulatedGpu, monkeypatch: pytest.MonkeyPatch, tiny: Checkpoint, fault: str
) -> None:
    """With the reason, also where it failed after the process that tried it."""
    monkeypatch.setattr("model.stepper.choose.probe", lambda: None)
    monkeypatch.setenv(cuda_emulator.FAULT_VARIABLE, fault)
    stepper, why = choose(tiny.network(), 4, "cuda")
    assert stepper.name == "cpu-f32"
    assert why.startswith("native, fp32; not on a GPU: ")
    assert FAILURES[fault] in why
    emulated_gpu.reset()


@pytest.mark.parametrize("fault", ["old driver", "wrong result", "crashes", "hangs"])
def test_the_process_that_tries_a_gpu_says_what_failed(
    in_processes: pytest.MonkeyPatch, tiny: Checkpoint, fault: str
) -> None:
    """Before this process touches the GPU; and it survives a driver that crashes or hangs."""
    in_processes.setenv(cuda_emulator.FAULT_VARIABLE, fault)
    if fault == "hangs":
        in_processes.setattr(self_test, "_TIMEOUT_S", 5.0)
    stepper, why = choose(tiny.network(), 4, "cuda")
    assert stepper.name == "cpu-f32"
    assert FAILURES[fault] in why


def test_without_a_driver_the_cpu_serves(tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device "auto" does not mention a GPU; "cuda" says what is missing."""
    monkeypatch.setattr(driver, "LIBRARY", "libcuda-that-is-not-here.so.1")
    monkeypatch.setattr("model.stepper.choose.probe", driver.Gpu)  # not in a process, which finds another one
    assert choose(tiny.network(), 4, "auto")[1] == "native, fp32"
    stepper, why = choose(tiny.network(), 4, "cuda")
    assert stepper.name == "cpu-f32"
    assert "no NVIDIA driver" in why


def test_a_cell_that_the_kernels_lack_runs_on_the_cpu(in_processes: pytest.MonkeyPatch) -> None:
    """A gru is no fault of the GPU."""
    stepper, why = choose(random_checkpoint("gru").network(), 2, "cuda")
    assert stepper.name == "reference"
    assert "not on a GPU: the native stepper runs lstm" in why


def test_a_gpu_that_is_right_and_fast_serves(in_processes: pytest.MonkeyPatch, tiny: Checkpoint) -> None:
    """choose takes it, says what it measured, and gives it empty slots. The emulated one is called fast here."""
    in_processes.setattr(
        "model.stepper.choose.chars_per_second", lambda stepper, *_: 2.0 if "cuda" in stepper.name else 1.0
    )
    stepper, why = choose(tiny.network(), 4, "cuda", "int8")
    assert stepper.name == "cuda-i8"
    assert why.startswith("emulated GPU, int8: 2 characters/s for one text")
    assert not any(stepper.read(slot).any() for slot in range(4))


def test_a_slow_gpu_does_not_serve(in_processes: pytest.MonkeyPatch, tiny: Checkpoint) -> None:
    """The emulated GPU is much slower than the CPU it runs on."""
    stepper, why = choose(tiny.network(), 4, "cuda")
    assert stepper.name == "cpu-f32"
    assert "is slower" in why


def test_a_sticky_error_is_final(emulated_gpu: EmulatedGpu, tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows it fails, too, and says so; one that is not sticky is that block's alone."""
    stepper = CudaStepper(tiny.network(), 1)
    block = one_row_block(0, [1], 4)
    monkeypatch.setenv(cuda_emulator.FAULT_VARIABLE, "sticky:1")
    with pytest.raises(StepperError) as caught:
        stepper.run(block)
    assert caught.value.is_final
    monkeypatch.delenv(cuda_emulator.FAULT_VARIABLE)
    with pytest.raises(StepperError):
        stepper.run(block)
    stepper.close()
    emulated_gpu.reset()


# ---- the compiler ----


def has_nvrtc() -> bool:
    """Whether the kernels can be compiled here."""
    try:
        compiler._nvrtc()
    except CudaError:
        return False
    return True


@pytest.mark.skipif(not has_nvrtc(), reason="NVRTC is not installed: the kernels cannot be compiled for a GPU")
@pytest.mark.parametrize("architecture", compiler.ARCHITECTURES)
def test_the_kernels_compile_without_spills(architecture: str) -> None:
    """For every architecture, but for the sampling, around divisions in double precision, and 24 bytes of one head."""
    cubin, log = compiler.compile_for(architecture)
    assert cubin[:4] == b"\x7fELF"
    spilled = {name: n for name, (_, n) in compiler.spills(log).items() if n}
    assert spilled.keys() <= {"draw_small", "draw_large", "many_f32_head"}


def test_without_nvrtc_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And a cubin in the cache needs none."""

    def missing() -> None:
        raise CudaError("NVRTC is not installed")

    monkeypatch.setattr(compiler, "_nvrtc", missing)
    monkeypatch.setenv(compiler.CACHE_VARIABLE, str(tmp_path))
    with pytest.raises(CudaError, match="NVRTC is not installed"):
        compiler.cubin("sm_99")
    (tmp_path / compiler.cubin_name("sm_99")).write_bytes(b"compiled before")
    assert compiler.cubin("sm_99") == b"compiled before"


def test_unsupported_networks_are_named() -> None:
    """Before the GPU is used."""
    with pytest.raises(Unsupported, match="gru"):
        CudaStepper(random_checkpoint("gru").network(), 1)
