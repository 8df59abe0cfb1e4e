"""What integration tests share: nothing that a failed test started goes on."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.integration.launched import Launched


@pytest.fixture(autouse=True)
def _no_launcher_goes_on() -> Iterator[None]:
    """Kill the launchers that a test started and, because it failed, has not stopped."""
    yield
    while Launched.running:
        Launched.running[0].process.send_signal(signal.SIGKILL)
        Launched.running[0].wait()
