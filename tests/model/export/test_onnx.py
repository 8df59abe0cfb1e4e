"""A checkpoint as ONNX, run by onnxruntime: the same model, in a file that says how to use it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from model.checkpoints.file_format import Checkpoint
from model.config import Cell, WeightPrecision
from model.export.onnx_model import Int8Error, int8_error, to_onnx
from model.export.rounding import rounded_weights
from model.network.sampling import SamplingParams
from model.stepper.choose import choose
from model.stepper.cpu.pack_weights import pack
from model.stepper.generate import write
from model.text.items.layout import ItemLayout
from model.text.items.record import ItemRecord
from model.text.vocab import Vocabulary
from tests.conftest import random_checkpoint
from tests.model.export.trained import trained

SHAPES: list[tuple[Cell, int]] = [(cell, n_layers) for cell in get_args(Cell) for n_layers in (1, 2, 3)]
N_LOGITS, N_GREEDY = 1000, 2000


class Runtime:
    """onnxruntime, a step at a time."""

    def __init__(self, checkpoint: Checkpoint, precision: WeightPrecision = "fp32", rows: int = 1) -> None:
        self.session = onnxruntime.InferenceSession(to_onnx(checkpoint, precision), providers=["CPUExecutionProvider"])
        self.metadata = self.session.get_modelmeta().custom_metadata_map
        shape = (checkpoint.config.n_layers, rows, checkpoint.config.n_hidden)
        self.state = {i.name: np.zeros(shape, np.float32) for i in self.session.get_inputs()[1:]}

    def step(self, *ids: int) -> NDArray[np.float32]:
        """Feed an id to each row; return the logits (rows, V)."""
        logits, *after = self.session.run(None, {"ids": np.array(ids, np.int64), **self.state})
        self.state = dict(zip(self.state, after, strict=True))
        return np.asarray(logits)

    def read(self, ids: list[int]) -> NDArray[np.float32]:
        """Feed a text to the first row; return the logits (T, V)."""
        return np.concatenate([self.step(id) for id in ids])


def random_ids(checkpoint: Checkpoint, n: int = N_LOGITS, seed: int = 1) -> list[int]:
    return [int(id) for id in np.random.default_rng(seed).integers(0, len(checkpoint.vocab), n)]


@torch.inference_mode()
def logits_of(checkpoint: Checkpoint, ids: list[int]) -> NDArray[np.float32]:
    network = checkpoint.network()
    return np.asarray(network(torch.tensor([ids]), network.zero_state(1))[0][0])


def generated(checkpoint: Checkpoint, n: int, params: SamplingParams, seed: int = 0) -> str:
    stepper, _ = choose(checkpoint.network(), n_slots=1, device="cpu")
    return "".join(write(stepper, checkpoint.vocab, "", n, params, seed))


@pytest.mark.parametrize(("cell", "n_layers"), SHAPES)
def test_logits_and_greedy_text_are_ours(cell: Cell, n_layers: int) -> None:
    """Logits of 1,000 characters within 1e-5 of the network's, and 2,000 greedy characters equal to our stepper's."""
    checkpoint = trained(cell, n_layers)
    ids = random_ids(checkpoint)
    difference = np.abs(Runtime(checkpoint).read(ids) - logits_of(checkpoint, ids)).max()
    assert difference < 1e-5
    runtime, id, text = Runtime(checkpoint), checkpoint.vocab.start, ""
    for _ in range(N_GREEDY):
        id = int(runtime.step(id)[0].argmax())
        text += checkpoint.vocab.characters[id]
    assert text == generated(checkpoint, N_GREEDY, SamplingParams(temperature=0))
    assert len(set(text)) > 3


@pytest.mark.parametrize(("cell", "n_layers"), SHAPES)
def test_int8_is_within_its_stated_error(cell: Cell, n_layers: int) -> None:
    """On the text that was measured no logit differs by more, and the loss by no more, than the file says."""
    checkpoint = trained(cell, n_layers)
    runtime = Runtime(checkpoint, "int8")
    stated = Int8Error(**json.loads(runtime.metadata["int8_error"]))
    assert stated == int8_error(checkpoint)
    text = generated(checkpoint, N_LOGITS, SamplingParams())
    ids = [checkpoint.vocab.start, *checkpoint.vocab.encode(text).tolist()]
    exact, rounded = logits_of(checkpoint, ids).astype(np.float64), runtime.read(ids).astype(np.float64)
    assert np.abs(exact - rounded).max() < stated.max_logit + 1e-5
    p, q = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (exact, rounded))
    assert (np.exp(p) * (p - q)).sum(axis=1).mean() < stated.cost + 1e-6
    assert np.abs(exact - rounded).max() > 1e-4  # it was rounded
    assert len(to_onnx(checkpoint, "int8")) < 0.7 * len(to_onnx(checkpoint))


@pytest.mark.parametrize("n_layers", [1, 3])
def test_int8_rounds_what_the_service_rounds(n_layers: int) -> None:
    """The whole numbers of each matrix are those that the native stepper multiplies."""
    checkpoint = random_checkpoint(n_layers=n_layers, n_hidden=16)
    packed = [np.sort(w.ravel()) for w in pack(checkpoint.network(), "int8").weights]
    ours = rounded_weights(checkpoint)
    matrices = [["rnn.weight_hh_l0"], *([f"rnn.weight_{k}_l{n}" for k in ("ih", "hh")] for n in range(1, n_layers))]
    for names, native in zip([*matrices, ["head.weight"]], packed, strict=True):
        whole = np.concatenate([ours[name].whole.ravel() for name in names])
        assert np.array_equal(np.sort(whole[whole != 0]), native[native != 0])


def test_rows_are_independent() -> None:
    """The batch dimension is free: each row reads its own text."""
    checkpoint = random_checkpoint(n_layers=2)
    texts = [random_ids(checkpoint, 50, seed) for seed in range(3)]
    runtime = Runtime(checkpoint, rows=3)
    together = np.stack([runtime.step(*ids) for ids in zip(*texts, strict=True)], axis=1)
    for row, ids in enumerate(texts):
        assert np.abs(together[row] - Runtime(checkpoint).read(ids)).max() < 1e-5


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_items_begin_from_the_zero_state(cell: str) -> None:
    """A model of a list forgets what it read before the end of an item, as the network does."""
    record = ItemRecord(ItemLayout("lines"), 10, 2, 0, 12)
    checkpoint = replace(random_checkpoint(cell, 2), items=record)
    ids = random_ids(checkpoint, 300)
    assert ids.count(checkpoint.vocab.start) > 3
    assert np.abs(Runtime(checkpoint).read(ids) - logits_of(checkpoint, ids)).max() < 1e-5
    text = replace(checkpoint, items=None)
    assert np.abs(Runtime(text).read(ids) - logits_of(checkpoint, ids)).max() > 0.1


def test_the_metadata_say_how_to_use_it() -> None:
    """The vocabulary comes back from the metadata, hostile characters included."""
    vocab = Vocabulary("\x00\n\"'<>\\{}\x85\u2028\U0001f600")
    checkpoint = random_checkpoint(alphabet=vocab)
    metadata: dict[str, Any] = Runtime(checkpoint).metadata
    assert metadata["format"] == "longhand-onnx-1"
    assert metadata["precision"] == "fp32"
    assert "".join(json.loads(metadata["vocab"])) == vocab.characters
    assert json.loads(metadata["start"]) == 1
    assert json.loads(metadata["fingerprint"]) == checkpoint.fingerprint
    assert json.loads(metadata["options"]) == {"lr": 0.004}
    assert json.loads(metadata["config"])["n_hidden"] == 24
