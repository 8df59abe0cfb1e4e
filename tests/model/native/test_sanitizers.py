"""The C code under sanitizers of addresses, undefined behaviour and threads: its tests, run again with such builds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from model.native.build import BuildError, compile_to, compilers
from model.native.library import Unsupported, flags

ROOT = Path(__file__).parents[3]
SANITIZE = ("-O0", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
SANITIZE_THREADS = ("-O1", "-g", "-fsanitize=thread", "-DLEAST_PRODUCTS=0.0")  # threads share whatever is left
# Changing batches, every kind of tile, every check of a block, sampling, scores, threads, closing; training's layer.
STEPPER, BATCHES, BATCH = (
    "tests/model/stepper",
    "every_text_is_the_same_alone_and_in_random_batches",
    "every_size_of_a_batch_gives_the_same",
)
TESTS = [
    *(f"{STEPPER}/test_cpu.py::test_{BATCHES}[{case}]" for case in ("shape0-2-fp32", "shape1-5-int8")),
    *(f"{STEPPER}/test_cpu.py::test_{BATCH}_bits[{p}-{n}]" for p in ("fp32", "int8") for n in (1, 2, 3, 4, 5, 6, 97)),
    f"{STEPPER}/test_cpu.py::test_rows_without_steps_left_are_unchanged",
    f"{STEPPER}/test_cpu.py::test_a_large_vocabulary_is_filtered_alike",
    f"{STEPPER}/test_cpu.py::test_a_bad_block_is_refused_and_moves_nothing",
    f"{STEPPER}/test_cpu.py::test_closing_twice_is_fine_and_a_closed_stepper_says_so",
    f"{STEPPER}/test_score_ids.py::test_scoring_changes_nothing_but_the_requested_logprobs[cpu-f32]",
    f"{STEPPER}/test_score_ids.py::test_scoring_changes_nothing_but_the_requested_logprobs[cpu-i8]",
    f"{STEPPER}/test_scoring.py::test_the_bits_are_those_of_blocks[3-40-2-fp32]",
    f"{STEPPER}/test_scoring.py::test_the_bits_are_those_of_blocks[None-33-3-int8]",
    f"{STEPPER}/test_scoring.py::test_what_is_closed_says_so",
    "tests/model/network/test_native_pass.py",
]
# Threads that share phases, that give each other rows, that are interrupted, that read texts, and those of training.
TESTS_OF_THREADS = [
    f"{STEPPER}/test_cpu.py::test_{BATCH}_bits[fp32-3]",
    f"{STEPPER}/test_cpu.py::test_threads_that_give_each_other_rows_change_no_bit[int8-3]",
    f"{STEPPER}/test_cpu.py::test_an_interrupt_at_any_time_changes_no_bit[int8-3]",
    f"{STEPPER}/test_cpu.py::test_an_interrupt_at_any_time_changes_no_bit[fp32-2]",
    f"{STEPPER}/test_cpu.py::test_two_steppers_run_at_once",
    f"{STEPPER}/test_scoring.py::test_the_bits_are_those_of_blocks[None-40-2-fp32]",
    "tests/model/network/test_native_pass.py",
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that loads a build which checks accesses."""
    build = sanitized_build(tmp_path_factory.mktemp("sanitized"), SANITIZE, "libasan.so", "libubsan.so")
    return build | {"ASAN_OPTIONS": "detect_leaks=0"}  # Python itself leaks by design at its exit


@pytest.fixture(scope="module")
def environment_of_threads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that loads a build which checks that threads do not race for memory."""
    build = sanitized_build(tmp_path_factory.mktemp("sanitized"), SANITIZE_THREADS, "libtsan.so")
    probe = run(build, "-c", "pass")
    if probe.returncode != 0:
        pytest.skip(f"ThreadSanitizer cannot run here: {probe.stderr.strip()[-200:]}")
    return build


def sanitized_build(folder: Path, options: tuple[str, ...], *libraries: str) -> dict[str, str]:
    """Build the C code with a compiler's sanitizers, and return the environment of a process that loads it."""
    if not compilers():
        pytest.skip("no C compiler here")
    compiler, library = compilers()[0], folder / "kernel.so"
    runtimes = [
        subprocess.run([*compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in libraries
    ]
    if not all(map(os.path.isabs, runtimes)):
        pytest.skip(f"{compiler[0]} has no sanitizers as shared libraries")
    try:
        compile_to(library, compiler, (*(flag for flag in flags() if flag != "-O3"), *options))
    except (BuildError, Unsupported) as reason:
        pytest.skip(str(reason))
    return os.environ | {"LD_PRELOAD": ":".join(runtimes), "NATIVE_LIBRARY": str(library)}


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    # ThreadSanitizer needs its memory where randomized addresses may already be something else.
    fixed = [setarch, "-R"] if (setarch := shutil.which("setarch")) and "tsan" in environment["LD_PRELOAD"] else []
    command = [*fixed, sys.executable, *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)


def test_the_c_code_has_no_memory_error_and_no_undefined_behaviour(environment: dict[str, str]) -> None:
    """The stepper's tests and those of the training pass succeed, and no sanitizer reports anything."""
    plugins = ("-p", "tests.model.native.other_library", "-p", "no:cacheprovider", "-p", "no:randomly")
    result = run(environment, "-m", "pytest", "-q", *plugins, *TESTS)
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]


def test_threads_do_not_race_for_memory(environment_of_threads: dict[str, str]) -> None:
    """The tests in which threads share a run succeed, and ThreadSanitizer reports nothing."""
    plugins = ("-p", "tests.model.native.other_library", "-p", "no:cacheprovider", "-p", "no:randomly")
    result = run(environment_of_threads, "-m", "pytest", "-q", *plugins, *TESTS_OF_THREADS)
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]


def test_the_sanitizer_notices_a_race(environment_of_threads: dict[str, str]) -> None:
    """The control: two runs of one stepper at a time, which its lock rules out, end the process with a report."""
    code = """
import contextlib
import threading
from model.config import ModelConfig
from model.network.char_rnn import CharRNN
from model.stepper.cpu import CpuStepper
from tests.model.native import other_library
from tests.model.stepper.test_cpu import plain_block
stepper = CpuStepper(CharRNN(ModelConfig(65, 64, 1, 4)), 8, threads=1)
stepper._lock = contextlib.nullcontext()
threads = [threading.Thread(target=lambda: stepper.run(plain_block(8, 200))) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""
    result = run(environment_of_threads, "-c", code)
    assert "ThreadSanitizer: data race" in result.stderr


@pytest.mark.skipif("FUZZ" not in os.environ, reason="minutes: make fuzz")
def test_damaged_records_reach_no_memory_error(environment: dict[str, str]) -> None:
    """Sessions, turns and prefix states as tests/fuzz damages them, and no sanitizer reports anything."""
    plugins = ("-p", "tests.model.native.other_library", "-p", "no:cacheprovider", "-p", "no:randomly")
    result = run(environment, "-m", "pytest", "-q", *plugins, "tests/fuzz/test_sessions.py", "-k", "damaged")
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]


@pytest.mark.parametrize(
    "misuse",
    [
        "library.lh_sample(None, np.zeros(300, np.float32).ctypes.data, 301, one.ctypes.data, 0.5, number.ctypes.data)",
        "library.lh_read(stepper._handle, 3, np.zeros(300, np.float32).ctypes.data)",
    ],
)
def test_the_sanitizers_notice_an_access_out_of_bounds(environment: dict[str, str], misuse: str) -> None:
    """The control: a logit too many, and a slot too many inside the stepper's own memory, end the process."""
    code = f"""
import numpy as np
from pathlib import Path
from model.config import ModelConfig
from model.native.library import load_library
from model.network.char_rnn import CharRNN
from model.network.sampling import SamplingParams, as_batch
from model.stepper.cpu import CpuStepper
path = Path({environment["NATIVE_LIBRARY"]!r})
library = load_library(path)
stepper = CpuStepper(CharRNN(ModelConfig(5, 8, 1, 4)), 3, library=path)
one, number = as_batch([SamplingParams()]), np.zeros(1, np.float32)
{misuse}
"""
    result = run(environment, "-c", code)
    assert result.returncode != 0
    assert "AddressSanitizer" in result.stderr
