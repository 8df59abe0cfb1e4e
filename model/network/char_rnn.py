"""CharRNN: embedding -> lstm | gru | rnn -> linear. It knows nothing of texts, budgets, requests or regularisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.config import ModelConfig

State = tuple[Tensor, ...]
"""(h, c) for an lstm, (h,) for gru and rnn; each (L, B, H)."""


class CharRNN(nn.Module):
    """Reads characters' ids and says how likely each next character is.

    Initial values: recurrent matrices orthogonal per gate (Saxe et al., 2014), so that a signal neither dies nor
    explodes at the start; the lstm's forget gate biased open by 1 (Jozefowicz et al., 2015), so that it remembers
    before it has learnt what to forget.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        kind = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[config.cell]
        self.embedding = nn.Embedding(config.vocab_size, config.n_embed)
        self.rnn = kind(config.n_embed, config.n_hidden, config.n_layers, batch_first=True)
        self.head = nn.Linear(config.n_hidden, config.vocab_size)
        self._initialise()

    def _initialise(self) -> None:
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
        """The state of B texts that have not begun: S tensors (L, B, H)."""
        weight = self.head.weight
        shape = (self.config.n_layers, batch_size, self.config.n_hidden)
        return tuple(
            torch.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in range(self.config.state_tensors)
        )

    def forward(self, ids: Tensor, state: State) -> tuple[Tensor, State]:
        """ids (B, T) int64 -> logits (B, T, V) of the character after each, and the state after the last."""
        x = self.embedding(ids)  # (B, T, E)
        if self.config.cell == "lstm":
            out, new_state = self.rnn(x, state)  # (B, T, H)
        else:
            out, h = self.rnn(x, state[0])
            new_state = (h,)
        return self.head(out), new_state


def detach(state: State) -> State:
    """The same values without their history: where truncated backpropagation cuts."""
    return tuple(t.detach() for t in state)
