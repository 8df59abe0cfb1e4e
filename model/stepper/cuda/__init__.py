"""The stepper on an NVIDIA GPU: own kernels, a block as replays of CUDA graphs. LSTM only.

    stepper = CudaStepper(network, n_slots=1024, precision="int8")   # CudaError, Unsupported: with the reason

The kernels (src/kernels.cu) do the CPU stepper's sums in the CPU stepper's order. So a text has the same bits on both,
`numerics` is the CPU stepper's, and a session that was written on a CPU goes on on a GPU. self_test.py holds each
loaded model to that before it serves.
"""

from __future__ import annotations

import ctypes
import threading
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from model.config import WEIGHT_PRECISIONS, WeightPrecision
from model.network.char_rnn import CharRNN
from model.network.penalties import NO_CHARACTER
from model.network.sampling import has_penalties
from model.stepper import NO_SCORE, SAMPLE, Block, BlockResult, as_state
from model.stepper.cpu import CpuStepper
from model.stepper.cuda.block import CAPACITY, block_words, check, fill, rows_of
from model.stepper.cuda.compiler import cubin
from model.stepper.cuda.driver import CudaError, Gpu, Graph
from model.stepper.cuda.pack_weights import PANEL, pack
from model.structured_outputs.masks import NO_AUTOMATON, ConstraintResult, Constraints

__all__ = ["CudaError", "CudaStepper"]

GRAPH_STEPS = 16
"""A graph holds so many steps, or one; a block of K steps replays the first K // 16 times, the second K % 16 times."""
_MAX_LAYERS = 8
_STRIDE = 256  # a row of h is a multiple of so many floats (or bytes): whole chunks of every kernel
_SCRATCH_BYTES = 64 << 20  # of the sampling, at most; more rows than fit it take turns
_DRAW_SHARED = 1024  # DRAW_SHARED in sampling.cuh
_THREADS = 128
_CONSTRAINED_ROWS = 64  # that the CPU runs at a time
TILES = {"few": 4, "some": 16, "many": 64, "most": 128}
"""The kernels of a layer, and the rows of a block of each. They give the same bits."""
_PARTS = [f"{kind}_{precision}" for kind in TILES for precision in ("f32", "i8") if (kind, precision) != ("most", "i8")]
KERNELS = (
    *(f"{part}_{end}" for part in _PARTS for end in ("layer", "head")),
    *("draw_small", "draw_large", "load_rows", "store_rows", "advance"),
)
"""Every kernel's name. A GPU before compute capability 8.0 lacks many_i8_layer and many_i8_head."""
# Up to so many rows; "most" for more. Measured on an H100, see docs/gpu.md.
_MOST_ROWS = {
    "fp32": (("few", 8), ("some", 256), ("many", 2048)),
    "int8": (("few", 64), ("some", 256), ("many", 2048)),
}
_OVERLAP_ROWS = 4  # up to so many it pays to start a kernel while the one before ends; then it takes that one's place


class CudaStepper:
    """Implements `Stepper` on a GPU, with its own copy of the weights."""

    def __init__(
        self,
        network: CharRNN,
        n_slots: int,
        precision: WeightPrecision = "fp32",
        ordinal: int = 0,
        kernel: str | None = None,
    ) -> None:
        """Copy a network's weights to a GPU, and capture all graphs.

        Args:
            network: An LSTM.
            n_slots: The size of the state table.
            precision: "fp32", or "int8" for weights rounded to 8 bits.
            ordinal: Which GPU.
            kernel: A name in TILES: only this kind of kernel, for tests and measurements; None: by the number of rows.

        Raises:
            CudaError: There is no usable GPU, not enough memory, or the kernels cannot be compiled.
            Unsupported: The kernels do not run this cell or size.
            ValueError: An argument is out of range, or a weight is not finite.
        """
        if precision not in WEIGHT_PRECISIONS:
            raise ValueError(f"precision: got {precision!r}, expected one of {', '.join(WEIGHT_PRECISIONS)}")
        if n_slots < 1:
            raise ValueError(f"n_slots: got {n_slots}, expected at least 1")
        packed = pack(network, precision)
        self._lock = threading.Lock()
        self._memory: list[int] = []
        self._graphs: dict[tuple[int, int, int], Graph] = {}
        self._gpu: Gpu | None = None
        config = network.config
        self._network, self._cpu = network, cast("CpuStepper | None", None)  # for rows with constraints
        self.n_slots = n_slots
        self.name = "cuda-f32" if precision == "fp32" else "cuda-i8"
        self.numerics = "cpu-f32-v1" if precision == "fp32" else "cpu-i8-v2"  # the CPU stepper's
        self.state_shape = (2, config.n_layers, config.n_hidden)  # (S, L, H)
        self.vocab_size = config.vocab_size
        self._is_int8 = precision == "int8"
        self._panels = [len(w) for w in packed.weights]
        self._kernel = kernel
        self._gpu = gpu = Gpu(ordinal)
        try:
            self._has_mma = gpu.capability >= (8, 0)
            self._module = gpu.load(cubin(gpu.architecture))
            self._kernels: dict[str, ctypes.c_void_p] = {}
            self._draw_blocks = min(n_slots, max(1, _SCRATCH_BYTES // (64 * config.vocab_size)))
            self._allocate_block(block_words(CAPACITY, n_slots, 0, 0))
            self._arguments = self._allocate(packed.weights, packed.initial, packed.scale, network.item_end)
            self._capture()
            gpu.wait()
        except BaseException:
            self.close()
            raise

    @property
    def device(self) -> str:
        """The GPU's name."""
        return self._open().name

    def run(self, block: Block) -> BlockResult:
        """Advance the block's rows in place.

        Raises:
            ValueError: The block is invalid; no row has moved.
            CudaError: The GPU failed. After a sticky error nothing more can be computed in this process.
        """
        if block.constraints is not None:
            return self._run_constrained(block, block.constraints)
        check(block, self.n_slots, self.vocab_size)
        steps, rows = block.forced_ids.shape
        if not rows or not steps:
            empty = np.empty((steps, rows), np.int32)
            return BlockResult(np.zeros(rows, np.int32), 0, empty, empty.astype(np.float32))
        with self._lock:
            self._open().enter()
            return self._run(block) if steps <= CAPACITY else self._run_parts(block)

    def read(self, slot: int) -> NDArray[np.float32]:
        """Copy a slot's state, (S, L, H)."""
        state = np.empty(self.state_shape, np.float32)
        with self._lock:
            gpu = self._open()
            gpu.enter()
            gpu.download(state, self._state + self._slot(slot) * state.nbytes)
            gpu.wait()
        return state

    def write(self, slot: int, state: NDArray[np.floating] | None) -> None:
        """Replace a slot's state; None is the zero state.

        Raises:
            ValueError: The state is not finite float32 of shape (S, L, H), or there is no such slot.
        """
        if state is not None:
            state = as_state(state, self.state_shape)
        n_bytes = 4 * int(np.prod(self.state_shape))
        with self._lock:
            gpu = self._open()
            address = self._state + self._slot(slot) * n_bytes
            gpu.enter()
            if state is None:
                gpu.clear(address, n_bytes)
            else:
                gpu.upload(address, state)
                gpu.wait()  # the caller may change the array

    def close(self) -> None:
        """Free the GPU's memory. Idempotent."""
        with self._lock:
            gpu, self._gpu = self._gpu, None
            if self._cpu is not None:
                self._cpu.close()
            if gpu is None:
                return
            try:
                gpu.enter()
                self._free_graphs()
                for address in self._memory:
                    gpu.free(address)
                if hasattr(self, "_block_address"):
                    self._free_block(gpu)
                if hasattr(self, "_module"):
                    self._module.close()
                gpu.close()
            except CudaError:
                pass  # after a sticky error nothing can be freed but by ending the process
            self._memory = []

    def __del__(self) -> None:
        """Close the stepper when nobody refers to it any more."""
        if getattr(self, "_gpu", None):
            self.close()

    # ---- a block ----

    def _run_constrained(self, block: Block, constraints: Constraints) -> BlockResult:
        """Run the rows that have a constraint on the CPU, whose bits are the same, and the other rows here."""
        check(replace(block, constraints=None), self.n_slots, self.vocab_size)
        steps, n_rows = block.forced_ids.shape
        ids, logprobs = np.zeros((steps, n_rows), np.int32), np.full((steps, n_rows), np.nan, np.float32)
        made_steps = block.steps.copy()
        changed = ConstraintResult(constraints.states.copy(), np.zeros((steps, n_rows), np.float32))
        is_constrained = constraints.rows != NO_AUTOMATON
        if self._cpu is None:
            self._cpu = CpuStepper(self._network, min(self.n_slots, _CONSTRAINED_ROWS), self._precision)
        on_cpu, others = np.flatnonzero(is_constrained), np.flatnonzero(~is_constrained)
        states: dict[
            int, NDArray[np.float32]
        ] = {}  # by slot; written when every row has run, as a block may be refused
        for start in range(0, len(on_cpu), self._cpu.n_slots):
            rows = on_cpu[start : start + self._cpu.n_slots]
            for slot, row in enumerate(rows):
                self._cpu.write(slot, self.read(int(block.slots[row])))
            result = self._cpu.run(replace(rows_of(block, rows), slots=np.arange(len(rows), dtype=np.int32)))
            states |= {int(block.slots[row]): self._cpu.read(slot) for slot, row in enumerate(rows)}
            assert result.constraints is not None
            ids[:, rows], logprobs[:, rows] = result.ids, result.logprobs
            made_steps[rows], changed.states[rows] = result.steps, result.constraints.states
            changed.logprobs[:, rows] = result.constraints.logprobs
        if len(others):
            result = self.run(replace(rows_of(block, others), constraints=None))
            ids[:, others], logprobs[:, others] = result.ids, result.logprobs
        for table_slot, state in states.items():
            self.write(table_slot, state)
        return BlockResult(made_steps, steps, ids, logprobs, changed)

    def _run(self, block: Block) -> BlockResult:
        """Run at most CAPACITY steps."""
        gpu = self._open()
        steps, rows = block.forced_ids.shape
        window = 0 if block.windows is None else block.windows.shape[1]
        n_words = block_words(steps, rows, window, 0 if block.logit_bias is None else len(block.logit_bias.ids))
        if n_words > len(self._host):
            self._grow(n_words)
        order = np.argsort(-block.steps, kind="stable")
        fill(self._host[:n_words], block, order)
        gpu.upload(self._block_address, self._host[:n_words])
        bucket = self._bucket(rows)
        self._launch("load_rows", (self._whole_tiles(bucket), self.state_shape[1]), _THREADS, 0, int(self._is_int8))
        for _ in range(steps // GRAPH_STEPS):
            self._graphs[bucket, GRAPH_STEPS, 0].launch()
        for k in range(steps % GRAPH_STEPS):
            self._graphs[bucket, 1, k % 2].launch()
        self._launch("store_rows", (rows, self.state_shape[1]), _THREADS, 0, 0)
        out = self._host_out[: 2 * steps * rows]
        gpu.download(out, self._out)
        gpu.wait()
        both = out.reshape(2, steps, rows)
        ids, logprobs = np.empty((steps, rows), np.int32), np.empty((steps, rows), np.float32)
        ids[:, order], logprobs[:, order] = both[0], both[1].view(np.float32)
        return BlockResult(block.steps.copy(), len(ids), ids, logprobs)

    def _run_parts(self, block: Block) -> BlockResult:
        """Run more than CAPACITY steps, one part after another."""
        steps = len(block.forced_ids)
        ids = np.zeros(block.forced_ids.shape, np.int32)
        logprobs = np.full(block.forced_ids.shape, np.nan, np.float32)
        for start in range(0, steps, CAPACITY):
            part, rows = _part(block, start, ids)
            end = start + len(part.forced_ids)
            result = self._run(part)
            ids[start:end, rows], logprobs[start:end, rows] = result.ids, result.logprobs
            if end >= int(block.steps.max()):
                break
            # A part's last step samples; in the whole block it may be followed by a forced id.
            is_forced = (block.steps[rows] > end) & (block.forced_ids[end, rows] >= 0)
            ids[end - 1, rows[is_forced]] = block.forced_ids[end, rows[is_forced]]
            if block.score_ids is not None:
                is_forced &= block.score_ids[end - 1, rows] == NO_SCORE
            logprobs[end - 1, rows[is_forced]] = np.nan
        return BlockResult(block.steps.copy(), len(ids), ids, logprobs)

    def _whole_tiles(self, rows: int) -> int:
        """So many rows, rounded up to whole tiles of every kernel."""
        most = max(TILES.values())
        return -(-rows // most) * most

    def _bucket(self, rows: int) -> int:
        """The rows of the smallest graphs that hold so many."""
        bucket = 1
        while bucket < rows:
            bucket *= 2
        return bucket

    # ---- memory and graphs ----

    def _allocate(
        self, weights: list[Any], initial: list[Any], scale: list[Any], item_end: int | None
    ) -> ctypes.Array[ctypes.c_uint64]:
        """Copy the model to the GPU, allocate everything else, and return the kernels' arguments."""
        gpu = self._open()
        _, layers, hidden = self.state_shape
        rows, vocab = self.n_slots, self.vocab_size
        stride = -(-hidden // _STRIDE) * _STRIDE
        vstride = self._panels[-1] * PANEL
        order_size = 1
        while order_size < vocab:
            order_size *= 2

        def new(n_bytes: int) -> int:
            self._memory.append(gpu.allocate(n_bytes))
            return self._memory[-1]

        def copied(array: NDArray[Any]) -> int:
            address = new(array.nbytes)
            gpu.upload(address, array)
            return address

        def padded(addresses: list[int], length: int) -> list[int]:
            return addresses + [0] * (length - len(addresses))

        # Float arrays of h are read as words, and activations as words of four: all are aligned by the allocator.
        h = [new(rows * stride * 4) for _ in range(2 * layers)]
        hq = [new(rows * stride) for _ in range(2 * layers)] if self._is_int8 else []
        c = [new(rows * stride * 4) for _ in range(layers)]
        self._state = new(rows * 2 * layers * hidden * 4)
        logits = new(rows * vstride * 4)
        self._out = new(2 * CAPACITY * rows * 4)
        sampled, sampled_count = new(rows * CAPACITY * 4), new(rows * 4)
        fed, needs_logits = (new(self._whole_tiles(self._bucket(rows)) * 4) for _ in range(2))
        scratch = [new(self._draw_blocks * vocab * 8) for _ in range(5)]
        scratch.append(new(self._draw_blocks * vocab * 4))
        counts = [new(self._draw_blocks * vocab * 4) for _ in range(2)]
        sorting = [new(self._draw_blocks * order_size * 4), new(self._draw_blocks * vocab * 4)]
        self._host_out, out_address = gpu.host_array(2 * CAPACITY * rows)
        self._host_addresses.append(out_address)
        values = [
            *padded([copied(w) for w in weights], _MAX_LAYERS + 1),
            *padded([copied(v) for v in initial], _MAX_LAYERS + 1),
            *padded([copied(v) for v in scale], _MAX_LAYERS + 1),
            *padded(h, 2 * _MAX_LAYERS),
            *padded(hq, 2 * _MAX_LAYERS),
            *padded(c, _MAX_LAYERS),
            self._state, logits, self._block_address, self._out, sampled, sampled_count, fed, needs_logits,
            *scratch, *counts, *sorting,
            layers, hidden, vocab, stride, vstride, -1 if item_end is None else item_end, CAPACITY, order_size,
        ]  # fmt: skip
        self._block_argument = values.index(self._block_address)
        gpu.wait()
        return (ctypes.c_uint64 * len(values))(*(v & (2**64 - 1) for v in values))

    def _allocate_block(self, n_words: int) -> None:
        gpu = self._open()
        address = gpu.allocate(4 * n_words)
        try:
            host, host_address = gpu.host_array(n_words)
        except CudaError:
            gpu.free(address)
            raise
        self._block_address, self._host = address, host
        self._host_addresses = [host_address, *getattr(self, "_host_addresses", [0])[1:]]

    def _free_block(self, gpu: Gpu) -> None:
        gpu.free(self._block_address)
        for address in self._host_addresses:
            gpu.free_host(address)

    def _grow(self, n_words: int) -> None:
        """Make room for a block with more biases or longer windows. The graphs know the address: capture them again.

        The old memory is freed last: where there is no more, the stepper goes on with it.
        """
        gpu = self._open()
        old, old_host = self._block_address, self._host_addresses[0]
        self._allocate_block(2 * n_words)
        self._arguments[self._block_argument] = self._block_address
        gpu.free(old)
        gpu.free_host(old_host)
        self._free_graphs()
        try:
            self._capture()
        except CudaError as error:
            raise CudaError(f"the graphs cannot be captured again: {error}", is_final=True) from error

    def _capture(self) -> None:
        """Capture the graphs for every power of two of rows."""
        buckets = [1]
        while buckets[-1] < self.n_slots:
            buckets.append(2 * buckets[-1])
        gpu = self._open()
        for bucket in buckets:
            for n, parity in ((GRAPH_STEPS, 0), (1, 0), (1, 1)):
                self._graphs[bucket, n, parity] = gpu.capture(partial(self._launch_steps, bucket, n, parity))

    def _free_graphs(self) -> None:
        graphs, self._graphs = self._graphs, {}
        for graph in graphs.values():
            graph.close()

    def _launch_steps(self, rows: int, n: int, parity: int) -> None:
        """Launch n steps of up to `rows` rows; `parity` is that of the number of steps before."""
        kind = self._kernel or next((name for name, most in _MOST_ROWS[self._precision] if rows <= most), "most")
        if self._is_int8:
            kind = {"most": "many", "many": "many" if self._has_mma else "some"}.get(kind, kind)
        tiles = -(-rows // TILES[kind])
        overlaps = rows <= _OVERLAP_ROWS
        layers = self.state_shape[1]
        suffix = "i8" if self._is_int8 else "f32"
        draw = "draw_small" if self.vocab_size <= _DRAW_SHARED else "draw_large"
        for step in range(n):
            for layer, panels in enumerate(self._panels):
                part = "head" if layer == layers else "layer"
                width = 2 * panels if kind in ("few", "some") else panels
                self._launch(f"{kind}_{suffix}_{part}", (width, tiles), _THREADS, layer, (parity + step) % 2, overlaps)
            self._launch(draw, (min(rows, self._draw_blocks), 1), _THREADS, 0, step, overlaps)
        self._launch("advance", (1, 1), 1, 0, n, overlaps)

    @property
    def _precision(self) -> WeightPrecision:
        return "int8" if self._is_int8 else "fp32"

    def _launch(
        self, name: str, grid: tuple[int, int], threads: int, layer: int, step: int, overlaps: bool = False
    ) -> None:
        if name not in self._kernels:
            self._kernels[name] = self._module.kernel(name)
        numbers = (ctypes.c_int(layer), ctypes.c_int(step))
        parameters = (ctypes.c_void_p * 3)(
            ctypes.addressof(self._arguments), ctypes.addressof(numbers[0]), ctypes.addressof(numbers[1])
        )
        self._open().launch(self._kernels[name], grid, threads, parameters, overlaps)

    def _open(self) -> Gpu:
        if self._gpu is None:
            raise ValueError("the stepper is closed")
        return self._gpu

    def _slot(self, slot: int) -> int:
        if not 0 <= slot < self.n_slots:
            raise ValueError(f"slot: got {slot}, expected 0 to {self.n_slots - 1}")
        return slot


def _part(block: Block, start: int, ids: NDArray[np.int32]) -> tuple[Block, NDArray[np.intp]]:
    """The steps from `start` on that the buffers hold, of the rows that still run, and which rows those are."""
    rows = np.flatnonzero(block.steps > start)
    end = min(start + CAPACITY, int(block.steps.max()))
    forced_ids = block.forced_ids[start:end, rows].copy()
    if start:
        forced_ids[0] = ids[start - 1, rows]
    of_rows = rows_of(block, rows)
    part = replace(
        of_rows,
        steps=np.minimum(of_rows.steps, end) - start,
        forced_ids=forced_ids,
        random_values=of_rows.random_values[start:end],
        score_ids=None if of_rows.score_ids is None else of_rows.score_ids[start:end],
        windows=_windows_at(block, start, ids, rows) if has_penalties(block.sampling) else None,
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
