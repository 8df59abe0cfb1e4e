"""`docker compose up` in a clean clone, on a real container engine, and what must hold of what comes up.

    make stack                        needs an engine and Compose 2.24 or later; takes some minutes
    WHEELS=folder make stack          packages from this folder instead of torch's own index

Where it is not asked for, or where there is no engine, it says "not verified": it never passes without one. The tests
follow each other on one stack, which is gone afterwards, its volumes and networks too.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.clients import Client, at_once
from tests.servers import ROOT, eventually

PROJECT = "longhand-e2e"
KEY = "the-key-of-the-operator"
PAYLOAD = {"prompt": "KING", "seed": 5, "temperature": 0.8}


def not_verified() -> str:
    """Why nothing can be said here; empty where it can."""
    if os.environ.get("STACK") != "1":
        return "not verified: make stack runs this"
    if shutil.which("docker") is None:
        return "not verified: no docker command"
    if subprocess.run(["docker", "info"], capture_output=True).returncode:
        return "not verified: no container engine answers"
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        return "not verified: no docker compose"
    return ""


pytestmark = pytest.mark.skipif(bool(not_verified()), reason=not_verified())


class Stack:
    """A clone of its own, and the compose project that is brought up in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "longhand"
        subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", ROOT, self.folder], check=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        settings = {
            "PORT": port,
            "ADMIN_KEY": KEY,
            "REDIS_PASSWORD": "of-the-stack",
            "BOOTSTRAP_MINUTES": 0.5,
            "DRAIN_TIMEOUT_S": 1,
            "LEASE_S": 2,
            "MAX_CHARS": 10**7,
        }
        (self.folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        self.files = ["docker-compose.yml"]
        self._add_what_this_machine_needs()
        self.http = httpx.Client(base_url=self.url, timeout=60, headers={"Authorization": f"Bearer {KEY}"})

    def _add_what_this_machine_needs(self) -> None:
        """An overlay for an engine that cannot reach torch's index: the wheels come from a folder."""
        if wheels := os.environ.get("WHEELS"):
            build = {"args": {"TORCH_CPU_INDEX": ""}, "additional_contexts": {"wheels": wheels}}
            overlay = {"services": {name: {"build": build} for name in ("api", "trainer", "sweep")}}
            (self.folder / "here.json").write_text(json.dumps(overlay))
            self.files.append("here.json")

    def compose(self, *args: str, check: bool = True) -> str:
        files = [word for name in self.files for word in ("-f", name)]
        command = ["docker", "compose", "-p", PROJECT, *files, *args]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        if check:
            assert done.returncode == 0, f"{' '.join(args)}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
        return done.stdout

    def containers(self, service: str) -> list[str]:
        return self.compose("ps", "-q", service).split()

    def inspect(self, container: str) -> dict[str, Any]:
        out = subprocess.run(["docker", "inspect", container], capture_output=True, text=True, check=True).stdout
        result: dict[str, Any] = json.loads(out)[0]
        return result

    def code(self, path: str = "/readyz") -> int:
        try:
            return self.http.get(path).status_code
        except httpx.TransportError:
            return 0

    def ready(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.http.get("/readyz").json()
        return answer

    def generate(self, **body: Any) -> dict[str, Any]:
        response = self.http.post("/generate", json={**PAYLOAD, **body})
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def remove(self) -> None:
        self.http.close()
        self.compose("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "5", check=False)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("clone"))
    yield stack
    stack.remove()


def took(what: str, since: float) -> None:
    print(f"{what}: {time.monotonic() - since:.1f} s")


def test_up_builds_and_comes_up(stack: Stack) -> None:
    """docker compose up in a clean clone: the image is built, every container is well."""
    began = time.monotonic()
    stack.compose("build")
    took("image built", began)
    size = subprocess.run(
        ["docker", "image", "inspect", "-f", "{{.Size}}", "longhand"], capture_output=True, text=True, check=True
    )
    print(f"image: {int(size.stdout) / 1e6:.0f} MB")
    began = time.monotonic()
    stack.compose("up", "-d", "--no-build")
    eventually(lambda: stack.code() == 200, within_s=120)
    took("up -d to /readyz", began)
    eventually(lambda: stack.http.post("/generate", json={**PAYLOAD, "max_chars": 5}).status_code == 200, within_s=180)
    took("up -d to a first text", began)
    stack.compose("up", "-d", "--no-build", "--wait", "--wait-timeout", "120")


def test_nobody_is_root_and_nothing_can_be_written(stack: Stack) -> None:
    """Not the user, not the root; and what trains has no way out to the internet."""
    for service in ("api", "trainer"):
        assert stack.compose("exec", "-T", service, "id", "-u").strip() == "10001"
        wrote = stack.compose("exec", "-T", service, "sh", "-c", "echo > /app/x || echo refused").strip()
        assert wrote == "refused"
    reached = "import socket; socket.create_connection(('1.1.1.1', 53), 2)"
    out = stack.compose("exec", "-T", "trainer", "sh", "-c", f'python -c "{reached}" 2>/dev/null || echo cut off')
    assert out.strip() == "cut off"


def test_the_native_stepper_serves(stack: Stack) -> None:
    """What was compiled in the image runs in the container; nothing is compiled there."""
    assert stack.ready()["stepper"] in ("cpu-f32", "cpu-i8")


def test_the_image_of_the_api_has_no_packages_of_sweeps(stack: Stack) -> None:
    """They are in the image that sweeps have; without them, a sweep is one line that says where it can be had."""
    have = "import importlib.util as u; print([bool(u.find_spec(n)) for n in ('optuna', 'matplotlib', 'torch')])"
    for service in ("api", "trainer"):
        assert stack.compose("exec", "-T", service, "python", "-c", have).strip() == "[False, False, True]"
    out = stack.compose("exec", "-T", "trainer", "sh", "-c", "python -m model sweep /app/LICENSE 2>&1 || true")
    assert out.startswith("error: this command needs optuna"), out
    assert len(out.splitlines()) == 1, out
    swept = ["run", "--rm", "sweep", "python", "-m", "model", "sweep", "--runs", "1", "--minutes", "0.2"]
    out = stack.compose(*swept, "--out", "/data/sweep", "--n-hidden", "32")
    assert "leaderboard, best first" in out, out
    assert stack.compose("exec", "-T", "api", "sh", "-c", "command -v gcc cc clang || echo none").strip() == "none"


def test_a_session_goes_on(stack: Stack) -> None:
    """200 characters are 100 and then 100, in containers too."""
    for job in _trainings(stack):  # or a better model would come in between; what was learnt so far stays
        assert stack.http.delete(f"/jobs/{job}").status_code == 202
    eventually(lambda: not _trainings(stack), within_s=120)
    whole = stack.generate(max_chars=200)
    first = stack.generate(max_chars=100)
    more = stack.generate(max_chars=100, session_id=first["session_id"], prompt="")
    assert first["text"] + more["text"] == whole["text"]


def _trainings(stack: Stack) -> list[str]:
    jobs = stack.http.get("/jobs").json()["jobs"]
    return [job["job_id"] for job in jobs if job["state"] in ("queued", "running")]


def test_a_retrain_swaps_the_model(stack: Stack) -> None:
    """PUT a text, POST /retrain, with the operator's key: another model is served, without a restart."""
    before = stack.ready()["model"]["fingerprint"]
    text = stack.generate(max_chars=40_000)["text"]  # as if it were yours
    assert stack.http.put("/corpora/mine", content=text.encode()).status_code == 201
    job = stack.http.post("/retrain", json={"corpus": "mine", "steps": 100, "n_hidden": 32, "promote": "always"})
    assert job.status_code == 202, job.text
    assert httpx.post(f"{stack.url}/retrain", json={"minutes": 0.1}).status_code == 401
    path = job.json()["job"]
    eventually(lambda: stack.http.get(path).json()["state"] in ("finished", "failed"), within_s=180)
    assert stack.http.get(path).json()["state"] == "finished", stack.http.get(path).json()
    eventually(lambda: stack.ready()["model"]["fingerprint"] != before)


def test_redis_may_go_and_come(stack: Stack) -> None:
    """Stopped: sessions get 503, other texts go on. Back: sessions go on where they were."""
    session = stack.generate(max_chars=50)
    whole = stack.generate(max_chars=100)
    stack.compose("stop", "redis")
    away = stack.http.post("/generate", json={"session_id": session["session_id"], "max_chars": 5})
    assert (away.status_code, away.json()["error"]["code"]) == (503, "store_unavailable")
    unsaved = stack.generate(max_chars=20)
    assert (unsaved["text"], unsaved["saved"]) == (whole["text"][:20], False)
    assert stack.ready()["session_store"] == "unavailable"
    stack.compose("start", "redis")
    eventually(lambda: stack.ready()["session_store"] == "ok")
    more = stack.generate(max_chars=50, session_id=session["session_id"], prompt="")
    assert session["text"] + more["text"] == whole["text"]


def test_a_killed_trainer_comes_back(stack: Stack) -> None:
    """The engine starts it again, and its line goes on."""
    (trainer,) = stack.containers("trainer")
    os.kill(stack.inspect(trainer)["State"]["Pid"], 9)
    eventually(lambda: stack.inspect(trainer)["RestartCount"] == 1)
    eventually(lambda: stack.inspect(trainer)["State"]["Health"]["Status"] == "healthy", within_s=120)


def test_two_behind_the_proxy(stack: Stack) -> None:
    """The scale overlay: the proxy takes over the port, sessions go on on either, and one that stops is not missed."""
    stack.files.insert(1, "deploy/compose.scale.yml")
    began = time.monotonic()
    stack.compose("up", "-d", "--no-build", "--scale", "api=2", "--wait", "--wait-timeout", "180")
    took("scaled to 2 behind the proxy", began)
    eventually(lambda: stack.code() == 200)
    assert len(stack.containers("api")) == 2
    whole = stack.generate(max_chars=200)["text"]
    clients = [Client(stack.url) for _ in range(20)]
    for thread in at_once([lambda c=c: _in_turns(c) for c in clients]):  # type: ignore[misc]
        thread.join()
    assert {client.text for client in clients} == {whole}


def _in_turns(client: Client) -> None:
    client.turn(**PAYLOAD, max_chars=50)
    for _ in range(3):
        client.turn(temperature=PAYLOAD["temperature"], max_chars=50)
    client.close()


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_one_of_two_goes_under_streams(stack: Stack, how: str) -> None:
    """Told to stop, or killed: every client that asks for its stream again has its exact text in the end."""
    n = 2_000_000  # longer than the notice and the drain
    whole = stack.generate(max_chars=n)["text"]
    clients = [Client(stack.url) for _ in range(10)]

    def stream(client: Client) -> None:
        while not client.done:
            try:
                if client.session_id:
                    headers = {"Last-Event-ID": str(client.at)}
                    client.read("GET", f"/sessions/{client.session_id}/stream", headers=headers)
                else:
                    client.read("POST", "/generate", json={**PAYLOAD, "max_chars": n, "stream": True})
            except httpx.TransportError:
                assert how == "killed"
        client.close()

    streaming = at_once([lambda c=c: stream(c) for c in clients])  # type: ignore[misc]
    eventually(lambda: all(client.text for client in clients))
    one = stack.containers("api")[0]
    if how == "stopped":
        stopped = subprocess.run(["docker", "stop", one], capture_output=True)
        assert stopped.returncode == 0
        assert stack.inspect(one)["State"]["ExitCode"] == 0
    else:
        os.kill(stack.inspect(one)["State"]["Pid"], 9)
    for thread in streaming:
        thread.join()
    assert {client.text for client in clients} == {whole}
    errors = [code for client in clients for code in client.errors]
    assert set(errors) <= {"draining"}
    if how == "stopped":
        assert errors
        assert {status for client in clients for status in client.statuses} <= {200, 429}
        subprocess.run(["docker", "start", one], capture_output=True, check=True)
    eventually(lambda: stack.inspect(one)["State"].get("Health", {}).get("Status") == "healthy", within_s=120)
    print(f"{how}: {len(errors)} of 10 streams were sent away")


def test_down_and_up_keeps_what_was_learnt(stack: Stack) -> None:
    """Containers go, volumes stay: the same model, and a session that goes on."""
    session = stack.generate(max_chars=50)
    stack.compose("down")
    began = time.monotonic()
    stack.compose("up", "-d", "--no-build")
    eventually(lambda: stack.code() == 200 and stack.ready()["status"] == "ready", within_s=120)
    took("up again, with a model, to /readyz", began)
    again = stack.generate(max_chars=50, session_id=session["session_id"], prompt="")
    assert session["text"] + again["text"] == stack.generate(max_chars=100)["text"]


def test_without_a_network_the_command_line_works(stack: Stack) -> None:
    """The default text is inside: a container that reaches nothing trains on it and writes."""
    train = "python -m model train --minutes 0.05 --n-hidden 32 --out /tmp/m"
    command = f"{train} && python -m model sample Once --checkpoint /tmp/m/val*"
    run = ["docker", "run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp", "longhand", "sh", "-c"]
    done = subprocess.run([*run, command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Once" in done.stdout


def test_it_leaves_nothing_behind(stack: Stack) -> None:
    """down --volumes: no container, volume or network of the project; every process of ours ended by itself."""
    stack.compose("stop")
    codes = {c: stack.inspect(c)["State"]["ExitCode"] for c in stack.compose("ps", "-aq").split()}
    assert set(codes.values()) <= {0}, {stack.inspect(c)["Name"]: code for c, code in codes.items()}
    stack.compose("down", "--volumes")
    for kind in (["ps", "-a"], ["volume", "ls"], ["network", "ls"]):
        label = f"label=com.docker.compose.project={PROJECT}"
        left = subprocess.run(["docker", *kind, "-q", "--filter", label], capture_output=True, text=True, check=True)
        assert left.stdout == ""
