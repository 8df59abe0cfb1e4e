"""The native stepper: K steps for B slots inside one C call, without the GIL. LSTM only.

    stepper = CpuStepper(network, n_slots=64, precision="int8")   # Unsupported, with the reason, where it cannot run

The C code is in model/native and is compiled when the project is installed; pack_weights.py lays the weights
out for it.
"""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

from model.config import WEIGHT_PRECISIONS, WeightPrecision
from model.native.library import (
    AutomatonArrays,
    BlockArrays,
    ModelArrays,
    TextsArrays,
    Unsupported,
    choose_instruction_set,
    library_path,
    load_library,
)
from model.network.char_rnn import CharRNN
from model.network.sampling import SAMPLING_DTYPE
from model.stepper import Block, BlockResult, Interrupt, as_state
from model.stepper.cpu.pack_weights import ARRAYS, FillArrays, Packed, PackedNetwork, pack
from model.stepper.cpu.scoring import NativeScoring
from model.structured_outputs.masks import ConstraintResult, Constraints

__all__ = ["CpuStepper", "Unsupported"]

_OK, _MEMORY = 0, 1  # LH_OK and LH_MEMORY in api.h, followed by:
_INVALID = {
    2: "slots[{row}] is not a slot",
    3: "slots[{row}] is there twice",
    4: "steps[{row}] is not from 1 to K",
    5: "forced_ids[0, {row}] is SAMPLE: a row begins with its next_input",
    6: "forced_ids[{step}, {row}] is not an id",
    7: "random_values[{step}, {row}] is not in [0, 1)",
    8: "sampling[{row}] has a parameter that is negative or not finite",
    9: "score_ids[{step}, {row}] is not an id",
    10: "windows[{row}] has a code that stands for no id",
    11: "logit_bias: row {row} has an id or a value that is none",
    12: "constraints: row {row} has no such automaton or state, or a budget in which no end can be reached",
}


def available_cores() -> int:
    """The cores that this process may use; in a container or under taskset, fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class CpuStepper:
    """Implements `Stepper` in C, with its own copy of the weights and its own threads, which sleep between runs."""

    def __init__(
        self,
        network: CharRNN | PackedNetwork,
        n_slots: int,
        precision: WeightPrecision = "fp32",
        threads: int | None = None,
        library: Path | None = None,
        instruction_set: str | None = None,
    ) -> None:
        """Pack a network's weights.

        Args:
            network: An LSTM, or one whose weights are packed in this precision.
            n_slots: The size of the state table.
            precision: "fp32", or "int8" for weights rounded to 8 bits.
            threads: The most threads that a run uses; None: one per core. They change no bit of a result.
            library: Another build of the C code, for tests.
            instruction_set: One that the library has and the CPU knows; None: as choose_instruction_set says. It
                changes no bit of a result.

        Raises:
            Unsupported: There is no native code for this model or machine; the message says why.
            ValueError: An argument is out of range, or a weight is not finite.
            Exception: What filling the arrays of a packed network raises.
        """
        if precision not in WEIGHT_PRECISIONS:
            raise ValueError(f"precision: got {precision!r}, expected one of {', '.join(WEIGHT_PRECISIONS)}")
        threads = available_cores() if threads is None else threads
        if n_slots < 1 or threads < 1:
            raise ValueError(f"n_slots and threads: got {n_slots} and {threads}, expected at least 1")
        self._handle: int | None = None
        self._lock = threading.Lock()  # close must wait for a run in another thread
        self._library = load_library(library or library_path())
        self.instruction_set = instruction_set or choose_instruction_set(self._library)
        config = network.config
        if isinstance(network, PackedNetwork) and network.precision != precision:
            raise ValueError(f"precision: got {precision!r}, expected {network.precision!r} as the network is packed")
        packed = network.packed if isinstance(network, PackedNetwork) else pack(network, precision)
        model = ModelArrays(
            layers=config.n_layers,
            hidden=config.n_hidden,
            vocab=config.vocab_size,
            slots=n_slots,
            is_int8=precision == "int8",
            threads=threads,
            item_end=-1 if network.item_end is None else network.item_end,
            instruction_set=self.instruction_set.encode(),
        )
        if isinstance(packed, Packed):
            for i, weights in enumerate(packed.weights):
                model.weights[i] = weights.ctypes.data
                model.initial[i] = packed.initial[i].ctypes.data
                model.scale[i] = packed.scale[i].ctypes.data if packed.scale else None
        self.n_slots = n_slots
        self.vocab_size = config.vocab_size
        self.state_shape = (2, config.n_layers, config.n_hidden)  # (S, L, H)
        self.name = "cpu-f32" if precision == "fp32" else "cpu-i8"
        self.numerics = self.name + ("-v1" if precision == "fp32" else "-v2")
        self._handle = self._library.lh_open(ctypes.byref(model))
        if not self._handle:
            raise MemoryError(f"no memory for the native stepper, or no instruction set {self.instruction_set!r}")
        self._n_bytes = int(self._library.lh_bytes(self._handle))
        if not isinstance(packed, Packed):
            self._fill(packed, config.n_layers)

    def _fill(self, fill: FillArrays, n_layers: int) -> None:
        """Have the arrays of the packed network filled where they are used."""
        n_bytes = ctypes.c_int64()
        memory: dict[str, memoryview] = {}
        for kind, name in enumerate(ARRAYS if self.name == "cpu-i8" else ARRAYS[:-1]):
            for i in range(n_layers + 1):
                address = self._library.lh_array(self._handle, kind, i, ctypes.byref(n_bytes))
                memory[f"{name}.{i}"] = memoryview((ctypes.c_char * n_bytes.value).from_address(address)).cast("B")
        try:
            fill(memory)
        except BaseException:
            self.close()
            raise
        self._library.lh_filled(self._handle)

    @property
    def n_bytes(self) -> int:
        """The memory that it holds: weights, tables, states and scratch; 0 once it is closed. It waits for no run."""
        return 0 if self._handle is None else self._n_bytes

    def cores_for(self, block: Block) -> int:
        """Return how many cores a run of the block would use."""
        steps, rows = block.forced_ids.shape
        with self._lock:
            return int(self._library.lh_threads(self._open(), rows, steps))

    def run(self, block: Block, n_cores: int = 0, interrupt: Interrupt | None = None) -> BlockResult:
        """Advance the block's rows in place.

        Args:
            block: The rows.
            n_cores: The most that the run uses; 0: any number. It changes no bit of the result.
            interrupt: While it is set, the run ends as soon as the block's least steps are made.

        Raises:
            ValueError: The block is invalid; no row has moved.
        """
        if block.forced_ids.ndim != 2:
            raise ValueError(f"forced_ids: got {block.forced_ids.ndim} dimensions, expected (K, B)")
        steps, rows = block.forced_ids.shape
        fields = (
            _address("slots", block.slots, np.int32, (rows,)),
            _address("steps", block.steps, np.int32, (rows,)),
            _address("forced_ids", block.forced_ids, np.int32, (steps, rows)),
            _address("random_values", block.random_values, np.float64, (steps, rows)),
            _address("sampling", block.sampling, SAMPLING_DTYPE, (rows,)),
            None if block.score_ids is None else _address("score_ids", block.score_ids, np.int32, (steps, rows)),
        )
        windows, bias = block.windows, block.logit_bias
        window_size = 0 if windows is None else windows.shape[-1]
        window = None if windows is None else _address("windows", windows, np.int32, (rows, window_size))
        biases: tuple[int | None, ...] = (None, None, None)
        if bias is not None:
            n = len(bias.ids)
            starts = bias.starts
            if len(starts) != rows + 1 or (starts[0], starts[-1]) != (0, n) or bool((np.diff(starts) < 0).any()):
                raise ValueError(f"logit_bias.starts: expected {rows + 1} rising indices from 0 to {n}")
            biases = (
                _address("logit_bias.starts", bias.starts, np.int32, (rows + 1,)),
                _address("logit_bias.ids", bias.ids, np.int32, (n,)),
                _address("logit_bias.values", bias.values, np.float64, (n,)),
            )
        constraints = block.constraints
        changed = None
        if constraints is not None:
            changed = ConstraintResult(constraints.states.copy(), np.empty((steps, rows), np.float32))
        ids, logprobs = np.empty((steps, rows), np.int32), np.empty((steps, rows), np.float32)
        made_steps = np.zeros(rows, np.int32)
        results = (made_steps.ctypes.data, ids.ctypes.data, logprobs.ctypes.data)
        automata, masks = None, tuple[int, ...]()
        if constraints is not None and changed is not None:
            automata, budgets = self._automata(constraints), constraints.budgets.copy()
            masks = (
                ctypes.addressof(automata),
                _address("constraints.rows", constraints.rows, np.int32, (rows,)),
                _address("constraints.states", changed.states, np.int32, (rows,)),
                _address("constraints.budgets", budgets, np.int32, (rows,)),
                changed.logprobs.ctypes.data,
            )
        n_automata = 0 if automata is None else len(automata)
        pointers = (None if interrupt is None else interrupt.address, *fields, window, *biases)
        counts = (rows, steps, window_size, n_automata, n_cores, block.least_steps)
        arrays = BlockArrays(*counts, *pointers, *(masks or (None,) * 5), *results)
        with self._lock:
            code = self._library.lh_run(self._open(), ctypes.byref(arrays))
        if code == _MEMORY:
            raise MemoryError("no memory for the block")
        if code != _OK:
            raise ValueError("block: " + _INVALID[code].format(row=arrays.bad_row, step=arrays.bad_step))
        return BlockResult(made_steps, arrays.steps_run, ids, logprobs, changed)

    def begin_scoring(
        self, ids: NDArray[np.int32], starts: NDArray[np.int64], logprobs: NDArray[np.float32]
    ) -> NativeScoring:
        """Begin to read texts; see `ScoresTexts`.

        Raises:
            ValueError: An array has another layout, or values that are not possible.
        """
        n = len(starts) - 1
        texts = TextsArrays(
            n,
            _address("ids", ids, np.int32, (len(ids),)),
            _address("starts", starts, np.int64, (n + 1,)),
            _address("logprobs", logprobs, np.float32, (len(ids) - n,)),
        )
        if n < 1 or (int(starts[0]), int(starts[-1])) != (0, len(ids)) or int(np.diff(starts).min()) < 2:
            raise ValueError(f"starts: expected rising indices from 0 to {len(ids)}, at least 2 apart")
        if int(ids.min()) < 0 or int(ids.max()) >= self.vocab_size:
            raise ValueError(f"ids: expected 0 to {self.vocab_size - 1}")
        with self._lock:
            handle = self._library.lh_score_open(self._open(), ctypes.byref(texts))
        if not handle:
            raise MemoryError("no memory for the texts")
        return NativeScoring(self._library, handle, self._lock, self._open, (ids, starts, logprobs))

    def read(self, slot: int) -> NDArray[np.float32]:
        """Copy a slot's state, (S, L, H)."""
        state = np.empty(self.state_shape, np.float32)
        with self._lock:
            self._library.lh_read(self._open(), self._slot(slot), state.ctypes.data)
        return state

    def write(self, slot: int, state: NDArray[np.floating] | None) -> None:
        """Replace a slot's state; None is the zero state.

        Raises:
            ValueError: The state is not finite float32 of shape (S, L, H), or there is no such slot.
        """
        if state is not None:
            state = as_state(state, self.state_shape)
        with self._lock:
            pointer = None if state is None else state.ctypes.data
            self._library.lh_write(self._open(), self._slot(slot), pointer)

    def close(self) -> None:
        """Free the weights and end the threads. Idempotent."""
        with self._lock:
            handle, self._handle = self._handle, None
            if handle:
                self._library.lh_close(handle)

    def __del__(self) -> None:
        """Close the stepper when nobody refers to it any more."""
        if getattr(self, "_handle", None):  # nothing to free where the constructor raised
            self.close()

    def _automata(self, constraints: Constraints) -> ctypes.Array[AutomatonArrays]:
        """The tables of the automata, which stay where they are while `constraints` is referred to."""
        if any(len(a.classes) != self.vocab_size for a in constraints.automata):
            raise ValueError(f"constraints: an automaton is of another vocabulary, expected {self.vocab_size} ids")
        n = len(constraints.automata)
        return (AutomatonArrays * n)(*(AutomatonArrays(*a.addresses) for a in constraints.automata))

    def _open(self) -> int:
        if self._handle is None:
            raise ValueError("the stepper is closed")
        return self._handle

    def _slot(self, slot: int) -> int:
        if not 0 <= slot < self.n_slots:
            raise ValueError(f"slot: got {slot}, expected 0 to {self.n_slots - 1}")
        return slot


def _address(name: str, array: NDArray[np.generic], dtype: DTypeLike, shape: tuple[int, ...]) -> int:
    """The address of an array, if it has the layout that the C code reads."""
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        layout = "" if array.flags.c_contiguous else " not contiguous"
        expected = f"contiguous {np.dtype(dtype)} {shape}"
        raise ValueError(f"{name}: got {array.dtype} {array.shape}{layout}, expected {expected}")
    return array.ctypes.data
