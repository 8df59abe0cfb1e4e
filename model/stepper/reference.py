"""The stepper in plain torch: any device, any cell, float32 or float64. The fast steppers are tested against it.

Rows are computed in tiles of exactly TILE, padded where there are fewer; layers.py says why.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.network.char_rnn import CharRNN
from model.network.penalties import NO_CHARACTER, adjusted_logits
from model.network.sampling import SamplingParams, as_batch, as_tensors, has_filters, has_penalties, sample
from model.stepper import NO_SCORE, SAMPLE, Block, BlockResult, Interrupt
from model.stepper.layers import Layers, StateTable
from model.structured_outputs.masks import ConstraintResult, MaskTables

TILE = 16
N = TypeVar("N", bound=np.generic)


class ReferenceStepper(StateTable):
    """Implements `Stepper` on any device that torch has."""

    def __init__(self, network: CharRNN, n_slots: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        """Copy a network's weights to a device, with a table of n_slots states."""
        self.n_slots = n_slots
        self.name = "reference"
        self.numerics = f"torch-{torch.device(device).type}-{str(dtype).removeprefix('torch.float')}"
        self._device = torch.device(device)
        self._layers = Layers(network, dtype, self._device)
        self._table = torch.zeros((n_slots, *self._layers.state_shape), dtype=dtype, device=self._device)

    @property
    def n_bytes(self) -> int:
        """The memory of the weights and of the state table."""
        tensors = [self._table, *self._layers.tensors()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def cores_for(self, block: Block) -> int:
        """One: torch decides how many threads a run uses."""
        return 1

    @torch.inference_mode()
    def run(self, block: Block, n_cores: int = 0, interrupt: Interrupt | None = None) -> BlockResult:
        """Advance the block's rows in place; an interrupt ends the run once the block's least steps are made."""
        k_steps, n_rows = block.forced_ids.shape
        padded = -(-n_rows // TILE) * TILE
        slots = torch.from_numpy(block.slots.astype(np.int64)).to(self._device)
        state = torch.zeros((padded, *self._table.shape[1:]), dtype=self._table.dtype, device=self._device)
        state[:n_rows] = self._table[slots]  # (B, S, L, H)
        no_rows = as_batch([SamplingParams()] * (padded - n_rows))
        sampling = as_tensors(np.concatenate([block.sampling, no_rows]), self._device)
        filtered = has_filters(block.sampling)
        numbers = self._padded(block.random_values, padded, 0.0)  # (K, B)
        steps = self._padded(block.steps.astype(np.int64), padded, 0)
        following = _following(block)
        score = np.full((k_steps, n_rows), NO_SCORE) if block.score_ids is None else block.score_ids.astype(np.int64)
        # Which steps need logits is known on the host: nothing is read back from the device inside the block.
        needs_logits = ((following == SAMPLE) | (score != NO_SCORE)).any(axis=1)
        forced, scored = self._padded(following, padded, 0), self._padded(score, padded, NO_SCORE)
        ids = torch.zeros((k_steps, padded), dtype=torch.int64, device=self._device)
        logprobs = torch.full((k_steps, padded), torch.nan, dtype=torch.float64, device=self._device)
        fed = self._padded(block.forced_ids[0].astype(np.int64), padded, 0)
        windows, bias = self._windows(block, padded), self._bias(block, padded)
        masks = None if block.constraints is None else MaskTables(block.constraints, padded, self._device)
        mask_logprobs = torch.zeros((k_steps, padded), dtype=torch.float64, device=self._device)
        for k in range(k_steps):
            is_running = (steps > k)[:, None, None, None]
            state = torch.where(is_running, self._layers.advance(fed, state, TILE), state)
            if needs_logits[k]:
                for t in range(0, padded, TILE):
                    tile = slice(t, t + TILE)
                    logits = self._layers.logits(state[tile])  # (TILE, V)
                    params = {name: values[tile] for name, values in sampling.items()}
                    adjusted = None
                    if windows is not None or bias is not None:
                        window_tile = None if windows is None else windows[tile]
                        adjusted = adjusted_logits(logits, window_tile, None if bias is None else bias[tile], params)
                    if masks is not None:
                        allowed, mask_logprobs[k, tile] = masks.mask(logits, tile)
                        adjusted = (logits if adjusted is None else adjusted).masked_fill(~allowed, -torch.inf)
                    ids[k, tile], logprobs[k, tile] = sample(
                        logits,
                        numbers[k, tile],
                        params,
                        score_ids=scored[k, tile],
                        filtered=filtered,
                        adjusted=adjusted,
                    )
            is_sampled = forced[k] == SAMPLE
            logprobs[k] = torch.where(is_sampled | (scored[k] != NO_SCORE), logprobs[k], torch.nan)
            fed = ids[k] = torch.where(is_sampled, ids[k], forced[k])
            if windows is not None:
                moved = torch.cat([windows[:, 1:], fed[:, None]], dim=1)
                windows = torch.where(is_sampled[:, None], moved, windows)
            if masks is not None:
                is_sampled = is_sampled & (steps > k)
                mask_logprobs[k] = torch.where(is_sampled, mask_logprobs[k], 0.0)
                steps = torch.where(masks.advance(fed, is_sampled), k + 1, steps)
            if interrupt and k + 1 >= block.least_steps:
                steps = steps.clamp(max=k + 1)
                break
        self._table[slots] = state[:n_rows]
        return BlockResult(
            _host(steps[:n_rows], np.int32),
            k + 1,
            _host(ids[:, :n_rows], np.int32),
            _host(logprobs[:, :n_rows], np.float32),
            None if masks is None else ConstraintResult(masks.states(), _host(mask_logprobs[:, :n_rows], np.float32)),
        )

    def _windows(self, block: Block, n_rows: int) -> Tensor | None:
        """The rows' windows (n_rows, W) int64, wide enough for the widest; None if no row has a penalty."""
        if not has_penalties(block.sampling):
            return None
        given = np.empty((len(block.slots), 0), np.int32) if block.windows is None else block.windows
        width = max(given.shape[1], int(block.sampling["penalty_window"].max()))
        whole = np.full((n_rows, width), NO_CHARACTER, dtype=np.int64)
        whole[: len(given), width - given.shape[1] :] = given
        return torch.from_numpy(whole).to(self._device)

    def _bias(self, block: Block, n_rows: int) -> Tensor | None:
        if block.logit_bias is None:
            return None
        return torch.from_numpy(block.logit_bias.dense(n_rows, self._layers.config.vocab_size)).to(self._device)

    def _padded(self, values: NDArray[N], size: int, fill: float) -> Tensor:
        """Copy (..., B) to the device, with `fill` in the rows from B to `size`."""
        whole = np.full((*values.shape[:-1], size), fill, dtype=values.dtype)
        whole[..., : values.shape[-1]] = values
        return torch.from_numpy(whole).to(self._device)


def _following(block: Block) -> NDArray[np.int64]:
    """What step k produces, (K, B): forced_ids[k + 1], or SAMPLE. A row's last step always samples."""
    following = np.full(block.forced_ids.shape, SAMPLE, dtype=np.int64)
    following[:-1] = block.forced_ids[1:]
    following[np.arange(1, len(following) + 1)[:, None] == block.steps] = SAMPLE
    return following


def _host(values: Tensor, dtype: type[N]) -> NDArray[N]:
    """Copy a tensor to the host."""
    copied: NDArray[N] = values.cpu().numpy().astype(dtype)
    return copied
