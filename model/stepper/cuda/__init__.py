"""The stepper on an NVIDIA GPU: a block as replays of CUDA graphs, with one copy of ids back at its end.

Written, not run: no GPU was there. What a graph is made of (body.py) runs eagerly on a CPU in the tests; the capture
and the replays are tested only where there is a GPU.

    stepper = CudaStepper(network, n_slots=256)

Batch invariance is by fixed shapes: rows come in tiles of TILE, and every product, softmax and cumulative sum is of one
tile, whatever the number of tiles. A graph is of 16 steps or of one; a block of K steps replays the first K // 16 times
and the second K % 16 times, with no word from the host between them. Graphs are made when they are first needed: for
each power of two of tiles, for blocks with and without filters.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.network.char_rnn import CharRNN
from model.stepper import Block, BlockResult
from model.stepper.cuda.body import CAPACITY, Body
from model.stepper.layers import Layers, Slots

TILE = 64
CHUNK = 16
_WARM_UP = 3  # eager steps before a capture, so that libraries have chosen their kernels and have their memory


class CudaStepper(Slots):
    """Implements `Stepper`; see there for what each method promises. On a CPU it runs without graphs, for tests."""

    def __init__(
        self,
        network: CharRNN,
        n_slots: int,
        device: str = "cuda",
        dtype: torch.dtype = torch.float32,
        tile: int = TILE,
    ) -> None:
        self.n_slots = n_slots
        self.name = "cuda"
        self._device = torch.device(device)
        self._is_gpu = self._device.type == "cuda"
        # Another kind of GPU has other kernels, and so other bits.
        kind = "sm{}{}".format(*torch.cuda.get_device_capability(self._device)) if self._is_gpu else "cpu"
        self.numerics = f"cuda-{kind}-{str(dtype).removeprefix('torch.float')}-{tile}-v1"
        self._dtype, self._tile = dtype, tile
        self._layers = Layers(network, dtype, self._device)
        shape = (n_slots + 1, *self._layers.state_shape)  # the last slot is nobody's: rows that only fill a tile
        self._table = torch.zeros(shape, dtype=dtype, device=self._device)
        self._bodies: dict[int, Body] = {}
        self._graphs: dict[tuple[int, int, bool], torch.cuda.CUDAGraph] = {}
        self._memory: Any = None  # that all graphs share: only one runs at a time

    @torch.inference_mode()
    def run(self, block: Block) -> BlockResult:
        steps = len(block.forced_ids)
        if steps <= CAPACITY:
            return self._run(block)
        ids = np.zeros(block.forced_ids.shape, np.int32)
        logprobs = np.full(block.forced_ids.shape, np.nan, np.float32)
        for start in range(0, steps, CAPACITY):
            part, rows = _part(block, start, ids)
            end = start + len(part.forced_ids)
            produced = self._run(part)
            ids[start:end, rows], logprobs[start:end, rows] = produced.ids, produced.logprobs
            goes_on = block.steps[rows] > end
            forced_ids = block.forced_ids[end, rows] if end < steps else np.full(len(rows), -1)
            given = goes_on & (forced_ids >= 0)
            ids[end - 1, rows[given]], logprobs[end - 1, rows[given]] = forced_ids[given], np.nan
        return BlockResult(ids, logprobs)

    def _run(self, block: Block) -> BlockResult:
        steps, n = block.forced_ids.shape
        body = self._body(n)
        filtered = bool((block.top_k > 0).any() or (block.top_p < 1).any() or (block.min_p > 0).any())
        body.load(block, no_slot=self.n_slots)
        body.state.copy_(self._table[body.slots])
        for _ in range(steps // CHUNK):
            self._play(body, CHUNK, filtered)
        for _ in range(steps % CHUNK):
            self._play(body, 1, filtered)
        self._table[body.slots] = body.state
        both = torch.stack([body.ids[:steps, :n].double(), body.logprobs[:steps, :n]]).cpu().numpy()  # one copy
        return BlockResult(both[0].astype(np.int32), both[1].astype(np.float32))

    def _body(self, n_rows: int) -> Body:
        """The buffers for a power of two of tiles that holds so many rows."""
        tiles = 1
        while tiles * self._tile < n_rows:
            tiles *= 2
        if tiles not in self._bodies:
            self._bodies[tiles] = Body(self._layers, tiles * self._tile, self._tile, self._dtype, self._device)
        return self._bodies[tiles]

    def _play(self, body: Body, steps: int, filtered: bool) -> None:
        if not self._is_gpu:
            for _ in range(steps):
                body.step(filtered)
            return
        key = (body.rows, steps, filtered)
        if key not in self._graphs:
            self._graphs[key] = self._capture(body, steps, filtered)
        self._graphs[key].replay()

    def _capture(self, body: Body, steps: int, filtered: bool) -> torch.cuda.CUDAGraph:
        """Record so many steps. The steps before it move the buffers, so what they hold is put back."""
        kept = [t.clone() for t in (body.state, body.fed, body.k, body.ids, body.logprobs)]
        side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                body.k.zero_()
                body.step(filtered)
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # thread_local: another thread may load the next model onto the GPU meanwhile
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            for _ in range(steps):
                body.step(filtered)
        self._memory = self._memory or graph.pool()
        for buffer, value in zip((body.state, body.fed, body.k, body.ids, body.logprobs), kept, strict=True):
            buffer.copy_(value)
        return graph


def _part(block: Block, start: int, ids: NDArray[np.int32]) -> tuple[Block, NDArray[np.intp]]:
    """The steps from `start` on that the buffers hold, of the rows that still go, and which rows those are."""
    rows = np.flatnonzero(block.steps > start)
    end = min(start + CAPACITY, int(block.steps.max()))
    forced_ids = block.forced_ids[start:end, rows].copy()
    if start:
        forced_ids[0] = ids[start - 1, rows]
    columns = {name: getattr(block, name)[rows] for name in ("slots", "temperature", "top_k", "top_p", "min_p")}
    steps = np.minimum(block.steps[rows], end) - start
    return replace(
        block, steps=steps, forced_ids=forced_ids, random_values=block.random_values[start:end, rows], **columns
    ), rows
