"""The declaration of the sampling parameters, random numbers as values, and what the filters keep."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.network.sampling import MAX_SEED, SamplingParams, as_batch, as_tensors, random_values, sample


def draw(
    logits: list[float], u: float, t: float = 1.0, k: int = 0, p: float = 1.0, m: float = 0.0, typical: float = 1.0
) -> tuple[int, float]:
    params = as_tensors(as_batch([SamplingParams(t, k, p, m, typical)]))
    ids, logprobs = sample(torch.tensor([logits]), torch.tensor([u], dtype=torch.float64), params)
    return int(ids), float(logprobs)


@given(seed=st.integers(0, MAX_SEED), start=st.integers(0, 10**9), count=st.integers(1, 50), cut=st.integers(0, 50))
def test_a_random_number_is_a_function_of_seed_and_position(seed: int, start: int, count: int, cut: int) -> None:
    """However positions are grouped, each has its number, in [0, 1)."""
    whole = random_values([seed, 5], [start, 9], count)
    cut = min(cut, count)
    parts = np.concatenate([random_values([seed], [start], cut), random_values([seed], [start + cut], count - cut)])
    assert np.array_equal(whole[:, 0], parts[:, 0])
    assert whole.shape == (count, 2)
    assert ((whole >= 0) & (whole < 1)).all()


def test_the_numbers_are_uniform_and_seeds_share_nothing() -> None:
    """Mean, variance and correlation of 10^5 numbers, of one seed and between neighbouring seeds and positions."""
    n = 100_000
    numbers = random_values([0, 1, 2, 2**62], [0, 0, 0, 0], n)
    assert np.abs(numbers.mean(0) - 0.5).max() < 5 * (1 / 12 / n) ** 0.5
    assert np.abs(numbers.var(0) - 1 / 12).max() < 0.002
    assert np.abs(np.corrcoef(numbers.T) - np.eye(4)).max() < 5 / n**0.5
    assert abs(np.corrcoef(numbers[1:, 0], numbers[:-1, 0])[0, 1]) < 5 / n**0.5


@given(
    logits=st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=30),
    u=st.floats(0, 1, exclude_max=True),
    t=st.sampled_from([0.0, 0.3, 1.0, 3.0]),
    k=st.integers(0, 32),
    p=st.floats(0.01, 1),
    m=st.floats(0, 1),
    typical=st.just(1.0) | st.floats(0.01, 1),
)
@settings(max_examples=300)
def test_what_is_drawn_is_what_the_definition_says(
    logits: list[float], u: float, t: float, k: int, p: float, m: float, typical: float
) -> None:
    """Against a plain reading of the definition: filters in order, then the inverse distribution in id order."""
    x = np.array(logits, dtype=np.float64)
    logp = x - x.max() - np.log(np.exp(x - x.max()).sum())
    drawn, logprob = draw(logits, u, t, k, p, m, typical)
    assert abs(logprob - logp[drawn]) < 1e-9
    if t == 0:
        assert drawn == int(x.argmax())
        return
    probs = np.exp((x - x.max()) / t)
    probs /= probs.sum()
    order = sorted(range(len(x)), key=lambda i: (-probs[i], i))
    kept = order[:k] if k else order
    nucleus: list[int] = []
    total, mass = sum(probs[i] for i in kept), 0.0
    for i in kept:
        if p < 1 and nucleus and mass >= p * total - 1e-12:
            break
        nucleus.append(i)
        mass += probs[i]
    kept = [i for i in nucleus if probs[i] >= m * probs[order[0]] - 1e-12]
    margin = abs(mass - p * total)
    if typical < 1:
        kept, typical_margin = typical_ids(probs, kept, typical)
        margin = min(margin, typical_margin)
    assert drawn in kept or margin <= 1e-9
    # Where the number is not on an edge of two ids, it picks exactly one.
    edges = np.cumsum([probs[i] if i in kept else 0 for i in range(len(x))])
    edges /= edges[-1]
    if np.abs(edges - u).min() > 1e-9 and margin > 1e-9:
        assert drawn == int(np.searchsorted(edges, u, side="right"))


def typical_ids(probs: np.ndarray, kept: list[int], typical: float) -> tuple[list[int], float]:
    """Locally typical sampling by its definition, and how near its decisions were to others."""
    q = probs[kept] / probs[kept].sum()
    kept, q = [i for i, share in zip(kept, q, strict=True) if share > 0], q[q > 0]
    distance = np.abs(-np.log(q) + (q * np.log(q)).sum())
    nearest = np.argsort(distance, kind="stable")
    mass = np.cumsum(q[nearest])
    last = min(int((mass < typical).sum()), len(q) - 1)
    others = np.abs(distance - distance[nearest[last]])
    others = others[others > 0]
    margin = min(np.abs(mass - typical).min(), others.min(initial=1))
    return [i for i, d in zip(kept, distance, strict=True) if d <= distance[nearest[last]]], float(margin)


def test_typical_sampling_drops_what_is_too_probable() -> None:
    """The most probable id may be the one whose information content is farthest from the entropy."""
    q = [0.4] + [0.6 / 64] * 64
    logits = np.log(q).tolist()
    drawn = {draw(logits, u, typical=0.3)[0] for u in np.linspace(0, 0.999, 200)}
    assert 0 not in drawn, "the most probable id is 1.3 bits, the entropy is 4.6 bits, the others are 6.7 bits"
    assert 0 in {draw(logits, u, typical=0.9)[0] for u in np.linspace(0, 0.999, 200)}
    assert len(drawn) == 64, "ids of equal distance are kept together"


def test_frequencies_follow_the_distribution() -> None:
    """40,000 draws: each id as often as its probability says, within five standard errors."""
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    n = 40_000
    numbers = torch.from_numpy(random_values([3], [0], n)[:, 0])
    ids, _ = sample(logits.expand(n, -1), numbers, as_tensors(as_batch([SamplingParams()] * n)))
    expected = torch.softmax(logits[0], 0)
    frequency = torch.bincount(ids, minlength=4) / n
    assert ((frequency - expected).abs() < 5 * (expected * (1 - expected) / n).sqrt()).all()


@pytest.mark.parametrize(
    ("name", "accepted", "refused"),
    [
        ("temperature", [0, 0.01, 1.0, 100], [-1, 0.005, 101, float("nan")]),
        ("top_k", [0, 1, 65536], [-1, 65537]),
        ("top_p", [1e-9, 1], [0, -0.1, 1.1, float("nan")]),
        ("min_p", [0, 1], [-0.1, 1.1]),
        ("typical_p", [1e-9, 1], [0, -0.1, 1.1, float("nan")]),
    ],
)
def test_a_declaration_says_which_values_a_request_may_set(
    name: str, accepted: list[float], refused: list[float]
) -> None:
    """Both bounds, and the exceptions: temperature 0 is allowed, top_p 0 is not."""
    (parameter,) = [p for p in SamplingParams.fields() if p.name == name]
    assert [v for v in accepted + refused if parameter.accepts(v)] == accepted


def test_parameters_are_stored_by_name() -> None:
    """as_dict is read back; what is missing has its default; a parameter of another version is refused."""
    params = SamplingParams(0.7, 5, 0.9, 0.05, 0.6)
    assert SamplingParams.from_dict(params.as_dict()) == params
    assert SamplingParams.from_attributes(params) == params
    assert SamplingParams.from_dict({"top_k": 3}) == SamplingParams(top_k=3)
    with pytest.raises(TypeError):
        SamplingParams.from_dict({"top_q": 0.5})
