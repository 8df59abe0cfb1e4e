"""What integration tests share: nothing that a failed test started goes on."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.integration.launched import Launched


@pytest.fixture(scope="session", autouse=True)
def _signals_as_in_a_terminal() -> Iterator[None]:
    """Tests started with nohup ignore SIGHUP, and what they start inherits that: it could not be ended by one."""
    inherited = signal.getsignal(signal.SIGHUP)
    if inherited == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, inherited)


@pytest.fixture(autouse=True)
def _no_launcher_goes_on() -> Iterator[None]:
    """Kill the launchers that a test started and, because it failed, has not stopped."""
    yield
    for launched in [element for element in Launched.running if element not in Launched.shared]:
        launched.process.send_signal(signal.SIGKILL)
        launched.wait()
