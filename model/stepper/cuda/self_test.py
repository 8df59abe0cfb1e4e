"""Proof that a GPU computes what the CPU computes, before it serves: in a process of its own first, then each model.

    python -m model.stepper.cuda.self_test        # prints a JSON object; the exit status is 1 if the GPU cannot be used

A process of its own, because a faulty driver may end the process that calls it, or never answer.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from model.config import ModelConfig
from model.network.char_rnn import CharRNN
from model.network.penalties import LogitBias
from model.network.sampling import SamplingParams, as_batch
from model.stepper import NO_SCORE, SAMPLE, Block, Stepper
from model.stepper.cpu import CpuStepper, Unsupported
from model.stepper.cuda import CudaError, CudaStepper

_TIMEOUT_S = 120.0  # the first start compiles the kernels, in about ten seconds
_PARAMETERS = (
    SamplingParams(),
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.7, top_k=5, top_p=0.9, min_p=0.02),
    SamplingParams(temperature=1.2, typical_p=0.8),
    SamplingParams(repetition_penalty=1.3, frequency_penalty=0.2, presence_penalty=0.1),
)


def compare(stepper: CudaStepper, cpu: Stepper, vocab_size: int) -> None:
    """Run the same blocks on both, of all rows and of a few, with every kind of sampling, and compare every bit.

    The slots have the zero state afterwards.

    Raises:
        CudaError: A bit differs, or the GPU fails.
    """
    for rows, steps, seed in ((1, 40, 0), (min(64, stepper.n_slots), 33, 1), (stepper.n_slots, 5, 2), (1, 40, 0)):
        block = random_block(stepper.n_slots, rows, steps, vocab_size, seed)
        on_gpu, on_cpu = stepper.run(block), cpu.run(block)
        is_counted = np.arange(steps)[:, None] < block.steps
        same = np.array_equal(on_gpu.ids[is_counted], on_cpu.ids[is_counted]) and np.array_equal(
            on_gpu.logprobs[is_counted], on_cpu.logprobs[is_counted], equal_nan=True
        )
        states = all(np.array_equal(stepper.read(slot), cpu.read(slot)) for slot in block.slots[:64].tolist())
        if not same or not states:
            raise CudaError(f"{stepper.device} does not compute what the CPU computes: {rows} rows, {steps} steps")
    for slot in range(stepper.n_slots):
        stepper.write(slot, None)


def random_block(n_slots: int, rows: int, steps: int, vocab_size: int, seed: int) -> Block:
    """Rows with prompts of all lengths, every kind of sampling, windows, biases and ids to score."""
    rng = np.random.default_rng(seed)
    prompts = rng.integers(1, steps + 1, rows)
    forced_ids = rng.integers(0, vocab_size, (steps, rows)).astype(np.int32)
    forced_ids[np.arange(steps)[:, None] >= prompts] = SAMPLE
    row_steps = rng.integers(1, steps + 1, rows).astype(np.int32)
    row_steps[0] = steps
    params = as_batch([_PARAMETERS[i % len(_PARAMETERS)] for i in range(rows)])
    score_ids = np.where(rng.random((steps, rows)) < 0.2, rng.integers(0, vocab_size, (steps, rows)), NO_SCORE)
    biases = [{int(rng.integers(vocab_size)): float(rng.normal())} if row % 3 else {} for row in range(rows)]
    return Block(
        slots=rng.permutation(n_slots)[:rows].astype(np.int32),
        steps=row_steps,
        forced_ids=forced_ids,
        random_values=rng.random((steps, rows)),
        sampling=params,
        score_ids=score_ids.astype(np.int32),
        windows=rng.integers(-1 - vocab_size, vocab_size, (rows, 16)).astype(np.int32),
        logit_bias=LogitBias.of(biases),
    )


def chars_per_second(stepper: Stepper, rows: int, vocab_size: int, seconds: float = 0.05) -> float:
    """Measure how many characters a stepper generates in a second, in `rows` texts at once."""
    steps = 16
    forced_ids = np.full((steps, rows), SAMPLE, np.int32)
    forced_ids[0] = vocab_size - 1
    block = Block(
        np.arange(rows, dtype=np.int32), np.full(rows, steps, np.int32), forced_ids, np.full((steps, rows), 0.5),
        as_batch([SamplingParams()] * rows),
    )  # fmt: skip
    stepper.run(block)
    started, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds:
        stepper.run(block)
        count += steps * rows
    return count / elapsed


def probe() -> str:
    """Try the GPU in a process of its own, once for this process.

    Returns:
        The GPU's name.

    Raises:
        CudaError: It cannot be used; the message says why.
    """
    outcome = tried()
    if isinstance(outcome, CudaError):
        raise CudaError(str(outcome), outcome.code)
    return outcome


@lru_cache(maxsize=1)
def tried() -> str | CudaError:
    """What became of the process that tried the GPU: the GPU's name, or the error."""
    try:
        return _try_in_a_process()
    except CudaError as error:
        return error


def _try_in_a_process() -> str:
    command = [sys.executable, "-m", __name__]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise CudaError(f"the GPU did not answer in {_TIMEOUT_S:.0f} s") from None
    try:
        result: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        end = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise CudaError(f"the process that tried the GPU ended with status {done.returncode}: {end[0]}") from None
    if "error" in result:
        raise CudaError(result["error"], result["code"])
    name: str = result["device"]
    return name


def main() -> int:
    """Try the GPU with a small random network; returns the exit status."""
    torch.manual_seed(0)
    network = CharRNN(ModelConfig(vocab_size=40, n_hidden=40, n_layers=2, n_embed=8)).eval()
    try:
        for precision in ("fp32", "int8"):
            stepper = CudaStepper(network, 20, precision)
            compare(stepper, CpuStepper(network, 20, precision), 40)
            device = stepper.device
            stepper.close()
    except CudaError as error:
        print(json.dumps({"error": str(error), "code": error.code}))
        return 1
    except Unsupported as error:
        print(json.dumps({"error": f"there is nothing to compare the GPU with: {error}", "code": 0}))
        return 1
    print(json.dumps({"device": device}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
