"""Watches the promoted checkpoint and swaps the model under the running streams.

One thread, which sleeps until word of a promotion comes or half a second has gone by, then looks at promoted.json. A
new model is loaded, tested and warmed beside the old one, and only then served; texts that run finish on the model they
began with, whose memory is then given back. A checkpoint that cannot be used is refused, with the reason: what was
served before goes on being served.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from model.checkpoints import file_format, registry
from model.checkpoints.registry import PROMOTED
from model.errors import CheckpointError
from service.models.manager import LoadedModel, ModelManager
from service.operations.metrics import Metrics

log = logging.getLogger(__name__)
LOOK_S = 0.5
_REMEMBERED = 20
_Seen = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A promoted checkpoint that is not served, and why."""

    name: str
    reason: str


class CheckpointWatcher:
    """Keeps `serving` at what `folder` says is promoted."""

    def __init__(
        self,
        serving: ModelManager,
        folder: Path,
        load: Callable[[Path], LoadedModel],
        wait: Callable[[float], None],
        counted: Metrics,
    ) -> None:
        self._serving = serving
        self._folder = folder
        self._load = load
        self._wait = wait
        self._counted = counted
        self._seen: _Seen | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="reload", daemon=True)
        self.refused: Refusal | None = None  # None when what is promoted is what is served
        self.swaps_total = 0
        self.refusals_total = 0

    def start(self) -> None:
        """Serve what is promoted now, or the newest before it that can be used, then go on watching."""
        self.look()
        if self._serving.is_empty and self.refused is not None:
            self._fall_back()
        self._thread.start()

    def stop(self) -> None:
        """Idempotent; does not wait for a load that has begun."""
        self._stopping.set()

    def look(self) -> None:
        """Look once, and swap when something else is promoted than before."""
        seen = self._what_is_there()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            path = registry.promoted_path(self._folder)
        except CheckpointError as e:
            self._refuse(PROMOTED, e)
            return
        if path is None:
            return
        try:
            if not self._serves(path):
                self._swap(path)
            self.refused = None
        except Exception as e:  # whatever is wrong with a new model, the old one goes on
            self._refuse(path.name, e)

    def _swap(self, path: Path) -> None:
        served = self._load(path)
        self._serving.serve(served)
        self.swaps_total += 1
        self._counted.count_model_swap()
        log.info("serving %s", path.name)

    def _serves(self, path: Path) -> bool:
        """Whether this is the model that is served, in a file that was written again or promoted again."""
        if self._serving.is_empty or self._serving.current.name != path.name:
            return False
        return file_format.read_info(path).fingerprint == self._serving.current.fingerprint

    def _fall_back(self) -> None:
        try:
            names = registry.promotion_history(self._folder)[1:_REMEMBERED]
        except CheckpointError:
            return
        for name in names:
            try:
                self._swap(self._folder / name)
                return
            except Exception as e:
                log.warning("%s cannot be served either: %s", name, e)

    def _refuse(self, name: str, error: Exception) -> None:
        self.refusals_total += 1
        self._counted.count_refused_swap()
        if isinstance(error, CheckpointError):
            log.error("%s is refused: %s", name, error)
        else:
            log.exception("%s is refused", name)
        self.refused = Refusal(name, str(error) or type(error).__name__)

    def _what_is_there(self) -> _Seen:
        """What tells one promotion from another: promoted.json and the file that it names, as the disk knows them."""
        paths = [self._folder / PROMOTED]
        try:
            promoted = registry.promoted_path(self._folder)
            paths += [promoted] if promoted is not None else []
        except CheckpointError:
            pass
        return tuple(_identity(path) for path in paths)

    def _loop(self) -> None:
        while not self._stopping.is_set():
            self._wait(LOOK_S)
            if self._stopping.is_set():
                return
            try:
                self.look()
                self._serving.free_retired()
            except Exception:
                log.exception("a look at what is promoted failed")


def _identity(path: Path) -> tuple[int, ...]:
    try:
        s = os.stat(path)
    except OSError:
        return ()
    return (s.st_ino, s.st_mtime_ns, s.st_size)
