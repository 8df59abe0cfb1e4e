"""Processes of a torchrun job learn what one process does, and rank 0 alone writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.checkpoints.file_format import load
from model.checkpoints.registry import promoted_path
from model.config import ModelConfig, TrainConfig
from model.text.corpus import Corpus
from model.training.loop import fit
from model.training.run_folder import RunFolder
from tests.model.texts import words
from tests.servers import ROOT

OPTIONS = ["--steps", "80", "--batch-size", "8", "--seq-length", "16", "--n-hidden", "16", "--n-embed", "8"]
OPTIONS += ["--dropout", "0.2", "--validations", "4", "--lr", "0.01"]


def torchrun(*arguments: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "model"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """Each takes its rows: the same characters, the same draws, the same weights but for rounding; one checkpoint."""
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text(words(3000))
    torchrun("train", str(text), "--out", str(out), *OPTIONS)
    path = promoted_path(out)
    assert path is not None
    assert [p.name for p in out.glob("*.safetensors")] == [path.name]
    config = TrainConfig(steps=80, batch_size=8, seq_length=16, dropout=0.2, validations=4, lr=0.01, workers=2)
    corpus = Corpus.from_file(text, config)
    one = fit(corpus, ModelConfig(len(corpus.vocab), n_hidden=16, n_embed=8), config, tmp_path / "one")
    assert load(path).val_loss == pytest.approx(load(one).val_loss, abs=0.01)
    for name, tensor in load(one).weights.items():
        assert torch.allclose(tensor, load(path).weights[name], atol=0.02), name
    (run,) = (out / "runs").iterdir()
    resume_state = RunFolder(run).read_resume_state()
    assert resume_state is not None
    assert {"generator.0", "generator.1", "state.0.0", "state.0.1"} <= resume_state[0].keys()
    torchrun("train", "--resume", str(run))
    assert promoted_path(out) == path
