"""Models retrained and promoted by name, one after the other, while texts of all of them are generated.

    python -m bench.tenants                       # 100 models, 8 streams
    python -m bench.tenants --models 20 --streams 4

Each model has a checkpoint before, and is trained once, through the queue, with a tiny budget and `promote: always`.
Memory is for a third of the models. Every text is compared with the one that its name's checkpoint writes alone, of
those that the name has had. Memory is that of the worker after every model was used, before the first job and after
the last one. With --minutes the jobs of the result are as many as were done. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from bench.models import resident_mb
from model.checkpoints import registry
from model.checkpoints.file_format import Checkpoint, load
from model.checkpoints.names import store_folder
from model.stepper.cpu import CpuStepper
from model.stepper.generate import write
from tests.conftest import random_checkpoint
from tests.integration.test_jobs import words
from tests.servers import RedisServer, Service, Worker, eventually, read_events

PROMPT = "tea "
JOB = {"corpus": "words", "batch_size": 4, "seq_length": 16, "n_hidden": 32, "n_embed": 8, "steps": 20}
QUEUED = 4


class Texts:
    """Streams of random models, one after the other until `done` is set."""

    def __init__(self, service: Service, names: list[str], n_chars: int) -> None:
        """Begin with no text."""
        self.service, self.names, self.n_chars = service, names, n_chars
        self.texts: list[tuple[str, str, int, str]] = []  # name, fingerprint, seed, text
        self.refused: Counter[str] = Counter()
        self.n_broken = 0
        self.done = threading.Event()

    def stream(self, seed: int) -> None:
        """Read one text after the other."""
        rng = random.Random(seed)
        with httpx.Client(base_url=self.service.url, timeout=600) as client:
            while not self.done.is_set():
                self.one(client, rng.choice(self.names), rng.getrandbits(40))

    def one(self, client: httpx.Client, name: str, seed: int) -> None:
        """Read a text to its end."""
        body = {"model": name, "prompt": PROMPT, "seed": seed, "max_chars": self.n_chars, "stream": True}
        response = client.post("/generate", json=body)
        if response.status_code != 200:
            self.refused[f"{response.status_code} {response.json()['error']['code']}"] += 1
            return
        events = list(read_events(response))
        if events[-1].name != "done":
            self.n_broken += 1
            return
        text = "".join(e.data["text"] for e in events if e.name == "message")
        self.texts.append((name, events[0].data["model"]["fingerprint"], seed, text))

    def different(self, checkpoints: dict[tuple[str, str], Checkpoint]) -> int:
        """Count the texts that no checkpoint of their name writes alone."""
        steppers = {key: CpuStepper(checkpoint.network(), 1) for key, checkpoint in checkpoints.items()}
        n = 0
        for name, fingerprint, seed, text in self.texts:
            stepper, checkpoint = steppers.get((name, fingerprint)), checkpoints.get((name, fingerprint))
            if stepper is None or checkpoint is None:
                n += 1
                continue
            n += text != "".join(write(stepper, checkpoint.vocab, PROMPT, self.n_chars, seed=seed))
        return n


def main() -> None:
    """Train all models under load, and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--chars", type=int, default=500, help="of a text")
    parser.add_argument("--minutes", type=float, default=1e9, help="no job begins later, also if models are left")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        redis = RedisServer()
        redis.start()
        settings = {
            "REDIS_URL": redis.url,
            "CHECKPOINT_DIR": f"{folder}/checkpoints",
            "CORPORA_DIR": f"{folder}/corpora",
            "RUNS_DIR": f"{folder}/runs",
            "PRECISION": "fp32",
            "MODELS_MEMORY_MB": str(2 * max(args.models // 3, args.streams + 2) + 2),
            "MAX_QUEUED_JOBS": str(QUEUED),
        }
        root = Path(folder, "checkpoints")
        registry.promote(random_checkpoint(n_hidden=32).save(root))
        checkpoints: dict[tuple[str, str], Checkpoint] = {}
        names = [f"m{i}" for i in range(args.models)]
        for i, name in enumerate(names):
            checkpoint = random_checkpoint(n_layers=1, n_hidden=32, seed=1 + i)
            registry.promote(checkpoint.save(store_folder(root, name)))
            checkpoints[name, checkpoint.fingerprint] = checkpoint
        service, worker = Service(**settings), Worker(**settings)
        service.start()
        worker.start()
        try:
            print(json.dumps(measure(service, names, root, checkpoints, args)))
        finally:
            worker.stop()
            service.stop()
            redis.remove()


def measure(
    service: Service,
    names: list[str],
    root: Path,
    checkpoints: dict[tuple[str, str], Checkpoint],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Retrain each model beside the texts."""
    service.client.put("/corpora/words", content=words(3000)).raise_for_status()
    texts = Texts(service, names, args.chars)
    for name in names:
        texts.one(service.client, name, 1)
    (pid,) = service.workers()
    before = resident_mb(pid)
    threads = [threading.Thread(target=texts.stream, args=(seed,)) for seed in range(args.streams)]
    for thread in threads:
        thread.start()
    started, ends = time.monotonic(), Counter[str]()
    jobs: list[tuple[str, str]] = []
    for i, name in enumerate(names):
        if time.monotonic() - started > 60 * args.minutes:
            break
        if i >= QUEUED:
            _end(service, *jobs[i - QUEUED], root, checkpoints, ends)
        body = {**JOB, "model": name, "promote": "always"}
        answer = service.client.post("/retrain", json=body)
        assert answer.status_code == 202, answer.text
        jobs.append((name, answer.json()["job_id"]))
    for name, job_id in jobs[-QUEUED:]:
        _end(service, name, job_id, root, checkpoints, ends)
    seconds = time.monotonic() - started
    for name in names:
        texts.one(service.client, name, 2)
    texts.done.set()
    for thread in threads:
        thread.join()
    return {
        "models": len(names),
        "jobs": dict(ends),
        "seconds": round(seconds, 1),
        "texts": len(texts.texts),
        "checkpoints_begun_on": len({key[:2] for key in texts.texts}),
        "broken": texts.n_broken,
        "different": texts.different(checkpoints),
        "refused": dict(texts.refused),
        "memory_mb": [round(before, 1), round(resident_mb(pid), 1)],
    }


def _end(
    service: Service,
    name: str,
    job_id: str,
    root: Path,
    checkpoints: dict[tuple[str, str], Checkpoint],
    ends: Counter[str],
) -> None:
    """Wait for the end of a job, and keep the checkpoint that it has promoted."""

    def state() -> str:
        return str(service.client.get(f"/jobs/{job_id}").json()["state"])

    eventually(lambda: state() not in ("queued", "running"), within_s=300)
    ends[state()] += 1
    path = registry.promoted_path(store_folder(root, name))
    assert path is not None
    checkpoint = load(path)
    checkpoints[name, checkpoint.fingerprint] = checkpoint


if __name__ == "__main__":
    main()
