"""AdamW, clipping and the moving average of the weights in native code, divided among the worker threads of a step.

native/src/kernels/optimizer.h has the arithmetic. The state lies in the tensors of a torch optimizer, so that a resume
state is the same whichever of the two took the steps.
"""

from __future__ import annotations

import ctypes
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from model.native.library import OptimizerArrays, choose_instruction_set, library_path, load_library

_CHUNK = 8192  # elements, as in optimizer.h
_Pointers = ctypes.Array[ctypes.c_void_p]
RunOnWorkers = Callable[[Callable[[int], None]], object]
"""Calls a function with the number of each worker, and waits for all."""


class AdamWState:
    """What a `torch.optim.AdamW` keeps, for native steps alone.

    One of torch imports torch's compiler as soon as it is made, which takes a second: as long as some trainings.

    Attributes:
        param_groups: The parameters with their settings; each group needs lr, betas, eps and weight_decay.
        state: The number of steps and the moments of each parameter.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], lr: float, betas: tuple[float, float]) -> None:
        """Give every group these settings and torch's eps."""
        self.param_groups = [{"lr": lr, "betas": betas, "eps": 1e-8, **group} for group in groups]
        self.state: defaultdict[Tensor, dict[str, Tensor]] = defaultdict(dict)


class NativeAdamW:
    """Takes the steps of a `torch.optim.AdamW` whose parameters are float32 on a CPU.

    Attributes:
        optimizer: The optimizer that has the learning rates, the weight decay and the moments.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer | AdamWState, parameters: Sequence[Tensor], averages: Sequence[Tensor]
    ) -> None:
        """Set the moments to zero where the optimizer has none.

        Args:
            optimizer: Its settings are read in each step; after its state has been replaced, call `load_state`.
            parameters: All of its parameters, in the order of the gradients.
            averages: The moving average of each.

        Raises:
            Unsupported: There is no native code here.
        """
        self.optimizer = optimizer
        self._parameters, self._averages = parameters, averages
        self._library = load_library(library_path())
        self._instruction_set = choose_instruction_set(self._library).encode()
        self._sizes = (ctypes.c_int64 * len(parameters))(*(p.numel() for p in parameters))
        self._n_chunks = sum(-(-size // _CHUNK) for size in self._sizes)
        self._norms = (ctypes.c_double * self._n_chunks)()
        for parameter in parameters:
            if parameter not in optimizer.state:
                zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                optimizer.state[parameter] = {"step": torch.zeros(()), **zeros}
        group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        self._groups = [group_of[id(p)] for p in parameters]
        self.load_state()

    def load_state(self) -> None:
        """Use the tensors that the optimizer's state has now."""
        states = [self.optimizer.state[parameter] for parameter in self._parameters]
        self._step_counts = [s["step"] for s in states]
        self._arrays = {
            "parameters": _pointers(self._parameters),
            "averages": _pointers(self._averages),
            "means": _pointers([s["exp_avg"] for s in states]),
            "squares": _pointers([s["exp_avg_sq"] for s in states]),
        }

    def step(
        self,
        shards: Sequence[Sequence[Tensor]],
        divisor: int,
        max_norm: float,
        average_weight: float,
        run_on_workers: RunOnWorkers,
        n_workers: int,
    ) -> None:
        """Take a step with the mean of the shards' gradients, and move the average of the weights.

        Args:
            shards: The gradients of each shard; those of the first are overwritten.
            divisor: The sum of the shards is divided by it.
            max_norm: The mean is scaled down to this norm, if it is larger.
            average_weight: The weight of the new parameters in their average.
            run_on_workers: Calls a function on each worker thread.
            n_workers: How many there are.
        """
        gradients = [[gradient.contiguous() for gradient in shard] for shard in shards]
        torch._foreach_add_(self._step_counts, 1)
        count = float(self._step_counts[0])
        group = self.optimizer.param_groups[0]
        beta1, beta2 = group["betas"]
        keeps = [1 - of_one["lr"] * of_one["weight_decay"] for of_one in self._groups]
        values: dict[str, Any] = {
            "tensors": len(self._parameters),
            "shards": len(gradients),
            "sizes": ctypes.addressof(self._sizes),
            "divisor": divisor,
            "new_mean": 1 - beta1,
            "new_square": 1 - beta2,
            "step_size": group["lr"] / (1 - beta1**count),
            "square_scale": 1 / math.sqrt(1 - beta2**count),
            "epsilon": group["eps"],
            "average_weight": average_weight,
            "norms": ctypes.addressof(self._norms),
            "instruction_set": self._instruction_set,
        }
        arrays: dict[str, ctypes.Array[Any]] = {
            "gradients": _pointers([g for shard in gradients for g in shard]),
            "keeps": (ctypes.c_float * len(keeps))(*keeps),
            **self._arrays,
        }
        values |= {name: ctypes.addressof(array) for name, array in arrays.items()}

        def run(function: Callable[..., int], worker: int) -> None:
            begin, end = (self._n_chunks * i // n_workers for i in (worker, worker + 1))
            function(ctypes.byref(OptimizerArrays(**values, begin=begin, end=end)))

        run_on_workers(lambda worker: run(self._library.lh_optimizer_sum, worker))
        norm = math.sqrt(sum(self._norms))
        factor = max_norm / (norm + 1e-6)
        values["clip"] = 1.0 if factor > 1 else factor  # not a number where the norm is none
        run_on_workers(lambda worker: run(self._library.lh_optimizer_step, worker))


def _pointers(tensors: Sequence[Tensor]) -> _Pointers:
    """Return the addresses of the tensors' elements."""
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
