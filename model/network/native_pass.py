"""The gradients of a window by the native code, without autograd: native/src/kernels/training/pass.h.

A step of a small network is many small operations, and torch's bookkeeping around them took longer than they did. What
is computed is what `regularized_forward`, the cross-entropy and autograd compute, to rounding, from the same draws. The
bits are the same on every CPU.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch
from torch import Tensor

from model.config import BF16_ORDERS, Bf16Order, TrainConfig
from model.native.library import PassArrays, Unsupported, choose_instruction_set, library_path, load_library
from model.network.char_rnn import CharRNN, State
from model.network.regularization import draw_bytes, dropout_threshold

_PRODUCTS = (None, *BF16_ORDERS)  # as LH_FP32, ... in api.h
_OUT_OF_RANGE = 2  # what lh_train returns when a character is none of the network's


def supports_native_pass(network: CharRNN) -> bool:
    """Whether a `NativePass` can train this network: an lstm in float32, on a CPU for which the library is built."""
    weight = network.head.weight
    if network.config.cell != "lstm" or weight.device.type != "cpu" or weight.dtype != torch.float32:
        return False
    try:
        native_library()
    except Unsupported:
        return False
    return True


def fastest_bf16_order() -> Bf16Order:
    """Return the order that this CPU computes fastest.

    Raises:
        Unsupported: There is no native code here.
    """
    return "tiles" if native_library()[1] == b"avx512_amx" else "pairs"


def has_fast_bf16() -> bool:
    """Whether there is native code here that multiplies bfloat16 faster than float32."""
    try:
        return native_library()[1] in (b"avx512_amx", b"avx512_bf16")
    except Unsupported:
        return False


@lru_cache(maxsize=1)
def native_library() -> tuple[ctypes.CDLL, bytes]:
    """Load the library and choose its instruction set once; hashing its sources takes longer than a step."""
    library = load_library(library_path())
    return library, choose_instruction_set(library).encode()


class NativePass:
    """Computes the gradients of one shard; they lie in its own memory until the next window."""

    def __init__(self, network: CharRNN, config: TrainConfig, bf16: Bf16Order | None = None) -> None:
        """Create a pass for a network that `supports_native_pass`.

        Args:
            network: Its parameters are read in each pass.
            config: The probabilities of the regularization.
            bf16: Round the factors of all products to bfloat16 and add up in float32, in this order; None: float32.
        """
        c = network.config
        self._config = config
        parameters = list(network.parameters())
        self._gradients = tuple(torch.empty_like(p, requires_grad=False) for p in parameters)
        self._state, self._views = torch.empty(0), (torch.empty(0), torch.empty(0))
        self._draws: dict[tuple[str, int], Tensor] = {}
        self._loss = torch.zeros(())
        probabilities = (config.embed_dropout, config.weight_drop, config.dropout)
        thresholds = [dropout_threshold(p) if p else 0 for p in probabilities]
        a = self._arrays = PassArrays(
            0, 0, c.n_layers, c.n_hidden, c.n_embed, c.vocab_size, _PRODUCTS.index(bf16), *thresholds
        )
        # Kept here, since a structure keeps no array alive.
        self._pointers = [
            (ctypes.c_void_p * len(ts))(*(t.data_ptr() for t in ts)) for ts in (parameters, self._gradients)
        ]
        a.parameters, a.gradients = (ctypes.addressof(pointers) for pointers in self._pointers)
        a.reset = config.reset

    def run(
        self, ids: Tensor, targets: Tensor, state: State, generator: torch.Generator, starts: Tensor | None = None
    ) -> tuple[tuple[Tensor, ...], State, Tensor]:
        """Run a window of characters forwards and backwards. Backpropagation is truncated at its start.

        Args:
            ids: (B, T) int64.
            targets: (B, T) int64, the character after each.
            state: The state before the window.
            generator: The source of all random numbers.
            starts: (B, T) bool, where a row begins a new text, see `regularized_forward`.

        Returns:
            The gradient of each parameter, in the order of `CharRNN.parameters()`, the state after the window, and the
            mean loss in nats per character. They are overwritten by the next window.

        Raises:
            IndexError: An id is none of the network's.
            MemoryError: The library could not allocate memory.
        """
        c, a = self._config, self._arrays
        (rows, steps), (ids, targets) = ids.shape, (t if t.stride(1) == 1 else t.contiguous() for t in (ids, targets))
        a.rows, a.steps = rows, steps
        a.ids, a.targets = ids.data_ptr(), targets.data_ptr()
        a.ids_stride, a.targets_stride = ids.stride(0), targets.stride(0)
        if c.embed_dropout:
            a.embed_draws = self._draw("embed", 0, rows * a.embed, generator)
        a.reset_draws = None
        if c.reset and starts is None:
            a.reset_draws = self._buffer("reset", 0, rows, torch.float32).uniform_(generator=generator).data_ptr()
        for layer in range(a.layers):
            if c.weight_drop:
                a.weight_draws[layer] = self._draw("weights", layer, 4 * a.hidden**2, generator)
            if c.dropout:
                a.output_draws[layer] = self._draw("output", layer, rows * steps * a.hidden, generator)
        starts = None if starts is None else starts.contiguous()
        a.starts = None if starts is None else starts.data_ptr()
        if state[0] is not self._views[0] or state[1] is not self._views[1]:
            self._state = torch.stack(state)
            self._views = (self._state[0], self._state[1])
            a.state = self._state.data_ptr()
        library, a.instruction_set = native_library()
        failed = library.lh_train(ctypes.byref(a))
        if failed == _OUT_OF_RANGE:
            low, high = (int(bound) for bound in torch.aminmax(torch.cat([ids, targets])))
            raise IndexError(f"ids: got {low} to {high}, expected 0 to {a.vocab - 1}")
        if failed:
            raise MemoryError("the training pass could not allocate memory")
        return self._gradients, self._views, self._loss.fill_(a.loss)

    def _draw(self, name: str, layer: int, n: int, generator: torch.Generator) -> int:
        """Draw n bytes, and return where they lie."""
        return draw_bytes(self._buffer(name, layer, -(-n // 8), torch.int64), generator).data_ptr()

    def _buffer(self, name: str, layer: int, n: int, dtype: torch.dtype) -> Tensor:
        buffer = self._draws.get((name, layer))
        if buffer is None or len(buffer) != n:
            buffer = self._draws[name, layer] = torch.empty(n, dtype=dtype)
        return buffer
