"""Every knob of a network and of its training, each with its reason, and the presets.

Two frozen dataclasses; derived values are properties. `validate` names the field, the value and what was expected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self, get_args

from model.errors import ConfigError

Cell = Literal["lstm", "gru", "rnn"]
Schedule = Literal["cosine", "linear", "constant"]
Precision = Literal["fp32", "bf16", "fp16"]


def _knob(default: Any, reason: str, *, low: float, high: float, above: bool = False) -> Any:
    """A numeric field with its range; `above` makes the low end exclusive."""
    return field(default=default, metadata={"help": reason, "low": low, "high": high, "above": above})


def _words(reason: str, choices: object) -> dict[str, Any]:
    """The metadata of a field that takes one of a Literal's words."""
    return {"help": reason, "choices": get_args(choices)}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a CharRNN."""

    vocab_size: int = field(metadata={"help": "distinct characters", "low": 2, "high": 65536, "above": False})
    n_hidden: int = _knob(256, "hidden units of a layer; a step costs 8 * n_hidden^2 multiply-adds", low=1, high=8192)
    n_layers: int = _knob(1, "stacked layers; more need more text and more time", low=1, high=8)
    n_embed: int = _knob(64, "size of a character's vector; free when sampling: it is folded away", low=1, high=4096)
    cell: Cell = field(default="lstm", metadata=_words("lstm forgets by choice; gru is smaller; rnn shows why", Cell))

    def __post_init__(self) -> None:
        validate(self)

    @property
    def state_tensors(self) -> int:
        """S: 2 for an lstm (h and c), 1 for gru and rnn."""
        return 2 if self.cell == "lstm" else 1

    @property
    def gates(self) -> int:
        """Rows of H in each weight matrix: 4 for an lstm (i, f, g, o), 3 for a gru (r, z, n), 1 for an rnn."""
        return {"lstm": 4, "gru": 3, "rnn": 1}[self.cell]

    @property
    def n_parameters(self) -> int:
        """Trained numbers."""
        inputs = [self.n_embed] + [self.n_hidden] * (self.n_layers - 1)
        layers = sum(self.gates * self.n_hidden * (n + self.n_hidden + 2) for n in inputs)
        return self.vocab_size * self.n_embed + layers + self.vocab_size * (self.n_hidden + 1)


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How a CharRNN learns: stateful truncated backpropagation with a budget that ends."""

    batch_size: int = _knob(16, "B, streams side by side; small ones learn more per character", low=1, high=4096)
    seq_length: int = _knob(
        64,
        "T, characters of a window: how far a gradient goes back; short ones learn more in a short run",
        low=1,
        high=65536,
    )
    lr: float = _knob(4e-3, "the largest rate of Adam; it ends at zero", low=0, high=1, above=True)
    schedule: Schedule = field(
        default="cosine", metadata=_words("how the rate falls; most of a run's gain comes while it does", Schedule)
    )
    warmup: float = _knob(0.02, "part of the budget in which the rate rises to lr", low=0, high=0.5)
    dropout: float = _knob(
        0.0, "part of the activations dropped between layers and before the output", low=0, high=0.95
    )
    embed_dropout: float = _knob(
        0.0, "part of a character's vector dropped, the same all through a window", low=0, high=0.95
    )
    weight_drop: float = _knob(
        0.0, "part of the recurrent weights dropped in each step (DropConnect): for many passes", low=0, high=0.95
    )
    reset: float = _knob(
        0.02, "chance that a stream forgets its state before a window: learns to begin from nothing", low=0, high=1
    )
    clip: float = _knob(
        1.0, "the gradient's norm is cut to this: one bad window cannot wreck a run", low=0, high=1e6, above=True
    )
    weight_decay: float = _knob(0.01, "AdamW's pull towards zero, on matrices only", low=0, high=1)
    ema: float = _knob(0.998, "decay of the running mean of the weights, which is what is kept; 0: none", low=0, high=1)
    val_fraction: float = _knob(0.1, "part of the text kept for validation", low=0, high=0.5, above=True)
    test_fraction: float = _knob(0.0, "the very end, looked at once, after the run; 0: none", low=0, high=0.4)
    minutes: float = _knob(1.0, "the budget: the schedule is sized to end with it", low=0, high=1e5, above=True)
    epochs: float = _knob(0.0, "a budget in passes over the text instead; 0 uses minutes", low=0, high=1e5)
    steps: int = _knob(0, "a budget in steps instead of minutes or epochs; 0 uses those", low=0, high=10**9)
    validations: int = _knob(12, "looks at the validation part during the run; the best is kept", low=1, high=10000)
    patience: int = _knob(0, "looks without a new best after which the run ends; 0: never", low=0, high=10000)
    workers: int = _knob(0, "threads that share a batch, on a CPU; 0: as fits the cores", low=0, high=256)
    precision: Precision = field(
        default="fp32", metadata=_words("of the products on a GPU; the weights stay fp32", Precision)
    )
    max_vocab: int = _knob(
        4096, "more distinct characters than this is refused: probably not the text you meant", low=2, high=65536
    )
    seed: int = _knob(1, "of the initial weights and of all that is dropped", low=0, high=2**63 - 1)

    def __post_init__(self) -> None:
        validate(self)

    def as_dict(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Raised: ConfigError for a name that is not a setting."""
        known = {f.name for f in fields(cls)}
        for name in values:
            if name not in known:
                raise ConfigError(f"{name}: not a training setting; known: {', '.join(sorted(known))}")
        return cls(**values)


def validate(config: ModelConfig | TrainConfig) -> None:
    """Raised: ConfigError for the first field whose type or range is wrong."""
    for f in fields(config):
        value = getattr(config, f.name)
        if "choices" in f.metadata:
            if value not in f.metadata["choices"]:
                raise ConfigError(f"{f.name}: got {value!r}, expected one of {', '.join(f.metadata['choices'])}")
            continue
        whole = f.type == "int"
        low, high, above = f.metadata["low"], f.metadata["high"], f.metadata["above"]
        right_type = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not right_type or not math.isfinite(value) or not low <= value <= high or (above and value == low):
            kind = "a whole number" if whole else "a number"
            raise ConfigError(
                f"{f.name}: got {value!r}, expected {kind} {'above' if above else 'from'} {low:g} to {high:g}"
            )


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"n_hidden": 320, "n_embed": 64, "seq_length": 24, "lr": 5e-3, "dropout": 0.15, "minutes": 1.0},
    "standard": {"n_hidden": 512, "n_layers": 2, "batch_size": 32, "lr": 2e-3, "dropout": 0.35, "minutes": 20.0},
    "best": {"n_hidden": 448, "n_embed": 128, "dropout": 0.35, "weight_drop": 0.15, "minutes": 15.0},
}
"""Named starting points; any setting given beside one overrides it.

quick: a model while you wait. standard: the course's 2 x 512. best: the lowest loss in a quarter of an hour on two
cores that we know of; docs/decisions.md says what each of its settings bought.
"""
