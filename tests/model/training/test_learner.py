"""One step: threads and shards change nothing but the order of a sum, and only what was requested is dropped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoints.file_format import load
from model.config import BF16_ORDERS, Bf16Order, ModelConfig, TrainConfig
from model.errors import ConfigError
from model.native.library import available_instruction_sets, library_path, load_library
from model.network import native_pass
from model.network.char_rnn import CharRNN
from model.network.regularization import dropout_mask, regularized_forward
from model.text.corpus import Corpus, Streams
from model.training.distributed import Distributed
from model.training.learner import Learner, choose_precision, choose_workers
from model.training.loop import fit
from tests.model.texts import words

CONFIG = TrainConfig(steps=60, batch_size=16, seq_length=16, lr=1e-2, validations=2, workers=1)
PLAIN = replace(CONFIG, dropout=0.0, reset=0.0)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_with_nothing_dropped_it_is_the_network(cell: str) -> None:
    """Without regularization the training pass is CharRNN's own, to the bit, and so are its gradients."""
    torch.manual_seed(0)
    network = CharRNN(ModelConfig(30, n_hidden=24, n_layers=2, n_embed=8, cell=cell)).train()  # type: ignore[arg-type]
    ids = torch.randint(30, (3, 20))
    state = network.zero_state(3)
    logits, after = regularized_forward(network, ids, state, PLAIN, torch.Generator())
    expected, expected_after = network(ids, state)
    assert torch.equal(logits, expected)
    assert all(torch.equal(a, b) for a, b in zip(after, expected_after, strict=True))
    parameters = list(network.parameters())
    ours = torch.autograd.grad(logits.square().sum(), parameters)
    theirs = torch.autograd.grad(expected.square().sum(), parameters)
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", ["dropout", "embed_dropout", "weight_drop", "reset"])
def test_each_setting_changes_the_pass(name: str) -> None:
    """Every kind of regularization acts, is drawn anew each time, and is repeatable by its generator."""
    torch.manual_seed(0)
    network = CharRNN(ModelConfig(30, n_hidden=24, n_layers=1, n_embed=8)).train()
    ids, config = torch.randint(30, (4, 10)), replace(PLAIN, **{name: 0.5})  # type: ignore[arg-type]
    state = tuple(torch.randn(1, 4, 24) for _ in range(2))
    first = torch.Generator().manual_seed(1)
    a, b = (regularized_forward(network, ids, state, config, first)[0] for _ in range(2))
    again = regularized_forward(network, ids, state, config, torch.Generator().manual_seed(1))[0]
    assert not torch.equal(a, network(ids, state)[0])
    assert not torch.equal(a, b)
    assert torch.equal(a, again)


def test_a_forgotten_state_is_zero() -> None:
    """With reset at 1 what a stream remembered does not matter."""
    torch.manual_seed(0)
    network = CharRNN(ModelConfig(30, n_hidden=8, n_embed=8)).train()
    ids = torch.randint(30, (2, 5))
    state = tuple(torch.randn(1, 2, 8) for _ in range(2))
    logits, _ = regularized_forward(network, ids, state, replace(PLAIN, reset=1.0), torch.Generator())
    assert torch.equal(logits, network(ids, network.zero_state(2))[0])


@pytest.mark.parametrize("dropped", [0.1, 0.35, 0.9])
def test_a_mask_drops_its_part_and_keeps_the_mean(dropped: float) -> None:
    """Zeros with the requested probability, the rest scaled so that the mean is one."""
    drawn = dropout_mask((1000, 333), dropped, torch.Generator().manual_seed(0))
    assert float((drawn == 0).float().mean()) == pytest.approx(dropped, abs=0.004)
    assert float(drawn.mean()) == pytest.approx(1, abs=0.02)
    assert len(set(drawn.flatten().tolist())) == 2


def test_two_workers_learn_what_one_does(tmp_path: Path) -> None:
    """With nothing dropped, two threads with half the rows each come to the same weights, but for rounding."""
    corpus = Corpus.from_text(words(4000), CONFIG)
    model = ModelConfig(len(corpus.vocab), n_hidden=16, n_embed=8)
    config = replace(PLAIN, steps=12, precision="fp32")
    one, two = (load(fit(corpus, model, replace(config, workers=n), tmp_path / str(n))).weights for n in (1, 2))
    for name in one:
        assert torch.allclose(one[name], two[name], atol=1e-4), name


def test_two_workers_are_repeatable(tmp_path: Path) -> None:
    """Threads draw from generators of their own: bitwise the same model each time."""
    corpus = Corpus.from_text(words(4000), CONFIG)
    model = ModelConfig(len(corpus.vocab), n_hidden=16, n_embed=8)
    config = replace(CONFIG, workers=2, dropout=0.3, weight_drop=0.3)
    assert len({load(fit(corpus, model, config, tmp_path / str(i))).fingerprint for i in range(3)}) == 1


@pytest.mark.usefixtures("native_code")
def test_bf16_on_a_cpu_learns_as_fp32_does_and_continues_to_the_bit() -> None:
    """The native code runs; losses stay near those of fp32; from a state, the steps are those of the first run."""
    corpus = Corpus.from_text(words(4000), CONFIG)
    model = ModelConfig(len(corpus.vocab), n_hidden=48, n_layers=2, n_embed=8)
    config = replace(CONFIG, batch_size=16, seq_length=16, dropout=0.2, weight_drop=0.2, precision="bf16")
    streams = Streams(corpus.train, 16, 16)

    def learner(config: TrainConfig) -> Learner:
        return Learner(model, config, "cpu", Distributed(), 2)

    whole, fp32 = learner(config), learner(replace(config, precision="fp32"))
    assert whole.native
    states, losses = [], []
    for _ in range(60):
        losses.append((float(whole.step(streams, 5e-3)), float(fp32.step(streams, 5e-3))))
        states.append({name: tensor.clone() for name, tensor in whole.state_tensors().items()})
    assert losses[-1][0] < 0.8 * losses[0][0]
    assert losses[-1][0] == pytest.approx(losses[-1][1], abs=0.02)
    assert losses[5][0] != losses[5][1]
    second = learner(config)
    second.load_state_tensors(states[29], 30)
    for _ in range(30):
        second.step(streams, 5e-3)
    resumed = second.state_tensors()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in states[-1].items())


@pytest.mark.usefixtures("native_code")
@pytest.mark.parametrize("order", [None, *BF16_ORDERS])
def test_steps_have_the_same_bits_by_any_instruction_set(
    order: Bf16Order | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the same weights; so a run may be resumed on another CPU. The precisions, and the two orders, differ."""
    corpus = Corpus.from_text(words(4000), CONFIG)
    model = ModelConfig(len(corpus.vocab), n_hidden=80, n_embed=8)
    config = replace(CONFIG, batch_size=4, seq_length=16, dropout=0.2)
    library = load_library(library_path())

    def weights(instruction_set: str, order: Bf16Order | None) -> list[Tensor]:
        monkeypatch.setattr(native_pass, "native_library", lambda: (library, instruction_set.encode()))
        made = replace(config, precision="bf16" if order else "fp32")
        learner = Learner(model, made, "cpu", Distributed(), 1, bf16_order=order)
        assert learner.native
        assert learner.bf16_order == order
        for _ in range(5):
            learner.step(Streams(corpus.train, 4, 16), 5e-3)
        return [p.detach() for p in learner.network.parameters()]

    sets = available_instruction_sets(library)
    expected = weights("plain", order)
    for instruction_set in sets:
        assert all(map(torch.equal, weights(instruction_set, order), expected)), instruction_set
    for other in (None, *BF16_ORDERS):
        assert (other == order) == all(map(torch.equal, weights("plain", other), expected))


def test_auto_is_bf16_where_native_code_is_faster_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other cells and GPUs have float32 unless somebody names another; a precision that is named stays."""
    lstm, gru = ModelConfig(5), ModelConfig(5, cell="gru")
    for is_fast in (True, False):
        monkeypatch.setattr("model.training.learner.has_fast_bf16", lambda is_fast=is_fast: is_fast)
        assert choose_precision(TrainConfig(), lstm, "cpu") == ("bf16" if is_fast else "fp32")
        assert choose_precision(TrainConfig(), gru, "cpu") == "fp32"
        assert choose_precision(TrainConfig(), lstm, "cuda") == "fp32"
        for named in ("fp32", "bf16", "fp16"):
            assert choose_precision(TrainConfig(precision=named), lstm, "cpu") == named


def test_workers_fit_the_cores_and_the_batch(two_threads: None) -> None:
    """As many as there are cores, but none with less than eight rows, and all with as many."""
    config = TrainConfig()
    assert choose_workers(config, "cpu", 1) == 2
    assert choose_workers(replace(config, batch_size=8), "cpu", 1) == 1
    assert choose_workers(replace(config, batch_size=17), "cpu", 1) == 1
    assert choose_workers(config, "cuda", 1) == 1
    with pytest.raises(ConfigError, match="workers: got 3, expected a divisor of the 16 rows"):
        choose_workers(replace(config, workers=3), "cpu", 1)
    with pytest.raises(ConfigError, match="batch_size: got 16, expected a multiple of the 3 processes"):
        choose_workers(config, "cpu", 3)


@pytest.mark.usefixtures("native_code")
def test_gradients_are_tensors_of_their_own() -> None:
    """What follows a pass adds and cuts gradients in place: none may lie in another's memory."""
    corpus = Corpus.from_text(words(4000), TrainConfig())
    config = TrainConfig(batch_size=4, seq_length=8)
    learner = Learner(ModelConfig(len(corpus.vocab), n_hidden=16, n_embed=8), config, "cpu", Distributed(), 1)
    assert learner.native
    gradients, _, _ = learner._shard_gradients(0, *Streams(corpus.train, 4, 8).window(0, slice(0, 4)))
    assert len({g.data_ptr() for g in gradients}) == len(gradients)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: none here")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_graph_learns_on_a_gpu(tmp_path: Path, precision: str) -> None:
    """The captured step learns as the plain one does, in every precision."""
    corpus = Corpus.from_text(words(8000), CONFIG)
    model = ModelConfig(len(corpus.vocab), n_hidden=128, n_embed=16)
    config = replace(CONFIG, steps=200, precision=precision)  # type: ignore[arg-type]
    on_gpu = load(fit(corpus, model, config, tmp_path / "gpu", device="cuda")).val_loss
    on_cpu = load(fit(corpus, model, replace(config, precision="fp32"), tmp_path / "cpu")).val_loss
    assert on_gpu == pytest.approx(on_cpu, abs=0.05)
