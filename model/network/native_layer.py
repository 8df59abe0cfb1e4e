"""A native LSTM layer for training on a CPU: a torch.autograd.Function around native/src/kernels/lstm_layer.h.

nn.LSTM computes the gradient of the recurrent weights character by character, as T thin matrix products. The native
layer computes it as one product for the whole window, and a first layer looks up its input by id. The results equal
nn.LSTM's to rounding.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from model.config import BF16_ORDERS, Bf16Order
from model.native.library import (
    LANES,
    LstmLayerArrays,
    Unsupported,
    choose_instruction_set,
    library_path,
    load_library,
)
from model.network.char_rnn import CharRNN

_PRODUCTS = (None, *BF16_ORDERS)  # as LH_FP32, ... in api.h


def supports_native_lstm(network: CharRNN) -> bool:
    """Whether `native_lstm` can train this network: an lstm in float32, on a CPU for which the library is built."""
    weight = network.head.weight
    if network.config.cell != "lstm" or weight.device.type != "cpu" or weight.dtype != torch.float32:
        return False
    try:
        _library()
    except Unsupported:
        return False
    return True


def fastest_bf16_order() -> Bf16Order:
    """Return the order that this CPU computes fastest.

    Raises:
        Unsupported: There is no native layer here.
    """
    return "tiles" if _library()[1] == b"avx512_amx" else "pairs"


def native_lstm(
    inputs: Tensor,
    w_hh: Tensor,
    h0: Tensor,
    c0: Tensor,
    ids: Tensor | None = None,
    starts: Tensor | None = None,
    bf16: Bf16Order | None = None,
) -> tuple[Tensor, ...]:
    """Run a window through one LSTM layer. All tensors are float32 on a CPU, ids are int64.

    Gradients flow into `inputs` and `w_hh` only: backpropagation is truncated at the start of the window.

    Args:
        inputs: W_ih x + b_ih + b_hh, (B, T, 4H). With `ids`: (V, 4H), one row per id.
        w_hh: The recurrent weights (4H, H).
        h0: The hidden state before the window (B, H).
        c0: The cell state before the window (B, H).
        ids: (B, T) the rows of `inputs` to read.
        starts: (B, T) bool, where a row begins again from the zero state before the step; no gradient passes there.
        bf16: Round the factors of the recurrent products to bfloat16 and add up in float32, in this order. None: no.

    Returns:
        h (B, T, H), and c (B, T, H) without a gradient.

    Raises:
        IndexError: An id has no row.
        MemoryError: The library could not allocate memory.
    """
    if ids is not None and not 0 <= int(ids.min()) <= int(ids.max()) < len(inputs):
        raise IndexError(f"ids: got {int(ids.min())} to {int(ids.max())}, expected 0 to {len(inputs) - 1}")
    hidden = w_hh.shape[1]
    padding = -hidden % LANES  # further units, to fill a vector; they are zero and stay zero
    if padding:
        inputs = F.pad(inputs.reshape(*inputs.shape[:-1], 4, hidden), (0, padding)).flatten(-2)
        w_hh = F.pad(w_hh.reshape(4, hidden, hidden), (0, padding, 0, padding)).flatten(0, 1)
        h0, c0 = F.pad(h0, (0, padding)), F.pad(c0, (0, padding))
    h, c = _NativeLstm.apply(inputs, w_hh, h0, c0, ids, starts, bf16)  # type: ignore[no-untyped-call]
    return h[..., :hidden], c.transpose(0, 1)[..., :hidden]


@lru_cache(maxsize=1)
def _library() -> tuple[ctypes.CDLL, bytes]:
    """Load the library and choose its instruction set once; hashing its sources takes longer than a step."""
    library = load_library(library_path())
    return library, choose_instruction_set(library).encode()


class _NativeLstm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        w_hh: Tensor,
        h0: Tensor,
        c0: Tensor,
        ids: Tensor | None,
        starts: Tensor | None,
        bf16: Bf16Order | None,
    ) -> tuple[Tensor, Tensor]:
        hidden = w_hh.shape[1]
        shape = inputs.shape[:2] if ids is None else ids.shape
        inputs, w_hh, h0, c0 = (t.contiguous() for t in (inputs, w_hh, h0, c0))
        ids = None if ids is None else ids.contiguous()
        h, c = inputs.new_empty(*shape, hidden), inputs.new_empty(shape[1], shape[0], hidden)
        gates = inputs.new_empty(*shape, 4 * hidden)  # in the order of the native code
        starts = None if starts is None else starts.contiguous()
        saved = {"ids": ids, "inputs": inputs, "weights": w_hh, "h0": h0, "c0": c0, "starts": starts}
        saved |= {"h": h, "c": c, "gates": gates}
        _call("lh_lstm_forward", h.shape, bf16, saved)
        ctx.bf16 = bf16
        ctx.save_for_backward(*saved.values())
        ctx.mark_non_differentiable(c)
        return h, c

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ids, inputs, w_hh, h0, c0, starts, h, c, gates = ctx.saved_tensors
        saved = {"ids": ids, "inputs": inputs, "weights": w_hh, "h0": h0, "c0": c0, "starts": starts}
        saved |= {"h": h, "c": c, "gates": gates}
        d_gates = torch.empty_like(gates)
        d_inputs = None if ids is None else torch.zeros_like(inputs)
        d_result = d_gates if d_inputs is None else d_inputs
        d_w_hh = torch.empty_like(w_hh) if ctx.bf16 == "tiles" else None
        saved |= {"d_h": gradients[0].contiguous(), "d_gates": d_gates, "d_inputs": d_inputs, "d_weights": d_w_hh}
        _call("lh_lstm_backward", h.shape, ctx.bf16, saved)
        if d_w_hh is not None:
            return d_result, d_w_hh, None, None, None, None, None
        h_before = torch.cat([h0.unsqueeze(1), h[:, :-1]], dim=1)  # (B, T, H)
        if starts is not None:
            h_before.masked_fill_(starts[..., None], 0.0)
        d, before = d_gates.flatten(0, 1), h_before.flatten(0, 1)
        if ctx.bf16:  # torch sums products of bfloat16 in float32, and rounds the result to bfloat16
            d, before = d.bfloat16(), before.bfloat16()
        d_w_hh = (d.t() @ before).float()
        return d_result, d_w_hh, None, None, None, None, None


def _call(function: str, shape: torch.Size, bf16: Bf16Order | None, tensors: dict[str, Tensor | None]) -> None:
    """Call a function of the library with the shape (B, T, H) and the addresses of the tensors."""
    pointers = {name: None if t is None else t.data_ptr() for name, t in tensors.items()}
    library, instruction_set = _library()
    arrays = LstmLayerArrays(*shape, _PRODUCTS.index(bf16), **pointers, instruction_set=instruction_set)
    if getattr(library, function)(ctypes.byref(arrays)):
        raise MemoryError("the native LSTM layer could not allocate memory")
