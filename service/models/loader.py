"""From a checkpoint file to a model that answers requests."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from model.checkpoints import file_format, packed_form, self_test
from model.checkpoints.file_format import Checkpoint, CheckpointInfo
from model.config import ModelConfig, PrecisionChoice
from model.stepper import Stepper
from model.stepper.choose import choose, uses_cpu
from model.stepper.cpu import CpuStepper, available_cores
from model.stepper.cpu.pack_weights import PackedNetwork
from model.stepper.reference import ReferenceStepper
from service.engine.cores import CoreScheduler
from service.engine.engine import Engine
from service.engine.observer import Observer
from service.models.automaton_cache import CompilationCache
from service.models.loaded_model import LoadedModel, free_stepper
from service.models.on_demand_network import OnDemandNetwork
from service.models.stores.file_cache import FileCache

log = logging.getLogger(__name__)
_MAX_RECENT = 1000
_MAX_METADATA = 2000  # of checkpoints, some kilobytes each
_DESCRIBED = ("corpus", "preset", "val_loss", "val_protocol", "created", "network")


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A checkpoint on a stepper that has been tested."""

    checkpoint: Checkpoint  # without weights if it was loaded by its packed form
    info: CheckpointInfo
    fingerprint: str
    stepper: Stepper
    reason: str  # why this stepper runs it
    was_packed: bool = False  # many models come and go by their packed forms: that is no news


def _metadata_cache() -> FileCache[tuple[Checkpoint, CheckpointInfo]]:
    """What loads need beside the weights; that of a list, which may be long, is read each time."""
    return FileCache(file_format.load_without_weights, _MAX_METADATA, lambda read: read[0].items is None)


@dataclass(frozen=True, slots=True)
class ModelLoader:
    """Loads checkpoints with the operator's choices."""

    device: Literal["auto", "cpu", "cuda"]
    precision: PrecisionChoice
    slots: int
    max_waiting: int
    block_s: float
    make_observer: Callable[[int, Path], Observer]  # from the number of slots and the checkpoint's file
    automata: CompilationCache
    on_device_lost: Callable[[], None]  # a GPU will compute nothing more in this process
    cores: CoreScheduler = field(default_factory=lambda: CoreScheduler(available_cores()))  # all models share them
    metadata: FileCache[tuple[Checkpoint, CheckpointInfo]] = field(default_factory=_metadata_cache)
    verified_forms: packed_form.VerifiedForms = field(default_factory=dict)
    recent: dict[tuple[ModelConfig, str], Engine] = field(default_factory=dict)  # by shape and arithmetic

    def __call__(self, path: Path) -> LoadedModel:
        """Load, test and warm up a checkpoint, and start its engine.

        Raises:
            CheckpointError: The file cannot be used, or the model does not pass its self-test.
        """
        loaded = self._load_packed(path) or self._load_whole(path)
        checkpoint, stepper = loaded.checkpoint, loaded.stepper
        level = logging.DEBUG if loaded.was_packed else logging.INFO
        if isinstance(stepper, ReferenceStepper):
            level = logging.WARNING  # the slowest
        log.log(level, "stepper: %s", loaded.reason)
        kind = (checkpoint.config, stepper.numerics)
        like = self.recent.get(kind)  # its steps take as long, so the first blocks have the right length
        try:
            engine = Engine(
                stepper,
                checkpoint.vocab,
                loaded.fingerprint,
                max_waiting=self.max_waiting,
                block_s=self.block_s,
                step_s=like.step_s if like is not None else None,
                cores=self.cores,
                observer=self.make_observer(stepper.n_slots, path),
                on_device_lost=self.on_device_lost,
            )
        except BaseException:
            free_stepper(stepper)
            raise
        if len(self.recent) >= _MAX_RECENT:
            self.recent.clear()
        self.recent[kind] = engine
        engine.start()
        network = OnDemandNetwork(path, loaded.fingerprint)
        return LoadedModel(
            path.name,
            engine,
            stepper,
            network,
            checkpoint.items,
            _description(loaded.info),
            self.automata,
            loaded.reason,
        )

    def publish(self, path: Path) -> None:
        """Test a checkpoint that is to be promoted as a load does, and keep its packed form for the loads that follow.

        Raises:
            CheckpointError: The file cannot be used, or the model does not pass its self-test.
        """
        free_stepper(self._load_whole(path).stepper)

    def _load_packed(self, path: Path) -> _Loaded | None:
        """Load a checkpoint by its packed form, which was verified when it was made; None if there is none to use."""
        if not uses_cpu(self.device):
            return None
        checkpoint, info = self.metadata.get(path)
        precision = checkpoint.weight_precision(self.precision)
        packed = packed_form.read(path, checkpoint, info.fingerprint, precision, self.verified_forms)
        if packed is None:
            return None
        try:
            stepper = CpuStepper(packed, self.slots, precision)
        except packed_form.DamagedForm as e:
            log.warning("%s: the packed form cannot be used, the checkpoint is loaded and tested: %s", path.name, e)
            return None
        return _Loaded(checkpoint, info, info.fingerprint, stepper, f"native, {precision}", True)

    def _load_whole(self, path: Path) -> _Loaded:
        """Load and test a checkpoint, and keep its packed form for the next load."""
        checkpoint = file_format.load(path)
        fingerprint = checkpoint.fingerprint
        self_test.verify_checkpoint(checkpoint)
        precision = checkpoint.weight_precision(self.precision)
        network = checkpoint.network()
        stepper, reason = choose(network, self.slots, self.device, precision)
        try:
            self_test.verify_stepper(stepper, checkpoint)
            if isinstance(stepper, CpuStepper):
                packed_form.write(path, PackedNetwork.of(network, precision), fingerprint)
        except BaseException:
            free_stepper(stepper)
            raise
        return _Loaded(checkpoint, file_format.read_info(path), fingerprint, stepper, reason)


def _description(info: CheckpointInfo) -> dict[str, Any]:
    fields = info.as_dict()
    return {field: fields[field] for field in _DESCRIBED} | {"is_list": fields["items"] is not None}
