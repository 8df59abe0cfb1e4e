"""python -m service, and what becomes of its processes, locks and sockets however it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.launched import Launched, free_port
from tests.integration.test_jobs import words
from tests.servers import ROOT, Service, eventually

NO_KERNEL_SIGNAL = "import service.parent_death as p; p.request_kernel_signal = lambda number: False\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder to start in, with a text."""
    (tmp_path / "words.txt").write_text(words(20_000))
    return tmp_path


@pytest.fixture(scope="module")
def listening(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Iterator[dict[str, Launched]]:
    """By HOST, launchers that serve a model that is there already, for tests that do not end them.

    The one at all addresses has two workers, that of localhost a temporary folder whose name is long.
    """
    folders = {host: tmp_path_factory.mktemp("listening") for host in ("::1", "::", "localhost")}
    (long_name := folders["localhost"] / ("a" * 100)).mkdir()
    own = {"::": {"WORKERS": "2"}, "localhost": {"TMPDIR": str(long_name)}}
    launched: dict[str, Launched] = {}
    try:
        for host, folder in folders.items():
            environment = {"HOST": host, "CHECKPOINT_DIR": str(store), **own.get(host, {})}
            launched[host] = Launched(folder, address="[::1]" if ":" in host else host, **environment)
            Launched.shared.append(launched[host])
        for element in launched.values():
            eventually(element.is_ready, within_s=60)
        yield launched
        sockets = [socket_of(element) for element in launched.values()]
    finally:
        for element in launched.values():
            element.process.send_signal(signal.SIGTERM)
        for element in launched.values():
            assert element.wait() == 128 + signal.SIGTERM
    assert not [path for path in sockets if path.parent.exists()]  # wherever it was


def socket_of(launched: Launched) -> Path:
    """The socket of its embedded Redis."""
    title = next(command for command in launched.processes().values() if "redis.sock" in command)
    return Path(title.rpartition("unixsocket:")[2].split()[0])


@pytest.fixture
def serving(listening: dict[str, Launched]) -> Launched:
    """The launcher of those with one worker."""
    return listening["::1"]


def training(folder: Path, text: str = "words.txt", **environment: str) -> Launched:
    """A launcher whose trainer trains and whose server has answered."""
    launched = Launched(folder, "--corpus", text, "--minutes", "60", **environment)
    eventually(lambda: launched.is_ready() and launched.horse() is not None, within_s=60)
    names = " ".join(launched.processes().values())
    assert all(name in names for name in ("valkey-server", "service.jobs", "service.server", "service.launcher.reaper"))
    return launched


def test_every_signal_ends_everything_and_the_text_of_the_last_start_is_trained(folder: Path) -> None:
    """SIGINT, SIGTERM, SIGHUP, SIGQUIT and kill -9: no process, lock or socket is left, and the next start works.

    A job of another text that is queued or running is cancelled, and says so; the same text continues its job. After
    kill -9 the job still counts as running: the next start cancels it all the same.
    """
    (folder / "other.txt").write_text(words(20_000).upper())
    end_with(signal.SIGINT, training(folder))  # its job goes back to the queue

    same = training(folder)
    (queued,) = jobs_of(same)
    eventually(lambda: any("continues a job that is queued already" in line for line in same.lines))
    end_with(signal.SIGTERM, same)

    other = training(folder, "other.txt")
    eventually(lambda: says_that_it_cancelled(other, queued))
    states = [("running", "other"), ("cancelled", "words")]  # it is still queued for a moment
    eventually(lambda: [(job["state"], job["request"]["corpus"]) for job in jobs_of(other)] == states)
    end_with(signal.SIGHUP, other)
    end_with(signal.SIGQUIT, training(folder, "other.txt"))
    killed = training(folder, "other.txt")
    running = jobs_of(killed)[0]
    end_with(signal.SIGKILL, killed)

    last = Launched(folder, "--corpus", "words.txt", "--minutes", "0.05")
    eventually(lambda: last.is_ready() and says_that_it_cancelled(last, running), within_s=60)
    ended = ["finished", "cancelled", "cancelled"]
    eventually(lambda: [job["state"] for job in jobs_of(last)] == ended, within_s=120)
    assert jobs_of(last)[0]["request"]["corpus"] == "words"
    eventually(lambda: last.generate().status_code == 200)
    text = last.generate().json()["text"]
    assert text == text.lower()
    last.stop(signal.SIGTERM)


def end_with(number: signal.Signals, launched: Launched) -> None:
    """End a launcher; it leaves nothing, and no traceback."""
    assert launched.stop(number) == (-number if number == signal.SIGKILL else 128 + number)
    assert "Traceback" not in (errors := "\n".join(launched.errors)), errors


def jobs_of(launched: Launched) -> list[dict[str, Any]]:
    """All jobs, the newest first."""
    return list(launched.client.get("/jobs").json()["jobs"])


def says_that_it_cancelled(launched: Launched, job: dict[str, Any]) -> bool:
    """Whether it has printed the job's address, and why it is cancelled."""
    line = f"cancelled the job that trains on another text: {launched.url}/jobs/{job['job_id']}"
    return any(line in printed for printed in launched.lines)


def test_kill_9_without_the_kernels_help(folder: Path) -> None:
    """Where there is no PR_SET_PDEATHSIG, the reaper ends everything."""
    (folder / "sitecustomize.py").write_text(NO_KERNEL_SIGNAL)
    training(folder, PYTHONPATH=str(folder)).stop(signal.SIGKILL)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's signal is Linux's")
def test_kill_9_of_the_trainer_and_of_the_launcher_and_its_reaper(folder: Path) -> None:
    """The process that the trainer forked ends with it, and another trainer is started.

    Where the reaper is killed, too, the kernel's signal ends everything; the socket's folder alone stays.
    """
    launched = training(folder)
    trainer, horse = launched.pid_of("service.jobs"), launched.horse()
    os.kill(trainer, signal.SIGKILL)
    eventually(lambda: horse not in launched.processes())
    eventually(lambda: any("trainer" in line and "started again" in line for line in launched.lines))
    eventually(lambda: any("service.jobs" in command for command in launched.processes().values()))

    os.kill(launched.pid_of("service.launcher.reaper"), signal.SIGKILL)
    launched.process.kill()
    launched.process.wait()
    eventually(lambda: not launched.processes())
    Launched.running.remove(launched)
    launched.client.close()


def test_the_embedded_redis_is_killed_and_keeps_its_sessions(serving: Launched) -> None:
    """kill -9 of Redis: it is started again, and a session goes on."""
    session = serving.post("/generate", max_chars=20, seed=1).json()["session_id"]
    os.kill(serving.pid_of("valkey-server"), signal.SIGKILL)
    eventually(lambda: any(line.startswith("redis") and "started again" in line for line in serving.lines))

    def goes_on() -> bool:
        answer = serving.post("/generate", max_chars=20, session_id=session)
        return answer.status_code == 200 and bool(answer.json()["saved"])

    eventually(goes_on)
    assert serving.get(f"/sessions/{session}").json()["position"] >= 40  # type: ignore[union-attr]


def test_a_second_start_is_refused(serving: Launched, tmp_path: Path) -> None:
    """In the same folder, on another port: one line with the first one's process id and address; it goes on."""
    second = Launched(serving.folder, HOST="::1", PORT=str(free_port()), TMPDIR=str(tmp_path))
    Launched.running.remove(second)
    assert second.process.wait(timeout=30) == 1
    second.client.close()
    assert second.processes().keys() <= serving.processes().keys()
    assert list(tmp_path.glob("longhand-*")) == []
    (line,) = second.errors
    assert line.startswith("error   already running on the data folder ")
    assert f"process {serving.process.pid}, {serving.url};" in line
    assert second.lines == []
    assert serving.generate().status_code == 200


def test_two_that_start_at_once_are_one_which_ends_without_its_data_folder(tmp_path: Path, store: Path) -> None:
    """Of four starts in one folder at the same moment, one serves and three are refused.

    A data folder that was deleted does not prevent the end: Redis cannot write any more, and ends all the same.
    """
    started = [Launched(tmp_path, CHECKPOINT_DIR=str(store)) for _ in range(4)]
    eventually(lambda: sum(element.process.poll() is None for element in started) == 1, within_s=60)
    (running,) = [element for element in started if element.process.poll() is None]
    eventually(running.is_ready, within_s=60)
    assert [element.process.returncode for element in started if element is not running] == [1, 1, 1]
    shutil.rmtree(tmp_path / "data" / "redis")
    assert running.stop(signal.SIGTERM) == 128 + signal.SIGTERM


def refused(folder: Path, **environment: str) -> str:
    """The one line of a start that is refused; it leaves nothing."""
    launched = Launched(folder, **environment)
    assert launched.wait() == 1
    (line,) = launched.errors
    assert line.startswith("error   ")
    return line


def test_a_port_in_use_is_a_line_with_port(tmp_path: Path) -> None:
    """Somebody else listens there."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        line = refused(tmp_path, PORT=str(port))
    assert f"PORT={port}: another program listens on it" in line


@pytest.mark.parametrize("host", ["x86_64-conda-linux-gnu", "192.0.2.1", "2001:db8::1"])
def test_a_host_that_cannot_be_listened_on_is_a_line_with_host(tmp_path: Path, host: str) -> None:
    """As some shells export one; and addresses of other machines (RFC 5737, RFC 3849)."""
    line = refused(tmp_path, HOST=host)
    assert f"HOST='{host}': cannot be listened on (" in line
    assert "unset it" in line


def test_a_data_folder_that_cannot_be_used_is_a_line_with_longhand_home(folder: Path) -> None:
    """A file stands there."""
    launched = Launched(folder, LONGHAND_HOME="words.txt")
    assert launched.process.wait(timeout=30) == 1
    assert launched.errors == [
        "error   LONGHAND_HOME='words.txt': cannot be used (File exists); "
        "expected a folder in which files can be written"
    ]


def test_a_redis_that_cannot_be_used_is_a_line_with_redis_url(tmp_path: Path) -> None:
    """A URL without a scheme, and one where nobody answers; a password is never printed."""
    line = refused(tmp_path, REDIS_URL="localhost:6379")
    assert "REDIS_URL=...: expected a URL like redis://localhost:6379" in line
    line = refused(tmp_path, REDIS_URL=f"redis://:secret@127.0.0.1:{free_port()}")
    assert "REDIS_URL=...: the server cannot be used (" in line
    assert "secret" not in line


@pytest.mark.parametrize("host", ["::1", "::", "localhost"])
def test_every_address_of_this_machine_can_be_listened_on(listening: dict[str, Launched], host: str) -> None:
    """The service answers there, the printed URL leads there, and the health check finds it."""
    launched = listening[host]
    eventually(lambda: any(line.startswith("serve ") for line in launched.lines))
    printed = next(line for line in launched.lines if line.startswith("serve ")).split()[1]
    assert printed == launched.url
    check = [sys.executable, "-m", "service.operations.healthcheck"]
    environment = {**os.environ, "HOST": host, "PORT": str(launched.port)}
    assert subprocess.run(check, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL).returncode == 0


def test_a_temporary_folder_with_a_long_name(listening: dict[str, Launched]) -> None:
    """A socket's path has about 100 bytes: the embedded Redis listens elsewhere, and leaves nothing there either.

    Its end is that of the fixture.
    """
    socket = socket_of(listening["localhost"])
    assert socket.is_socket()
    assert listening["localhost"].folder not in socket.parents


def test_two_workers_share_the_embedded_redis(listening: dict[str, Launched]) -> None:
    """WORKERS=2: one session's requests are answered by both processes."""
    launched = listening["::"]
    master = launched.pid_of("service.server")
    workers = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    assert len(workers) == 2
    session = launched.generate().json()["session_id"]
    for worker, other in (workers, workers[::-1]):  # with one of them stopped, the other answers
        os.kill(int(other), signal.SIGSTOP)
        body = {"session_id": session, "max_chars": 20}
        answer = httpx.post(f"{launched.url}/generate", json=body, timeout=60)  # not on a connection to the other
        os.kill(int(other), signal.SIGCONT)
        assert answer.status_code == 200, (worker, answer.text)
    assert launched.get(f"/sessions/{session}").json()["position"] == 60  # type: ignore[union-attr]


def test_nohup_is_respected_and_a_second_ctrl_c_does_not_wait_for_running_texts(tmp_path: Path, store: Path) -> None:
    """A launcher that is started with SIGHUP ignored goes on when its terminal is gone.

    The first Ctrl-C lets a text go on; the second ends it where it is, with an error that says so.
    """
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        launched = Launched(tmp_path, CHECKPOINT_DIR=str(store), DRAIN_TIMEOUT_S="600", MAX_CHARS="100000000")
    finally:
        signal.signal(signal.SIGHUP, before)
    eventually(launched.is_ready, within_s=60)
    body = {"max_chars": 10**8, "stream": True}
    with httpx.stream("POST", f"{launched.url}/generate", json=body, timeout=60) as response:
        chunks = response.iter_text()
        next(chunks)
        launched.process.send_signal(signal.SIGHUP)
        launched.process.send_signal(signal.SIGINT)
        eventually(lambda: (answer := launched.get("/readyz")) is not None and answer.status_code == 503)  # draining
        for _ in range(5):  # the text goes on
            next(chunks)
        launched.process.send_signal(signal.SIGINT)
        assert '"draining"' in "".join(chunks)
    assert launched.wait() == 128 + signal.SIGINT


def test_the_launcher_loads_no_torch() -> None:
    """It starts in a moment and is small: what needs torch has processes of its own."""
    program = "import sys, service.__main__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_a_worker_of_a_killed_gunicorn_ends(service: Service) -> None:
    """The kernel tells it; see tests/integration/test_drain.py for a worker that is told to stop."""
    own = Service(CHECKPOINT_DIR=service._environment["CHECKPOINT_DIR"])
    own.start()
    (worker,) = own.workers()
    own.terminate(signal.SIGKILL)
    own.wait(10)
    eventually(lambda: not Path(f"/proc/{worker}").exists() or "Z" in state(worker))
    own.client.close()


def state(pid: int) -> str:
    """The state letter of a process: Z is one that has ended and was not reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "gone"


def test_the_lock_file_says_who_holds_it(serving: Launched) -> None:
    """data/launcher.json, for people and scripts."""
    known = json.loads((serving.folder / "data" / "launcher.json").read_text())
    assert known == {"pid": serving.process.pid, "url": serving.url}


def test_several_texts_small_texts_and_large_alphabets(tmp_path: Path) -> None:
    """Three texts, of 300, 4 and 20,000 characters, 4,500 distinct ones: trained at once, and the notes say how."""
    (tmp_path / "a").mkdir()
    texts = [words(300)[:300], "tea\n", "".join(chr(0x4E00 + i % 4500) for i in range(20_000))]
    files = [tmp_path / "a" / "notes.txt", tmp_path / "notes.txt", tmp_path / "Große Schrift.txt"]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    launched = Launched(tmp_path, "--corpus", *map(str, files), "--minutes", "0.05")
    eventually(lambda: launched.is_ready() and launched.generate().status_code == 200, within_s=120)
    eventually(lambda: jobs_of(launched)[0]["state"] == "finished", within_s=60)
    job = launched.client.get(f"/jobs/{jobs_of(launched)[0]['job_id']}").json()
    assert job["request"]["corpus"] == ["notes", "notes-2", "gro-e-schrift"]
    distinct = len(set("".join(texts)))
    assert f"max_vocab is {distinct:,} instead of 4,096: the text has {distinct:,} distinct characters" in job["notes"]
    assert any(line.startswith("train   max_vocab is ") for line in launched.lines)
    launched.stop(signal.SIGTERM)


@pytest.mark.parametrize(
    ("corpus", "arguments"),
    [
        ("", []),
        ("{folder}/My Own Words.txt", ["--corpus", "{folder}/My Own Words.txt"]),
        ("{folder}/a.txt {folder}/b.txt", ["--corpus", "{folder}/a.txt", "{folder}/b.txt"]),
        ("'{folder}/My Own Words.txt' nowhere.txt", ["--corpus", "{folder}/My Own Words.txt", "nowhere.txt"]),
    ],
)
def test_make_serve_passes_the_texts_on(tmp_path: Path, corpus: str, arguments: list[str]) -> None:
    """CORPUS is one file, whose name may have spaces, or a list as a shell reads it."""
    for name in ("My Own Words.txt", "a.txt", "b.txt"):
        (tmp_path / name).write_text("text")
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    python.chmod(0o755)
    set_up = ["-o", ".venv/.ready", "-o", ".venv/.kernel"]  # as if it had been done
    command = ["make", "-s", *set_up, "serve", f"BIN={tmp_path}", f"CORPUS={corpus.format(folder=tmp_path)}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    expected = [argument.format(folder=tmp_path) for argument in arguments]
    assert json.loads(done.stdout) == ["-m", "service", *expected, "--minutes", "3"]


def test_a_text_that_cannot_be_read_is_a_line(tmp_path: Path) -> None:
    """Before anything is started."""
    launched = Launched(tmp_path, "--corpus", "nowhere.txt")
    assert launched.wait() == 1
    assert launched.lines == []
    assert launched.errors == [
        "error   corpus nowhere.txt: cannot be read (No such file or directory), expected a text file"
    ]


def test_a_text_that_cannot_be_trained_on_is_a_line(tmp_path: Path) -> None:
    """The start ends, and everything that it started; the reason is the last word."""
    (tmp_path / "tiny.txt").write_text("abc")
    launched = Launched(tmp_path, "--corpus", "tiny.txt")
    assert launched.wait() == 1
    assert [line for line in launched.errors if not line.startswith("[")] == [
        "error   corpus: the text has 3 characters, expected at least 4"
    ]
