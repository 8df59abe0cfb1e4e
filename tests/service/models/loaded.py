"""Loaded models for tests that need no checkpoint file."""

from __future__ import annotations

from pathlib import Path

from model.checkpoints.file_format import Checkpoint
from model.stepper import Stepper
from model.stepper.reference import ReferenceStepper
from service.engine.engine import Engine
from service.models.loaded_model import LoadedModel
from service.models.on_demand_network import OnDemandNetwork


def load(
    checkpoint: Checkpoint, *, name: str = "test", stepper: Stepper | None = None, max_waiting: int = 4
) -> LoadedModel:
    """A model on a started engine, with the reference stepper unless another is given."""
    stepper = stepper or ReferenceStepper(checkpoint.network(), 4)
    engine = Engine(stepper, checkpoint.vocab, checkpoint.fingerprint, max_waiting=max_waiting, block_s=0.002)
    engine.start()
    return with_engine(engine, stepper, name)


def with_engine(
    engine: Engine, stepper: Stepper | None = None, name: str = "test", *, kind: type[LoadedModel] = LoadedModel
) -> LoadedModel:
    """A model on an engine that a test has made; its network cannot be read."""
    return kind(name, engine, stepper, OnDemandNetwork(Path("no-such-file"), engine.fingerprint))
