"""CharRNN: embedding -> lstm | gru | rnn -> linear layer. It knows no texts, budgets, requests or regularization."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from model.config import ModelConfig

State = tuple[Tensor, ...]
"""A batch of hidden states: (h, c) for an lstm, (h,) for gru and rnn; each (L, B, H)."""


class CharRNN(nn.Module):
    """A network that reads the ids of characters and returns the logits of each next character.

    Initial values: recurrent matrices orthogonal per gate (Saxe et al., 2014), so that signals neither vanish nor
    explode at the start; the bias of the lstm's forget gate is 1 (Jozefowicz et al., 2015), so that it keeps its state
    until it has learned what to forget.

    Attributes:
        item_end: The id that ends an item of a list: before it is read, the state is set to zero, so that an item does
            not depend on those before it. None: the network is of a text, and its state is never reset.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Create the layers with initial values from torch's global generator; on the meta device without values.

        There, nothing random is drawn: for that, torch would import its compiler, which takes more than a second.
        """
        super().__init__()
        self.config = config
        self.item_end: int | None = None
        rnn_class = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[config.cell]
        embedding = torch.empty(config.vocab_size, config.n_embed)
        if not embedding.is_meta:
            nn.init.normal_(embedding)
        self.embedding = nn.Embedding.from_pretrained(embedding, freeze=False)  # type: ignore[no-untyped-call]
        self.rnn = rnn_class(config.n_embed, config.n_hidden, config.n_layers, batch_first=True)
        self.head = nn.Linear(config.n_hidden, config.vocab_size)
        if not embedding.is_meta:
            self._initialize()

    def _initialize(self) -> None:
        h = self.config.n_hidden
        for layer in range(self.config.n_layers):
            recurrent = getattr(self.rnn, f"weight_hh_l{layer}")
            for gate in range(self.config.gates):
                nn.init.orthogonal_(recurrent.data[gate * h : (gate + 1) * h])
            nn.init.zeros_(getattr(self.rnn, f"bias_hh_l{layer}").data)
            bias = getattr(self.rnn, f"bias_ih_l{layer}").data
            nn.init.zeros_(bias)
            if self.config.cell == "lstm":
                bias[h : 2 * h] = 1.0
        nn.init.zeros_(self.head.bias.data)

    def zero_state(self, batch_size: int) -> State:
        """Return the state of B texts that have not begun: S tensors (L, B, H)."""
        weight = self.head.weight
        shape = (self.config.n_layers, batch_size, self.config.n_hidden)
        return tuple(
            torch.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in range(self.config.state_tensors)
        )

    def forward(self, ids: Tensor, state: State) -> tuple[Tensor, State]:
        """Run a window of characters.

        Args:
            ids: (B, T) int64.
            state: The state before the window.

        Returns:
            The logits (B, T, V) of the character after each, and the state after the window.
        """
        if self.item_end is None:
            return self._read(ids, state)
        starts = ids == self.item_end
        cuts = [*starts.any(dim=0).nonzero().flatten().tolist(), ids.shape[1]]
        logits = []
        for first, last in pairwise(cuts if cuts[0] == 0 else [0, *cuts]):
            state = tuple(torch.where(starts[None, :, first, None], 0.0, s) for s in state)
            part, state = self._read(ids[:, first:last], state)
            logits.append(part)
        return torch.cat(logits, dim=1), state

    def _read(self, ids: Tensor, state: State) -> tuple[Tensor, State]:
        """Run a window in which no item begins."""
        x = self.embedding(ids)  # (B, T, E)
        if self.config.cell == "lstm":
            out, new_state = self.rnn(x, state)  # (B, T, H)
        else:
            out, h = self.rnn(x, state[0])
            new_state = (h,)
        return self.head(out), new_state


def detach(state: State) -> State:
    """Return the state without its gradient history; this is where backpropagation is truncated."""
    return tuple(t.detach() for t in state)
