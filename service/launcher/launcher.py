"""The launcher: everything on this machine, stage after stage, each saying what it does.

1. Lock the data folder: one launcher for each.
2. Check that HOST and PORT can be listened on.
3. Start the embedded Redis, unless REDIS_URL names another.
4. Start the trainer, the server, and the bootstrap: it has a first model trained when there is none.
5. Wait. A trainer or Redis that ends is started again. When the server ends, or a signal comes, stop everything.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from signal import SIGKILL, SIGQUIT

from model.errors import TextError
from service.launcher import reaper
from service.launcher.embedded_redis import embedded_redis
from service.launcher.folder_lock import launcher_lock, processes_lock
from service.launcher.supervisor import Child, StopRequested, Supervisor
from service.launcher.terminal import say
from service.operations.address import check_can_listen, reachable_host, service_url
from service.operations.healthcheck import is_alive
from service.redis_url import redacted
from service.settings import Settings, SettingsError, read_settings
from service.store.redis_server import why_unusable

_RESTART_S = 2.0
_PROBE_S = 0.1
_PYTHON = (sys.executable, "-m")


def run(corpus_files: Sequence[Path], minutes: float) -> int:
    """Run the service on this machine until it is stopped.

    Args:
        corpus_files: The texts to train a first model on; none means the default text.
        minutes: How long to train a first model.

    Returns:
        The exit status.

    Raises:
        SettingsError: A setting cannot be used here.
        AlreadyRunning: Another launcher uses the data folder.
        TextError: A text cannot be read.
    """
    for file in corpus_files:
        _check_readable(file)
    settings = read_settings(embeds_redis=True)
    data_folder = settings.longhand_home
    _make_data_folder(data_folder)
    with launcher_lock(data_folder, service_url(settings.host, settings.port)), Supervisor(data_folder) as supervisor:
        try:
            with processes_lock(data_folder, lambda is_free: _wait_for_previous(supervisor, is_free)) as descriptor:
                supervisor.share_lock(descriptor)
                check_can_listen(settings.host, settings.port)
                with _redis(supervisor, settings, data_folder / "redis") as restarted:
                    return _serve(supervisor, settings, restarted, corpus_files, minutes)
        except StopRequested as stop:
            return 128 + stop.number


def _check_readable(file: Path) -> None:
    """Find out before anything is started; what is in the text is checked later, in another process."""
    try:
        with open(file, "rb"):
            pass
    except OSError as e:
        raise TextError(f"cannot be read ({e.strerror})", field=f"corpus {file}", expected="a text file") from e


def _make_data_folder(folder: Path) -> None:
    """Make the folder, and find out whether files can be written in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as e:
        expected = "expected a folder in which files can be written"
        raise SettingsError(f"LONGHAND_HOME={str(folder)!r}: cannot be used ({e.strerror}); {expected}") from e


def _wait_for_previous(supervisor: Supervisor, is_free: Callable[[], bool]) -> bool:
    """Wait until the processes of a launcher that was killed are gone; its reaper ends them."""
    if is_free():
        return True
    say("start", "waits until the processes of the previous start have ended")
    return supervisor.wait_until(is_free, reaper.LIMIT_S)


@contextmanager
def _redis(supervisor: Supervisor, settings: Settings, folder: Path) -> Iterator[list[Child]]:
    """Have a Redis, and tell the children by REDIS_URL.

    Yields:
        The processes that are to be started again when they end.

    Raises:
        SettingsError: It cannot be used.
    """
    if settings.redis_url:
        for name, url in (("REDIS_URL", settings.redis_url), ("JOBS_REDIS_URL", settings.require_queue())):
            if reason := why_unusable(url):
                raise SettingsError(f"{name}={redacted(url)}: {reason}; start that server, or unset {name}")
        say("redis", "the server that REDIS_URL names")
        yield []
        return
    with embedded_redis(supervisor, folder) as (url, server):
        os.environ["REDIS_URL"] = url
        say("redis", f"embedded, data in {folder.resolve()}")
        yield [server]


def _serve(
    supervisor: Supervisor, settings: Settings, restarted: list[Child], corpus_files: Sequence[Path], minutes: float
) -> int:
    """Run the trainer, the server and the bootstrap until the server ends or a signal comes."""
    files = [str(path) for path in corpus_files]
    # When the launcher was killed, Redis ends at the same moment: there is nothing that the trainer could still write.
    trainer = Child("trainer", [*_PYTHON, "service.jobs"], quick_signal=SIGKILL)
    server = Child("server", [*_PYTHON, "service.server"], quick_signal=SIGQUIT)
    bootstrap = Child("bootstrap", [*_PYTHON, "service.launcher.training_progress", "--minutes", str(minutes), *files])
    started: list[Child] = []
    try:
        for child in (server, trainer, bootstrap):
            started.append(supervisor.start(child))
        return _supervise(supervisor, settings, server, bootstrap, [*restarted, trainer])
    finally:
        supervisor.stop(started)


def _supervise(
    supervisor: Supervisor, settings: Settings, server: Child, bootstrap: Child, restarted: list[Child]
) -> int:
    """Wait, and start again what has to run all the time. Return the exit status when the server has ended."""
    is_ready = False
    while server.poll() is None:
        if not is_ready and is_alive(settings.host, settings.port):
            is_ready = True
            say("serve", service_url(settings.host, settings.port) + _reach(settings.host))
        if bootstrap.poll():  # it has said why
            return 1
        if ended := [child for child in restarted if child.poll() is not None]:
            say(ended[0].name, f"ended with status {ended[0].poll()}; it is started again")
            supervisor.pause(_RESTART_S)
            supervisor.start(ended[0])
            continue  # others may have ended meanwhile
        supervisor.wait(None if is_ready else _PROBE_S)
    status = server.poll() or 0
    say("server", f"ended with status {status}")
    return status if status >= 0 else 128 - status


def _reach(host: str) -> str:
    """Say so when other machines can reach the service."""
    return "" if host == reachable_host(host) else f" (and at every other address of this machine: HOST={host})"
