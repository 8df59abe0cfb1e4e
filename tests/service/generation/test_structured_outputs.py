"""What a model that applies no masks answers, and stored turns whose form cannot be used."""

from __future__ import annotations

from dataclasses import replace

import pytest

from model.checkpoints.file_format import Checkpoint
from model.network.sampling import SamplingParams
from model.stepper.reference import ReferenceStepper
from service.engine.engine import Engine
from service.errors import UnreadableSession
from service.generation.plan import whole_turn
from service.models.loaded_model import LoadedModel
from service.store.sessions import TurnRecord
from tests.service.models.loaded import with_engine


@pytest.fixture
def model(tiny: Checkpoint) -> LoadedModel:
    return with_engine(Engine(ReferenceStepper(tiny.network(), 1), tiny.vocab, tiny.fingerprint, max_waiting=1))


@pytest.mark.parametrize(
    "stored", [{"regex": "("}, {"grammar": "x"}, {"regex": "€"}, {"regex": "a{30}"}, {"choice": "a"}, {"json": []}]
)
def test_a_stored_turn_whose_form_cannot_be_used_is_unreadable(model: LoadedModel, stored: dict[str, object]) -> None:
    """Its session says so; nothing is generated."""
    record = TurnRecord(0, "a", 20, SamplingParams(), [], 1, model.fingerprint, model.engine.numerics)
    assert whole_turn(model, replace(record, structured_outputs={"regex": "a{20}"}), None).automaton is not None
    with pytest.raises(UnreadableSession):
        whole_turn(model, replace(record, structured_outputs=stored), None)
