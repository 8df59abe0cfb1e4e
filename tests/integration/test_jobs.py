"""Trainings through HTTP, RQ and Redis, with real workers that are cancelled and killed."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model.checkpoints import registry
from model.checkpoints.file_format import load
from tests.servers import RedisServer, Service, Worker, eventually, parse_events

SMALL = {"corpus": "words", "steps": 60, "batch_size": 4, "seq_length": 16, "n_hidden": 16, "n_embed": 8, "lr": 0.01}
LONG = {**SMALL, "steps": 10**7}  # never ends by itself


def words(n: int) -> str:
    rng = random.Random(0)
    return "".join(rng.choice(["tea ", "coffee ", "milk\n", "sugar "]) for _ in range(n))


class Lab:
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
            "KEEP_MODELS": "3",
        }
        self.service, self.worker = Service(**environment), Worker(**environment)

    def close(self) -> None:
        self.worker.stop()
        self.service.stop()
        self.redis.remove()

    def submit(self, **wanted: Any) -> str:
        response = self.service.client.post("/retrain", json=wanted)
        assert response.status_code == 202, response.text
        assert response.headers["Location"] == f"/jobs/{response.json()['job_id']}"
        return str(response.json()["job_id"])

    def job(self, id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.service.client.get(f"/jobs/{id}").json()
        return found

    def ended(self, id: str) -> dict[str, Any]:
        eventually(lambda: self.job(id)["state"] not in ("queued", "running"), within_s=90)
        return self.job(id)

    def is_at(self, id: str, attempt: int) -> bool:
        return bool(self.job(id)["attempt"] == attempt)

    def trains(self, id: str) -> None:
        """Wait until steps are made."""
        eventually(lambda: bool(self.job(id)["progress"]), within_s=60)

    def cancel(self, id: str) -> dict[str, Any]:
        assert self.service.client.delete(f"/jobs/{id}").status_code == 202
        return self.ended(id)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One service and one worker; the first job that a test submits makes the first model."""
    lab = Lab(tmp_path_factory.mktemp("lab"))
    lab.worker.start()
    lab.service._answers = lambda: _is_up(lab.service)  # type: ignore[method-assign]
    lab.service.start()
    assert lab.service.client.put("/corpora/words", content=words(3000)).status_code == 201
    assert lab.ended(lab.submit(**SMALL))["state"] == "finished"
    yield lab
    lab.close()


def _is_up(service: Service) -> bool:
    """It answers, if only that it has no model."""
    try:
        return service.client.get("/healthz").status_code == 200
    except Exception:
        return False


def test_a_job_from_request_to_result(lab: Lab) -> None:
    """Progress, falling losses, samples and a result with its decision; and its events tell the same, resumably."""
    id = lab.submit(**SMALL, promote="always", validations=4)
    job = lab.ended(id)
    assert (job["state"], job["error"], job["attempt"]) == ("finished", None, 1)
    assert job["request"] == {**SMALL, "promote": "always", "validations": 4, "preset": "quick", "warm_start": False}
    assert job["progress"]["step"] == job["progress"]["total_steps"] == 60
    losses = [look["val"] for look in job["losses"]]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert job["samples"][-1]["text"]
    assert {a["rule"] for a in job["advice"]} >= {"small_validation_part"}  # it is a small text
    made = job["result"]["checkpoint"]
    assert job["result"]["decision"] == {"promoted": True, "reason": "promote is always"}
    assert load(lab.checkpoints / made["name"]).fingerprint == made["id"]
    eventually(lambda: lab.service.client.get("/readyz").json()["model"]["fingerprint"] == made["id"])

    events = parse_events(lab.service.client.get(f"/jobs/{id}/events").text)
    assert {"note", "progress", "look", "sample", "done"} <= {e.name for e in events}
    assert events[-1].data == job
    half = len(events) // 2
    headers = {"Last-Event-ID": str(events[half].id)}
    rest = parse_events(lab.service.client.get(f"/jobs/{id}/events", headers=headers).text)
    assert rest == events[half + 1 :]
    headers = {"Last-Event-ID": str(events[-2].id)}
    assert lab.service.client.get(f"/jobs/{id}/events", headers=headers).status_code == 204
    assert id in [j["job_id"] for j in lab.service.client.get("/jobs").json()["jobs"]]


def test_a_worse_model_is_not_promoted(lab: Lab) -> None:
    """if_better: both on the same validation text, protocol (b); the numbers say why. Promoted by hand, rolled back."""
    before = registry.promoted_path(lab.checkpoints)
    assert before is not None
    job = lab.ended(lab.submit(**{**SMALL, "steps": 2, "seed": 7}))
    decision = job["result"]["decision"]
    assert decision["promoted"] is False
    assert decision["new"] > decision["before"]
    assert decision["before_id"] == load(before).fingerprint
    assert (decision["protocol"], decision["left_out"]) == ("b", 0)
    assert (
        f"{decision['new']:.4f}, is not lower than the promoted model's, {decision['before']:.4f}" in decision["reason"]
    )
    assert registry.promoted_path(lab.checkpoints) == before

    worse = job["result"]["checkpoint"]["id"]
    client = lab.service.client
    assert client.post(f"/models/{worse}/promote", json={}).json()["promoted"]["id"] == worse
    eventually(lambda: lab.service.generate(max_chars=1)["model"]["fingerprint"] == worse)
    listed = client.get("/models").json()
    assert listed["serving"]["fingerprint"] == worse
    assert [m["id"] for m in listed["models"] if m["promoted"]] == [worse]
    assert [m["name"] for m in listed["models"] if m["predecessor"]] == [before.name]
    assert client.post("/models/rollback", json={}).status_code == 200
    eventually(lambda: lab.service.generate(max_chars=1)["model"]["name"] == before.name)


def test_a_better_model_is_promoted(lab: Lab) -> None:
    """if_better again, with more steps: promoted, and it serves; old checkpoints beyond KEEP_MODELS are gone."""
    job = lab.ended(lab.submit(**{**SMALL, "steps": 600}))
    decision = job["result"]["decision"]
    assert decision["promoted"] is True
    assert decision["new"] < decision["before"]
    eventually(lambda: lab.service.generate(max_chars=1)["model"]["fingerprint"] == job["result"]["checkpoint"]["id"])
    assert len(registry.checkpoint_paths(lab.checkpoints)) <= 3 + 2


def test_a_text_that_the_promoted_model_cannot_read_is_said(lab: Lab) -> None:
    """Two texts as one training: its vocabulary is that of both, so the two models are not comparable.

    The old one stays, and the reason names the characters.
    """
    assert lab.service.client.put("/corpora/russian", content="жщю бя\n" * 1000).status_code == 201
    result = lab.ended(lab.submit(**{**SMALL, "corpus": ["words", "russian"]}))["result"]
    assert {"ж", "t"} <= set(load(lab.checkpoints / result["checkpoint"]["name"]).vocab.characters)
    assert result["decision"]["promoted"] is False
    assert "not comparable: the promoted model cannot read" in result["decision"]["reason"]
    assert "бжщюя" in result["decision"]["reason"]


def test_a_warm_start_begins_where_the_promoted_model_is(lab: Lab) -> None:
    """Its shape is taken over, and after one step it is as good as that; another shape is said."""
    before = registry.promoted_path(lab.checkpoints)
    assert before is not None
    wanted = {k: v for k, v in SMALL.items() if k not in ("n_hidden", "n_embed")}
    job = lab.ended(lab.submit(**{**wanted, "steps": 1, "lr": 1e-6}, warm_start=True, promote="never"))
    assert f"warm_start: begins with the weights of {before.name}" in job["notes"]
    assert job["result"]["checkpoint"]["val_loss"] == pytest.approx(load(before).val_loss, abs=0.01)
    wrong = lab.ended(lab.submit(**{**SMALL, "n_hidden": 8}, warm_start=True))
    assert (wrong["state"], wrong["attempt"]) == ("failed", 1)
    assert "n_hidden is 16 in the checkpoint, 8 in this run" in wrong["error"]


def test_the_line_is_bounded_and_a_cancel_keeps_the_best(lab: Lab) -> None:
    """Two wait behind one that runs, the next gets 429. Who waits is cancelled at once; who runs keeps its best."""
    running = lab.submit(**LONG, validations=10000)
    lab.trains(running)
    waiting = [lab.submit(**SMALL) for _ in range(2)]
    refused = lab.service.client.post("/retrain", json=SMALL)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "job_queue_full")
    assert int(refused.headers["Retry-After"]) >= 1
    assert [lab.job(id)["position"] for id in waiting] == [0, 1]
    for id in waiting:
        assert lab.service.client.delete(f"/jobs/{id}").json()["state"] == "cancelled"
        assert lab.service.client.delete(f"/jobs/{id}").status_code == 202  # again: nothing to do
    eventually(lambda: bool(lab.job(running)["losses"]), within_s=60)
    began = time.monotonic()
    job = lab.cancel(running)
    assert time.monotonic() - began < 30
    assert job["state"] == "cancelled"
    kept = job["result"]["checkpoint"]
    assert load(lab.checkpoints / kept["name"]).fingerprint == kept["id"]
    assert job["result"]["decision"]["promoted"] is False
    again = lab.service.client.delete(f"/jobs/{running}")
    assert (again.status_code, again.json()["state"]) == (202, "cancelled")


def test_a_cancel_does_not_wait_for_a_long_validation(lab: Lab) -> None:
    """The last measurement of a large validation part is cut short too, and the best so far is kept as it was."""
    job_id = lab.submit(
        corpus="shakespeare", steps=2, validations=1, val_fraction=0.5, n_hidden=256, n_layers=2, promote="never"
    )
    eventually(lambda: bool(lab.job(job_id)["samples"]), within_s=120)
    began = time.monotonic()
    job = lab.cancel(job_id)
    assert time.monotonic() - began < 60
    assert job["state"] == "cancelled"
    assert job["result"]["checkpoint"]["val_characters"] < 100_000


def test_what_has_ended_cannot_be_cancelled(lab: Lab) -> None:
    """409 with the state; a job that never was is 404, an id of another shape 422."""
    ended = lab.service.client.get("/jobs").json()["jobs"]
    finished = next(j for j in ended if j["state"] == "finished")["job_id"]
    refused = lab.service.client.delete(f"/jobs/{finished}")
    assert (refused.status_code, refused.json()["error"]["state"]) == (409, "finished")
    for method in ("GET", "DELETE"):
        assert lab.service.client.request(method, "/jobs/0123456789abcdef").status_code == 404
        assert lab.service.client.request(method, "/jobs/nope").status_code == 422
    assert lab.service.client.get("/jobs/0123456789abcdef/events").status_code == 404


def test_a_killed_training_is_tried_again_and_then_failed(lab: Lab) -> None:
    """kill -9 at random moments: while tries are left it ends done, then it is failed with the reason.

    The promoted model serves all the while, and every checkpoint in its folder is whole.
    """
    rng = random.Random(1)
    for kills, ends in ((1, "finished"), (4, "failed")):
        job_id = lab.submit(**{**SMALL, "steps": 4000, "validations": 20}, promote="never")
        killed: list[int] = []
        while len(killed) < kills:
            eventually(lambda: lab.worker.horse() not in (None, *killed), within_s=60)  # noqa: B023 - called at once
            time.sleep(2 * rng.random())
            killed.append(lab.worker.horse() or 0)
            os.kill(killed[-1], signal.SIGKILL)
            assert lab.service.post(max_chars=5).status_code == 200
        job = lab.ended(job_id)
        assert job["state"] == ends
        if ends == "finished":
            assert len(job["losses"]) == 20
        else:
            assert "the training process was killed (by signal 9)" in job["error"]
        for path in registry.checkpoint_paths(lab.checkpoints):
            load(path)


def test_a_dead_worker_is_noticed(lab: Lab) -> None:
    """kill -9 of the worker: the training that it forked ends too, and the next worker takes the job up."""
    job_id = lab.submit(**{**SMALL, "steps": 3000, "validations": 5}, promote="never")
    lab.trains(job_id)
    horse = lab.worker.horse()
    assert horse is not None
    lab.worker.kill()
    eventually(lambda: not _runs(horse))
    eventually(lambda: lab.job(job_id)["state"] == "queued", within_s=60)  # noticed with no worker there
    assert lab.service.post(max_chars=5).status_code == 200
    lab.worker.start()
    job = lab.ended(job_id)
    assert (job["state"], job["attempt"]) == ("finished", 2)
    assert "goes on from its last resume point" in job["notes"]
    assert [look["step"] for look in job["losses"]] == [600 * (i + 1) for i in range(5)]


def test_a_worker_that_is_stopped_gives_its_job_back(lab: Lab) -> None:
    """SIGTERM: the job waits in the line, none of its tries is spent, and the next worker ends it."""
    job_id = lab.submit(**{**SMALL, "steps": 3000, "validations": 5}, promote="never")
    lab.trains(job_id)
    lab.worker.stop()
    assert lab.job(job_id)["state"] == "queued"
    lab.worker.start()
    assert lab.ended(job_id)["state"] == "finished"


def _runs(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


def test_a_training_that_cannot_work_fails_once_with_the_reason(lab: Lab) -> None:
    """A text that is gone when its turn comes is not tried again; neither is a rate with which nothing is learnt."""
    assert lab.service.client.put("/corpora/gone", content=words(3000)).status_code == 201
    blocking = lab.submit(**LONG)
    job_id = lab.submit(**{**SMALL, "corpus": "gone"})
    assert lab.service.client.delete("/corpora/gone").status_code == 204
    lab.cancel(blocking)
    job = lab.ended(job_id)
    assert (job["state"], job["attempt"]) == ("failed", 1)
    assert job["error"].startswith("gone: no such corpus")


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"corpus": "nope"}, "corpus", "one of shakespeare"),
    ({"corpus": "../words"}, "name", "expected [a-z0-9]"),
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
        "no such field, expected one of the fields corpus, preset",
    ),
    ({"corpus": "words", "promote": "maybe"}, "promote", "'if_better', 'always' or 'never'"),
    ({"corpus": "words", "batch_size": 4000}, "corpus", "the text has"),
    ({"corpus": "words", "max_vocab": 2}, "corpus", "expected at most max_vocab = 2"),
]


@pytest.mark.parametrize(("body", "field", "says"), BAD, ids=lambda v: str(v)[:40])
def test_a_bad_request_is_refused_before_it_is_queued(lab: Lab, body: dict[str, Any], field: str, says: str) -> None:
    """422 naming field, value and what was expected; nothing is put in the line."""
    before = len(lab.service.client.get("/jobs").json()["jobs"])
    response = lab.service.client.post("/retrain", json=body)
    assert response.status_code == 422, response.text
    assert response.json()["error"]["field"] == field
    assert says in response.json()["error"]["message"]
    assert len(lab.service.client.get("/jobs").json()["jobs"]) == before


def test_only_a_training_can_be_run(lab: Lab) -> None:
    """A job that someone wrote into Redis, naming another function, is not run."""
    from rq import Queue
    from rq.serializers import JSONSerializer

    from service.store.connect import connect

    client = connect(lab.redis.url)
    target = lab.checkpoints.parent / "touched"
    job = Queue("longhand", connection=client, serializer=JSONSerializer).enqueue_call("os.mkdir", args=(str(target),))
    eventually(lambda: job.get_status() in ("failed", "finished"), within_s=60)
    assert job.get_status() == "failed"
    assert not target.exists()
    client.close()
