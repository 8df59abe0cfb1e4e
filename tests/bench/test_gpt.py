"""The opponent of the race: what nanoGPT prints is parsed, and our reimplementation of its recipe learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.gpt import from_checkout, reimplementation
from model.config import TrainConfig
from model.text.corpus import Corpus
from tests.model.texts import words

CONFIG = TrainConfig(batch_size=4, seq_length=16)
PRINTS = """
import numpy, pathlib, pickle, sys
data = pathlib.Path("data/shakespeare_char")
n = len(numpy.fromfile(data / "train.bin", dtype=numpy.uint16))
assert pickle.loads((data / "meta.pkl").read_bytes())["vocab_size"] == 16, n
assert "--block_size=64" in sys.argv and "--max_iters=2000" in sys.argv
print("step 0: train loss 4.2, val loss 4.3")
print("iter 0: loss 4.2, time 900.00ms, mfu -100.00%")
print("iter 1: loss 4.1, time 20.00ms, mfu 1.00%")
print("iter 2: loss 4.0, time 22.00ms, mfu 1.00%")
print("step 2000: train loss 1.8, val loss 1.886")
"""


def test_a_checkouts_curve_is_read(tmp_path: Path) -> None:
    """It gets our split in its format; seconds are steps times the median step, without validations."""
    (tmp_path / "train.py").write_text(PRINTS)
    corpus = Corpus.from_text(words(800), CONFIG)
    curve = from_checkout(tmp_path, corpus)
    assert [nats for _, nats in curve.points] == [4.3, 1.886]
    assert curve.seconds == pytest.approx(2000 * 0.022)
    assert not (tmp_path / "data").exists()


def test_a_failed_checkout_is_reported(tmp_path: Path) -> None:
    """No curve is made of a run that ended badly."""
    (tmp_path / "train.py").write_text("raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="exited with 3 after 0 validations"):
        from_checkout(tmp_path, Corpus.from_text(words(800), CONFIG))


def test_our_reimplementation_learns() -> None:
    """A few steps of the recipe bring the loss below that of guessing, and further with each validation."""
    corpus = Corpus.from_text(words(400), CONFIG)
    curve = reimplementation(corpus, iterations=24)
    assert curve.points[-1][1] < np.log(len(corpus.vocab))
    assert curve.points[-1][1] < curve.points[0][1]
