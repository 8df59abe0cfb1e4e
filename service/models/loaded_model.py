"""A model that answers requests, and the leases that keep it loaded.

Each request holds a lease of the model that it began with, and releases it when it is closed, however it ended. A model
that was replaced is freed when its last lease is released. So its lifetime is counted; the garbage collector decides
nothing.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.errors import StateError, StructuredOutputError, UnknownCharacters
from model.network.state import HiddenState
from model.stepper import Stepper
from model.structured_outputs.automaton import Automaton
from model.structured_outputs.specification import StructuredOutputs
from model.text.items.record import ItemRecord
from service.engine.engine import Engine
from service.errors import BadRequest, UnreadableSession
from service.models.automaton_cache import CompilationCache
from service.models.on_demand_network import OnDemandNetwork
from service.schemas import OnUnknown

log = logging.getLogger(__name__)
ENGINE_BYTES = 200 * 1024
"""What a loaded model takes beside its arrays: its engine's thread and objects, and what is remembered of its files.
Measured with 139 of them at 200 requests a second: 31 MB."""
_MAX_LISTED = 32


class LoadedModel:
    """A checkpoint on its engine."""

    def __init__(
        self,
        name: str,
        engine: Engine,
        stepper: Stepper | None,
        network: OnDemandNetwork,
        items: ItemRecord | None = None,
        description: Mapping[str, Any] | None = None,
        automata: CompilationCache | None = None,
        stepper_reason: str = "",
    ) -> None:
        """Take over the parts of a model; they are freed with it.

        Args:
            name: The checkpoint's file name.
            engine: Generates text; started.
            stepper: The engine's, if it is to be closed.
            network: Reads text beside the engine.
            items: What the checkpoint knows of its list; None if it is of a text.
            description: What the API shows of the checkpoint, beside its name and fingerprint.
            automata: The cache of structured outputs, which models share; None: one of its own.
            stepper_reason: Why this stepper runs the model, in words.
        """
        self.description = {"id": engine.fingerprint, "name": name, **(description or {})}
        self.name = name
        self.items = items
        self.stepper_reason = stepper_reason
        self.engine = engine
        self.network = network
        self._automata = automata or CompilationCache()
        self._stepper = stepper
        self._lock = threading.Lock()
        self._n_leases = 0
        self._on_freed: Callable[[LoadedModel], None] | None = None  # set when the model is replaced
        self.on_unused: Callable[[], None] = _ignore
        """Called when the last lease is released."""

    @property
    def fingerprint(self) -> str:
        """The identity of the weights."""
        return self.engine.fingerprint

    @property
    def n_leases(self) -> int:
        """The number of requests that use this model."""
        return self._n_leases

    @property
    def n_bytes(self) -> int:
        """The memory that the model takes: its stepper, its network if that is loaded, its list, and its engine."""
        arrays = self.items.arrays().values() if self.items is not None else ()
        stepper_bytes = getattr(self._stepper, "n_bytes", 0)  # none of a stepper that holds no memory of the host
        return stepper_bytes + self.network.n_bytes + sum(array.nbytes for array in arrays) + ENGINE_BYTES

    def as_dict(self) -> dict[str, str]:
        """Return the model as the API shows it."""
        return {"fingerprint": self.fingerprint, "name": self.name}

    def wrote(self, state: HiddenState) -> bool:
        """Whether these weights, in this arithmetic, computed the state. A state is never continued by others."""
        return state.fits(self.fingerprint, self.engine.numerics)

    def check_state(self, state: HiddenState) -> None:
        """Check that a stored state which this model wrote can be continued: one that is damaged fails its request.

        Raises:
            UnreadableSession: The state is damaged.
        """
        try:
            self.engine.check_state(state)
        except StateError as e:
            raise UnreadableSession(f"what is stored of the session cannot be used: {e}; delete the session") from e

    def normalize(self, text: str) -> str:
        """Return a text that a client sent as the reader of the training text would have read it."""
        return self.engine.vocab.normalize(text)

    def encode(self, field: str, text: str, on_unknown: OnUnknown) -> NDArray[np.int32]:
        """Encode a normalized text that a client sent, to ids (n,).

        Raises:
            BadRequest: The text has characters that are not in the vocabulary, and they are not to be skipped.
        """
        try:
            return self.engine.vocab.encode(text, on_unknown)
        except UnknownCharacters as e:
            unknown = [{"position": i, "character": c} for i, c in e.unknown[:_MAX_LISTED]]
            expected = "characters of the model's vocabulary, or on_unknown = 'skip'"
            raise BadRequest(field, unknown, expected, problem=str(e)) from e

    def compile(self, spec: StructuredOutputs) -> Automaton:
        """Return the automaton of a specification that a client sent.

        Raises:
            BadRequest: The specification cannot be used, or no such text can be written with this vocabulary.
        """
        try:
            return self._automata.compile(spec, self.engine.vocab)
        except StructuredOutputError as e:
            raise BadRequest(f"structured_outputs.{e.field}", e.value, e.expected, problem=e.problem) from e

    def acquire(self) -> ModelLease:
        """Return a lease. Only its owner calls this, while the model is not retired."""
        with self._lock:
            self._n_leases += 1
        return ModelLease(self, self._release)

    def retire(self, on_freed: Callable[[LoadedModel], None]) -> None:
        """Free the model as soon as no lease of it is left; new leases are no longer given."""
        if self.mark_retired(on_freed):
            self.free()

    def mark_retired(self, on_freed: Callable[[LoadedModel], None]) -> bool:
        """Have the release of the last lease free the model.

        Returns:
            Whether there is no lease. Then the caller frees the model, after it has released its own locks.
        """
        with self._lock:
            self._on_freed = on_freed
            return self._n_leases == 0

    def _release(self) -> None:
        with self._lock:
            self._n_leases -= 1
            is_unused, is_retired = self._n_leases == 0, self._on_freed is not None
        if is_unused:
            self.on_unused()
        if is_unused and is_retired:
            self.free()

    def free(self) -> None:
        """Give back threads, slots and memory, also if something still refers to this object."""
        on_freed = self._on_freed
        assert on_freed is not None
        try:
            self.engine.stop()
            stepper, self._stepper = self._stepper, None
            free_stepper(stepper)
            self.network.free()
            log.debug("freed the model %s", self.name)
        except Exception:
            log.exception("the model %s could not be freed", self.name)
        finally:
            on_freed(self)


class ModelLease:
    """The right to use a model until `release`; also a context manager."""

    def __init__(self, model: LoadedModel, release: Callable[[], None]) -> None:
        """Create a lease; see LoadedModel.acquire."""
        self.model = model
        self._lock = threading.Lock()
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        """Give the model back. Idempotent."""
        with self._lock:
            release, self._release = self._release, None
        if release is not None:
            release()

    def __enter__(self) -> ModelLease:
        """Return the lease, to be released at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release the lease."""
        self.release()

    def __del__(self) -> None:
        """Report a lease that was never released, as Python does for files, and release it."""
        release = getattr(self, "_release", None)
        if release is not None:
            warnings.warn(f"a lease of the model {self.model.name} was not released", ResourceWarning, stacklevel=1)
            with contextlib.suppress(RuntimeError):  # the interpreter is shutting down
                # On a thread of its own: this one may hold a lock, or be the engine's, which freeing waits for.
                threading.Thread(target=release, name="release-model").start()


def _ignore() -> None:
    """Nobody waits for the model to be unused."""


def free_stepper(stepper: Stepper | None) -> None:
    """Free what a stepper holds outside Python's memory, if anything."""
    close = getattr(stepper, "close", None)
    if close is not None:
        close()
