"""AdamW, clipping and the moving average of the weights in native code, divided among threads.

native/src/kernels/training/optimizer.h has the arithmetic. The state lies in the tensors of a torch optimizer, so that
a resume state is the same whichever of the two took the steps.
"""

from __future__ import annotations

import ctypes
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from model.native.library import OptimizerArrays, choose_instruction_set, library_path, load_library

_CHUNK = 8192  # elements, as in optimizer.h
_Pointers = ctypes.Array[ctypes.c_void_p]


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
        n_chunks = sum(-(-p.numel() // _CHUNK) for p in parameters)
        self._sizes = (ctypes.c_int64 * len(parameters))(*(p.numel() for p in parameters))
        self._keeps = (ctypes.c_float * len(parameters))()
        self._norms = (ctypes.c_double * n_chunks)()
        self._arrays = OptimizerArrays(
            tensors=len(parameters),
            sizes=ctypes.addressof(self._sizes),
            keeps=ctypes.addressof(self._keeps),
            chunks=n_chunks,
            norms=ctypes.addressof(self._norms),
            instruction_set=choose_instruction_set(self._library).encode(),
        )
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
        tensors = [self._parameters, self._averages, *([s[name] for s in states] for name in ("exp_avg", "exp_avg_sq"))]
        self._pointers = [_pointers(some) for some in tensors]  # kept, since a structure keeps no array alive
        a = self._arrays
        a.parameters, a.averages, a.means, a.squares = (ctypes.addressof(some) for some in self._pointers)

    def step(
        self,
        shards: Sequence[Sequence[Tensor]],
        divisor: int,
        max_norm: float,
        average_weight: float,
        n_threads: int,
    ) -> None:
        """Take a step with the mean of the shards' gradients, and move the average of the weights.

        Args:
            shards: The gradients of each shard; those of the first are overwritten.
            divisor: The sum of the shards is divided by it.
            max_norm: The mean is scaled down to this norm, if it is larger.
            average_weight: The weight of the new parameters in their average.
            n_threads: How many threads share the work.
        """
        gradients = [[gradient.contiguous() for gradient in shard] for shard in shards]
        torch._foreach_add_(self._step_counts, 1)
        count = float(self._step_counts[0])
        group = self.optimizer.param_groups[0]
        beta1, beta2 = group["betas"]
        for i, of_one in enumerate(self._groups):
            self._keeps[i] = 1 - of_one["lr"] * of_one["weight_decay"]
        pointers = _pointers([g for shard in gradients for g in shard])
        a = self._arrays
        a.shards, a.gradients, a.divisor, a.max_norm = len(gradients), ctypes.addressof(pointers), divisor, max_norm
        a.new_mean, a.new_square, a.epsilon = 1 - beta1, 1 - beta2, group["eps"]
        a.step_size, a.square_scale = group["lr"] / (1 - beta1**count), 1 / math.sqrt(1 - beta2**count)
        a.average_weight, a.threads = average_weight, n_threads
        self._library.lh_optimize(ctypes.byref(a))


def _pointers(tensors: Sequence[Tensor]) -> _Pointers:
    """Return the addresses of the tensors' elements."""
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
