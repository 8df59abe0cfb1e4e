"""The PyTorch network of a served checkpoint, loaded when a request first needs it.

Text generation runs on the engine's stepper. Only /score, /inspect and the log-probabilities of alternatives read a
text with the plain network; without such requests its memory is not used.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from model.checkpoints import file_format
from model.errors import CheckpointError
from model.network.char_rnn import CharRNN
from service.errors import NoModel


class OnDemandNetwork:
    """The network of one checkpoint. Its methods may be called by any thread."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        """Remember the file; nothing is loaded yet.

        Args:
            path: The checkpoint.
            fingerprint: Identifies the weights; a file with others is not used.
        """
        self._path = path
        self._fingerprint = fingerprint
        self._lock = threading.Lock()
        self._network: CharRNN | None = None
        self.on_loaded: Callable[[], None] = _ignore
        """Called when the network has been loaded, which changes `n_bytes`."""

    def get(self) -> CharRNN:
        """Return the network in evaluation mode; the first call loads it.

        Raises:
            NoModel: The file is gone or was replaced since the model was loaded.
        """
        with self._lock:
            network = self._network
            if network is not None:
                return network
            network = self._network = self._load()
        self.on_loaded()
        return network

    @property
    def n_bytes(self) -> int:
        """The memory of its weights; 0 while it is not loaded."""
        network = self._network
        if network is None:
            return 0
        return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())

    def free(self) -> None:
        """Drop the network."""
        with self._lock:
            self._network = None

    def _load(self) -> CharRNN:
        try:
            checkpoint = file_format.load(self._path)
        except CheckpointError as e:
            raise NoModel(f"the served checkpoint cannot be read again: {e}") from e
        if checkpoint.fingerprint != self._fingerprint:
            raise NoModel(f"{self._path.name} was replaced by another checkpoint since it was loaded")
        return checkpoint.network()


def _ignore() -> None:
    """Nobody counts the memory."""
