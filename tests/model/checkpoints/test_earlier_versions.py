"""Checkpoints, promotions and hidden states that an earlier version wrote; tests/fixtures/README.md says how."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.checkpoints import registry, self_test
from model.checkpoints.file_format import load, read_info
from model.network.sampling import SamplingParams
from model.network.state import HiddenState
from model.stepper.generate import generate, one_row_block
from model.stepper.reference import ReferenceStepper
from tests.servers import ROOT

FOLDER = ROOT / "tests" / "fixtures" / "checkpoint_format_1"
EXPECTED: dict[str, Any] = json.loads((FOLDER / "expected.json").read_text("utf-8"))
CELLS = pytest.mark.parametrize("cell", EXPECTED)
GREEDY = SamplingParams(temperature=0)


@CELLS
def test_a_checkpoint_is_the_same_model(cell: str) -> None:
    """The fingerprint, the self-test, a greedy text and a sampled one are those of the version that wrote it."""
    expected = EXPECTED[cell]
    path = FOLDER / expected["file"]
    checkpoint = load(path)
    assert checkpoint.config.cell == cell
    assert checkpoint.fingerprint == read_info(path).fingerprint == expected["fingerprint"]
    assert checkpoint.self_test == expected["self_test"]
    self_test.verify_checkpoint(checkpoint)
    network = checkpoint.network(torch.float64)
    sampling = SamplingParams(temperature=0.8, top_k=6, top_p=0.95, min_p=0.01)
    assert generate(network, checkpoint.vocab, "abc", 60, GREEDY).text == expected["greedy"]
    assert generate(network, checkpoint.vocab, "abc", 60, sampling, seed=7).text == expected["sampled"]


def test_the_promotions_are_kept(tmp_path: Path) -> None:
    """The promoted file is the same one, it can be rolled back twice, and the order of promotion is known."""
    folder = Path(shutil.copytree(FOLDER, tmp_path / "checkpoints"))
    gru, rnn, lstm = (EXPECTED[cell]["file"] for cell in ("gru", "rnn", "lstm"))
    assert registry.promotion_history(folder) == [lstm, rnn, gru]
    assert registry.promoted_path(folder) == folder / lstm
    listed = {entry["name"]: (entry["promoted"], entry["predecessor"]) for entry in registry.list_checkpoints(folder)}
    assert listed == {lstm: (True, False), rnn: (False, True), gru: (False, False)}
    assert registry.roll_back(folder) == folder / rnn
    assert registry.roll_back(folder) == folder / gru


@CELLS
@pytest.mark.parametrize("code", ["f4", "f8"])
def test_a_hidden_state_is_read_and_written_the_same(cell: str, code: str) -> None:
    """Every value and field is the recorded one, and the bytes are those that today's code writes."""
    expected = EXPECTED[cell]["states"][code]
    data = (FOLDER / f"{cell}-{code}.state").read_bytes()
    state = HiddenState.from_bytes(data)
    assert state.values.dtype == np.dtype(code)
    assert np.array_equal(state.values, np.array(expected["values"], dtype=code).reshape(expected["shape"]))
    assert (state.next_input, state.position) == (expected["next_input"], expected["position"])
    assert state.fits(expected["fingerprint"], expected["numerics"])
    assert state.to_bytes() == data


@CELLS
def test_a_hidden_state_continues_its_text(cell: str) -> None:
    """A stored state goes on with the characters that the version that stored it would have written next."""
    state = HiddenState.from_bytes((FOLDER / f"{cell}-f8.state").read_bytes())
    checkpoint = load(FOLDER / EXPECTED[cell]["file"])
    stepper = ReferenceStepper(checkpoint.network(torch.float64), 1, torch.float64)
    assert state.fits(checkpoint.fingerprint, stepper.numerics)
    stepper.write(0, state.values)
    remaining = EXPECTED[cell]["greedy"][state.position - len("abc") :]
    result = stepper.run(one_row_block(0, [state.next_input], len(remaining)))
    assert checkpoint.vocab.decode(result.ids[:, 0]) == remaining
