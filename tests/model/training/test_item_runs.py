"""Training on lists: what a run of items promises, from its first step to its checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoints.file_format import load, read_info
from model.config import Cell, ModelConfig, TrainConfig
from model.errors import CheckpointError
from model.evaluation import item_losses as item_losses_module
from model.evaluation.item_losses import item_losses
from model.evaluation.protocols import loss
from model.text.corpus import Corpus
from model.text.items.layout import ItemLayout
from model.text.items.record import ItemRecord
from model.text.memory_map import read_corpora
from model.training.loop import fit
from model.training.run_folder import Progress, RunFolder

CONFIG = TrainConfig(
    steps=120, batch_size=8, seq_length=16, lr=1e-2, validations=6, seed=3, dropout=0.2, weight_drop=0.2
)
ITEMS = [f"{'tea' if n % 3 else 'coffee'}-{n * 7919 % 400:03d}" for n in range(400)]


def corpus_of(items: list[str], folder: Path, layout: ItemLayout | None = None) -> Corpus:
    """A list of these items."""
    path = folder / "list.txt"
    path.write_text("\n".join(items))
    layout = layout or ItemLayout("lines")
    return read_corpora([path], lambda _sizes, _n: CONFIG, folder / "cache", layout=layout)


def model(corpus: Corpus, cell: Cell = "lstm") -> ModelConfig:
    return ModelConfig(len(corpus.vocab), n_hidden=16, n_layers=2, n_embed=8, cell=cell)


class Killed(BaseException):
    """Leaves fit as a kill does."""


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over several epochs, in C and with torch's layers: every loss and the weights are those of the whole run."""
    monkeypatch.setattr("model.training.checkpointer.RESUME_STATE_INTERVAL_S", 0.0)
    monkeypatch.setattr("model.training.loop._REPORT_STEPS", 5)
    corpus = corpus_of(ITEMS, tmp_path)
    assert CONFIG.steps > 2 * corpus.streams(CONFIG).epoch_steps  # type: ignore[union-attr]
    whole = fit(corpus, model(corpus, cell), CONFIG, tmp_path / "whole", run=tmp_path / "whole" / "run")
    stops, resume = [9, 33, 61, 100], False

    def interrupt(progress: Progress) -> None:
        if stops and progress.step >= stops[0]:
            stops.pop(0)
            raise Killed

    folder = tmp_path / "killed"
    while True:
        try:
            path = fit(
                corpus, model(corpus, cell), CONFIG, folder, run=folder / "run", resume=resume, on_progress=interrupt
            )
            break
        except Killed:
            resume = True
    assert not stops
    assert load(path).fingerprint == load(whole).fingerprint

    def losses(run: Path) -> list[object]:
        return [(m["step"], m["val_loss"], m["val_loss_per_item"]) for m in RunFolder(run).metrics() if m["val_loss"]]

    assert losses(folder / "run") == losses(tmp_path / "whole" / "run")
    assert len(losses(folder / "run")) == CONFIG.validations


def test_a_sorted_list_trains_the_same_model(tmp_path: Path) -> None:
    """To the bit: the order of the file is nowhere in a run."""
    made = []
    for name, items in (("given", ITEMS), ("sorted", sorted(ITEMS))):
        (tmp_path / name).mkdir()
        corpus = corpus_of(items, tmp_path / name)
        made.append(load(fit(corpus, model(corpus), replace(CONFIG, steps=30), tmp_path / name)))
    assert made[0].fingerprint == made[1].fingerprint
    assert made[0].val_loss == made[1].val_loss


def test_what_a_checkpoint_knows_of_its_list(tmp_path: Path) -> None:
    """Its protocol, both losses, which items it was trained on, and the statistics of the validation items."""
    corpus = corpus_of(ITEMS, tmp_path)
    path = fit(corpus, model(corpus), CONFIG, tmp_path)
    checkpoint, displayed = load(path), read_info(path).as_dict()
    items = checkpoint.items
    assert items is not None
    assert checkpoint.val_protocol == displayed["val_protocol"] == "items"
    assert displayed["items"]["layout"] == {"items": "lines"}
    assert items.n_train + items.n_val == len(ITEMS)
    measured = item_losses(checkpoint.network(), corpus.val, corpus.vocab.start)
    assert checkpoint.val_loss == pytest.approx(measured.per_character)
    assert items.val_loss_per_item == pytest.approx(measured.per_item)
    assert checkpoint.val_characters == len(corpus.val)
    assert np.allclose(items.validation, measured.statistics(), atol=1e-4)
    val = corpus.vocab.decode(corpus.val).split("\n")[1:]
    is_trained, is_listed = items.known([*ITEMS, "tea-999"])
    assert is_trained.tolist() == [*(item not in val for item in ITEMS), False]
    assert is_listed.tolist() == [True] * len(ITEMS) + [False]
    median = float(np.median(items.validation[:, 0]))
    assert items.ranks(np.array([0.0, median, 1e9]), "bits").tolist() == [0.0, pytest.approx(50, abs=3), 100.0]
    again = load(checkpoint.save(tmp_path / "again"))
    assert again.fingerprint == checkpoint.fingerprint
    assert again.items is not None
    assert np.array_equal(again.items.train_hashes, items.train_hashes)
    assert np.array_equal(again.items.held_out_hashes, items.held_out_hashes)
    arrays = {name: array for name, array in items.arrays().items() if name != "held_out_hashes"}
    earlier = ItemRecord.from_dict(items.as_dict(), arrays)  # as an earlier version wrote it
    assert earlier.known(ITEMS)[1].tolist() == [item not in val for item in ITEMS]
    assert checkpoint.network().item_end == corpus.vocab.start


def test_a_checkpoint_without_hashes_and_one_with_damaged_ones(tmp_path: Path) -> None:
    """Novelty is off by choice; arrays of another type are refused with a clear error."""
    corpus = corpus_of(ITEMS, tmp_path, ItemLayout("lines", novelty=False))
    checkpoint = load(fit(corpus, model(corpus), replace(CONFIG, steps=20), tmp_path))
    assert checkpoint.items is not None
    assert not checkpoint.items.has_novelty
    assert not len(checkpoint.items.held_out_hashes)
    damaged = replace(checkpoint.items, validation=checkpoint.items.validation.astype(np.float64))
    path = replace(checkpoint, items=damaged, step=999).save(tmp_path)
    with pytest.raises(CheckpointError, match=r"items\.validation is float64"):
        load(path)


def test_items_with_other_ends_survive_a_checkpoint(tmp_path: Path) -> None:
    """The end of items with line ends is another character; the vocabulary of the checkpoint begins texts with it."""
    items = [f"verse {n}\nand {n * 7 % 400}" for n in range(400)]
    path = tmp_path / "list.txt"
    path.write_text("\n\n".join(items))
    corpus = read_corpora([path], lambda _sizes, _n: CONFIG, tmp_path / "cache", layout=ItemLayout(items="paragraphs"))
    checkpoint = load(fit(corpus, model(corpus), replace(CONFIG, steps=20), tmp_path))
    assert checkpoint.vocab == corpus.vocab
    assert checkpoint.vocab.end == "\x1e"
    other = replace(checkpoint, vocab=replace(checkpoint.vocab, end="\n"))
    assert other.fingerprint != checkpoint.fingerprint


def test_the_items_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every item alone, its end counted: what one pass gives that forgets at each end; batches change nothing."""
    corpus = corpus_of(ITEMS, tmp_path)
    torch.manual_seed(0)
    checkpoint = load(fit(corpus, model(corpus), replace(CONFIG, steps=20), tmp_path))
    network, end = checkpoint.network(), corpus.vocab.start
    losses = item_losses(network, corpus.val, end)
    whole = np.append(corpus.val, end)
    assert losses.per_character == pytest.approx(loss(network, whole), abs=1e-6)
    assert int(losses.characters.sum()) == len(corpus.val)
    monkeypatch.setattr(item_losses_module, "_BATCH_CHARACTERS", 40)
    assert np.allclose(item_losses(network, corpus.val, end).nats, losses.nats, atol=1e-4)
    some = item_losses(network, corpus.val, end, max_characters=100)
    assert np.allclose(some.nats, losses.nats[: len(some.nats)], atol=1e-4)
    assert int(some.characters.sum()) <= 100


def test_the_samples_of_a_list_are_whole_items(tmp_path: Path) -> None:
    """A sample ends with an item's end: the same run with longer samples writes the same items, and more."""
    corpus = corpus_of(ITEMS, tmp_path)

    def samples(sample_chars: int) -> list[str]:
        reports: list[Progress] = []
        folder = tmp_path / str(sample_chars)
        fit(corpus, model(corpus), CONFIG, folder, on_progress=reports.append, sample_chars=sample_chars)
        return [report.sample for report in reports if report.sample is not None]

    longer = samples(400)
    for sample_chars in (60, 61, 62):
        shorter = samples(sample_chars)
        assert len(shorter) == len(longer) == CONFIG.validations
        assert "\n" in shorter[-1]
        for short, long in zip(shorter, longer, strict=True):
            assert f"{long}\n".startswith(f"{short}\n" if "\n" in short else short)
