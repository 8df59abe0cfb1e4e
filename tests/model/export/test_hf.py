"""The folder in the layout of the Hugging Face hub: its own loader has our logits, and import has our checkpoint."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from packaging.requirements import Requirement
from safetensors.numpy import load_file, save_file

from model.checkpoints import self_test
from model.checkpoints.file_format import Checkpoint
from model.errors import CheckpointError
from model.evaluation.report.page import Section
from model.export.hf.card import render
from model.export.hf.folder import LOADER, read_folder, write_folder
from model.text.items.layout import ItemLayout
from model.text.items.record import ItemRecord
from model.text.vocab import Vocabulary
from tests.conftest import random_checkpoint

ALONE = """
import importlib.abc, sys
allowed = set(sys.argv.pop(1).split(","))
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed | sys.stdlib_module_names:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Refuse())
import warnings
warnings.simplefilter("ignore")  # torch warns that there is no numpy
"""
"""The beginning of a program that can import torch, safetensors, what they require, and nothing else."""


def of_a_list(checkpoint: Checkpoint) -> Checkpoint:
    hashes, losses = np.arange(5, dtype=np.uint64) << np.uint64(60), np.ones((4, 3), np.float32)
    record = ItemRecord(ItemLayout("lines"), 5, 4, 0, 9, 1.5, hashes, losses)
    return self_test.record(replace(checkpoint, items=record, created="2026-11-26T10:00:00+00:00"))


CHECKPOINTS: dict[str, Callable[[], Checkpoint]] = {
    "lstm": lambda: self_test.record(random_checkpoint("lstm", 2)),
    "gru": lambda: random_checkpoint("gru", 1),
    "rnn": lambda: random_checkpoint("rnn", 3),
    "list": lambda: of_a_list(random_checkpoint("lstm", 1)),
    "hostile": lambda: random_checkpoint(alphabet=Vocabulary("\x00\n\r\"'/<>\\`{|}\x85\u2028\ud800\U0001f600")),
}


def requirements(package: str) -> set[str]:
    """What a package requires on this machine, and what that requires, and so on."""
    needed = [Requirement(line) for line in metadata.requires(package) or []]
    names = {r.name for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})}
    return {package}.union(*(requirements(name) for name in names))


def alone(program: str, *arguments: str, folder: Path) -> str:
    """Run a program that can import torch and safetensors only."""
    allowed = {name.replace("-", "_") for name in requirements("torch") | requirements("safetensors")} | {"load_model"}
    allowed |= {"torchgen", "functorch", "pkg_resources", "_distutils_hack"} - {"numpy"}
    command = [sys.executable, "-c", ALONE + program, ",".join(allowed), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn", "list"])
def test_its_own_loader_has_our_logits(kind: str, tmp_path: Path) -> None:
    """With torch and safetensors alone, without numpy even, the logits of 500 characters are the network's."""
    checkpoint = CHECKPOINTS[kind]()
    write_folder(checkpoint, tmp_path, {})
    ids = torch.randint(len(checkpoint.vocab), (500,), generator=torch.Generator().manual_seed(1)).tolist()
    program = """
import json, torch, load_model
from pathlib import Path
model, characters, start = load_model.load(Path())
ids = torch.tensor(json.loads(sys.argv[1]))
with torch.inference_mode():
    whole, _ = model(ids)
    first, state = model(ids[:137])
    then, _ = model(ids[137:], state)
print(json.dumps([whole.tolist(), torch.cat([first, then]).tolist(), characters, start]))
"""
    whole, cut, characters, start = json.loads(alone(program, json.dumps(ids), folder=tmp_path))
    network = checkpoint.network()
    with torch.inference_mode():
        ours = network(torch.tensor([ids]), network.zero_state(1))[0][0].numpy()
    assert np.abs(np.array(whole) - ours).max() < 1e-5
    assert np.abs(np.array(cut) - ours).max() < 1e-5
    assert "".join(characters) == checkpoint.vocab.characters
    assert start == checkpoint.vocab.start


def test_the_loader_writes(tmp_path: Path) -> None:
    """As a program it prints 500 characters of the vocabulary; it is short enough to read."""
    checkpoint = random_checkpoint()
    write_folder(checkpoint, tmp_path, {})
    text = alone("import runpy\nrunpy.run_path('load_model.py', run_name='__main__')", "hello", folder=tmp_path)
    assert len(text) == 501
    assert set(text) <= set(checkpoint.vocab.characters)
    code = [line for line in LOADER.read_text().splitlines() if line.strip() and not line.strip().startswith('"""')]
    assert len(code) <= 40


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_what_is_read_is_what_was_written(kind: str, tmp_path: Path) -> None:
    """The same fingerprint, and every other field of the checkpoint."""
    checkpoint = CHECKPOINTS[kind]()
    write_folder(checkpoint, tmp_path, {})
    back = read_folder(tmp_path)
    assert back.fingerprint == checkpoint.fingerprint
    assert back.metadata() == checkpoint.metadata()
    ours, theirs = checkpoint.tensors(), back.tensors()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())


def damage_json(name: str, change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        change(value)
        (folder / name).write_text(json.dumps(value))

    return damage


def flip(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["head.bias"][0] += 1
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json: cannot be read"),
        (lambda f: (f / "vocab.json").write_text("["), "vocab.json: cannot be read"),
        (lambda f: (f / "vocab.json").write_text("[1]"), "vocab.json: got [1], expected a JSON object"),
        (lambda f: (f / "vocab.json").write_text("[" * 100_000), "vocab.json: cannot be read"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x08"), "model.safetensors: not a complete safetensors"),
        (flip, "the file was modified after it was written"),
        (damage_json("config.json", lambda c: c.update(model_type="gpt2")), "model_type: got 'gpt2', expected"),
        (damage_json("config.json", lambda c: c.pop("checkpoint")), "cannot be used (KeyError: 'checkpoint')"),
        (damage_json("config.json", lambda c: c.update(checkpoint=[])), "cannot be used (TypeError"),
        (damage_json("config.json", lambda c: c.update(n_hidden=-1)), "n_hidden: got -1"),
        (damage_json("config.json", lambda c: c.update(n_hidden=25)), "its tensors do not match its config"),
        (damage_json("vocab.json", lambda v: v.update(a=0)), "expected 2 or more distinct characters in order"),
        (damage_json("vocab.json", lambda v: v.update(z=99)), "expected an object with the id of each character"),
        (damage_json("vocab.json", lambda v: v.update(a="x")), "cannot be used (TypeError"),
    ],
)
def test_a_damaged_folder_is_refused(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    """One error that names the file and what is wrong with it."""
    write_folder(random_checkpoint(), tmp_path, {})
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_folder(tmp_path)


def test_the_card_is_metadata_and_text() -> None:
    """The hub's metadata can be parsed; samples and names with markup in them stay text."""
    checkpoint = replace(
        random_checkpoint(), corpus="</table><script>alert(1)</script>\n---\n[x](y)|`", options={"a": "|<"}
    )
    sample = "```\n<script>alert(2)</script>\n| # x\x1b[31m"
    sections = [Section("Samples", samples=[(sample, (0, 0))]), Section("Rows", rows={"<b>|\n": "`*_[]"})]
    card = render(checkpoint, sections, {"stateful": 2.5})["README.md"].decode()
    _, front, text = card.split("---\n", 2)
    values = yaml.safe_load(front)
    assert values["pipeline_tag"] == "text-generation"
    (result,) = values["model-index"][0]["results"]
    assert result["dataset"]["name"] == checkpoint.corpus
    assert result["metrics"] == [{"type": "loss", "value": 2.5, "name": "nats per character (stateful)"}]
    quoted = text[text.index("````text\n") :]
    assert quoted.startswith("````text\n```\n<script>alert(2)</script>\n| # x\ufffd[31m\n````\n")
    rest = text.replace(quoted[: quoted.index("\n````\n")], "")
    assert "<" not in rest
    assert "| &#60;b&#62;&#124;  | &#96;&#42;&#95;&#91;&#93; |" in rest
    assert checkpoint.corpus_sha256 in rest
