"""Settings of a network and of its training, each with its range and its reason, and the presets.

Both are frozen dataclasses. The range and the reason are metadata of the field: the check, the command line's help and
the reference of settings are all made from them. Standard dataclasses, not pydantic: the check is one short function,
and model/ needs no further library for it.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal, Self, cast, get_args

from model.errors import ConfigError

Cell = Literal["lstm", "gru", "rnn"]
Schedule = Literal["cosine", "linear", "constant"]
TrainPrecision = Literal["auto", "fp32", "bf16", "fp16"]
Bf16Order = Literal["pairs", "tiles"]
WeightPrecision = Literal["fp32", "int8"]
PrecisionChoice = Literal["auto", "fp32", "int8"]
Device = Literal["auto", "cpu", "cuda"]
EvaluationProtocol = Literal["windowed", "stateful", "dynamic", "items"]

BF16_ORDERS: tuple[Bf16Order, ...] = get_args(Bf16Order)
"""The orders in which native training adds up products of bfloat16: that of the instruction vdpbf16ps, and that
of AMX's tiles. Each gives the same bits on every CPU, and is fast where the CPU has the instruction."""

WEIGHT_PRECISIONS: tuple[WeightPrecision, ...] = get_args(WeightPrecision)
"""Precisions of the weights in the native CPU stepper."""

PRECISION_CHOICES: tuple[PrecisionChoice, ...] = get_args(PrecisionChoice)
"""Precisions that a setting can name; auto is int8 where the checkpoint says that it costs next to nothing."""

MAX_INT8_COST = 0.001
"""The most that int8 may add to the loss, nats per character, for auto to choose it."""

DEVICES: tuple[Device, ...] = get_args(Device)
"""Devices that a setting can name; auto is a GPU where there is one."""

PROTOCOLS: tuple[EvaluationProtocol, ...] = ("windowed", "stateful", "dynamic")
"""Evaluation protocols of texts, see model.evaluation.protocols. Lists have one, "items"."""

_PROTOCOL_LETTERS = dict(zip("abc", PROTOCOLS, strict=True))


def _number(default: Any, help: str, *, minimum: float, maximum: float, exclusive_minimum: bool = False) -> Any:
    """Declare a numeric setting; with `exclusive_minimum` the minimum itself is not allowed."""
    metadata = {"help": help, "minimum": minimum, "maximum": maximum, "exclusive_minimum": exclusive_minimum}
    return field(default=default, metadata=metadata)


def _choice(help: str, choices: object) -> dict[str, Any]:
    """Return the metadata of a setting that takes one of the words of a Literal."""
    return {"help": help, "choices": get_args(choices)}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a CharRNN."""

    vocab_size: int = field(
        metadata={"help": "distinct characters", "minimum": 2, "maximum": 65536, "exclusive_minimum": False}
    )
    n_hidden: int = _number(
        256, "hidden units per layer; a step costs 8 * n_hidden^2 multiply-adds per layer", minimum=1, maximum=8192
    )
    n_layers: int = _number(1, "stacked layers; more layers need more text and more time", minimum=1, maximum=8)
    n_embed: int = _number(
        64, "size of a character's embedding; costs nothing when generating: it is folded into the first layer",
        minimum=1, maximum=4096,
    )  # fmt: skip
    cell: Cell = field(
        default="lstm", metadata=_choice("recurrent cell; gru is smaller than lstm, rnn is for comparison", Cell)
    )

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: A field has a wrong type or is out of range.
        """
        validate(self)

    @property
    def state_tensors(self) -> int:
        """S, the tensors of a hidden state: 2 for an lstm (h and c), 1 for gru and rnn."""
        return 2 if self.cell == "lstm" else 1

    @property
    def gates(self) -> int:
        """The gates of a cell: 4 for an lstm (i, f, g, o), 3 for a gru (r, z, n), 1 for an rnn."""
        return {"lstm": 4, "gru": 3, "rnn": 1}[self.cell]

    @property
    def n_parameters(self) -> int:
        """The number of trained parameters."""
        inputs = [self.n_embed] + [self.n_hidden] * (self.n_layers - 1)
        layers = sum(self.gates * self.n_hidden * (n + self.n_hidden + 2) for n in inputs)
        return self.vocab_size * self.n_embed + layers + self.vocab_size * (self.n_hidden + 1)


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How a CharRNN is trained: stateful truncated backpropagation through time, with a budget."""

    batch_size: int = _number(
        16, "B, streams per batch; small batches learn more per character", minimum=1, maximum=4096
    )
    seq_length: int = _number(
        64, "T, characters per window: gradients reach back this far; short windows learn more in a short run",
        minimum=1, maximum=65536,
    )  # fmt: skip
    lr: float = _number(
        4e-3, "peak learning rate of AdamW; the schedule ends at zero", minimum=0, maximum=1, exclusive_minimum=True
    )
    schedule: Schedule = field(
        default="cosine", metadata=_choice("how the learning rate decreases after the warmup", Schedule)
    )
    warmup: float = _number(
        0.02, "part of the budget in which the learning rate rises linearly to lr", minimum=0, maximum=0.5
    )
    dropout: float = _number(
        0.0, "dropout between layers and before the output; unless set, it grows with the epochs",
        minimum=0, maximum=0.95,
    )  # fmt: skip
    embed_dropout: float = _number(
        0.0, "dropout of the embedding, with one mask for all characters of a window", minimum=0, maximum=0.95
    )
    weight_drop: float = _number(
        0.0,
        "dropout of the recurrent weights in each step (DropConnect); unless set, it grows with the epochs",
        minimum=0, maximum=0.95,
    )  # fmt: skip
    reset: float = _number(
        0.02, "probability that a stream's state is reset before a window, to learn to start from the zero state",
        minimum=0, maximum=1,
    )  # fmt: skip
    clip: float = _number(1.0, "maximum norm of the gradient", minimum=0, maximum=1e6, exclusive_minimum=True)
    weight_decay: float = _number(0.01, "weight decay of AdamW, on matrices only", minimum=0, maximum=1)
    ema: float = _number(
        0.998, "decay of the exponential moving average of the weights, which is what is saved; 0: off",
        minimum=0, maximum=1,
    )  # fmt: skip
    val_fraction: float = _number(
        0.1, "part of the text for validation", minimum=0, maximum=0.5, exclusive_minimum=True
    )
    test_fraction: float = _number(
        0.0, "part of the text, at its end, for one test after the run; 0: none", minimum=0, maximum=0.4
    )
    minutes: float = _number(
        1.0, "budget in minutes; the schedule is sized to end with it", minimum=0, maximum=1e5, exclusive_minimum=True
    )
    epochs: float = _number(0.0, "budget in epochs, instead of minutes; 0: use minutes", minimum=0, maximum=1e5)
    steps: int = _number(0, "budget in steps, instead of epochs or minutes; 0: use those", minimum=0, maximum=10**9)
    validations: int = _number(
        12, "validations during the run; the weights of the best one are saved", minimum=1, maximum=10000
    )
    patience: int = _number(
        0, "early stopping: end after this many validations without a new best; 0: never", minimum=0, maximum=10000
    )
    workers: int = _number(
        0, "threads that share a batch on a CPU; 0: chosen by the number of cores", minimum=0, maximum=256
    )
    precision: TrainPrecision = field(
        default="auto",
        metadata=_choice(
            "of matrix products, weights stay fp32; auto: bf16 on a CPU that multiplies it faster (AMX, AVX512_BF16)",
            TrainPrecision,
        ),
    )
    max_vocab: int = _number(
        4096, "refuse a text with more distinct characters: it is probably not the intended file",
        minimum=2, maximum=65536,
    )  # fmt: skip
    seed: int = _number(1, "random seed of the initial weights and of all dropout", minimum=0, maximum=2**63 - 1)

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: A field has a wrong type or is out of range.
        """
        validate(self)

    def as_dict(self) -> dict[str, Any]:
        """Return all settings by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Create a configuration from settings by name; those that are missing have their defaults.

        Raises:
            ConfigError: A name is not a setting, or a value has a wrong type or is out of range.
        """
        known = {f.name for f in fields(cls)}
        for name, value in values.items():
            if name not in known:
                expected = f"one of {', '.join(sorted(known))}"
                raise ConfigError("not a training setting", field=name, value=value, expected=expected)
        return cls(**values)


def protocol_name(name: str) -> EvaluationProtocol:
    """Return the evaluation protocol of a name, or of a letter: old checkpoints and figures say a, b and c.

    Raises:
        ConfigError: There is no such protocol.
    """
    name = _PROTOCOL_LETTERS.get(name, name)
    for protocol in get_args(EvaluationProtocol):
        if name == protocol:
            return cast(EvaluationProtocol, protocol)
    raise ConfigError(field="protocol", value=name, expected=f"one of {', '.join(PROTOCOLS)}, or its letter a, b, c")


def validate(config: ModelConfig | TrainConfig) -> None:
    """Check the type and range of every field.

    Raises:
        ConfigError: The first field that is wrong.
    """
    for f in fields(config):
        check_value(f, getattr(config, f.name))


def check_value(f: Field[Any], value: object) -> None:
    """Check the type and range of a value for one field of a configuration.

    Raises:
        ConfigError: It is not accepted.
    """
    if "choices" in f.metadata:
        if value not in f.metadata["choices"]:
            raise ConfigError(field=f.name, value=value, expected=f"one of {', '.join(f.metadata['choices'])}")
        return
    is_integer = f.type == "int"
    minimum, maximum, exclusive = (f.metadata[k] for k in ("minimum", "maximum", "exclusive_minimum"))
    is_number = isinstance(value, int if is_integer else int | float) and not isinstance(value, bool)
    # Compared, never converted: an integer may be too large for a float. NaN is in no range.
    if not (isinstance(value, int | float) and is_number and minimum <= value <= maximum) or (
        exclusive and value == minimum
    ):
        kind = "a whole number" if is_integer else "a number"
        low = f"above {minimum:g}, at most" if exclusive else f"from {minimum:g} to"
        raise ConfigError(field=f.name, value=value, expected=f"{kind} {low} {maximum:g}")


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"n_hidden": 320, "n_embed": 64, "seq_length": 32, "lr": 5e-3, "dropout": 0.25, "minutes": 3.0},
    "standard": {"n_hidden": 512, "n_layers": 2, "batch_size": 32, "lr": 2e-3, "dropout": 0.35, "minutes": 20.0},
    "best": {"n_hidden": 448, "n_embed": 128, "dropout": 0.35, "weight_drop": 0.15, "minutes": 15.0},
}
"""Named starting points; a setting given beside the name overrides the preset's.

quick: a model within minutes. standard: 2 x 512, a common size. best: the lowest loss known to us in 15 minutes on
two cores; docs/decisions says what each of its settings contributes.
"""
