"""A block as the kernels read it: an array of 32-bit words, a header, then the arrays; rows with more steps first."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.network.sampling import SAMPLING_DTYPE, SamplingParams
from model.stepper import NO_SCORE, SAMPLE, Block
from model.structured_outputs.masks import Constraints

CAPACITY = 256
"""Steps of a block that the buffers hold; longer blocks run in parts."""
_SAMPLING_FIELDS = tuple(p.name for p in SamplingParams.fields())
_HEADER = (
    "k", "rows", "steps", "window", "slots", "row_steps", "forced_ids", "random_values", "sampling",
    "score_ids", "windows", "bias_starts", "bias_ids", "bias_values",
)  # fmt: skip
"""HEADER_ in kernels.cu, in its order."""
_ALIGN = 4  # words


def block_words(steps: int, rows: int, window: int, biases: int) -> int:
    """The words of a block of K steps and B rows, with windows of `window` codes and so many biases in all."""
    of_rows = (rows, rows, steps * rows, 2 * steps * rows, 2 * len(_SAMPLING_FIELDS) * rows, steps * rows)
    sizes = (len(_HEADER), *of_rows, rows * window, rows + 1, biases, 2 * biases)
    return sum(-(-size // _ALIGN) * _ALIGN for size in sizes)


def check(block: Block, n_slots: int, vocab_size: int) -> None:
    """Refuse a block that the kernels cannot run, before anything has moved.

    Raises:
        ValueError: It names the array, what it has, and what was expected.
    """
    if block.forced_ids.ndim != 2:
        raise ValueError(f"forced_ids: got {block.forced_ids.ndim} dimensions, expected (K, B)")
    steps, rows = block.forced_ids.shape
    arrays: list[tuple[str, NDArray[Any] | None, Any, tuple[int, ...]]] = [
        ("slots", block.slots, np.int32, (rows,)),
        ("steps", block.steps, np.int32, (rows,)),
        ("forced_ids", block.forced_ids, np.int32, (steps, rows)),
        ("random_values", block.random_values, np.float64, (steps, rows)),
        ("sampling", block.sampling, SAMPLING_DTYPE, (rows,)),
        ("score_ids", block.score_ids, np.int32, (steps, rows)),
    ]
    for name, array, dtype, shape in arrays:
        if array is not None and (array.dtype != dtype or array.shape != shape):
            raise ValueError(f"{name}: got {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape}")
    if not steps or not rows:
        return

    def refuse(is_wrong: NDArray[np.bool_], message: str) -> None:
        if is_wrong.any():
            *step, row = np.argwhere(is_wrong)[0]
            raise ValueError("block: " + message.format(row=row, step=step[0] if step else 0))

    refuse((block.slots < 0) | (block.slots >= n_slots), "slots[{row}] is not a slot")
    ordered = np.sort(block.slots)
    refuse(np.isin(block.slots, ordered[1:][ordered[1:] == ordered[:-1]]), "slots[{row}] is there twice")
    refuse((block.steps < 1) | (block.steps > steps), "steps[{row}] is not from 1 to K")
    refuse(block.forced_ids[0] < 0, "forced_ids[0, {row}] is SAMPLE: a row begins with its next_input")
    is_read = np.arange(steps)[:, None] < block.steps
    refuse(
        is_read & ((block.forced_ids < SAMPLE) | (block.forced_ids >= vocab_size)),
        "forced_ids[{step}, {row}] is not an id",
    )
    refuse(
        is_read & ~((block.random_values >= 0) & (block.random_values < 1)),
        "random_values[{step}, {row}] is not in [0, 1)",
    )
    sampling = block.sampling
    is_valid = np.isfinite(sampling["temperature"]) & (sampling["temperature"] >= 0) & (sampling["top_k"] >= 0)
    for name in ("top_p", "min_p"):
        is_valid &= sampling[name] >= 0
    is_valid &= (sampling["typical_p"] > 0) & (sampling["repetition_penalty"] > 0) & (sampling["penalty_window"] > 0)
    for name in ("repetition_penalty", "frequency_penalty", "presence_penalty"):
        is_valid &= np.isfinite(sampling[name])
    refuse(~is_valid, "sampling[{row}] has a parameter that is negative or not finite")
    if block.score_ids is not None:
        refuse(is_read & (block.score_ids >= vocab_size), "score_ids[{step}, {row}] is not an id")
    if block.windows is not None:
        if block.windows.dtype != np.int32 or block.windows.ndim != 2 or len(block.windows) != rows:
            raise ValueError(f"windows: got {block.windows.dtype} {block.windows.shape}, expected int32 ({rows}, W)")
        is_wrong: NDArray[np.bool_] = (block.windows >= vocab_size) | (block.windows < -1 - vocab_size)
        refuse(np.asarray(is_wrong.any(axis=1)), "windows[{row}] has a code that stands for no id")
    if block.logit_bias is not None:
        _check_bias(block, rows, vocab_size)


def _check_bias(block: Block, rows: int, vocab_size: int) -> None:
    bias = block.logit_bias
    assert bias is not None
    starts, n = bias.starts, len(bias.ids)
    if len(starts) != rows + 1 or (starts[0], starts[-1]) != (0, n) or bool((np.diff(starts) < 0).any()):
        raise ValueError(f"logit_bias.starts: expected {rows + 1} rising indices from 0 to {n}")
    is_wrong = (bias.ids < 0) | (bias.ids >= vocab_size) | ~np.isfinite(bias.values)
    if is_wrong.any():
        row = int(np.searchsorted(starts, int(np.argmax(is_wrong)), side="right")) - 1
        raise ValueError(f"block: logit_bias: row {row} has an id or a value that is none")


def rows_of(block: Block, rows: NDArray[np.intp]) -> Block:
    """Some rows of a block."""
    constraints = block.constraints
    if constraints is not None:
        of_rows = (constraints.rows[rows], constraints.states[rows], constraints.budgets[rows])
        constraints = Constraints(constraints.automata, *of_rows)
    return Block(
        slots=block.slots[rows],
        steps=block.steps[rows],
        forced_ids=np.ascontiguousarray(block.forced_ids[:, rows]),
        random_values=np.ascontiguousarray(block.random_values[:, rows]),
        sampling=block.sampling[rows],
        score_ids=None if block.score_ids is None else np.ascontiguousarray(block.score_ids[:, rows]),
        windows=None if block.windows is None else block.windows[rows],
        logit_bias=None if block.logit_bias is None else block.logit_bias.rows(rows),
        constraints=constraints,
    )


def fill(words: NDArray[np.int32], block: Block, order: NDArray[np.intp]) -> None:
    """Write a block into an array of `block_words` words.

    Args:
        words: What is filled.
        block: A block that `check` accepts.
        order: (B,) the rows by falling number of steps.
    """
    steps, rows = block.forced_ids.shape
    row_steps = block.steps[order]
    header = dict.fromkeys(_HEADER, 0)
    header["rows"], header["steps"] = rows, steps
    at = -(-len(_HEADER) // _ALIGN) * _ALIGN

    def put(name: str, values: NDArray[Any]) -> None:
        nonlocal at
        flat = np.ascontiguousarray(values).reshape(-1).view(np.int32)
        words[at : at + len(flat)] = flat
        header[name] = at
        at += -(-len(flat) // _ALIGN) * _ALIGN

    put("slots", block.slots[order])
    put("row_steps", row_steps)
    put("forced_ids", block.forced_ids[:, order])
    put("random_values", block.random_values[:, order])
    fields = [block.sampling[name][order].astype(np.float64) for name in _SAMPLING_FIELDS]
    put("sampling", np.stack(fields, axis=1))
    if block.score_ids is not None and bool((block.score_ids != NO_SCORE).any()):
        put("score_ids", block.score_ids[:, order])
    if block.windows is not None and block.windows.shape[1]:
        header["window"] = block.windows.shape[1]
        put("windows", block.windows[order])
    if block.logit_bias is not None:
        bias = block.logit_bias.rows(order)
        put("bias_starts", bias.starts)
        if len(bias.ids):
            put("bias_ids", bias.ids)
            put("bias_values", bias.values)
    words[: len(_HEADER)] = [header[name] for name in _HEADER]
