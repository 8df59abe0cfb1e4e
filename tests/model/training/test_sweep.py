"""Sweeps: the best validation wins, studies are shared, no settings are tried twice."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import Trial

from model.checkpoints.file_format import load
from model.checkpoints.registry import promoted_path
from model.cli import main
from model.cli.training_console import GracefulInterrupt
from model.config import ModelConfig, TrainConfig
from model.errors import ConfigError, TrainingError
from model.text.corpus import Corpus
from model.text.items.layout import ItemLayout
from model.text.memory_map import read_corpora
from model.training.sweep import Sweep
from tests.model.texts import words
from tests.servers import ROOT, RedisServer, eventually

SIZES = ["--steps", "12", "--batch-size", "4", "--seq-length", "8", "--validations", "4"]
CONFIG = TrainConfig(steps=12, batch_size=4, seq_length=8, validations=4)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(words(1000))
    return file


def test_the_best_validation_is_promoted(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The leaderboard's first row is what `info` shows; the same name continues the study."""
    out = tmp_path / "models"
    command = ["sweep", str(text), "--out", str(out), *SIZES, "--minutes", "5"]
    assert main([*command, "--runs", "3"]) == 0
    output = capsys.readouterr().out
    rows = [line for line in output.split("leaderboard")[1].splitlines() if line.startswith("run ")]
    assert len(rows) == 3
    path = promoted_path(out)
    assert path is not None
    assert f"{load(path).val_loss:.4f} nats" in rows[0]
    assert f"n_hidden {load(path).config.n_hidden} " in rows[0]
    losses = [float(row.split()[2]) for row in rows if "pruned" not in row]
    assert losses == sorted(losses)
    assert main([*command, "--runs", "1"]) == 0
    assert capsys.readouterr().out.split("leaderboard")[1].count("\nrun ") == 4
    assert main(["info", "--store", str(out)]) == 0


def test_the_first_run_has_the_requested_settings(tmp_path: Path, text: Path) -> None:
    """The first run has the settings that were given, where the space has them: a sweep ends no worse than they do."""
    corpus = Corpus.from_file(text, CONFIG)
    config = replace(CONFIG, lr=4.5e-3, dropout=0.15)
    for name, hidden, expected in (("inside", 192, 192), ("outside", 1000, 512)):
        sweep = Sweep(corpus, ModelConfig(len(corpus.vocab), n_hidden=hidden), config, tmp_path, study=name)
        sweep.run(2, 5)
        first = next(row for row in sweep.leaderboard() if row.number == 0)
        network = {"n_hidden": expected, "n_layers": 1}
        assert first.settings == {**network, "seq_length": 8, "dropout": 0.15, "weight_drop": 0.0, "lr": 4.5e-3}
        again = Sweep(corpus, ModelConfig(len(corpus.vocab), n_hidden=128), config, tmp_path, study=name)
        again.run(1, 5)
        assert len(again.leaderboard()) == 3


def test_windows_are_searched_as_far_as_the_text_is_long(tmp_path: Path, text: Path) -> None:
    """Those of a text, at most as long as a row of a batch; those of a list hold its items and stay as they are."""
    corpus = Corpus.from_file(text, CONFIG)
    longest = len(corpus.train) // 100 - 1
    assert 16 <= longest < 128
    sweep = Sweep(corpus, ModelConfig(len(corpus.vocab)), replace(CONFIG, batch_size=100), tmp_path, study="text")
    sweep.run(3, 5)
    windows = [run.settings["seq_length"] for run in sweep.leaderboard()]
    assert windows
    assert all(8 <= window <= longest and window % 8 == 0 for window in windows)
    items = read_corpora([text], lambda _sizes, _n: CONFIG, tmp_path, layout=ItemLayout("lines"))
    sweep = Sweep(items, ModelConfig(len(items.vocab)), CONFIG, tmp_path, study="list")
    sweep.run(1, 5)
    (only,) = sweep.leaderboard()
    assert "seq_length" not in only.settings


def test_two_processes_share_a_study_and_repeat_nothing(
    tmp_path: Path, text: Path, redis_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through Redis two trainers add to one study at the same time; no settings are tried twice."""
    shared = ["--storage", redis_server.url, "--study", "shared", "--out", str(tmp_path / "models")]
    command = [sys.executable, "-m", "model", "sweep", str(text), *SIZES, *shared, "--minutes", "5", "--runs", "3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    output = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    corpus = Corpus.from_file(text, CONFIG)
    model = ModelConfig(len(corpus.vocab))
    sweep = Sweep(corpus, model, CONFIG, tmp_path / "models", study="shared", storage=redis_server.url)
    rows = sweep.leaderboard()
    assert len(rows) == 6
    assert len({tuple(sorted(row.settings.items())) for row in rows}) == 6
    own = [
        {line.split()[1] for line in s.split("leaderboard")[0].splitlines() if line.startswith("run ")} for s in output
    ]
    assert not own[0] & own[1]


def test_equal_settings_are_not_run_twice(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial with the settings of another one is not run: another one is requested."""
    corpus = Corpus.from_file(text, CONFIG)
    rates = iter([0.002, 0.002, 0.003])

    def suggest(trial: Trial, _longest_window: int) -> None:
        rate = next(rates)
        trial.suggest_float("lr", rate, rate)

    monkeypatch.setattr("model.training.sweep._suggest", suggest)
    monkeypatch.setattr("model.training.sweep._initial_settings", lambda *_settings: {})
    sweep = Sweep(corpus, ModelConfig(len(corpus.vocab), n_hidden=8), CONFIG, tmp_path)
    sweep.run(2, 5)
    assert sorted(row.settings["lr"] for row in sweep.leaderboard()) == [0.002, 0.003]


def test_a_study_is_about_one_text(tmp_path: Path, text: Path) -> None:
    """Another text under the same name is refused; so is a storage that is not there, and a sweep with no run."""
    corpus = Corpus.from_file(text, CONFIG)
    model = ModelConfig(len(corpus.vocab), n_hidden=8)
    sweep = Sweep(corpus, model, CONFIG, tmp_path)
    with pytest.raises(TrainingError, match="no finished run yet"):
        sweep.run(3, 0.0)
    with pytest.raises(ConfigError, match="study: 'sweep' is a study of another text"):
        Sweep(Corpus.from_text(words(900), CONFIG), model, CONFIG, tmp_path)
    with pytest.raises(ConfigError, match=r"storage: got 'unix:///nowhere/redis\.sock', which cannot be used"):
        Sweep(corpus, model, CONFIG, tmp_path, storage="unix:///nowhere/redis.sock")


STORAGE_ERROR = "the path of a file, sqlite:///FILE, or a Redis URL: redis://, rediss:// or unix://"


@pytest.mark.parametrize(
    "storage",
    [
        "mysql://u:secret@host/db",
        "postgresql+psycopg://u:secret@host/db",
        "http://host",
        "redis+sentinel://a,b/NAME",
        "rediss+cluster://host",
        "sqlite://",
        "sqlite:///",
        "sqlite:study.db",
        "file:///study.log",
    ],
)
def test_a_storage_of_another_kind_is_refused_by_name(
    storage: str, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A URL that is not supported is refused before any work: no file is written, and no password is shown."""
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as error:
        main(["sweep", str(text), "--out", str(tmp_path / "models"), "--storage", storage])
    assert error.value.code == 2
    displayed = storage.replace("u:secret", "...")
    assert capsys.readouterr().err == f"error: --storage: got {displayed!r}, expected {STORAGE_ERROR}\n"
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("storage", ["sqlite:///{}/new/study.db", "{}/new/study.log"])
def test_a_study_in_a_file_is_continued(storage: str, tmp_path: Path, text: Path) -> None:
    """SQLite and Optuna's journal: the file is where the path says, in folders that are made, and is continued."""
    corpus = Corpus.from_file(text, CONFIG)
    model = ModelConfig(len(corpus.vocab), n_hidden=8)
    for n in (1, 2):
        sweep = Sweep(corpus, model, CONFIG, tmp_path / "models", storage=storage.format(tmp_path))
        sweep.run(1, 5)
        assert len(sweep.leaderboard()) == n
    (file,) = (tmp_path / "new").glob("study.*")
    assert file.read_bytes().startswith(b"SQLite format 3") == storage.startswith("sqlite")


def test_a_damaged_storage_and_a_password(tmp_path: Path, text: Path) -> None:
    """A file of another kind, a server that is away: one error each, and the password of a URL is in none of them."""
    corpus = Corpus.from_file(text, CONFIG)
    model = ModelConfig(len(corpus.vocab), n_hidden=8)
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("create table studies (x)")
    other.close()
    for storage in (
        f"sqlite:///{tmp_path}/other.db",
        "redis://user:secret@127.0.0.1:1/0",
        "rediss://:secret@127.0.0.1:1",
    ):
        with pytest.raises(ConfigError, match=r"storage: got .* cannot be used") as error:
            Sweep(corpus, model, CONFIG, tmp_path, storage=storage)
        assert "secret" not in str(error.value)


StartSweep = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start_sweep() -> Iterator[StartSweep]:
    """Start sweeps of long runs; what is still running at the end of the test is killed."""
    processes: list[subprocess.Popen[str]] = []

    def start(text: Path, out: Path, *options: str) -> subprocess.Popen[str]:
        processes.append(_start_sweep(text, out, *options))
        eventually(
            lambda: processes[-1].poll() is not None or any((out / "sweeps").rglob("0000/val*.safetensors")), 120
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _start_sweep(text: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    sizes = ["--batch-size", "4", "--seq-length", "8", "--validations", "2000", "--steps", "20000"]
    command = [
        sys.executable,
        "-m",
        "model",
        "sweep",
        str(text),
        *sizes,
        "--out",
        str(out),
        "--minutes",
        "50",
        *options,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_the_sweep(signum: signal.Signals, tmp_path: Path, text: Path, start_sweep: StartSweep) -> None:
    """Ctrl-C, or a container's stop, ends the whole sweep with its best so far; no further run begins."""
    process = start_sweep(text, tmp_path, "--runs", "5")
    process.send_signal(signum)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    rows = output.split("leaderboard")[1]
    assert len(re.findall(r"^run ", rows, re.MULTILINE)) == 1
    assert "(interrupted)" in rows
    assert "stopped; the same command continues the study" in output
    path = promoted_path(tmp_path)
    assert path is not None
    assert f"{load(path).val_loss:.4f} nats" in rows
    again = same_study(text, tmp_path)
    again.run(1, 5)
    (interrupted, repeated) = sorted(again.leaderboard(), key=lambda run: run.number)
    assert repeated.settings == interrupted.settings
    assert (interrupted.finished, repeated.finished) == (False, True)


def test_a_second_signal_kills() -> None:
    """The second Ctrl-C, or stop, kills the process, whatever it does; afterwards the handlers are those of before."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    for first in (signal.SIGINT, signal.SIGTERM):
        with GracefulInterrupt() as interrupt:
            signal.raise_signal(first)
            assert interrupt.requested
            assert signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("storage", ["", "sqlite:///{}/study.db"])
def test_a_killed_trial_is_tried_again(storage: str, tmp_path: Path, text: Path, start_sweep: StartSweep) -> None:
    """After kill -9 the next process repeats the settings, and leaves nothing of the killed run; a live one is left."""
    options = ["--storage", storage.format(tmp_path)] if storage else []
    process = start_sweep(text, tmp_path, *options)
    (folder,) = (tmp_path / "sweeps" / "sweep").glob("0000")
    alive = same_study(text, tmp_path, storage)
    alive.run(1, 5)
    assert [run.number for run in alive.leaderboard()] == [1]
    assert folder.exists()
    process.kill()
    process.communicate()
    again = same_study(text, tmp_path, storage)
    again.run(1, 5)
    runs = {run.number: run.settings for run in again.leaderboard()}
    assert sorted(runs) == [1, 2]
    assert runs[2]["n_hidden"] == 320  # the first run's settings: those of the preset
    assert runs[2]["lr"] == 0.005
    assert not folder.exists()


def test_a_silent_trial_of_another_machine_is_tried_again(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, start_sweep: StartSweep
) -> None:
    """Where no lock can be seen, a trial without a heartbeat for five minutes counts as abandoned, and only then."""
    process = start_sweep(text, tmp_path)
    process.kill()
    process.communicate()
    here = os.uname()
    monkeypatch.setattr("os.uname", lambda: type(here)(("", "another", "", "", "")))
    sweep = same_study(text, tmp_path)
    sweep.run(1, 5)
    assert [run.settings["lr"] for run in sweep.leaderboard()] != [0.005]
    monkeypatch.setattr("model.training.sweep._ABANDONED_S", 0.0)
    sweep.run(1, 5)
    assert {run.number: run.settings["lr"] for run in sweep.leaderboard()}[2] == 0.005


def same_study(text: Path, out: Path, storage: str = "") -> Sweep:
    """Open the study of `start_sweep`, for short runs."""
    corpus = Corpus.from_file(text, CONFIG)
    model = ModelConfig(len(corpus.vocab), n_hidden=8)
    return Sweep(corpus, model, CONFIG, out, storage=storage.format(out))
