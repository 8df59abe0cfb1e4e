"""Uploaded checkpoints: what could be listed or served wrongly is refused before it is stored."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from model.checkpoints import registry
from model.checkpoints.file_format import Checkpoint
from service.errors import BadRequest
from service.models.stores.uploads import MAX_HEADER_BYTES, remove_abandoned_uploads, store_upload


@pytest.fixture
def upload(tmp_path: Path, tiny: Checkpoint) -> Callable[[str, Any], Path]:
    """Upload the small model with one value of its run replaced, given as JSON; return the folder."""

    def send(field: str, value: str) -> Path:
        path, folder = tiny.save(tmp_path / "here"), tmp_path / "there"
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        others = {name: json.dumps(known) for name, known in json.loads(metadata["run"]).items() if name != field}
        run = "{" + ", ".join(f'"{name}": {text}' for name, text in {**others, field: value}.items()) + "}"
        save_file(load_file(path), path, {**metadata, "run": run})
        store_upload(folder, tiny.fingerprint, io.BytesIO(path.read_bytes()).read, 10**9)
        return folder

    return send


def test_an_upload_is_listed(upload: Callable[[str, str], Path], tiny: Checkpoint) -> None:
    """As it was sent."""
    (listed,) = registry.list_checkpoints(upload("int8_cost", "0.5"))
    assert (listed["id"], listed["int8_cost"]) == (tiny.fingerprint, 0.5)


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("val_protocol", '"x"', "protocol: got 'x'"),
        ("train_loss", "NaN", "NaN is not a finite number"),
        ("train_loss", '"nan"', "train_loss is 'nan'"),
        ("train_loss", "1" + "0" * 400, "expected a number"),
        ("step", "true", "step is True, expected a number"),
        ("created", "5", "created is 5, expected a text"),
        ("corpus", '"\\ud800"', "surrogates not allowed"),
        ("options", "[]", "options is [], expected an object"),
        ("int8_cost", "NaN", "NaN is not a finite number"),
        ("int8_cost", "1e400", "1e400 is not a finite number"),
        ("val_loss", "-Infinity", "-Infinity is not a finite number"),
        ("options", '{"lr": [1, NaN]}', "NaN is not a finite number"),
        ("options", json.dumps({"lr": "x" * MAX_HEADER_BYTES}), "its header has"),
    ],
    ids=lambda value: value[:20],
)
def test_a_value_that_no_list_could_show_is_refused(
    upload: Callable[[str, str], Path], tmp_path: Path, field: str, value: str, problem: str
) -> None:
    """By a 422 that says why, without a path of the server; nothing is stored."""
    with pytest.raises(BadRequest) as refused:
        upload(field, value)
    assert problem in str(refused.value)
    assert "longhand-upload" not in str(refused.value)
    assert not (tmp_path / "there").exists()


def test_what_a_killed_upload_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the next worker that starts, but not the folder of an upload that is still received."""
    receives = """
import sys, time
from pathlib import Path
from service.models.stores.uploads import store_upload

def read(n_bytes: int) -> bytes:
    print("receiving", flush=True)
    time.sleep(600)
    return b""

store_upload(Path("there"), None, read, 10**9)
"""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", receives]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]) as upload:
        try:
            assert upload.stdout is not None
            assert upload.stdout.readline() == b"receiving\n"
            (folder,) = tmp_path.glob("longhand-upload-*")
            long_ago = time.time() - 3600
            os.utime(folder, (long_ago, long_ago))
            remove_abandoned_uploads()
            assert folder.exists()
        finally:
            upload.kill()
    remove_abandoned_uploads()
    assert list(tmp_path.iterdir()) == []
