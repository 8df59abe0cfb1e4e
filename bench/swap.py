"""Models replaced under running streams, and trainings killed at random moments, while the promoted model serves.

    python -m bench.swap                                  # 64 streams, 20 promotions, 20 kills
    python -m bench.swap --streams 8 --promotions 3 --kills 2

First part: every stream is compared with the text that a stepper makes alone of the model that it began with; requests
for one character are counted beside it, and the memory of the service is taken before and after. Second part: kill -9
of the training process, while texts are written and checkpoints in the folder are read. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from model.checkpoints import file_format, registry
from model.checkpoints.file_format import Checkpoint, load
from model.stepper.choose import choose
from model.stepper.generate import write
from tests.conftest import ALPHABET, random_checkpoint
from tests.integration.test_jobs import words
from tests.servers import RedisServer, Service, Worker, eventually, read_events

HIDDEN = 320  # large enough for a stream to last through a promotion
TRAINED = {"corpus": "words", "batch_size": 4, "seq_length": 16, "n_hidden": 16, "n_embed": 8, "promote": "never"}


def main() -> None:
    """Run both measurements on one service; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--promotions", type=int, default=20)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--chars", type=int, default=1000, help="of a stream")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        redis = RedisServer()
        redis.start()
        environment = {
            "REDIS_URL": redis.url,
            "CHECKPOINT_DIR": f"{folder}/checkpoints",
            "CORPORA_DIR": f"{folder}/corpora",
            "RUNS_DIR": f"{folder}/runs",
            "SLOTS": str(args.streams),
            "MAX_WAITING": str(args.streams),
        }
        registry.promote(random_checkpoint(seed=0).save(Path(folder) / "checkpoints"))
        service, worker = Service(**environment), Worker(**environment)
        service.start()
        try:
            swaps = swap(service, Path(folder) / "checkpoints", args)
            print(json.dumps(swaps), flush=True)
            worker.start()
            kills = kill(service, worker, Path(folder) / "checkpoints", args)
        finally:
            if worker.process is not None:
                worker.stop()
            service.stop()
            redis.remove()
    print(json.dumps({**swaps, **kills}))


def swap(service: Service, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Streams begin all the time, on whatever model is served; each must be the text of that model."""
    models = {(m := random_checkpoint(n_hidden=HIDDEN, seed=i + 1)).fingerprint: m for i in range(args.promotions + 1)}
    paths = [m.save(folder) for m in models.values()]
    texts: list[tuple[str, int, str]] = []
    statuses: Counter[int] = Counter()
    broken = 0
    done = threading.Event()

    def stream(first: int) -> None:
        nonlocal broken
        seed = first
        with httpx.Client(base_url=service.url, timeout=600) as client:
            while not done.is_set():
                body = {"prompt": "hello", "seed": seed, "max_chars": args.chars, "stream": True}
                try:
                    events = list(read_events(client.post("/generate", json=body)))
                    assert events[-1].name == "done"
                except (httpx.HTTPError, AssertionError, IndexError):
                    broken += 1
                    continue
                text = "".join(e.data["text"] for e in events if e.name == "message")
                texts.append((events[0].data["model"]["fingerprint"], seed, text))
                seed += 1000

    def send_requests() -> None:
        with httpx.Client(base_url=service.url, timeout=600) as client:
            while not done.is_set():
                statuses[client.post("/generate", json={"max_chars": 1}).status_code] += 1

    for _ in range(2):  # what is allocated once, at the first models, is not growth
        for path in paths[:4]:
            _promote(service, path)
    eventually(lambda: _readyz(service)["retired_models"] == 0)
    before = _memory_mb(service)
    threads = [threading.Thread(target=stream, args=(i,)) for i in range(args.streams)] + [
        threading.Thread(target=send_requests)
    ]
    for thread in threads:
        thread.start()
    eventually(lambda: _readyz(service)["in_flight"] >= args.streams)
    seen_s, most_retiring = [], 0
    for path in [*paths[1:], paths[0]][: args.promotions]:
        seen_s.append(_promote(service, path))
        most_retiring = max(most_retiring, _readyz(service)["retired_models"])
        time.sleep(0.5)
    done.set()
    for thread in threads:
        thread.join()
    eventually(lambda: _readyz(service)["retired_models"] == 0)
    after = _memory_mb(service)
    return {
        "streams": args.streams,
        "promotions": args.promotions,
        "texts": len(texts),
        "broken": broken,
        "different": sum(text != _alone(models[model], seed, args.chars) for model, seed, text in texts),
        "models_begun_on": len({model for model, _, _ in texts}),
        "statuses": dict(statuses),
        "seen_s_median": round(sorted(seen_s)[len(seen_s) // 2], 2),
        "seen_s_most": round(max(seen_s), 2),
        "retiring_most": most_retiring,
        "memory_mb": [before, after],
    }


def kill(service: Service, worker: Worker, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Trainings are killed until that has happened so often; then all are waited for."""
    rng = random.Random(args.seed)
    service.client.put("/corpora/words", content=words(3000)).raise_for_status()
    statuses: Counter[int] = Counter()
    done = threading.Event()
    unreadable = 0

    def send_requests() -> None:
        nonlocal unreadable
        with httpx.Client(base_url=service.url, timeout=600) as client:
            while not done.is_set():
                statuses[client.post("/generate", json={"max_chars": 5}).status_code] += 1
                for path in registry.checkpoint_paths(folder)[:3]:
                    try:
                        load(path)
                    except Exception:
                        unreadable += 1

    thread = threading.Thread(target=send_requests)
    thread.start()
    jobs: list[str] = []
    killed: list[int] = []
    while len(killed) < args.kills:
        payload = {**TRAINED, "steps": 3000, "validations": 30, "promote": "always"}
        jobs.append(service.client.post("/retrain", json=payload).json()["job_id"])
        for _ in range(rng.choice([1, 1, 2, 4])):
            job_id = jobs[-1]
            if len(killed) == args.kills or not _comes(service, worker, job_id, killed):
                break
            time.sleep(rng.random() * 4)
            horse = worker.horse()
            if horse is not None:
                os.kill(horse, signal.SIGKILL)
                killed.append(horse)
        eventually(lambda: _state(service, jobs[-1]) not in ("queued", "running"), within_s=300)
    done.set()
    thread.join()
    ends = Counter(_state(service, job_id) for job_id in jobs)
    failed = [service.client.get(f"/jobs/{job_id}").json() for job_id in jobs]
    return {
        "kills": len(killed),
        "jobs": len(jobs),
        "ends": dict(ends),
        "failed_without_reason": sum(j["state"] == "failed" and "killed" not in (j["error"] or "") for j in failed),
        "statuses_meanwhile": dict(statuses),
        "unreadable_checkpoints": unreadable,
    }


def _comes(service: Service, worker: Worker, job_id: str, killed: list[int]) -> bool:
    """Wait for a training process that has not been killed yet; False when the job is over."""
    while _state(service, job_id) in ("queued", "running"):
        if worker.horse() not in (None, *killed):
            return True
        time.sleep(0.05)
    return False


def _promote(service: Service, path: Path) -> float:
    """Promote by hand, as another process would; seconds until new requests get it."""
    fingerprint, began = file_format.read_info(path).fingerprint, time.monotonic()
    registry.promote(path)
    eventually(lambda: _readyz(service)["model"]["fingerprint"] == fingerprint, within_s=120)
    return time.monotonic() - began


def _readyz(service: Service) -> dict[str, Any]:
    body: dict[str, Any] = service.client.get("/readyz").json()
    return body


def _state(service: Service, job_id: str) -> str:
    return str(service.client.get(f"/jobs/{job_id}").json()["state"])


def _memory_mb(service: Service) -> float:
    """Resident memory of gunicorn's worker."""
    assert service._process is not None
    master = service._process.pid
    (child,) = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    pages = int(Path(f"/proc/{child}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def _alone(model: Checkpoint, seed: int, chars: int) -> str:
    stepper, _ = choose(model.network(), n_slots=1)
    return "".join(write(stepper, ALPHABET, "hello", chars, seed=seed))


if __name__ == "__main__":
    main()
