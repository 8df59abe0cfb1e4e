"""Sampling: the parameters, declared once, and how logits and one random number become an id.

Sampling is a pure function. The random number comes in as a value, so a replay draws the same id.

The filters apply in the order of Hugging Face: temperature, top_k, top_p on what top_k left, min_p relative to the
most probable id, typical_p on what the others left. The id is the inverse of the cumulative distribution over the kept
ids, in id order.

Bias and penalties come before all of this: penalties.py.

To add a parameter, add a field to `SamplingParams`, and its line and its rule where the code is not Python: the C
header native/src/kernels/sampling.h, and cuda/src/kernels.cu with sampling.cuh. Tests compare the declarations.
Requests, turn records, sequences, blocks and the command line carry the whole object. CONTRIBUTING.md has every step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.splitmix import mix, random_bits

DEFAULT_CHARS = 200
"""Characters of a text where nobody says how many: of the API, the page and the command line."""

MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class SamplingParameter:
    """The declaration of one sampling parameter: what a request may set it to, and what it does."""

    name: str
    type: type[int] | type[float]
    default: int | float
    minimum: int | float
    maximum: int | float
    help: str
    exclusive_minimum: bool = False  # the value must be above the minimum
    allows_zero: bool = False  # 0 is allowed although it is below the minimum
    is_filter: bool = True  # whether any value but the default may remove ids from the distribution
    is_penalty: bool = False  # whether any value but the default makes what is drawn depend on the recent text

    @property
    def expected(self) -> str:
        """The accepted values in words, for error messages: "0 to 1"."""
        low = f"above {self.minimum:g}, at most" if self.exclusive_minimum else f"{self.minimum:g} to"
        return f"{'0 or ' if self.allows_zero else ''}{low} {self.maximum:g}"

    def accepts(self, value: float) -> bool:
        """Whether a request may set this value; NaN is never accepted."""
        if value == 0 and self.allows_zero:
            return True
        above = value > self.minimum if self.exclusive_minimum else value >= self.minimum
        return above and value <= self.maximum


def _parameter(default: float, minimum: float, maximum: float, help: str, **options: bool) -> Any:
    """A field of SamplingParams and its declaration."""
    limits = {"minimum": minimum, "maximum": maximum}
    return field(default=default, metadata={"default": default, **limits, "help": help, **options})


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How an id is drawn from the model's distribution. The defaults draw from it unchanged.

    Everything that needs the parameters one by one (the request schema, the command line, the array that the steppers
    read) derives them from `fields()`.
    """

    temperature: float = _parameter(
        1.0, 0.01, 100, "divides the logits; 1 keeps the model's distribution, 0 always takes the most probable "
        "character (greedy)", allows_zero=True, is_filter=False,
    )  # fmt: skip
    top_k: int = _parameter(0, 0, 65536, "sample from the k most probable characters only; 0 is off")
    top_p: float = _parameter(
        1.0, 0, 1, "sample from the smallest set of most probable characters whose probabilities add up to this much "
        "(nucleus sampling); 1 is off", exclusive_minimum=True,
    )  # fmt: skip
    min_p: float = _parameter(
        0.0, 0, 1, "drop characters that are less probable than this times the most probable one; 0 is off"
    )
    typical_p: float = _parameter(
        1.0, 0, 1, "sample from the smallest set of characters whose information content is closest to the expected "
        "one, and whose probabilities add up to this much (locally typical sampling); 1 is off", exclusive_minimum=True,
    )  # fmt: skip
    repetition_penalty: float = _parameter(
        1.0, 0, 10, "divides the logits (multiplies negative ones) of the characters in the last penalty_window "
        "characters of prompt and generated text; 1 is off", exclusive_minimum=True, is_filter=False, is_penalty=True,
    )  # fmt: skip
    frequency_penalty: float = _parameter(
        0.0, -2, 2, "subtracted from a character's logit for each time that it was generated within the last "
        "penalty_window characters; 0 is off", is_filter=False, is_penalty=True,
    )  # fmt: skip
    presence_penalty: float = _parameter(
        0.0, -2, 2, "subtracted once from the logit of a character that was generated within the last penalty_window "
        "characters; 0 is off", is_filter=False, is_penalty=True,
    )  # fmt: skip
    penalty_window: int = _parameter(
        64, 1, 1024, "how many characters before the next one the three penalties take into account", is_filter=False
    )

    @classmethod
    @lru_cache(maxsize=1)
    def fields(cls) -> tuple[SamplingParameter, ...]:
        """The declaration of every parameter, in the order of the dataclass."""
        return tuple(SamplingParameter(f.name, type(f.metadata["default"]), **f.metadata) for f in fields(cls))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SamplingParams:
        """The inverse of `as_dict`; a missing parameter has its default.

        Raises:
            TypeError: A name is no sampling parameter, so this version could not draw the same text.
            ValueError: A value is none that a request may set.
        """
        for parameter in cls.fields():
            value = values.get(parameter.name, parameter.default)
            is_number = type(value) is int or (type(value) is float and parameter.type is float)
            if not is_number or not parameter.accepts(value):
                raise ValueError(f"{parameter.name}: got {value!r}, expected {parameter.expected}")
        return cls(**values)

    @classmethod
    def from_attributes(cls, source: object) -> SamplingParams:
        """The parameters of an object that has one attribute for each: a request, parsed arguments."""
        return cls(**{f.name: getattr(source, f.name) for f in fields(cls)})

    def as_dict(self) -> dict[str, int | float]:
        """All parameters by name, for JSON."""
        return asdict(self)

    @property
    def has_penalties(self) -> bool:
        """Whether what is drawn depends on the recent text, beyond the network's state."""
        return _penalties_of(self) != _NO_PENALTIES


_FILTERS = tuple(p for p in SamplingParams.fields() if p.is_filter)
_PENALTIES = tuple(p for p in SamplingParams.fields() if p.is_penalty)
_penalties_of = attrgetter(*(p.name for p in _PENALTIES))
_NO_PENALTIES = tuple(p.default for p in _PENALTIES)
_values_of = attrgetter(*(p.name for p in SamplingParams.fields()))

SamplingBatch = NDArray[np.void]
"""(B,) of SAMPLING_DTYPE: the SamplingParams of each row of a block."""
SamplingTensors = dict[str, Tensor]
"""The same in torch: for each parameter, by name, its value in each row, (B,)."""

SAMPLING_DTYPE = np.dtype(
    [(p.name, np.int32 if p.type is int else np.float64) for p in SamplingParams.fields()], align=True
)
"""A row of a SamplingBatch: `sampling_t` in sampling.h, byte for byte."""


def as_batch(params: Iterable[SamplingParams]) -> SamplingBatch:
    """Put the parameters of each row into the array that a block carries."""
    return np.array([_values_of(p) for p in params], dtype=SAMPLING_DTYPE)


def as_tensors(batch: SamplingBatch, device: torch.device | str = "cpu") -> SamplingTensors:
    """Copy a batch to a device, one tensor (B,) per parameter."""
    names = batch.dtype.names or ()
    return {name: torch.from_numpy(np.ascontiguousarray(batch[name])).to(device) for name in names}


def has_filters(batch: SamplingBatch) -> bool:
    """Whether any row sets a parameter that may remove ids from the distribution."""
    return any(bool((batch[p.name] != p.default).any()) for p in _FILTERS)


def has_penalties(batch: SamplingBatch) -> bool:
    """Whether any row sets a parameter that makes what is drawn depend on the recent text."""
    return any(bool((batch[p.name] != p.default).any()) for p in _PENALTIES)


def random_values(seeds: Sequence[int], starts: Sequence[int], count: int) -> NDArray[np.float64]:
    """The random numbers for positions start..start+count-1 of each text.

    A counter-based generator (model.splitmix) at counter `position`, keyed by a scrambled seed, so that the numbers of
    neighbouring seeds are independent. Its top 53 bits are the number.

    Returns:
        (count, B) float64 in [0, 1).
    """
    keys = mix(np.array(seeds, dtype=np.uint64))  # (B,)
    positions = np.array(starts, dtype=np.uint64) + np.arange(1, count + 1, dtype=np.uint64)[:, None]  # (count, B)
    return (random_bits(keys, positions) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def sample(
    logits: Tensor,
    random_value: Tensor,
    params: SamplingTensors,
    *,
    score_ids: Tensor | None = None,
    filtered: bool | None = None,
    adjusted: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw one id per row.

    Computed in float64: the cumulative sum over a large vocabulary needs it, and it costs little beside the network.

    Args:
        logits: (B, V).
        random_value: (B,) in [0, 1).
        params: Each row's parameters, from `as_tensors`.
        score_ids: (B,) an id to report the log-probability of instead of the drawn one; negative: the drawn one.
        filtered: Whether any row has a filter, if the caller knows. Otherwise the tensors are read, which waits for
            a GPU. It changes no bit.
        adjusted: (B, V) the logits to draw from, after bias and penalties; None: `logits`.

    Returns:
        The ids (B,) int64, and the natural log-probabilities (B,) float64 under the unfiltered distribution of
        `logits` at temperature 1.
    """
    logits = logits.double()
    drawn_from = logits if adjusted is None else adjusted.double()
    probs = _kept(drawn_from, params, filtered)  # (B, V)
    cumulative = probs.cumsum(dim=-1)
    target = random_value.double()[:, None] * cumulative[:, -1:]
    ids = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    last_kept = probs.shape[-1] - 1 - (probs.flip(-1) > 0).to(torch.int8).argmax(dim=-1)
    ids = torch.minimum(ids, last_kept)
    ids = torch.where(params["temperature"] == 0, drawn_from.argmax(dim=-1), ids)
    scored = ids if score_ids is None else torch.where(score_ids >= 0, score_ids, ids)
    logprobs = torch.log_softmax(logits, dim=-1).gather(-1, scored[:, None]).squeeze(-1)
    return ids, logprobs


def distribution(logits: Tensor, params: SamplingTensors) -> Tensor:
    """The distribution that `sample` draws from.

    Returns:
        Probabilities (B, V) float64. Each row adds up to 1; what a filter drops is 0.
    """
    logits = logits.double()
    probs = _kept(logits, params)
    probs = probs / probs.sum(dim=-1, keepdim=True)
    greedy = torch.zeros_like(probs).scatter(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    return torch.where((params["temperature"] == 0)[:, None], greedy, probs)


def _kept(logits: Tensor, params: SamplingTensors, filtered: bool | None = None) -> Tensor:
    """Probabilities at the temperature (0 counts as 1), 0 for what a filter drops; not renormalised."""
    temperature = params["temperature"]
    probs = torch.softmax(logits / torch.where(temperature == 0, 1.0, temperature)[:, None], dim=-1)
    if filtered is None:
        filtered = any(bool((params[p.name] != p.default).any()) for p in _FILTERS)
    return _filter(probs, params) if filtered else probs


def _filter(probs: Tensor, params: SamplingTensors) -> Tensor:
    """Set what the filters drop to zero; what is kept is not renormalised."""
    top_k, top_p, min_p = (params[name][:, None] for name in ("top_k", "top_p", "min_p"))
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)  # stable: of equals the lower id comes first
    rank = torch.arange(probs.shape[-1], device=probs.device)[None, :]
    keep = (rank < top_k) | (top_k == 0)
    masked = torch.where(keep, ordered, 0.0)
    before = masked.cumsum(dim=-1) - masked
    keep &= (before < top_p * masked.sum(dim=-1, keepdim=True)) | (top_p >= 1)
    keep &= ordered >= min_p * ordered[:, :1]
    keep[:, 0] = True  # top_p = 0 keeps the most probable id
    keep &= _typical(torch.where(keep, ordered, 0.0), params["typical_p"][:, None])
    return torch.where(torch.zeros_like(keep).scatter(-1, order, keep), probs, 0.0)


def _typical(probs: Tensor, typical_p: Tensor) -> Tensor:
    """Which ids locally typical sampling keeps (Meister et al., "Locally Typical Sampling", TACL 2023, section 4).

    Ids are taken by the distance of their information content -log p from the entropy, the nearest first, until their
    probabilities add up to typical_p. The id that reaches it is kept, and so are those of its distance, as in Hugging
    Face's TypicalLogitsWarper. The probabilities need not add up to 1: their sum cancels out of the distance.

    Args:
        probs: (B, V), 0 for what other filters drop.
        typical_p: (B, 1); 1 keeps everything.

    Returns:
        (B, V), true where an id is kept.
    """
    total = probs.sum(dim=-1, keepdim=True)
    expected = torch.xlogy(probs, probs).sum(dim=-1, keepdim=True) / total
    distance = (probs.log() - expected).abs()  # infinite where the probability is 0
    nearest, order = distance.sort(dim=-1, stable=True)
    mass = probs.gather(-1, order).cumsum(dim=-1)
    last = (mass < typical_p * total).sum(dim=-1, keepdim=True).clamp(max=probs.shape[-1] - 1)
    return (distance <= nearest.gather(-1, last)) | (typical_p >= 1)
