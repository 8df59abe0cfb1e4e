"""The processes of a torchrun job, or the single process without torchrun: this process's rank, and collectives.

torchrun starts the processes and passes each its rank in the environment. With one process every collective returns its
input. The backend is gloo on a CPU and nccl on GPUs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Distributed:
    """Rank `rank` of a world of `world_size` processes. All ranks call a collective at the same step."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which validates, decides and writes files; the others only compute."""
        return self.rank == 0

    def all_reduce(self, gradients: list[Tensor], loss: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the sums of the gradients and of the loss over all ranks, sent as one message."""
        if self.world_size == 1:
            return gradients, loss
        flat = torch.cat([*(g.flatten() for g in gradients), loss.reshape(1)])
        dist.all_reduce(flat)
        *summed, total = torch.split(flat, [*(g.numel() for g in gradients), 1])
        return [part.view_as(g) for part, g in zip(summed, gradients, strict=True)], total[0]

    def broadcast(self, *numbers: int) -> tuple[int, ...]:
        """Return the numbers of rank 0."""
        if self.world_size == 1:
            return numbers
        tensor = torch.tensor(numbers, dtype=torch.int64, device=_backend_device())
        dist.broadcast(tensor, src=0)
        return tuple(int(n) for n in tensor.tolist())

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Return this tensor of every rank, in the order of the ranks."""
        if self.world_size == 1:
            return [tensor]
        device = _backend_device()
        gathered = [torch.empty_like(tensor, device=device) for _ in range(self.world_size)]
        dist.all_gather(gathered, tensor.detach().to(device).contiguous())
        return [t.to(tensor.device) for t in gathered]

    def barrier(self) -> None:
        """Wait until all ranks have reached this call."""
        if self.world_size > 1:
            dist.barrier()


def _backend_device() -> str:
    """The device on which the backend's messages lie."""
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


@contextmanager
def process_group(device: str) -> Iterator[tuple[Distributed, str]]:
    """Join the group of torchrun's processes, if there is one, and leave it together at the end.

    Args:
        device: "cpu" or "cuda"; under torchrun each rank uses a GPU of its own.

    Yields:
        This process's place in the group, and its device.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield Distributed(), device
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if device == "cpu" else "nccl")
    try:
        group = Distributed(dist.get_rank(), dist.get_world_size())
        yield group, device
        # Together: torchrun ends all ranks when one exits, so none may exit while rank 0 still saves and promotes.
        group.barrier()
    finally:
        dist.destroy_process_group()


def exit_process(code: int) -> int:
    """Return a command's exit code; a process of a torchrun job exits here, without Python's clean-up.

    A thread of gloo may release its last tensor after Python has begun to shut down, which aborts the process
    (github.com/pytorch/pytorch/pull/179291) and makes torchrun end the other ranks too. All files are written by then.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
