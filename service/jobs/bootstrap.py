"""The first model, from the launcher's side: whether one is to be trained, on what, and how the terminal shows it.

python -m service.jobs.bootstrap [--minutes M]: queue its training, where one is needed, and end.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model.checkpoints import file_format, registry
from model.errors import CheckpointError, ModelError
from model.evaluation.protocols import bits
from model.text.decoding import read_text
from model.text.text_statistics import text_sha256
from service.errors import ServiceError
from service.jobs.queue import JobQueue
from service.jobs.request import check
from service.schemas import RetrainRequest
from service.settings import SettingsError, read_settings
from service.store.connect import connect
from service.store.corpora import BUILT_IN, Corpora

_LIVE = ("queued", "running")
_BAR_CHARS, _BAR_NATS = 24, 4.0


def is_needed(folder: Path, corpus: Path | None) -> tuple[bool, str]:
    """Whether there is no model yet, or one of another text than was asked for; and that in words."""
    try:
        path = registry.promoted_path(folder)
        if path is None:
            return True, "none yet"
        found = file_format.read_info(path)
    except CheckpointError as e:
        return True, f"what is promoted cannot be used: {e}"
    if corpus is not None and text_sha256(read_text(corpus)[0]) != found.run["corpus_sha256"]:
        return True, f"{path.name} was trained on another text than {corpus}"
    return False, str(path)


def submit(queue: JobQueue, corpora: Corpora, corpus: Path | None, minutes: float) -> tuple[str, bool]:
    """Queue the training: its job, and whether this start queued it rather than another.

    Raised: TextError, BadRequest, StoreUnavailable, JobQueueFull.
    """
    name = BUILT_IN
    if corpus is not None:
        read_text(corpus)
        name = re.sub(r"[^a-z0-9._-]+", "-", corpus.stem.lower()).strip("-._")[:64] or "text"
        name = f"{name}-text"[:64] if name == BUILT_IN else name
        with open(corpus, "rb") as f:
            corpora.put(name, f.read)
    request = RetrainRequest.model_validate({"corpus": name, "promote": "always", "minutes": minutes})
    return queue.submit_first(check(request, corpora))


def follow(queue: JobQueue, job_id: str) -> Iterator[str]:
    """What a terminal shows of a job while it runs: the curve as it falls, and what the model writes."""
    after = "0"
    while True:
        live = queue.get(job_id)["state"] in _LIVE
        events = queue.events(job_id, after, 500 if live else 1)
        for id, name, data in events:
            after = id
            yield from _lines(name, data)
        if not live and not events:
            break
    job = queue.get(job_id)
    if job["state"] == "failed":
        yield f"train   failed: {job['error']}"
        return
    made = (job["result"] or {}).get("checkpoint")
    loss = f", validation {made['val_loss']:.4f} nats = {bits(made['val_loss']):.4f} bits per character" if made else ""
    yield f"train   {job['state']}{loss}"


def _lines(name: str, data: dict[str, Any]) -> Iterator[str]:
    if name == "look":
        bar = "#" * max(1, round(_BAR_CHARS * min(1.0, data["val"] / _BAR_NATS)))
        mark = "  (best)" if data["is_best"] else ""
        yield (
            f"train   {data['elapsed_s']:5.0f} s  step {data['step']:>6,}  validation {data['val']:.3f} nats "
            f"{bits(data['val']):.3f} bits  {bar:<{_BAR_CHARS}}{mark}"
        )
    elif name == "sample":
        shown = " ".join(data["text"].split())
        yield from (f"        | {line}" for line in textwrap.wrap(shown, 100)[:2])
    elif name == "promoted":
        yield f"serve   {data['name']}: ask for a text now, and again later: better ones follow"
    elif name == "note":
        yield f"train   {data['text']}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m service.jobs.bootstrap", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="how long to train (default 3)")
    minutes = parser.parse_args().minutes
    try:
        settings = read_settings()
        needed, why = is_needed(settings.checkpoint_dir, None)
        print(f"model   {why}", flush=True)
        if needed:
            corpora = Corpora(settings.corpora_dir, settings.max_corpus_bytes)
            queue = JobQueue(connect(settings.require_queue()), settings.max_queued_jobs)
            job_id, is_new = submit(queue, corpora, None, minutes)
            print(f"train   {'queued' if is_new else 'queued already'}: /jobs/{job_id}", flush=True)
    except (SettingsError, ModelError, ServiceError) as e:
        print(f"error   {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
