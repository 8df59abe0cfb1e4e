"""The processes of a torchrun job, or the one process that there is: who am I, and sums over all.

torchrun starts the processes and says who each is in the environment; without it there is one rank and nothing here
does anything. gloo on a CPU, nccl on GPUs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed


@dataclass(frozen=True, slots=True)
class Distributed:
    """Rank `rank` of `world`."""

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Rank 0 validates, decides and saves; the others compute."""
        return self.rank == 0

    def sum(self, gradients: list[Tensor], loss: Tensor) -> tuple[list[Tensor], Tensor]:
        """The sums over all ranks, as one message."""
        if self.world == 1:
            return gradients, loss
        flat = torch.cat([*(g.flatten() for g in gradients), loss.reshape(1)])
        distributed.all_reduce(flat)
        *summed, total = torch.split(flat, [*(g.numel() for g in gradients), 1])
        return [part.view_as(g) for part, g in zip(summed, gradients, strict=True)], total[0]

    def agreed(self, *numbers: int) -> tuple[int, ...]:
        """What rank 0 says; each rank must ask at the same step."""
        if self.world == 1:
            return numbers
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        said = torch.tensor(numbers, dtype=torch.int64, device=device)
        distributed.broadcast(said, src=0)
        return tuple(int(n) for n in said.tolist())

    def gathered(self, tensor: Tensor) -> list[Tensor]:
        """Each rank's tensor of this shape, by rank."""
        if self.world == 1:
            return [tensor]
        home = tensor.device
        on = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        found = [torch.empty_like(tensor, device=on) for _ in range(self.world)]
        distributed.all_gather(found, tensor.detach().to(on).contiguous())
        return [t.to(home) for t in found]

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.world > 1:
            distributed.barrier()


@contextmanager
def joined(device: str) -> Iterator[tuple[Distributed, str]]:
    """This process's place among torchrun's, and its device; all leave the group together."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield Distributed(), device
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    distributed.init_process_group("gloo" if device == "cpu" else "nccl")
    try:
        ranks = Distributed(distributed.get_rank(), distributed.get_world_size())
        yield ranks, device
        # Together: torchrun ends all ranks when one fails, so none may leave while rank 0 still saves and promotes.
        ranks.wait()
    finally:
        distributed.destroy_process_group()


def leave(code: int) -> int:
    """How a command ends: returns `code`, but a rank of a torchrun job ends here and now.

    A thread of gloo may let go of its last tensor after Python has begun to end, and aborts the process then
    (github.com/pytorch/pytorch/pull/179291), for which torchrun would end the other ranks too. All is saved by now.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
