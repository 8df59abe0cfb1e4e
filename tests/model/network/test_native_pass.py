"""The native training pass against autograd in float64: the loss, the state and every gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.config import BF16_ORDERS, Bf16Order, ModelConfig, TrainConfig
from model.network.char_rnn import CharRNN, State
from model.network.native_pass import NativePass, supports_native_pass
from model.network.regularization import dropout_mask, regularized_forward

pytestmark = pytest.mark.usefixtures("native_code")

Linear = Callable[[Tensor, Tensor], Tensor]
Result = tuple[Tensor, ...]
"""The loss, the state after the window, the gradients."""

NO_DROPOUT = {"dropout": 0.0, "reset": 0.0}
ALL_KINDS = {"dropout": 0.3, "embed_dropout": 0.2, "weight_drop": 0.2, "reset": 0.3}
# vocabulary, embedding, units, layers, rows, steps. Units: fill no vector, a panel, more; rows: less than a tile, a
# tile, more than go together; the input by id, and by character
SHAPES = [
    (7, 5, 13, 2, 1, 1), (2, 8, 16, 1, 3, 4), (11, 3, 1, 1, 97, 2), (65, 16, 32, 1, 8, 24), (30, 8, 20, 3, 4, 25),
    (3000, 8, 20, 2, 4, 25), (300, 33, 72, 2, 50, 3), (20, 64, 80, 1, 17, 40),
]  # fmt: skip


class Window:
    """A network, a window of characters and the state before it."""

    def __init__(self, shape: tuple[int, ...], knobs: dict[str, float], with_starts: bool = False) -> None:
        vocab, embed, hidden, layers, rows, steps = shape
        torch.manual_seed(rows + hidden)
        self.network = CharRNN(ModelConfig(vocab, hidden, layers, embed)).train()
        for parameter in self.network.parameters():
            parameter.data += torch.randn_like(parameter) * 0.05  # biases are zero at first
        ids = torch.randint(vocab, (rows, steps + 1))
        self.ids, self.targets = ids[:, :-1], ids[:, 1:]
        self.state: State = tuple(torch.randn(layers, rows, hidden) * 0.3 for _ in range(2))
        self.config = TrainConfig(**NO_DROPOUT | knobs)  # type: ignore[arg-type]
        self.starts = torch.rand(rows, steps) < 0.2 if with_starts else None

    def native(self, bf16: Bf16Order | None = None) -> Result:
        """The result of the second of two equal passes: nothing of the first may remain."""
        native = NativePass(self.network, self.config, bf16)
        for _ in range(2):
            state = tuple(s.clone() for s in self.state)
            generator = torch.Generator().manual_seed(5)
            gradients, after, loss = native.run(self.ids, self.targets, state, generator, self.starts)
        return loss, *after, *gradients

    def by_autograd(self) -> Result:
        """The result of torch's own layers."""
        generator = torch.Generator().manual_seed(5)
        logits, after = regularized_forward(self.network, self.ids, self.state, self.config, generator, self.starts)
        loss = F.cross_entropy(logits.flatten(0, 1), self.targets.flatten())
        after = tuple(s.detach() for s in after)
        return loss.detach(), *after, *torch.autograd.grad(loss, list(self.network.parameters()))

    def exact(self, linear: Linear) -> Result:
        """The result in float64, step by step, with a product of one's own."""
        c, generator = self.config, torch.Generator().manual_seed(5)
        rows, steps = self.ids.shape
        parameters = {name: p.detach().double().requires_grad_() for name, p in self.network.named_parameters()}
        table = parameters["embedding.weight"]
        if c.embed_dropout or len(table) > self.ids.numel():
            x = table[self.ids]
            if c.embed_dropout:
                x = x * dropout_mask((rows, 1, table.shape[1]), c.embed_dropout, generator).double()
            inputs_of: Callable[[Tensor], Tensor] = lambda inputs: inputs  # noqa: E731
        else:  # a row of each id
            x, inputs_of = table, lambda inputs: inputs[self.ids]
        state = [s.double() for s in self.state]
        if c.reset and self.starts is None:
            begins = torch.rand((1, rows, 1), generator=generator) < c.reset
            state = [s.masked_fill(begins, 0) for s in state]
        after: list[list[Tensor]] = [[], []]
        for layer in range(self.network.config.n_layers):
            w_ih, w_hh, b_ih, b_hh = (
                parameters[f"rnn.{n}_l{layer}"] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            if c.weight_drop:
                w_hh = w_hh * dropout_mask(tuple(w_hh.shape), c.weight_drop, generator).double()
            inputs = linear(x, w_ih) + b_ih + b_hh
            inputs = inputs_of(inputs) if layer == 0 else inputs
            h, cell, outputs = state[0][layer], state[1][layer], []
            for t in range(steps):
                if self.starts is not None:
                    h, cell = (s.masked_fill(self.starts[:, t, None], 0) for s in (h, cell))
                i, f, g, o = (inputs[:, t] + linear(h, w_hh)).chunk(4, dim=1)
                cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
                h = o.sigmoid() * cell.tanh()
                outputs.append(h)
            x = torch.stack(outputs, dim=1)
            after[0].append(h.detach())
            after[1].append(cell.detach())
            if c.dropout:
                x = x * dropout_mask((rows * steps, x.shape[2]), c.dropout, generator).double().view(x.shape)
        logits = linear(x, parameters["head.weight"]) + parameters["head.bias"]
        loss = F.cross_entropy(logits.flatten(0, 1), self.targets.flatten())
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        return loss.detach(), torch.stack(after[0]), torch.stack(after[1]), *gradients


class RoundedLinear(torch.autograd.Function):
    """x W^T, where the factors of the product and of its two gradients are rounded to bfloat16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(rounded(x), rounded(weight))
        return rounded(x) @ rounded(weight).t()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        d = rounded(gradients[0])
        return d @ weight, d.flatten(0, -2).t() @ x.flatten(0, -2)


def rounded(x: Tensor) -> Tensor:
    """The nearest bfloat16 of each value."""
    return x.float().bfloat16().double()


def distance(ours: Result, theirs: Result) -> float:
    """The largest difference of any tensor, in terms of its largest value."""
    assert len(ours) == len(theirs)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_starts", [False, True])
def test_a_pass_is_that_of_autograd_in_float64(shape: tuple[int, ...], with_starts: bool) -> None:
    """Within float32's rounding, for any number of rows, steps, units, layers and characters."""
    window = Window(shape, ALL_KINDS, with_starts)
    assert distance(window.native(), window.exact(F.linear)) < 5e-6


@pytest.mark.parametrize("knobs", [{}, *({name: value} for name, value in ALL_KINDS.items()), ALL_KINDS])
@pytest.mark.parametrize("vocab", [30, 3000])
@pytest.mark.parametrize("with_starts", [False, True])
def test_it_draws_what_torchs_layers_draw(knobs: dict[str, float], vocab: int, with_starts: bool) -> None:
    """With each kind of dropout: the same as `regularized_forward` with the same generator, to rounding."""
    window = Window((vocab, 8, 20, 3, 4, 25), knobs, with_starts)
    assert distance(window.native(), window.by_autograd()) < 5e-6


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("order", BF16_ORDERS)
def test_bf16_rounds_the_factors_of_all_products_and_nothing_else(shape: tuple[int, ...], order: Bf16Order) -> None:
    """The result is that of float64 with rounded factors, and far from that of float64 alone."""
    window = Window(shape, ALL_KINDS, with_starts=True)
    native, reference = window.native(order), window.exact(RoundedLinear.apply)
    # A value between two bfloat16 may be rounded to the other one in the next product; where none is, it is 1e-7.
    assert distance(native, reference) < 2**-9
    assert distance(native, window.exact(F.linear)) > 4 * distance(native, reference)


def test_no_value_and_no_gradient_passes_a_start() -> None:
    """A row that begins again inside a window gives what its two halves give alone, from the zero state."""
    window, cut, steps = Window((11, 8, 16, 1, 5, 9), {}), 4, 9
    window.starts = torch.zeros(5, steps, dtype=torch.bool)
    window.starts[:, cut] = True
    whole = window.native()
    halves, ids, targets = [], window.ids, window.targets
    for part in (slice(0, cut), slice(cut, steps)):
        window.ids, window.targets, window.starts = ids[:, part], targets[:, part], None
        window.state = window.state if part.start == 0 else window.network.zero_state(5)
        halves.append(window.native())
    assert torch.equal(whole[1], halves[1][1])
    assert torch.equal(whole[2], halves[1][2])
    for ours, first, second in zip(whole[3:], halves[0][3:], halves[1][3:], strict=True):
        expected = (first * cut + second * (steps - cut)) / steps
        assert torch.allclose(ours, expected, rtol=1e-5, atol=1e-7)


def test_the_given_state_is_not_changed_and_the_returned_one_goes_on() -> None:
    """Two windows after each other give the state that one of both gives."""
    window = Window((11, 8, 20, 2, 3, 8), {})
    native, generator = NativePass(window.network, window.config), torch.Generator()
    before = [s.clone() for s in window.state]
    _, state, _ = native.run(window.ids[:, :3], window.targets[:, :3], window.state, generator)
    _, state, _ = native.run(window.ids[:, 3:], window.targets[:, 3:], state, generator)
    assert all(map(torch.equal, window.state, before))
    assert all(map(torch.equal, state, window.native()[1:3]))


def test_other_cells_and_types_are_not_supported() -> None:
    """They are trained with torch's layers."""
    assert supports_native_pass(CharRNN(ModelConfig(5, n_hidden=4)))
    assert not supports_native_pass(CharRNN(ModelConfig(5, n_hidden=4, cell="gru")))
    assert not supports_native_pass(CharRNN(ModelConfig(5, n_hidden=4)).double())


@pytest.mark.parametrize("wrong", [-1, 7])
@pytest.mark.parametrize("where", ["ids", "targets"])
def test_an_id_that_the_network_has_not_is_refused(wrong: int, where: str) -> None:
    """Nothing is read or written outside the tables; the gradients of before stay."""
    window = Window((7, 5, 16, 1, 2, 3), {})
    native = NativePass(window.network, window.config)
    gradients, *_ = native.run(window.ids, window.targets, window.state, torch.Generator())
    before = [g.clone() for g in gradients]
    getattr(window, where)[1, 2] = wrong
    with pytest.raises(IndexError, match=rf"ids: got .*{wrong}.*, expected 0 to 6"):
        native.run(window.ids, window.targets, window.state, torch.Generator())
    assert all(map(torch.equal, gradients, before))
