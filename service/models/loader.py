"""From a checkpoint file to a model that answers requests."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from model.checkpoints import file_format, self_test
from model.config import PrecisionChoice
from model.stepper.choose import choose
from service.engine.engine import Engine
from service.engine.observer import Observer
from service.models.automata import CompilationCache
from service.models.loaded_model import LoadedModel, free_stepper
from service.models.on_demand_network import OnDemandNetwork

log = logging.getLogger(__name__)
_DESCRIBED = ("corpus", "preset", "val_loss", "val_protocol", "created", "network")


@dataclass(frozen=True, slots=True)
class ModelLoader:
    """Loads checkpoints with the operator's choices."""

    device: Literal["auto", "cpu", "cuda"]
    precision: PrecisionChoice
    slots: int
    max_waiting: int
    block_s: float
    make_observer: Callable[[int], Observer]  # from the number of slots
    automata: CompilationCache
    on_device_lost: Callable[[], None]  # a GPU will compute nothing more in this process

    def __call__(self, path: Path) -> LoadedModel:
        """Load, test and warm up a checkpoint, and start its engine.

        Raises:
            CheckpointError: The file cannot be used, or the model does not pass its self-test.
        """
        checkpoint = file_format.load(path)
        self_test.verify_checkpoint(checkpoint)
        precision = checkpoint.weight_precision(self.precision)
        stepper, reason = choose(checkpoint.network(), self.slots, self.device, precision)
        log.info("stepper: %s", reason)
        try:
            self_test.verify_stepper(stepper, checkpoint)
            engine = Engine(
                stepper,
                checkpoint.vocab,
                checkpoint.fingerprint,
                max_waiting=self.max_waiting,
                block_s=self.block_s,
                observer=self.make_observer(stepper.n_slots),
                on_device_lost=self.on_device_lost,
            )
        except BaseException:
            free_stepper(stepper)
            raise
        engine.start()
        network = OnDemandNetwork(path, checkpoint.fingerprint)
        return LoadedModel(
            path.name, engine, stepper, network, checkpoint.items, _description(path), self.automata, reason
        )


def _description(path: Path) -> dict[str, Any]:
    info = file_format.read_info(path).as_dict()
    return {field: info[field] for field in _DESCRIBED} | {"is_list": info["items"] is not None}
