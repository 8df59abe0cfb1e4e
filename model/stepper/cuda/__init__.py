"""The stepper on an NVIDIA GPU: a block as replays of CUDA graphs, with one copy of its results back at the end.

Not yet run on a GPU: none was available. The step that the graphs are made of (body.py) runs eagerly on a CPU in the
tests; the capture and the replays are tested only where there is a GPU.

    stepper = CudaStepper(network, n_slots=256)

Batch invariance comes from fixed shapes: rows come in tiles of TILE, and every product, softmax and cumulative sum is
of one tile, whatever the number of tiles. A graph holds GRAPH_STEPS steps or one; a block of K steps replays the first
K // GRAPH_STEPS times and the second K % GRAPH_STEPS times, without waiting for the host in between. Graphs are
captured when they are first needed: for each power of two of tiles, for blocks with and without filters, and with and
without bias or penalties.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.network.char_rnn import CharRNN
from model.network.penalties import NO_CHARACTER
from model.network.sampling import has_filters, has_penalties
from model.stepper import NO_SCORE, SAMPLE, Block, BlockResult
from model.stepper.cuda.body import CAPACITY, Body
from model.stepper.layers import Layers, StateTable

TILE = 64
GRAPH_STEPS = 16
_WARM_UP = 3  # eager steps before a capture: libraries choose their kernels and allocate memory in the first ones


class CudaStepper(StateTable):
    """Implements `Stepper` with CUDA graphs. On a CPU it runs the same step eagerly, for tests."""

    def __init__(
        self,
        network: CharRNN,
        n_slots: int,
        device: str = "cuda",
        dtype: torch.dtype = torch.float32,
        tile: int = TILE,
    ) -> None:
        """Copy a network's weights to a device.

        Args:
            network: A network with any cell.
            n_slots: The size of the state table.
            device: A CUDA device, or "cpu" for tests.
            dtype: The arithmetic.
            tile: The number of rows of every product; part of the arithmetic.
        """
        self.n_slots = n_slots
        self.name = "cuda"
        self._device = torch.device(device)
        self._is_gpu = self._device.type == "cuda"
        # Kernels, and so the bits, differ between kinds of GPU.
        kind = "sm{}{}".format(*torch.cuda.get_device_capability(self._device)) if self._is_gpu else "cpu"
        self.numerics = f"cuda-{kind}-{str(dtype).removeprefix('torch.float')}-{tile}-v1"
        self._dtype, self._tile = dtype, tile
        self._layers = Layers(network, dtype, self._device)
        shape = (n_slots + 1, *self._layers.state_shape)  # the last slot is for rows that only fill a tile
        self._table = torch.zeros(shape, dtype=dtype, device=self._device)
        self._bodies: dict[int, Body] = {}
        self._graphs: dict[tuple[int, int, bool, bool], torch.cuda.CUDAGraph] = {}
        self._memory: Any = None  # the graphs share it, because only one runs at a time

    @torch.inference_mode()
    def run(self, block: Block) -> BlockResult:
        """Advance the block's rows in place."""
        steps = len(block.forced_ids)
        if steps <= CAPACITY:
            return self._run(block)
        ids = np.zeros(block.forced_ids.shape, np.int32)
        logprobs = np.full(block.forced_ids.shape, np.nan, np.float32)
        for start in range(0, steps, CAPACITY):
            part, rows = _part(block, start, ids)
            end = start + len(part.forced_ids)
            result = self._run(part)
            ids[start:end, rows], logprobs[start:end, rows] = result.ids, result.logprobs
            if end == steps:
                break
            # A part's last step samples; in the whole block it may be followed by a forced id.
            is_forced = (block.steps[rows] > end) & (block.forced_ids[end, rows] >= 0)
            ids[end - 1, rows[is_forced]] = block.forced_ids[end, rows[is_forced]]
            if block.score_ids is not None:
                is_forced &= block.score_ids[end - 1, rows] == NO_SCORE
            logprobs[end - 1, rows[is_forced]] = np.nan
        return BlockResult(ids, logprobs)

    def _run(self, block: Block) -> BlockResult:
        steps, n = block.forced_ids.shape
        body = self._body(n)
        filtered = has_filters(block.sampling)
        adjusted = block.logit_bias is not None or has_penalties(block.sampling)
        body.load(block, no_slot=self.n_slots)
        if adjusted:
            body.load_adjustment(block)
        body.state.copy_(self._table[body.slots])
        for _ in range(steps // GRAPH_STEPS):
            self._replay(body, GRAPH_STEPS, filtered, adjusted)
        for _ in range(steps % GRAPH_STEPS):
            self._replay(body, 1, filtered, adjusted)
        self._table[body.slots] = body.state
        both = torch.stack([body.ids[:steps, :n].double(), body.logprobs[:steps, :n]]).cpu().numpy()  # one copy
        return BlockResult(both[0].astype(np.int32), both[1].astype(np.float32))

    def _body(self, n_rows: int) -> Body:
        """The buffers for the smallest power of two of tiles that holds n_rows."""
        tiles = 1
        while tiles * self._tile < n_rows:
            tiles *= 2
        if tiles not in self._bodies:
            self._bodies[tiles] = Body(self._layers, tiles * self._tile, self._tile, self._dtype, self._device)
        return self._bodies[tiles]

    def _replay(self, body: Body, steps: int, filtered: bool, adjusted: bool) -> None:
        """Advance the body by `steps`: with a graph, captured at the first use, or eagerly on a CPU."""
        if not self._is_gpu:
            for _ in range(steps):
                body.step(filtered, adjusted)
            return
        key = (body.rows, steps, filtered, adjusted)
        if key not in self._graphs:
            self._graphs[key] = self._capture(body, steps, filtered, adjusted)
        self._graphs[key].replay()

    def _capture(self, body: Body, steps: int, filtered: bool, adjusted: bool) -> torch.cuda.CUDAGraph:
        """Capture a graph of so many steps. The warm-up changes the buffers, so their values are restored."""
        changed = (body.state, body.fed, body.k, body.ids, body.logprobs, body.windows)
        saved = [t.clone() for t in changed]
        side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                body.k.zero_()
                body.step(filtered, adjusted)
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # thread_local: another thread may load the next model onto the GPU meanwhile
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            for _ in range(steps):
                body.step(filtered, adjusted)
        self._memory = self._memory or graph.pool()
        for buffer, value in zip(changed, saved, strict=True):
            buffer.copy_(value)
        return graph


def _part(block: Block, start: int, ids: NDArray[np.int32]) -> tuple[Block, NDArray[np.intp]]:
    """The steps from `start` on that the buffers hold, of the rows that still run, and which rows those are."""
    rows = np.flatnonzero(block.steps > start)
    end = min(start + CAPACITY, int(block.steps.max()))
    forced_ids = block.forced_ids[start:end, rows].copy()
    if start:
        forced_ids[0] = ids[start - 1, rows]
    part = replace(
        block,
        slots=block.slots[rows],
        steps=np.minimum(block.steps[rows], end) - start,
        forced_ids=forced_ids,
        random_values=block.random_values[start:end, rows],
        sampling=block.sampling[rows],
        score_ids=None if block.score_ids is None else block.score_ids[start:end, rows],
        windows=_windows_at(block, start, ids, rows) if has_penalties(block.sampling) else None,
        logit_bias=None if block.logit_bias is None else block.logit_bias.rows(rows),
    )
    return part, rows


def _windows_at(block: Block, start: int, ids: NDArray[np.int32], rows: NDArray[np.intp]) -> NDArray[np.int32] | None:
    """The windows of some rows before step `start`: those of the block, and what was sampled since."""
    if not start:
        return None if block.windows is None else block.windows[rows]
    width = int(block.sampling["penalty_window"].max())
    windows = np.full((len(rows), width), NO_CHARACTER, dtype=np.int32)
    for window, b in zip(windows, rows, strict=True):
        before = np.empty(0, np.int32) if block.windows is None else block.windows[b]
        sampled = ids[:start, b][block.forced_ids[1 : start + 1, b] == SAMPLE]
        known = np.concatenate([before, sampled])[-width:]
        window[width - len(known) :] = known
    return windows
