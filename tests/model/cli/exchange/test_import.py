"""python -m model export --format hf and import, as their user sees them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from model.checkpoints.file_format import Checkpoint, load
from model.checkpoints.registry import promoted_path
from model.cli import main
from tests.conftest import random_checkpoint
from tests.model.texts import words


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its run and its text."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "drinks.txt").write_text(words(4000))
    few = ["--steps", "60", "--n-hidden", "16", "--lr", "0.02", "--validations", "3"]
    assert main(["train", str(folder / "drinks.txt"), "--out", str(folder), *few]) == 0
    path = promoted_path(folder)
    assert path is not None
    return path


def test_a_model_goes_there_and_back(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder has a card with curves, memorization and losses; what is imported is the same checkpoint."""
    out, store = tmp_path / "hub", tmp_path / "store"
    assert main(["export", str(trained), "--format", "hf", "--out", str(out), "--max-chars", "300"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    names = {file.name for file in out.iterdir()}
    assert names == {"README.md", "config.json", "load_model.py", "loss-curves.png", "model.safetensors", "vocab.json"}
    assert (out / "loss-curves.png").read_bytes().startswith(b"\x89PNG")
    card, checkpoint = (out / "README.md").read_text(), load(trained)
    for part in (
        f"| stateful protocol | {checkpoint.val_loss:.4f} nats per character |",
        "| windowed protocol | ",
        "the longest run that is in the training text | ",
        "(loss-curves.png)",
        "drinks, sha256",
        checkpoint.corpus_sha256,
    ):
        assert part in card
    assert len(words(4000)) // 1000 == 22
    assert "about 22,000 characters" in card
    assert main(["import", str(out), "--store", str(store)]) == 0
    assert checkpoint.fingerprint in capsys.readouterr().out
    (path,) = store.glob("*.safetensors")
    assert load(path).metadata() == checkpoint.metadata()
    assert promoted_path(store) is None
    assert main(["import", str(out), "--store", str(store), "--promote"]) == 0
    assert promoted_path(store) == path


def test_another_model_of_the_same_name_stays(tmp_path: Path) -> None:
    """An import replaces no other checkpoint."""
    first, second = random_checkpoint(), random_checkpoint(n_hidden=16)
    kept = first.save(tmp_path / "store")
    assert second.file_name == first.file_name
    assert main(["import", str(second.save(tmp_path)), "--store", str(tmp_path / "store")]) == 0
    assert load(kept).fingerprint == first.fingerprint
    assert len(list((tmp_path / "store").glob("*.safetensors"))) == 2


def plain_model(folder: Path) -> tuple[Path, Path, Path]:
    """A state dict, its vocabulary and a text."""
    torch.manual_seed(0)
    text = words(1000)
    characters = sorted(set(text), reverse=True)
    parts = {"embed": nn.Embedding(len(characters), 8), "lstm": nn.LSTM(8, 16), "out": nn.Linear(16, len(characters))}
    state = nn.ModuleDict(parts).state_dict()
    save_file(state, folder / "plain.safetensors")
    (folder / "vocab.json").write_text(json.dumps(characters))
    (folder / "drinks.txt").write_text(text)
    return folder / "plain.safetensors", folder / "vocab.json", folder / "drinks.txt"


def test_a_plain_state_dict_is_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its losses are measured on the given text, and it samples like any other checkpoint."""
    weights, vocab, text = plain_model(tmp_path)
    store, arguments = tmp_path / "store", ["--vocab", str(vocab), "--corpus", str(text), "--promote"]
    assert main(["import", str(weights), "--store", str(tmp_path / "store"), *arguments]) == 0
    path = promoted_path(store)
    assert path is not None
    checkpoint: Checkpoint = load(path)
    assert checkpoint.self_test
    assert checkpoint.corpus == "drinks"
    capsys.readouterr()
    assert main(["score", str(text), "--store", str(store)]) == 0
    assert f"(stateful) {checkpoint.val_loss:.4f} nats" in capsys.readouterr().out
    assert main(["sample", "tea", "--store", str(store), "--max-chars", "20"]) == 0
    assert len(capsys.readouterr().out) == 24


def test_wrong_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each error is one line that names what it is about; nothing is stored."""
    weights, vocab, text = plain_model(tmp_path)
    pickle = tmp_path / "model.pt"
    torch.save({}, pickle)
    own, store = str(random_checkpoint().save(tmp_path)), tmp_path / "store"
    for arguments, message in (
        ([str(weights)], "vocab: is missing, expected a file"),
        ([str(weights), "--vocab", str(vocab)], "corpus: is missing, expected a file"),
        ([str(weights), "--vocab", str(text), "--corpus", str(text)], f"vocabulary {text}: cannot be read"),
        ([str(weights), "--vocab", str(vocab), "--corpus", str(vocab)], "the model's vocabulary lacks '['"),
        ([own, "--vocab", str(vocab)], f"vocab: got '{vocab}', expected none: a checkpoint file has its own"),
        ([str(pickle)], f"{pickle}: is a pickle"),
        ([str(tmp_path / "none")], f"model {tmp_path / 'none'}: no such file or folder"),
        ([str(tmp_path)], f"{tmp_path / 'config.json'}: cannot be read"),
        ([str(text)], f"checkpoint {text}: not a complete safetensors file"),
    ):
        assert main(["import", *arguments, "--store", str(store)]) in (1, 2)
        error = capsys.readouterr().err
        assert error.startswith(f"error: {message}"), error
        assert error.count("\n") == 1
    assert not store.exists()
