"""The server that a reader of a course would write: Flask, nn.LSTM, a character at a time, each request on its own.

    CHECKPOINT_DIR=... python -m gunicorn -k gthread --threads 80 -b 127.0.0.1:8001 'bench.flask_baseline:create_app()'

It streams the same events as ours, so that the same client reads both.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import torch
from flask import Flask, Response, request

from model.checkpoints import file_format, registry
from tests.servers import ROOT, eventually


def create_app() -> Flask:
    """Build the application from the promoted checkpoint of CHECKPOINT_DIR."""
    path = registry.promoted_path(Path(os.environ["CHECKPOINT_DIR"]))
    assert path is not None
    loaded = file_format.load(path)
    network, vocab = loaded.network().eval(), loaded.vocab
    torch.set_num_threads(1)  # requests are threads already
    app = Flask(__name__)

    def write(prompt: str, count: int) -> Iterator[str]:
        position, state = len(prompt), network.zero_state(1)
        with torch.inference_mode():
            ids = torch.tensor([[vocab.start, *vocab.encode(prompt).tolist()]])
        for _ in range(count):
            with torch.inference_mode():
                logits, state = network(ids, state)
                ids = torch.multinomial(torch.softmax(logits[:, -1], dim=-1), 1)
            position += 1
            yield f"id: {position}\ndata: {json.dumps({'text': vocab.characters[int(ids)]})}\n\n"
        yield "event: done\ndata: {}\n\n"

    @app.get("/healthz")
    def healthz() -> str:
        return "ok"

    @app.post("/generate")
    def generate() -> Response:
        payload = request.get_json()
        return Response(write(payload["prompt"], payload["max_chars"]), mimetype="text/event-stream")

    return app


class PlainService:
    """The above under gunicorn, with a thread for every stream."""

    def __init__(self, checkpoints: Path) -> None:
        """Start it on a free port."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [sys.executable, "-m", "gunicorn", "-k", "gthread", "--threads", "80", "-b", f"127.0.0.1:{self.port}"]
        command += ["--no-control-socket", "bench.flask_baseline:create_app()"]
        environment = {**os.environ, "CHECKPOINT_DIR": str(checkpoints)}
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def __enter__(self) -> PlainService:
        eventually(self._answers, within_s=60)
        return self

    def _answers(self) -> bool:
        assert self._process.poll() is None, "the plain server ended while it was starting"
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/healthz").status_code == 200
        except httpx.TransportError:
            return False

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
