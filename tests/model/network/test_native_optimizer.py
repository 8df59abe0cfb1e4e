"""The native optimizer against torch's in float64, and its bits for any instruction set and number of threads."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from model.native.library import available_instruction_sets, library_path, load_library
from model.network.native_optimizer import NativeAdamW

pytestmark = pytest.mark.usefixtures("native_code")
SIZES = [(3,), (130, 70), (1,), (9001,), (65, 320)]  # of less than a chunk, of more than one
BETAS, LR, CLIP = (0.9, 0.99), 1e-2, 0.5


def adamw(parameters: list[Tensor]) -> torch.optim.AdamW:
    """Weight decay for half of the tensors, as for matrices."""
    groups = [{"params": parameters[::2], "weight_decay": 0.1}, {"params": parameters[1::2], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=LR, betas=BETAS)


def gradients(seed: int, dtype: torch.dtype = torch.float32) -> list[list[Tensor]]:
    """Of three shards, one of them not contiguous."""
    torch.manual_seed(seed)
    shards = [[torch.randn(size) * 0.01 for size in SIZES] for _ in range(3)]
    shards[1][1] = shards[1][1].t().contiguous().t()
    return [[g.to(dtype) for g in shard] for shard in shards]


def native_steps(n_steps: int, n_threads: int, average_weight: float = 0.3) -> list[Tensor]:
    """The parameters, their averages and both moments after some steps."""
    torch.manual_seed(0)
    parameters = [torch.randn(size) for size in SIZES]
    averages = [p.clone() for p in parameters]
    optimizer = adamw(parameters)
    native = NativeAdamW(optimizer, parameters, averages)

    for step in range(n_steps):
        for group in optimizer.param_groups:
            group["lr"] = LR / (step + 1)
        native.step(gradients(step), 3, CLIP, average_weight, n_threads)
    states = [optimizer.state[p] for p in parameters]
    assert all(float(s["step"]) == n_steps for s in states)
    return [*parameters, *averages, *(s["exp_avg"] for s in states), *(s["exp_avg_sq"] for s in states)]


@pytest.mark.parametrize("average_weight", [1.0, 0.6, 0.002])
def test_steps_are_those_of_torch(average_weight: float) -> None:
    """Sum, division, clipping, AdamW and the average, within float32's rounding of float64."""
    ours = native_steps(4, 2, average_weight)
    torch.manual_seed(0)
    parameters = [torch.randn(size).double() for size in SIZES]
    averages = copy.deepcopy(parameters)
    optimizer = adamw(parameters)
    for step in range(4):
        for group in optimizer.param_groups:
            group["lr"] = LR / (step + 1)
        for parameter, *shards in zip(parameters, *gradients(step, torch.float64), strict=True):
            parameter.grad = sum(shards) / 3
        norm = torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        assert norm > CLIP
        optimizer.step()
        for average, parameter in zip(averages, parameters, strict=True):
            average.lerp_(parameter, average_weight)
    states = [optimizer.state[p] for p in parameters]
    theirs = [*parameters, *averages, *(s["exp_avg"] for s in states), *(s["exp_avg_sq"] for s in states)]
    for own, expected in zip(ours, theirs, strict=True):
        assert torch.allclose(own.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_small_gradient_is_not_clipped() -> None:
    """Only one that is larger than the norm; and one that is not a number makes the weights none."""
    results = []
    for factor, clip in ((1.0, 1e9), (1.0, 1e6), (float("nan"), 1.0)):
        parameter = torch.ones(10)
        native = NativeAdamW(torch.optim.AdamW([parameter], lr=LR), [parameter], [torch.ones(10)])
        native.step([[torch.arange(10.0) * factor]], 1, clip, 1.0, 1)
        results.append(parameter)
    assert torch.equal(results[0], results[1])
    assert results[2].isnan().all()


def test_the_bits_do_not_depend_on_the_threads_or_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads share chunks; the norm is added up in the order of the chunks."""
    expected = native_steps(3, 1)
    for n_threads in (0, 2, 3, 50, 100):
        assert all(map(torch.equal, native_steps(3, n_threads), expected))
    for instruction_set in available_instruction_sets(load_library(library_path())):
        monkeypatch.setenv("LONGHAND_INSTRUCTION_SET", instruction_set)
        assert all(map(torch.equal, native_steps(3, 2), expected)), instruction_set
