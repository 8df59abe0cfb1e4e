"""Training jobs through HTTP, RQ and Redis, with real workers that are cancelled and killed."""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model.checkpoints import registry
from model.checkpoints.file_format import load
from service.routes.jobs import MAX_FOLLOWERS
from tests.servers import ROOT, RedisServer, ServiceWithoutModel, Worker, eventually, output_file, read_events

SMALL: dict[str, Any] = {
    "corpus": "words",
    "steps": 60,
    "validations": 3,
    "batch_size": 4,
    "seq_length": 16,
    "n_hidden": 16,
    "n_embed": 8,
    "lr": 0.01,
}
SHORT = {**SMALL, "steps": 4, "validations": 1}
"""For jobs of which only the way through them matters, not what was learned."""
ENDLESS = {**SMALL, "steps": 10**7}


def words(n: int) -> str:
    rng = random.Random(0)
    return "".join(rng.choice(["tea ", "coffee ", "milk\n", "sugar "]) for _ in range(n))


class Stack:
    """A service and a worker on a Redis and in folders of their own."""

    def __init__(self, folder: Path) -> None:
        self.redis = RedisServer()
        self.redis.start()
        self.checkpoints = folder / "checkpoints"
        environment = {
            "REDIS_URL": self.redis.url,
            "CHECKPOINT_DIR": str(self.checkpoints),
            "CORPORA_DIR": str(folder / "corpora"),
            "RUNS_DIR": str(folder / "runs"),
            "MAX_QUEUED_JOBS": "2",
            "KEEP_CHECKPOINTS": "3",
        }
        self.service, self.worker = ServiceWithoutModel(**environment), Worker(**environment)

    def close(self) -> None:
        if self.worker.process is not None:
            self.worker.stop()
        self.service.stop()
        self.redis.remove()

    def start_worker(self, changes: str) -> None:
        """Start the worker, with changes to its modules: statements that know `worker` and `Path`."""
        program = f"""
import sys
from pathlib import Path
import service.jobs.__main__ as program, service.jobs.worker as worker
{changes}
sys.argv = ["service.jobs"]
sys.exit(program.main())
"""
        command, environment = [sys.executable, "-c", program], self.worker._environment
        with output_file() as output:
            self.worker.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)

    def submit(self, **request: Any) -> str:
        response = self.service.client.post("/retrain", json=request)
        assert response.status_code == 202, response.text
        assert response.headers["Location"] == f"/jobs/{response.json()['job_id']}"
        return str(response.json()["job_id"])

    def job(self, id: str) -> dict[str, Any]:
        job: dict[str, Any] = self.service.client.get(f"/jobs/{id}").json()
        return job

    def ended(self, id: str) -> dict[str, Any]:
        eventually(lambda: self.job(id)["state"] not in ("queued", "running"), within_s=300)
        return self.job(id)

    def is_at(self, id: str, attempt: int) -> bool:
        return bool(self.job(id)["attempt"] == attempt)

    def wait_for_progress(self, id: str) -> None:
        """Wait until the training makes steps."""
        eventually(lambda: bool(self.job(id)["progress"]), within_s=60)

    def wait_for_idle_worker(self) -> None:
        """Wait until the process of the last job is gone, which ends a moment after its job."""
        eventually(lambda: self.worker.horse() is None)

    def wait_for_moment(self, id: str, moment: str, attempt: int) -> None:
        """Wait until this attempt's process was forked, has begun the job, or makes steps."""
        progress = self.job(id)["progress"]
        if moment != "forked":
            eventually(lambda: self.is_at(id, attempt), within_s=60)
        if moment == "training":
            eventually(lambda: self.job(id)["progress"] != progress, within_s=60)

    def train_model_of_words(self) -> None:
        """Train a small model on `words`, as the first model, and keep it from what removes old checkpoints."""
        assert self.ended(self.submit(**SMALL))["state"] == "finished"
        path = registry.promoted_path(self.checkpoints)
        assert path is not None
        self._model_of_words = load(path)

    def promote_model_of_words(self) -> Path:
        """Promote the small model of `words`, whatever another test left promoted."""
        self._model_of_words.save(self.checkpoints)
        self.promote(self._model_of_words.fingerprint)
        path = registry.promoted_path(self.checkpoints)
        assert path is not None
        assert load(path).fingerprint == self._model_of_words.fingerprint
        return path

    def promote(self, fingerprint: str) -> None:
        """Promote a checkpoint by hand."""
        response = self.service.client.post(f"/models/{fingerprint}/promote", json={})
        assert response.json()["promoted"]["id"] == fingerprint, response.text

    def cancel(self, id: str) -> dict[str, Any]:
        assert self.service.client.delete(f"/jobs/{id}").status_code == 202
        return self.ended(id)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One service and one worker; the first job that a test submits makes the first model."""
    stack = Stack(tmp_path_factory.mktemp("stack"))
    stack.worker.start()
    stack.service.start()
    assert stack.service.client.put("/corpora/words", content=words(3000)).status_code == 201
    stack.train_model_of_words()
    yield stack
    stack.close()


def test_a_job_from_request_to_result(stack: Stack) -> None:
    """Progress, falling losses, samples and a result with its decision; the same as events, which can be resumed."""
    id = stack.submit(**{**SMALL, "promote": "always", "validations": 4})
    job = stack.ended(id)
    assert (job["state"], job["error"], job["attempt"]) == ("finished", None, 1)
    assert job["request"] == {**SMALL, "promote": "always", "validations": 4, "preset": "quick", "warm_start": False}
    assert job["progress"]["step"] == job["progress"]["total_steps"] == 60
    losses = [v["val_loss"] for v in job["validations"]]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert job["samples"][-1]["text"]
    assert {a["rule"] for a in job["advice"]} >= {"small_validation_part"}  # it is a small text
    new = job["result"]["checkpoint"]
    assert job["result"]["decision"] == {"promoted": True, "reason": "promote is always"}
    assert load(stack.checkpoints / new["name"]).fingerprint == new["id"]
    eventually(lambda: stack.service.client.get("/readyz").json()["model"]["fingerprint"] == new["id"])

    report = stack.service.client.get(f"/models/{new['id']}/report")
    assert (report.status_code, report.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert report.headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'; style-src")
    assert f"<h1>Report on {new['name']}</h1>" in report.text
    for heading in ("Loss curves", "Memorization", "Samples"):
        assert f"<h2>{heading}</h2>" in report.text
    assert "the longest run that is in the training text" in report.text
    for status, headers in ((304, {"If-None-Match": report.headers["ETag"]}), (200, {"If-None-Match": "other"})):
        assert stack.service.client.get(f"/models/{new['id']}/report", headers=headers).status_code == status

    for _ in range(MAX_FOLLOWERS + 1):  # HEAD starts no stream, and so uses up none of the streams that are allowed
        assert stack.service.client.head(f"/jobs/{id}/events").status_code == 200
    events = list(read_events(stack.service.client.get(f"/jobs/{id}/events")))
    assert {"note", "progress", "validation", "sample", "done"} <= {e.name for e in events}
    assert events[-1].data == job
    half = len(events) // 2
    headers = {"Last-Event-ID": str(events[half].id)}
    rest = list(read_events(stack.service.client.get(f"/jobs/{id}/events", headers=headers)))
    assert rest == events[half + 1 :]
    headers = {"Last-Event-ID": str(events[-2].id)}
    assert stack.service.client.get(f"/jobs/{id}/events", headers=headers).status_code == 204
    assert id in [j["job_id"] for j in stack.service.client.get("/jobs").json()["jobs"]]


def test_a_worse_model_is_not_promoted(stack: Stack) -> None:
    """if_better compares both models on the same validation text; then it is promoted by hand and rolled back."""
    before = stack.promote_model_of_words()
    job = stack.ended(stack.submit(**{**SMALL, "steps": 2, "seed": 7}))
    decision = job["result"]["decision"]
    assert decision["promoted"] is False
    assert decision["new_val_loss"] > decision["promoted_val_loss"]
    assert decision["promoted_id"] == load(before).fingerprint
    assert (decision["protocol"], decision["skipped_characters"]) == ("stateful", 0)
    new_loss, promoted_loss = decision["new_val_loss"], decision["promoted_val_loss"]
    assert f"{new_loss:.4f}, is not lower than the promoted model's, {promoted_loss:.4f}" in decision["reason"]
    assert registry.promoted_path(stack.checkpoints) == before

    worse = job["result"]["checkpoint"]["id"]
    client = stack.service.client
    assert client.post(f"/models/{worse}/promote", json={}).json()["promoted"]["id"] == worse
    eventually(lambda: stack.service.generate(max_chars=1)["model"]["fingerprint"] == worse)
    listed = client.get("/models").json()
    assert listed["serving"]["fingerprint"] == worse
    assert [m["id"] for m in listed["models"] if m["promoted"]] == [worse]
    assert [m["name"] for m in listed["models"] if m["predecessor"]] == [before.name]
    assert client.post("/models/rollback", json={}).status_code == 200
    eventually(lambda: stack.service.generate(max_chars=1)["model"]["name"] == before.name)


def test_a_better_model_is_promoted(stack: Stack) -> None:
    """if_better again, with more steps: promoted and served; old checkpoints beyond KEEP_CHECKPOINTS are removed."""
    stack.promote_model_of_words()
    job = stack.ended(stack.submit(**{**SMALL, "steps": 300}))
    decision = job["result"]["decision"]
    assert decision["promoted"] is True
    assert decision["new_val_loss"] < decision["promoted_val_loss"]
    eventually(lambda: stack.service.generate(max_chars=1)["model"]["fingerprint"] == job["result"]["checkpoint"]["id"])
    kept = registry.checkpoint_paths(stack.checkpoints)
    assert len(kept) <= 3 + 2
    assert set(stack.checkpoints.glob("*.html")) <= {registry.report_path(path) for path in kept}
    assert registry.report_path(stack.checkpoints / job["result"]["checkpoint"]["name"]).exists()


def test_a_model_of_its_own_name_is_trained(stack: Stack) -> None:
    """Its first checkpoint is promoted whatever the default one is; its history and warm starts are its own."""
    default = stack.promote_model_of_words()
    client, named = stack.service.client, {**SHORT, "model": "drinks"}
    assert client.post("/generate", json={"model": "drinks", "max_chars": 1}).status_code == 404
    first = stack.ended(stack.submit(**named))
    assert (first["state"], first["request"]["model"]) == ("finished", "drinks")
    assert first["result"]["decision"]["promoted"]
    again = stack.ended(stack.submit(**named, promote="always", warm_start=True))
    assert any("training starts from the weights of" in note for note in again["notes"])
    ids = [job["result"]["checkpoint"]["id"] for job in (first, again)]
    for path in ("/models/drinks", "/models?model=drinks"):
        listed = client.get(path).json()["models"]
        assert [m["id"] for m in listed if m["promoted"]] == ids[1:]
    assert stack.service.generate(model="drinks", max_chars=1)["model"]["fingerprint"] == ids[1]
    assert client.post("/models/rollback", json={"model": "drinks"}).json()["promoted"]["id"] == ids[0]
    assert registry.promoted_path(stack.checkpoints) == default


def test_a_list_is_found_out_trained_and_compared_by_its_items(stack: Stack) -> None:
    """What was found is a note; the checkpoint has both losses; a list's model is not compared with a text's."""
    stack.promote_model_of_words()
    names = "".join(f"{'tea' if n % 3 else 'milk'}{n * 7919 % 1000:03d}\n" for n in range(600))
    assert stack.service.client.put("/corpora/names", content=names).status_code == 201
    job = stack.ended(stack.submit(**{**SMALL, "corpus": "names"}))
    assert (job["state"], job["error"]) == ("finished", None)
    assert any(note.startswith("a list of 600 items, one a line") for note in job["notes"])
    checkpoint = job["result"]["checkpoint"]
    assert (checkpoint["val_protocol"], checkpoint["items"]["layout"]) == ("items", {"items": "lines"})
    assert all(v["val_loss_per_item"] > v["val_loss"] for v in job["validations"])
    assert "not comparable: the new model is of a list" in job["result"]["decision"]["reason"]
    stack.promote(checkpoint["id"])
    again = stack.ended(stack.submit(**{**SMALL, "corpus": "names"}, items="lines"))["result"]["decision"]
    assert again["protocol"] == "items"
    assert again["new_val_loss"] == pytest.approx(again["promoted_val_loss"])
    text = stack.ended(stack.submit(**{**SHORT, "corpus": "names"}, items="text", promote="always"))
    assert text["result"]["checkpoint"]["val_protocol"] == "stateful"


def test_a_corpus_that_was_declared_a_list_is_trained_on_as_one(stack: Stack) -> None:
    """Without a word in the request, which overrules it with one; corpora of several kinds need one."""
    client = stack.service.client
    rows = "kind,name\n" + "".join(f"k{n % 9},tea{n * 7919 % 1000:03d}\n" for n in range(400))
    query: dict[str, str | int] = {"items": "csv", "column": "name", "max_item_chars": 20, "novelty": "false"}
    stored = client.put("/corpora/table", content=rows, params=query)
    assert stored.status_code == 201, stored.text
    layout = {"items": "csv", "column": "name", "max_item_chars": 20, "novelty": False}
    assert (stored.json()["layout"], stored.json()["layout_source"]) == (layout, "declared")
    assert client.get("/corpora/table").json() == stored.json()
    assert stored.json()["notes"] == ["a list of 400 items, rows of CSV, column name; 400 of them are different"]
    job = stack.ended(stack.submit(**{**SHORT, "corpus": "table"}))
    assert job["request"].items() >= layout.items()
    assert job["result"]["checkpoint"]["items"]["layout"] == layout
    job_id = stack.submit(**{**SHORT, "corpus": "table"}, items="text")
    stack.cancel(stack.submit(**{**SMALL, "corpus": ["table", "words"]}, items="lines"))
    refused = client.post("/retrain", json={**SMALL, "corpus": ["table", "words"]})
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "items")
    assert "(table: rows of CSV, column name, words: text)" in refused.json()["error"]["message"]
    assert stack.ended(job_id)["result"]["checkpoint"]["val_protocol"] == "stateful"


@pytest.mark.parametrize(
    ("query", "field", "says"),
    [
        ({"items": "rows"}, "items", "one of auto, text, lines"),
        ({"items": "separator"}, "separator", "the string between two items"),
        ({"items": "lines", "column": "x"}, "column", "none, or items = csv, tsv, jsonl"),
        ({"items": "csv", "column": "x"}, "column", "has no column 'x', expected one of"),
        ({"items": "lines", "max_item_chars": "ten"}, "max_item_chars", "a whole number from 1 to 100000"),
        ({"items": "lines", "max_item_chars": "9" * 99}, "max_item_chars", "a whole number from 1 to 100000"),
        ({"items": "lines", "novelty": "1"}, "novelty", "true or false"),
        ({"separator": ""}, "separator", "at least one character"),
        ({"separator": "", "items": "auto"}, "separator", "at least one character"),
        ({"separator": "a", "items": "lines"}, "separator", "none, or items = separator"),
        ({"item": "lines"}, "item", "one of items, separator"),
    ],
)
def test_what_an_upload_declares_is_checked(stack: Stack, query: dict[str, str], field: str, says: str) -> None:
    """422 names the parameter; nothing is stored."""
    response = stack.service.client.put("/corpora/refused", content="a,b\n" * 50, params=query)
    error = response.json()["error"]
    assert (response.status_code, error["field"]) == (422, field)
    assert says in error["message"]
    assert stack.service.client.get("/corpora/refused").status_code == 404


def test_items_with_a_separator(stack: Stack) -> None:
    """It is typed as on a command line."""
    response = stack.service.client.put(
        "/corpora/recipes", content="%%\n".join(f"salt {n}\npepper\n" for n in range(20)), params={"separator": r"%%\n"}
    )
    assert response.json()["layout"] == {"items": "separator", "separator": "%%\n"}
    assert response.json()["notes"][0].startswith("a list of 20 items, separated by '%%\\n'")


def test_models_with_different_vocabularies_are_not_comparable(stack: Stack) -> None:
    """A job on two corpora has the vocabulary of both, which the promoted model lacks.

    The promoted model stays, and the reason names the characters.
    """
    stack.promote_model_of_words()
    assert stack.service.client.put("/corpora/russian", content="жщю бя\n" * 1000).status_code == 201
    result = stack.ended(stack.submit(**{**SHORT, "corpus": ["words", "russian"]}))["result"]
    assert {"ж", "t"} <= set(load(stack.checkpoints / result["checkpoint"]["name"]).vocab.characters)
    assert result["decision"]["promoted"] is False
    assert "not comparable: the vocabulary of the promoted model lacks" in result["decision"]["reason"]
    assert "бжщюя" in result["decision"]["reason"]


def test_a_warm_start_begins_with_the_promoted_weights(stack: Stack) -> None:
    """It takes the promoted shape and has its loss after one step; another shape is refused before it is queued."""
    before = stack.promote_model_of_words()
    request = {k: v for k, v in SMALL.items() if k not in ("n_hidden", "n_embed")}
    job = stack.ended(
        stack.submit(**{**request, "steps": 1, "validations": 1, "lr": 1e-6}, warm_start=True, promote="never")
    )
    assert f"warm_start: training starts from the weights of {before.name}" in job["notes"]
    assert job["result"]["checkpoint"]["val_loss"] == pytest.approx(load(before).val_loss, abs=0.01)
    for wrong, field in (({"n_hidden": 8}, "n_hidden"), ({"cell": "gru"}, "cell"), ({"n_layers": 2}, "n_layers")):
        body = {**request, **wrong, "warm_start": True}
        response = stack.service.client.post("/retrain", json=body)
        assert response.status_code == 422
        assert response.json()["error"]["field"] == field
        assert "a warm start needs a network of the same shape" in response.json()["error"]["message"]


def test_the_queue_is_bounded_and_a_cancel_keeps_the_best_checkpoint(stack: Stack) -> None:
    """Two wait behind a running job, the next gets 429. Queued jobs end at once, a running one keeps its best model."""
    running = stack.submit(**{**ENDLESS, "validations": 10000})
    stack.wait_for_progress(running)
    waiting = [stack.submit(**SMALL) for _ in range(2)]
    refused = stack.service.client.post("/retrain", json=SMALL)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "job_queue_full")
    assert int(refused.headers["Retry-After"]) >= 1
    assert [stack.job(id)["position"] for id in waiting] == [0, 1]
    for id in waiting:
        assert stack.service.client.delete(f"/jobs/{id}").json()["state"] == "cancelled"
        assert stack.service.client.delete(f"/jobs/{id}").status_code == 202  # again: nothing to do
    eventually(lambda: bool(stack.job(running)["validations"]), within_s=60)
    began = time.monotonic()
    job = stack.cancel(running)
    assert time.monotonic() - began < 30
    assert job["state"] == "cancelled"
    kept = job["result"]["checkpoint"]
    assert load(stack.checkpoints / kept["name"]).fingerprint == kept["id"]
    assert job["result"]["decision"]["promoted"] is False
    again = stack.service.client.delete(f"/jobs/{running}")
    assert (again.status_code, again.json()["state"]) == (202, "cancelled")


def test_a_cancel_does_not_wait_for_a_long_validation(stack: Stack) -> None:
    """The evaluation of a large validation part at the end is interrupted too; the best checkpoint so far is kept."""
    job_id = stack.submit(
        corpus="shakespeare", steps=2, validations=1, val_fraction=0.5, n_hidden=256, n_layers=2, promote="never"
    )
    eventually(lambda: bool(stack.job(job_id)["samples"]), within_s=120)
    began = time.monotonic()
    job = stack.cancel(job_id)
    assert time.monotonic() - began < 60
    assert job["state"] == "cancelled"
    assert job["result"]["checkpoint"]["val_characters"] < 100_000


def test_an_ended_job_cannot_be_cancelled(stack: Stack) -> None:
    """409 with the state; an unknown job is 404, an id of another form 422."""
    ended = stack.service.client.get("/jobs").json()["jobs"]
    finished = next(j for j in ended if j["state"] == "finished")["job_id"]
    refused = stack.service.client.delete(f"/jobs/{finished}")
    assert (refused.status_code, refused.json()["error"]["state"]) == (409, "finished")
    for method in ("GET", "DELETE"):
        assert stack.service.client.request(method, "/jobs/0123456789abcdef").status_code == 404
        assert stack.service.client.request(method, "/jobs/nope").status_code == 422
    assert stack.service.client.get("/jobs/0123456789abcdef/events").status_code == 404


def test_a_killed_training_is_retried_and_then_fails(stack: Stack) -> None:
    """kill -9 at random moments: with attempts left the job finishes, without it fails with the reason.

    The promoted model is served all the time, and every checkpoint in its folder is complete.
    """
    rng = random.Random(1)
    for kills, ends in ((1, "finished"), (4, "failed")):
        stack.wait_for_idle_worker()
        job_id = stack.submit(**{**SMALL, "steps": 1500, "validations": 10}, promote="never")
        killed: list[int] = []
        begun = 0  # attempts that had begun when they were killed
        while len(killed) < kills:
            eventually(lambda: stack.worker.horse() not in (None, *killed), within_s=60)  # noqa: B023 - called at once
            stack.wait_for_moment(job_id, rng.choice(["forked", "begun", "training"]), begun + 1)
            killed.append(stack.worker.running_horse())
            os.kill(killed[-1], signal.SIGKILL)
            eventually(lambda: not _runs(killed[-1]))  # noqa: B023 - called at once
            begun = stack.job(job_id)["attempt"]
            assert stack.service.post(max_chars=5).status_code == 200
        job = stack.ended(job_id)
        assert job["state"] == ends
        if ends == "finished":
            assert len(job["validations"]) == 10
        else:
            assert "the training process was killed (by signal 9)" in job["error"]
        for path in registry.checkpoint_paths(stack.checkpoints):
            load(path)


def test_a_dead_worker_is_noticed(stack: Stack) -> None:
    """kill -9 of the worker: its forked training ends too, and the next worker resumes the job."""
    stack.worker.stop()
    stack.start_worker("worker.HEARTBEAT_S, worker.DEAD_AFTER_S = 1, 4")
    job_id = stack.submit(**{**SMALL, "steps": 800, "validations": 5}, promote="never")
    stack.wait_for_progress(job_id)
    horse = stack.worker.horse()
    assert horse is not None
    stack.worker.kill()
    eventually(lambda: not _runs(horse))
    eventually(lambda: stack.job(job_id)["state"] == "queued", within_s=60)  # noticed without a worker
    assert stack.service.post(max_chars=5).status_code == 200
    stack.worker.start()
    job = stack.ended(job_id)
    assert (job["state"], job["attempt"]) == ("finished", 2)
    assert "resuming from the last resume state" in job["notes"]
    assert [v["step"] for v in job["validations"]] == [160 * (i + 1) for i in range(5)]


def test_a_stopped_worker_returns_its_job_to_the_queue(stack: Stack) -> None:
    """SIGTERM: the job is queued again without the loss of an attempt, and the next worker finishes it."""
    job_id = stack.submit(**{**SMALL, "steps": 800}, promote="never")
    stack.wait_for_progress(job_id)
    stack.worker.stop()
    assert stack.job(job_id)["state"] == "queued"
    stack.worker.start()
    assert stack.ended(job_id)["state"] == "finished"


def _runs(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


def test_a_training_that_cannot_work_fails_at_the_first_attempt(stack: Stack) -> None:
    """A job whose corpus was deleted while it was queued fails with the reason and is not retried."""
    assert stack.service.client.put("/corpora/gone", content=words(3000)).status_code == 201
    blocking = stack.submit(**ENDLESS)
    job_id = stack.submit(**{**SMALL, "corpus": "gone"})
    assert stack.service.client.delete("/corpora/gone").status_code == 204
    stack.cancel(blocking)
    job = stack.ended(job_id)
    assert (job["state"], job["attempt"]) == ("failed", 1)
    assert job["error"].startswith("corpus gone: not found")


HUGE = 10**400
"""An integer that no float can hold; JSON may have it."""

BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"corpus": "nope"}, "corpus", "one of shakespeare"),
    ({"corpus": "../words"}, "corpus", "one of shakespeare"),
    ({"corpus": ["words", "words"]}, "corpus", "each once"),
    ({"corpus": []}, "corpus", "1 to 64 names"),
    ({"corpus": "words", "preset": "huge"}, "preset", "one of quick"),
    ({"corpus": "words", "lr": 7}, "lr", "expected a number above 0, at most 1"),
    ({"corpus": "words", "n_hidden": 0}, "n_hidden", "expected a whole number from 1"),
    ({"corpus": "words", "n_hidden": "many"}, "n_hidden", "expected a whole number"),
    ({"corpus": "words", "cell": "transformer"}, "cell", "one of lstm, gru, rnn"),
    ({"corpus": "words", "minutes": 0}, "minutes", "expected a number above 0"),
    ({"corpus": "words", "vocab_size": 10}, "vocab_size", "no such field"),
    (
        {"corpus": "words", "learning_rate": 1},
        "learning_rate",
        "no such field, expected one of the fields corpus, model, preset",
    ),
    ({"corpus": "words", "items": "rows"}, "items", "expected one of auto, text, lines"),
    ({"corpus": "words", "items": "lines", "column": "x"}, "column", "expected none, or items = csv, tsv, jsonl"),
    ({"corpus": "words", "items": "csv", "column": "x"}, "corpus", "has no column 'x', expected one of"),
    ({"corpus": "words", "items": "lines", "max_item_chars": 3}, "corpus", "the item in line 1 has"),
    (
        {"corpus": "words", "items": "separator", "separator": "~", "max_item_chars": 100_000},
        "corpus",
        "at least 10 different items",
    ),
    ({"corpus": "words", "promote": "maybe"}, "promote", "'if_better', 'always' or 'never'"),
    ({"corpus": "words", "batch_size": 4000, "seq_length": 24}, "seq_length", "expected at most 2 (the training part"),
    ({"corpus": "words", "workers": 3}, "workers", "expected a divisor of the 16 rows of a batch"),
    ({"corpus": "words", "workers": 256}, "workers", "expected a divisor of the 16 rows of a batch"),
    ({"corpus": "words", "batch_size": 6, "workers": 4}, "workers", "expected a divisor of the 6 rows of a batch"),
    ({"corpus": "words", "steps": HUGE}, "steps", "expected a whole number from 0 to 1e+09"),
    ({"corpus": "words", "lr": HUGE}, "lr", "expected a number above 0, at most 1"),
    ({"corpus": "words", "minutes": -HUGE}, "minutes", "expected a number above 0"),
    ({"corpus": "words", "steps": [HUGE]}, "steps", "expected a whole number"),
    ({"corpus": "words", "steps": True}, "steps", "expected a whole number"),
    ({"corpus": "words", "max_vocab": 2}, "max_vocab", "expected at least 16 (the text has 16 distinct characters)"),
]


@pytest.mark.parametrize(("body", "field", "says"), BAD, ids=lambda v: str(v)[:40])
def test_a_bad_request_is_refused_before_it_is_queued(
    stack: Stack, body: dict[str, Any], field: str, says: str
) -> None:
    """422 naming field, value and what was expected; nothing is queued."""
    before = len(stack.service.client.get("/jobs").json()["jobs"])
    response = stack.service.client.post("/retrain", json=body)
    assert response.status_code == 422, response.text
    assert response.json()["error"]["field"] == field
    assert says in response.json()["error"]["message"]
    assert len(stack.service.client.get("/jobs").json()["jobs"]) == before


@pytest.mark.parametrize("number", ["1e400", "-1e400", "[1e400]", '{"a": 1e400}', "NaN", "Infinity", "1" * 5000])
@pytest.mark.parametrize("field", ["lr", "steps", "corpus", "warm_start", "nope"])
def test_a_number_that_json_cannot_repeat(stack: Stack, field: str, number: str) -> None:
    """A number beyond every range: 400 or 422, never 500, and the answer is JSON that every parser reads."""
    body = f'{{"{field}": {number}}}'
    response = stack.service.client.post("/retrain", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 422), response.text

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    error = json.loads(response.text, parse_constant=refuse)["error"]
    assert error["field"].split(".")[0] in (field, "body")


def test_small_texts_and_large_alphabets_fit(stack: Stack) -> None:
    """Two texts, of 300 characters and of 4,500 distinct ones: what the request does not set is adapted, and noted."""
    texts = {"small": words(300)[:300], "alphabet": "".join(chr(0x4E00 + i % 4500) for i in range(9000))}
    for name, text in texts.items():
        assert stack.service.client.put(f"/corpora/{name}", content=text.encode()).status_code == 201
    small = {k: v for k, v in SHORT.items() if k not in ("batch_size", "seq_length")}
    alone = stack.ended(stack.submit(**{**small, "corpus": "small", "promote": "never"}))
    assert alone["state"] == "finished", alone["error"]
    assert "batch_size is 8 instead of 16: the training part has 270 characters" in alone["notes"]
    both = stack.ended(stack.submit(**{**small, "corpus": ["small", "alphabet"], "promote": "never"}))
    assert both["state"] == "finished", both["error"]
    distinct = len(set("".join(texts.values())))
    assert f"max_vocab is {distinct:,} instead of 4,096: the text has {distinct:,} distinct characters" in both["notes"]


def test_only_the_training_function_can_be_run(stack: Stack) -> None:
    """A job written into Redis by someone else, naming another function, is not run."""
    from rq import Queue
    from rq.serializers import JSONSerializer

    from service.store.connect import connect

    client = connect(stack.redis.url)
    target = stack.checkpoints.parent / "touched"
    job = Queue("longhand", connection=client, serializer=JSONSerializer).enqueue_call("os.mkdir", args=(str(target),))
    eventually(lambda: job.get_status() in ("failed", "finished"), within_s=60)
    assert job.get_status() == "failed"
    assert not target.exists()
    client.close()


@pytest.mark.parametrize("named", ["absolute", "relative", "link"])
def test_a_job_deletes_only_its_own_folder(stack: Stack, tmp_path: Path, named: str) -> None:
    """A job that someone else wrote into Redis names a folder outside RUNS_DIR, or its own folder is a link."""
    from rq import Queue
    from rq.serializers import JSONSerializer

    from service.jobs.queue import RETRAIN
    from service.store.connect import connect

    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("mine")
    runs = stack.checkpoints.parent / "runs"
    job_id = secrets.token_hex(8)
    runs.mkdir(exist_ok=True)
    if named == "link":
        (runs / job_id).symlink_to(kept)
    folder = {"absolute": str(kept), "relative": os.path.relpath(kept, runs), "link": job_id}[named]
    client = connect(stack.redis.url)
    queue = Queue("longhand", connection=client, serializer=JSONSerializer)
    broken = {"corpus": "words", "preset": "quick", "promote": "never", "warm_start": False, "steps": -1}
    job = queue.enqueue_call(RETRAIN, args=(folder, broken), job_id=job_id)
    eventually(lambda: job.get_status() in ("failed", "finished"), within_s=60)
    assert job.get_status() == "failed"
    assert (kept / "file").read_text() == "mine"
    (runs / job_id).unlink(missing_ok=True)
    client.close()
