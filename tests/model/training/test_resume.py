"""A run that was interrupted and resumed equals one that was not, to the bit, from any step."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoints.file_format import load
from model.config import ModelConfig, TrainConfig
from model.errors import CheckpointError, ConfigError, StorageError
from model.network.native_pass import fastest_bf16_order
from model.text.corpus import Corpus, Streams
from model.training.learner import Learner
from model.training.loop import fit
from model.training.run_folder import Progress, RunFolder, new_run_folder
from tests.model.texts import words
from tests.servers import ROOT

SIZES = TrainConfig(steps=120, batch_size=8, seq_length=16, lr=1e-2, validations=6, seed=3)
CONFIG = replace(SIZES, dropout=0.2, embed_dropout=0.1, weight_drop=0.2, reset=0.1)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus.from_text(words(4000), CONFIG)


def model(corpus: Corpus) -> ModelConfig:
    return ModelConfig(len(corpus.vocab), n_hidden=16, n_layers=2, n_embed=8)


class Killed(BaseException):
    """Leaves fit as a kill does: nothing is caught, nothing is saved."""


def losses(run: Path) -> list[tuple[int, float, float | None]]:
    return [(m["step"], m["train_loss"], m["val_loss"]) for m in RunFolder(run).metrics() if m["step"] % 20 == 0]


@pytest.fixture(scope="module")
def whole(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that nobody stopped: its folder and its checkpoint."""
    folder = tmp_path_factory.mktemp("whole")
    return folder / "run", fit(corpus, model(corpus), CONFIG, folder, run=folder / "run")


def test_killed_at_ten_steps_it_is_the_same_run(
    corpus: Corpus, whole: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after any step, ten times over, and resumed: every loss and the checkpoint are those of the whole run."""
    monkeypatch.setattr("model.training.checkpointer.RESUME_STATE_INTERVAL_S", 0.0)  # a resume state at each report
    monkeypatch.setattr("model.training.loop._REPORT_STEPS", 5)
    stops = [7, 23, 24, 40, 41, 66, 80, 99, 100, 119]

    def interrupt(progress: Progress) -> None:
        if stops and progress.step >= stops[0]:
            stops.pop(0)
            raise Killed

    resume = False
    while True:
        try:
            path = fit(
                corpus, model(corpus), CONFIG, tmp_path, run=tmp_path / "run", resume=resume, on_progress=interrupt
            )
            break
        except Killed:
            resume = True
    assert not stops
    assert losses(tmp_path / "run") == losses(whole[0])
    assert path.name == whole[1].name
    assert load(path).fingerprint == load(whole[1]).fingerprint
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", path.name]


def test_a_kill_before_a_superseded_checkpoint_is_deleted(
    corpus: Corpus, whole: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resume state names it: the resumed run deletes it."""
    superseded: list[Path] = []

    def killed(path: Path | None) -> None:
        if path is not None:
            superseded.append(path)
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("model.training.loop.delete_superseded", killed)
        with pytest.raises(Killed):
            fit(corpus, model(corpus), CONFIG, tmp_path, run=tmp_path / "run")
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    path = fit(corpus, model(corpus), CONFIG, tmp_path, run=tmp_path / "run", resume=True)
    assert not superseded[0].exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", path.name]
    assert load(path).fingerprint == load(whole[1]).fingerprint


def test_kill_9_at_random_moments(whole: tuple[Path, Path], corpus: Corpus, tmp_path: Path) -> None:
    """A process killed by the system at any moment leaves files from which the run can be resumed."""
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text(words(4000))
    options = ["--steps", "300", "--batch-size", "8", "--seq-length", "16", "--n-hidden", "16", "--validations", "12"]
    options += ["--dropout", "0.1", "--lr", "4e-3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(*more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "model", "train", str(text), "--out", str(out), *options, *more]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)

    def steps() -> int:
        runs = list((out / "runs").glob("*"))
        lines = RunFolder(runs[0]).metrics() if runs else []
        return int(lines[-1]["step"]) if lines else 0

    process, more = start(), []
    for goal in (20, 110, 200):
        while steps() < goal and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for file in out.glob("*.safetensors"):
            load(file)
        (run,) = (out / "runs").iterdir()
        RunFolder(run).read_resume_state()
        more = ["--resume", str(run)]
        process = start(*more)
    assert process.wait() == 0
    reference = fit(
        corpus,
        ModelConfig(len(corpus.vocab), n_hidden=16),
        TrainConfig(steps=300, batch_size=8, seq_length=16, validations=12, dropout=0.1),
        tmp_path / "whole",
        run=tmp_path / "whole" / "run",
        sample_chars=10,
    )
    assert losses(run) == losses(tmp_path / "whole" / "run")
    (left,) = out.glob("*.safetensors")
    assert load(left).fingerprint == load(reference).fingerprint


def test_a_run_in_minutes_takes_the_same_steps_again(corpus: Corpus, tmp_path: Path) -> None:
    """The decisions on its length are stored: from the last resume state on, a killed run repeats the same losses."""
    config = replace(CONFIG, steps=0, minutes=0.04, validations=8)
    n_validations = 0

    def interrupt(progress: Progress) -> None:
        nonlocal n_validations
        n_validations += progress.val_loss is not None
        if n_validations == 5:
            raise Killed

    with pytest.raises(Killed):
        fit(corpus, model(corpus), config, tmp_path, run=tmp_path / "run", on_progress=interrupt)
    before = [m for m in RunFolder(tmp_path / "run").metrics() if m["val_loss"] is not None]
    fit(corpus, model(corpus), config, tmp_path, run=tmp_path / "run", resume=True)
    after = [m for m in RunFolder(tmp_path / "run").metrics() if m["val_loss"] is not None]
    assert len(after) == 8
    for name in ("step", "train_loss", "val_loss", "lr"):
        assert [m[name] for m in after[:5]] == [m[name] for m in before]


def test_an_interrupted_run_is_resumed(corpus: Corpus, whole: tuple[Path, Path], tmp_path: Path) -> None:
    """Ctrl-C saves the best checkpoint and a resume state; resumed, the run ends as if it had not been interrupted."""

    def interrupt(progress: Progress) -> None:
        if progress.step == 60:
            raise KeyboardInterrupt

    first = fit(corpus, model(corpus), CONFIG, tmp_path, run=tmp_path / "run", on_progress=interrupt)
    assert load(first).step <= 60
    assert list(tmp_path.glob("*.safetensors")) == [first]
    last = fit(corpus, model(corpus), CONFIG, tmp_path, run=tmp_path / "run", resume=True)
    assert losses(tmp_path / "run") == losses(whole[0])
    assert load(last).fingerprint == load(whole[1]).fingerprint


def test_a_run_interrupted_before_calibration_is_resumed(corpus: Corpus, tmp_path: Path) -> None:
    """A budget in minutes whose length was not known yet: sized after the resume, and ended."""

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    config = replace(CONFIG, steps=0, minutes=0.06, validations=3)
    with pytest.raises(KeyboardInterrupt):
        fit(corpus, model(corpus), config, tmp_path, run=tmp_path / "run", on_progress=interrupt)
    shorter = RunFolder(tmp_path / "run").metrics()
    assert shorter[-1]["val_loss"] is None
    fit(corpus, model(corpus), config, tmp_path, run=tmp_path / "run", resume=True)
    assert [m["step"] for m in RunFolder(tmp_path / "run").metrics()][-1] > shorter[-1]["step"]


def test_a_finished_run_is_not_trained_again(corpus: Corpus, whole: tuple[Path, Path]) -> None:
    """Resuming what is done gives its checkpoint."""
    before = losses(whole[0])
    assert fit(corpus, model(corpus), CONFIG, whole[1].parent, run=whole[0], resume=True) == whole[1]
    assert losses(whole[0]) == before


def test_other_settings_are_named(corpus: Corpus, whole: tuple[Path, Path], tmp_path: Path) -> None:
    """Resuming with another learning rate, another size or another text: the error names each difference."""
    run = whole[0]
    with pytest.raises(ConfigError, match=r"dropout is 0\.2 in the run, 0\.5 now; lr is 0\.01 in the run, 0\.02 now"):
        fit(corpus, model(corpus), replace(CONFIG, lr=0.02, dropout=0.5), tmp_path, run=run, resume=True)
    with pytest.raises(ConfigError, match="n_hidden is 16 in the run, 17 now"):
        fit(corpus, replace(model(corpus), n_hidden=17), CONFIG, tmp_path, run=run, resume=True)
    other = Corpus.from_text(words(4000, seed=1), CONFIG)
    with pytest.raises(ConfigError, match="corpus_sha256 is"):
        fit(other, model(corpus), CONFIG, tmp_path, run=run, resume=True)
    with pytest.raises(ConfigError, match="has a run already"):
        fit(corpus, model(corpus), CONFIG, tmp_path, run=run)
    with pytest.raises(CheckpointError, match=r"not a run's folder .*, expected a run\.json"):
        fit(corpus, model(corpus), CONFIG, tmp_path, run=tmp_path, resume=True)


def test_a_damaged_resume_state_is_refused(corpus: Corpus, whole: tuple[Path, Path], tmp_path: Path) -> None:
    """A truncated file is named, and the run does not begin again over it."""
    run = tmp_path / "run"
    run.mkdir()
    for name in ("run.json", "metrics.jsonl", "resume.safetensors"):
        (run / name).write_bytes((whole[0] / name).read_bytes())
    (run / "resume.safetensors").write_bytes((whole[0] / "resume.safetensors").read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        fit(corpus, model(corpus), CONFIG, tmp_path, run=run, resume=True)


def test_an_incomplete_last_line_is_ignored(tmp_path: Path) -> None:
    """Metrics are read up to the last complete line."""
    run_folder = RunFolder(tmp_path)
    run_folder.append_metrics({"step": 1})
    with open(tmp_path / "metrics.jsonl", "a") as f:
        f.write('{"step": 2, "tra')
    assert run_folder.metrics() == [{"step": 1}]
    run_folder.truncate_metrics(1)
    assert run_folder.metrics() == [{"step": 1}]


def test_new_runs_have_folders_of_their_own(tmp_path: Path) -> None:
    """Even in the same second."""
    assert len({new_run_folder(tmp_path) for _ in range(3)}) == 3


def test_a_full_disk_is_reported_and_the_best_checkpoint_stays(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a save is refused the run ends with the path; the checkpoint of before is whole."""
    real, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 12:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space left") as e:
        fit(corpus, model(corpus), CONFIG, tmp_path, run=tmp_path / "run")
    assert str(tmp_path) in str(e.value)
    assert [load(p) for p in tmp_path.glob("*.safetensors")]
    resume_state = RunFolder(tmp_path / "run").read_resume_state()
    assert resume_state is not None
    assert (tmp_path / resume_state[1]["best_checkpoint"]).exists()


def test_the_resume_state_holds_no_code(whole: tuple[Path, Path]) -> None:
    """It is safetensors and JSON, with the states of the random generators among the tensors."""
    resume_state = RunFolder(whole[0]).read_resume_state()
    assert resume_state is not None
    tensors, values = resume_state
    assert tensors["generator.0"].dtype == torch.uint8
    assert json.loads(json.dumps(values)) == values


def values_of_a_resumed_learner(
    attribute: str, corpus: Corpus, model: ModelConfig, config: TrainConfig, tmp_path: Path
) -> set[object]:
    """Resume the run from its beginning, and return what an attribute of the learner was in its steps."""
    seen: set[object] = set()
    original = Learner.step

    def step(self: Learner, streams: Streams, lr: float) -> Tensor:
        seen.add(getattr(self, attribute))
        return original(self, streams, lr)

    (tmp_path / "run" / "resume.safetensors").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "step", step)
        fit(corpus, model, config, tmp_path / "models", run=tmp_path / "run", resume=True)
    return seen


@pytest.mark.usefixtures("native_code")
@pytest.mark.parametrize("saved", ['"bf16_order": "tiles"', '"bf16_order": "pairs"', '"nothing": 0'])
def test_a_resumed_run_keeps_the_order_of_its_bf16_sums(tmp_path: Path, saved: str) -> None:
    """Whatever is fastest here; a run from before there was a choice has that of vdpbf16ps."""
    corpus = Corpus.from_text(words(4000), TrainConfig())
    model = ModelConfig(len(corpus.vocab), n_hidden=16, n_embed=8)
    config = TrainConfig(steps=20, batch_size=4, seq_length=8, validations=2, precision="bf16")
    fit(corpus, model, config, tmp_path / "models", run=tmp_path / "run")
    fastest = fastest_bf16_order()
    assert RunFolder(tmp_path / "run").settings()["bf16_order"] == fastest
    path = tmp_path / "run" / "run.json"
    path.write_text(path.read_text().replace(f'"bf16_order": "{fastest}"', saved))
    seen = values_of_a_resumed_learner("bf16_order", corpus, model, config, tmp_path)
    assert seen == {"tiles" if "tiles" in saved else "pairs"}


@pytest.mark.usefixtures("native_code")
@pytest.mark.parametrize("began_with", ["fp32", "bf16"])
def test_a_run_keeps_the_precision_that_was_chosen(
    tmp_path: Path, began_with: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` is decided once: it is in run.json and the checkpoint, and another CPU does not decide again."""
    corpus = Corpus.from_text(words(4000), TrainConfig())
    model = ModelConfig(len(corpus.vocab), n_hidden=16, n_embed=8)
    config = TrainConfig(steps=20, batch_size=4, seq_length=8, validations=2)
    assert config.precision == "auto"
    monkeypatch.setattr("model.training.learner.has_fast_bf16", lambda: began_with == "bf16")
    checkpoint = fit(corpus, model, config, tmp_path / "models", run=tmp_path / "run")
    assert load(checkpoint).options["precision"] == began_with
    assert RunFolder(tmp_path / "run").settings()["train"]["precision"] == began_with
    monkeypatch.setattr("model.training.learner.has_fast_bf16", lambda: began_with != "bf16")
    seen = values_of_a_resumed_learner("bf16_order", corpus, model, config, tmp_path)
    assert seen == {fastest_bf16_order() if began_with == "bf16" else None}
    path = tmp_path / "run" / "run.json"
    path.write_text(path.read_text().replace('"precision"', '"nothing"'))
    with pytest.raises(ConfigError, match="precision is None in the run, 'fp32' now"):
        fit(corpus, model, config, tmp_path / "models", run=tmp_path / "run", resume=True)


@pytest.mark.usefixtures("native_code")
def test_a_run_with_an_unknown_order_is_refused(tmp_path: Path) -> None:
    """The error names the value and what was expected."""
    corpus = Corpus.from_text(words(400), TrainConfig())
    model = ModelConfig(len(corpus.vocab), n_hidden=16, n_embed=8)
    config = TrainConfig(steps=2, batch_size=4, seq_length=8, validations=1, precision="bf16")
    fit(corpus, model, config, tmp_path / "models", run=tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    path.write_text(path.read_text().replace(f'"bf16_order": "{fastest_bf16_order()}"', '"bf16_order": "fours"'))
    with pytest.raises(CheckpointError, match=r"bf16_order is 'fours', expected 'pairs' or 'tiles'"):
        fit(corpus, model, config, tmp_path / "models", run=tmp_path / "run", resume=True)


@pytest.mark.usefixtures("native_code")
@pytest.mark.parametrize("setting", ['"native": false', '"nothing": 0'])
def test_a_resumed_run_keeps_its_implementation(tmp_path: Path, setting: str) -> None:
    """A run that began with torch's layers continues with them, also where the native code is supported."""
    corpus = Corpus.from_text(words(4000), TrainConfig())
    model = ModelConfig(len(corpus.vocab), n_hidden=16, n_embed=8)
    config = TrainConfig(steps=20, batch_size=4, seq_length=8, validations=2)
    fit(corpus, model, config, tmp_path / "models", run=tmp_path / "run")
    record = RunFolder(tmp_path / "run")
    assert record.settings()["native"] is True
    path = tmp_path / "run" / "run.json"
    path.write_text(path.read_text().replace('"native": true', setting))
    seen = values_of_a_resumed_learner("native", corpus, model, config, tmp_path)
    assert seen == {False}
