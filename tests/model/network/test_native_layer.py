"""The native LSTM layer against nn.LSTM in float64: outputs, states and every gradient."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import BF16_ORDERS, Bf16Order, ModelConfig, TrainConfig
from model.network.char_rnn import CharRNN
from model.network.native_layer import native_lstm, supports_native_lstm
from model.network.regularization import regularized_forward

pytestmark = pytest.mark.usefixtures("native_code")


# rows: less than a tile, each tile, more than go together; units: a panel, not a multiple of 8, more than a block
@pytest.mark.parametrize(("rows", "steps", "hidden"), [
    (1, 1, 8), (1, 9, 24), (2, 5, 13), (3, 4, 16), (4, 7, 100), (7, 6, 40), (8, 33, 72), (17, 3, 264), (50, 3, 16),
    (97, 2, 1),
])  # fmt: skip
@pytest.mark.parametrize("by_id", [False, True])
def test_a_window_is_that_of_nn_lstm(rows: int, steps: int, hidden: int, by_id: bool) -> None:
    """Within float32's rounding, for any number of rows, steps and units, with the input dense or by id."""
    torch.manual_seed(rows + hidden)
    vocab, embed = 11, 5
    exact = nn.LSTM(embed, hidden, batch_first=True).double()
    vectors, ids = torch.randn(vocab, embed, dtype=torch.float64), torch.randint(vocab, (rows, steps))
    h0, c0 = torch.randn(rows, hidden), torch.randn(rows, hidden)
    towards = torch.randn(rows, steps, hidden)

    given = [vectors.requires_grad_(), *exact.parameters()]
    out, (_, c) = exact(vectors[ids], (h0[None].double(), c0[None].double()))
    expected = torch.autograd.grad((out * towards).sum(), given)

    ours = [t.detach().float().requires_grad_() for t in given]
    table = F.linear(ours[0], ours[1], ours[3] + ours[4])
    our_h, our_c = native_lstm(table if by_id else table[ids], ours[2], h0, c0, ids if by_id else None)
    got = torch.autograd.grad((our_h * towards).sum(), ours)

    assert far(our_h, out) < 2e-6
    assert far(our_c[:, -1], c[0]) < 2e-6
    for theirs, own in zip(expected, got, strict=True):
        assert far(own, theirs) < 5e-6


@pytest.mark.parametrize(("rows", "steps", "hidden"), [(1, 1, 16), (2, 5, 13), (3, 4, 16), (8, 6, 40), (50, 3, 72)])
@pytest.mark.parametrize("by_id", [False, True])
@pytest.mark.parametrize("order", BF16_ORDERS)
def test_bf16_rounds_the_factors_of_the_recurrent_product_only(
    rows: int, steps: int, hidden: int, by_id: bool, order: Bf16Order
) -> None:
    """The outputs and gradients are those of float64 with h, the gates' derivatives and W rounded to bfloat16."""
    torch.manual_seed(rows)
    vocab = 7
    # Factors between 1 and 1 + 2^-8 of a bfloat16 are all rounded down, so that what is not rounded is far away.
    w_hh = torch.randn(4 * hidden, hidden).bfloat16().float() * (1 + 2**-9.5) / hidden**0.5
    ids, table = torch.randint(vocab, (rows, steps)), torch.randn(vocab, 4 * hidden)
    h0, c0 = torch.randn(rows, hidden), torch.randn(rows, hidden)
    starts = torch.rand(rows, steps) < 0.2
    towards = torch.randn(rows, steps, hidden)
    given = [(table if by_id else table[ids]).requires_grad_(), w_hh.requires_grad_()]
    h, c = native_lstm(given[0], w_hh, h0, c0, ids if by_id else None, starts, order)
    d_inputs, d_w_hh = torch.autograd.grad((h * towards).sum(), given)

    expected_h, expected_c, d_gates, products = bf16_reference(table[ids], w_hh, h0, c0, starts, towards)
    assert far(h, expected_h) < 5e-5  # a value between two bfloat16 may be rounded to the other one
    assert far(c, expected_c) < 5e-5
    if by_id:
        summed = torch.zeros(vocab, 4 * hidden, dtype=torch.float64)
        d_gates = summed.index_add_(0, ids.flatten(), d_gates.flatten(0, 1))
    assert far(d_inputs, d_gates) < 5e-5
    assert far(d_w_hh, products) < (2**-8 if order == "pairs" else 2**-11)  # torch rounds it once, at its end
    exact_h = native_lstm(given[0], w_hh, h0, c0, ids if by_id else None, starts)[0]
    assert far(exact_h, expected_h) > 1e-4


def bf16_reference(
    inputs: Tensor, w_hh: Tensor, h0: Tensor, c0: Tensor, starts: Tensor, towards: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h, c, the derivatives of the gates' sums and of the recurrent weights, step by step in float64."""
    weights = rounded(w_hh)
    h, c = h0.double(), c0.double()
    saved, outputs = [], []
    for t in range(inputs.shape[1]):
        begins = starts[:, t, None]
        h, before = h.masked_fill(begins, 0), c.masked_fill(begins, 0)
        h = rounded(h)
        i, f, g, o = (inputs[:, t].double() + h @ weights.t()).chunk(4, dim=1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c = f * before + i * g
        saved.append((h, before, c, i, f, g, o))
        h = o * c.tanh()
        outputs.append((h, c))
    d_h, d_c = torch.zeros_like(h), torch.zeros_like(c)
    d_gates: list[Tensor] = []
    for t in reversed(range(inputs.shape[1])):
        _, before, c, i, f, g, o = saved[t]
        d_h = d_h + towards[:, t]
        d_c = d_c + d_h * o * (1 - c.tanh() ** 2)
        sums = [d_c * g * i * (1 - i), d_c * before * f * (1 - f), d_c * i * (1 - g**2), d_h * c.tanh() * o * (1 - o)]
        d_gates.insert(0, torch.cat(sums, dim=1))
        d_h = (rounded(d_gates[0]) @ weights).masked_fill(starts[:, t, None], 0)
        d_c = (d_c * f).masked_fill(starts[:, t, None], 0)
    products = torch.stack([rounded(d).t() @ s[0] for d, s in zip(d_gates, saved, strict=True)]).sum(dim=0)
    all_h, all_c = (torch.stack(x, dim=1) for x in zip(*outputs, strict=True))
    return all_h, all_c, torch.stack(d_gates, dim=1), products


def rounded(x: Tensor) -> Tensor:
    """The nearest bfloat16 of each value."""
    return x.detach().float().bfloat16().double()


def far(a: Tensor, b: Tensor) -> float:
    """The largest difference, in terms of the largest value."""
    return float(((a - b).abs().max() / b.abs().max().clamp(min=1)).detach())


@pytest.mark.parametrize("knobs", [{}, {"dropout": 0.4}, {"embed_dropout": 0.4}, {"weight_drop": 0.4}, {"reset": 0.5}])
@pytest.mark.parametrize("vocab", [30, 3000])
def test_the_training_pass_is_the_same_either_way(knobs: dict[str, float], vocab: int) -> None:
    """With torch's layers and the native one, same generator: equal logits, states and gradients, to rounding."""
    torch.manual_seed(0)
    network = CharRNN(ModelConfig(vocab, n_hidden=20, n_layers=3, n_embed=8)).train()
    ids = torch.randint(vocab, (4, 25))
    state = tuple(torch.randn(3, 4, 20) * 0.3 for _ in range(2))
    config = TrainConfig(**{"dropout": 0.0, "reset": 0.0} | knobs)  # type: ignore[arg-type]
    results = []
    for native in (False, True):
        logits, after = regularized_forward(network, ids, state, config, torch.Generator().manual_seed(5), native)
        results.append((logits, *after, *torch.autograd.grad(logits.square().mean(), list(network.parameters()))))
    for theirs, ours in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_no_value_and_no_gradient_passes_a_start() -> None:
    """A row that begins again inside a window gives what its two halves give alone, from the zero state."""
    torch.manual_seed(1)
    rows, steps, hidden, cut = 5, 9, 16, 4
    inputs, w_hh = torch.randn(rows, steps, 4 * hidden), torch.randn(4 * hidden, hidden)
    h0, c0, zero = torch.randn(rows, hidden), torch.randn(rows, hidden), torch.zeros(rows, hidden)
    starts = torch.zeros(rows, steps, dtype=torch.bool)
    starts[:, cut] = True
    towards = torch.randn(rows, steps, hidden)

    given = [inputs.requires_grad_(), w_hh.requires_grad_()]
    h, _ = native_lstm(inputs, w_hh, h0, c0, starts=starts)
    whole = torch.autograd.grad((h * towards).sum(), given)
    first, _ = native_lstm(inputs[:, :cut], w_hh, h0, c0)
    second, _ = native_lstm(inputs[:, cut:], w_hh, zero, zero)
    halves = torch.cat([first, second], dim=1)
    assert torch.equal(h, halves)
    for ours, theirs in zip(whole, torch.autograd.grad((halves * towards).sum(), given), strict=True):
        assert far(ours, theirs) < 1e-6
    assert torch.equal(native_lstm(inputs, w_hh, h0, c0, starts=torch.zeros_like(starts))[0][:, :cut], first)


@pytest.mark.parametrize(("cell", "native"), [("lstm", False), ("lstm", True), ("gru", False), ("rnn", False)])
def test_rows_that_begin_again_are_read_as_texts_of_their_own(cell: str, native: bool) -> None:
    """Logits, states and gradients are those of the pieces, each read alone; torch's layers and the native one."""
    torch.manual_seed(2)
    network = CharRNN(ModelConfig(12, n_hidden=20, n_layers=2, n_embed=8, cell=cell)).train()  # type: ignore[arg-type]
    ids, config = torch.randint(12, (4, 15)), TrainConfig(reset=0.0)
    starts = torch.rand(4, 15) < 0.25
    starts[0], starts[1, 0] = False, True
    state = tuple(torch.randn(2, 4, 20) * 0.3 for _ in range(network.config.state_tensors))
    logits, after = regularized_forward(network, ids, state, config, torch.Generator(), native, starts)
    rows, states = [], []
    for row in range(4):
        now, pieces = tuple(s[:, row : row + 1] for s in state), []
        bounds = sorted({0, 15, *starts[row].nonzero().flatten().tolist()})
        for a, b in pairwise(bounds):
            now = network.zero_state(1) if bool(starts[row, a]) else now
            out, now = network(ids[row : row + 1, a:b], now)
            pieces.append(out)
        rows.append(torch.cat(pieces, dim=1))
        states.append(now)
    expected = torch.cat(rows)
    assert torch.allclose(logits, expected, atol=1e-5)
    for s, tensor in enumerate(after):
        assert torch.allclose(tensor, torch.cat([row[s] for row in states], dim=1), atol=1e-5)
    weights = list(network.parameters())
    got = torch.autograd.grad(logits.square().mean(), weights)
    for ours, theirs in zip(got, torch.autograd.grad(expected.square().mean(), weights), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_other_cells_and_types_are_not_supported() -> None:
    """They are trained with torch's layers."""
    assert supports_native_lstm(CharRNN(ModelConfig(5, n_hidden=4)))
    assert not supports_native_lstm(CharRNN(ModelConfig(5, n_hidden=4, cell="gru")))
    assert not supports_native_lstm(CharRNN(ModelConfig(5, n_hidden=4)).double())


@pytest.mark.parametrize("wrong", [-1, 7])
def test_an_id_without_a_row_is_refused(wrong: int) -> None:
    """Nothing is read outside the table."""
    with pytest.raises(IndexError, match=rf"ids: got .*{wrong}.*, expected 0 to 6"):
        native_lstm(
            torch.zeros(7, 32), torch.zeros(32, 8), torch.zeros(1, 8), torch.zeros(1, 8), torch.tensor([[0, wrong]])
        )
