"""A window of T characters through one lstm layer on a CPU, as autograd sees it, by native/src/lstm_layer.c.

nn.LSTM computes a layer's gradient of the weights step by step, one thin product for each character; here it is one
product for the whole window, and a first layer reads its input's part from a table by id. The numbers are nn.LSTM's to
rounding.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from model.native.library import LANES, LstmLayerArrays, Unsupported, library_path, load_library
from model.network.char_rnn import CharRNN


def usable(network: CharRNN) -> bool:
    """Whether this network's layers can be trained so: an lstm, float32, on a CPU for which the library is built."""
    weight = network.head.weight
    if network.config.cell != "lstm" or weight.device.type != "cpu" or weight.dtype != torch.float32:
        return False
    try:
        _library()
    except Unsupported:
        return False
    return True


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    """The library, found once: its name is a hash of its sources."""
    return load_library(library_path())


def lstm_window(inputs: Tensor, w_hh: Tensor, h0: Tensor, c0: Tensor, ids: Tensor | None = None) -> tuple[Tensor, ...]:
    """h (B, T, H), and c (B, T, H) without a gradient: nn.LSTM's, from what its input adds to the gates.

    inputs: W_ih x + b_ih + b_hh, (B, T, 4H); or (V, 4H), a row for each id of `ids` (B, T). w_hh (4H, H), h0 and c0
    (B, H); gradients flow into the first two alone: windows are truncated at their beginning. float32 on a CPU.
    Raised: IndexError for an id without a row, MemoryError.
    """
    if ids is not None and not 0 <= int(ids.min()) <= int(ids.max()) < len(inputs):
        raise IndexError(f"ids: got {int(ids.min())} to {int(ids.max())}, expected 0 to {len(inputs) - 1}")
    hidden = w_hh.shape[1]
    more = -hidden % LANES  # units that are zero and stay so
    if more:
        inputs = F.pad(inputs.reshape(*inputs.shape[:-1], 4, hidden), (0, more)).flatten(-2)
        w_hh = F.pad(w_hh.reshape(4, hidden, hidden), (0, more, 0, more)).flatten(0, 1)
        h0, c0 = F.pad(h0, (0, more)), F.pad(c0, (0, more))
    h, c = _Window.apply(inputs, w_hh, h0, c0, ids)  # type: ignore[no-untyped-call]
    return h[..., :hidden], c[..., :hidden]


class _Window(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, w_hh: Tensor, h0: Tensor, c0: Tensor, ids: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        hidden = w_hh.shape[1]
        shape = inputs.shape[:2] if ids is None else ids.shape
        inputs, w_hh, h0, c0 = (t.contiguous() for t in (inputs, w_hh, h0, c0))
        ids = None if ids is None else ids.contiguous()
        h, c = inputs.new_empty(*shape, hidden), inputs.new_empty(*shape, hidden)
        gates = inputs.new_empty(*shape, 4 * hidden)
        kept = {"ids": ids, "inputs": inputs, "weights": w_hh, "h0": h0, "c0": c0, "h": h, "c": c, "gates": gates}
        _call("lh_lstm_forward", kept)
        ctx.save_for_backward(*kept.values())
        ctx.mark_non_differentiable(c)
        return h, c

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ids, inputs, w_hh, h0, c0, h, c, gates = ctx.saved_tensors
        kept = {"ids": ids, "inputs": inputs, "weights": w_hh, "h0": h0, "c0": c0, "h": h, "c": c, "gates": gates}
        d_gates = torch.empty_like(gates)
        d_inputs = None if ids is None else torch.zeros_like(inputs)
        _call("lh_lstm_backward", kept | {"d_h": gradients[0].contiguous(), "d_gates": d_gates, "d_inputs": d_inputs})
        before = torch.cat([h0.unsqueeze(1), h[:, :-1]], dim=1)
        d_w_hh = d_gates.flatten(0, 1).t() @ before.flatten(0, 1)
        return d_gates if d_inputs is None else d_inputs, d_w_hh, None, None, None


def _call(function: str, tensors: dict[str, Tensor | None]) -> None:
    h = tensors["h"]
    assert h is not None
    pointers = {name: None if t is None else t.data_ptr() for name, t in tensors.items()}
    arrays = LstmLayerArrays(*h.shape, **pointers)
    if getattr(_library(), function)(ctypes.byref(arrays)):
        raise MemoryError("no memory for a window of training")
