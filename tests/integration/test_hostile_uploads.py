"""Uploads of what is no model: refused with the reason before anything is loaded, and nothing is left on the disk."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from model.checkpoints import registry, self_test
from tests.conftest import random_checkpoint
from tests.servers import RedisServer, Service

BINARY = {"Content-Type": "application/octet-stream"}
MAX_BYTES = 8 << 20
MAX_GROWTH_KB = 12 * MAX_BYTES // 1024
"""Of the process's memory: an upload is read, and computed with in float64."""
MODEL = random_checkpoint(n_layers=1, n_hidden=128, seed=40)
METADATA, TENSORS = MODEL.metadata(), MODEL.tensors()
RUN = json.loads(METADATA["run"])


def with_tensors(**changed: torch.Tensor | None) -> bytes:
    """The model with other tensors; None removes one. Its fingerprint is that of the new tensors where that exists."""
    tensors = {name: tensor for name, tensor in {**TENSORS, **changed}.items() if tensor is not None}
    fingerprint = replace(MODEL, weights=tensors).fingerprint
    return save(tensors, {**METADATA, "fingerprint": fingerprint})


def with_metadata(**changed: str) -> bytes:
    """The model with other metadata."""
    return save(TENSORS, {**METADATA, **changed})


def with_config(**changed: Any) -> bytes:
    """The model with a configuration that says something else."""
    return with_metadata(config=json.dumps({**asdict(MODEL.config), **changed}))


def with_run(**changed: Any) -> bytes:
    """The model with another record of its run."""
    return with_metadata(run=json.dumps({**RUN, **changed}))


def with_header(header: object, data: bytes = b"") -> bytes:
    """A safetensors file with this header."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def a_zip() -> bytes:
    """What torch.save writes."""
    file = io.BytesIO()
    torch.save(TENSORS, file)
    return file.getvalue()


def a_bomb() -> bytes:
    """An archive that is a thousand times as large when it is opened."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", bytes(MAX_BYTES))
    return file.getvalue()


def huge_vocabulary() -> bytes:
    """A model with all characters that a configuration allows, and weights for as many as it has."""
    return with_metadata(
        config=json.dumps({**asdict(MODEL.config), "vocab_size": 65536}),
        vocab=json.dumps("".join(chr(0x10000 + i) for i in range(65536))),
    )


def tensor(offsets: list[int], shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


WHOLE = save(TENSORS, METADATA)
WEIGHT = TENSORS["rnn.weight_hh_l0"]
INCOMPLETE = "not a complete safetensors file"
UPLOADS: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", INCOMPLETE),
    "one byte": (lambda: b"\0", INCOMPLETE),
    "zeros": (lambda: bytes(100_000), INCOMPLETE),
    "truncated in the header": (lambda: WHOLE[:50], INCOMPLETE),
    "truncated in the weights": (lambda: WHOLE[:-4], INCOMPLETE),
    "more bytes than tensors": (lambda: WHOLE + b"more", INCOMPLETE),
    "a header of 1 GB": (lambda: struct.pack("<Q", 1 << 30) + b"{}", INCOMPLETE),
    "a header of 2^64 - 1 bytes": (lambda: struct.pack("<Q", 2**64 - 1) + b"{}" * 9, INCOMPLETE),
    "a header of 3 MB": (lambda: with_header({"__metadata__": {"x": "x" * (3 << 20)}}), "its header has"),
    "no JSON in the header": (lambda: struct.pack("<Q", 4) + b"nope", INCOMPLETE),
    "a deep header": (lambda: struct.pack("<Q", 200_000) + b"[" * 200_000, INCOMPLETE),
    "no metadata": (lambda: save(TENSORS), "format is None"),
    "another format's metadata": (lambda: with_metadata(format="pt"), "format is 'pt'"),
    "a pickle": (lambda: pickle.dumps({"weights": [1.0] * 10_000}), INCOMPLETE),
    "a zip of torch": (a_zip, INCOMPLETE),
    "a zip bomb": (a_bomb, INCOMPLETE),
    "GGUF": (lambda: b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + bytes(1000), INCOMPLETE),
    "ONNX": (lambda: b"\x08\x0a\x12\x07pytorch\x1a\x05" + bytes(1000), INCOMPLETE),
    "HTML": (lambda: b"<!DOCTYPE html><title>no</title>", INCOMPLETE),
    "a tensor of 1 TB": (lambda: with_header({"w": tensor([0, 1 << 40], [1 << 38])}, b"1234"), INCOMPLETE),
    "a tensor before the data": (lambda: with_header({"w": tensor([-4, 0], [1])}, b"1234"), INCOMPLETE),
    "tensors over each other": (
        lambda: with_header({"a": tensor([0, 8], [2]), "b": tensor([4, 12], [2])}, bytes(12)),
        INCOMPLETE,
    ),
    "a shape whose size overflows": (
        lambda: with_header({"w": tensor([0, 4], [1 << 32, 1 << 32, 1 << 32])}, b"1234"),
        INCOMPLETE,
    ),
    "a missing tensor": (lambda: with_tensors(**{"head.bias": None}), "its tensors do not match its config"),
    "an unknown tensor": (lambda: with_tensors(more=torch.zeros(3)), "its tensors do not match its config"),
    "a wrong shape": (lambda: with_tensors(**{"rnn.weight_hh_l0": WEIGHT.T.contiguous()}), "first difference"),
    "a flat tensor": (lambda: with_tensors(**{"rnn.weight_hh_l0": WEIGHT.flatten()}), "first difference"),
    "a half": (lambda: with_tensors(**{"rnn.weight_hh_l0": WEIGHT.half()}), "is not all finite float32"),
    "an integer": (lambda: with_tensors(**{"rnn.weight_hh_l0": WEIGHT.int()}), "is not all finite float32"),
    "NaN": (lambda: with_tensors(**{"head.bias": TENSORS["head.bias"] * torch.nan}), "is not all finite float32"),
    "one infinity": (
        lambda: with_tensors(**{"rnn.weight_hh_l0": WEIGHT.clone().index_fill_(0, torch.tensor(3), torch.inf)}),
        "is not all finite float32",
    ),
    "another fingerprint": (lambda: with_metadata(fingerprint="0" * 16), "modified after it was written"),
    "more layers than tensors": (lambda: with_config(n_layers=8), "its tensors do not match its config"),
    "8,192 units": (lambda: with_config(n_hidden=8192, n_layers=8), "its tensors do not match its config"),
    "10^9 units": (lambda: with_config(n_hidden=10**9), "n_hidden: got 1000000000"),
    "a negative size": (lambda: with_config(n_embed=-1), "n_embed: got -1"),
    "a size that is text": (lambda: with_config(n_hidden="128"), "n_hidden"),
    "an unknown cell": (lambda: with_config(cell="transformer"), "cell: got 'transformer'"),
    "an unknown setting": (lambda: with_config(n_heads=8), "n_heads"),
    "a vocabulary of 10^9": (lambda: with_config(vocab_size=10**9), "vocab_size: got 1000000000"),
    "a vocabulary without weights": (huge_vocabulary, "its tensors do not match its config"),
    "a character twice": (lambda: with_metadata(vocab=json.dumps("aa" + "b" * 29)), "vocab"),
    "a vocabulary that is a list": (lambda: with_metadata(vocab=json.dumps(["a", "b"])), "vocab"),
    "a shorter vocabulary": (lambda: with_metadata(vocab=json.dumps("abc")), "its vocabulary has"),
    "a configuration that is no JSON": (lambda: with_metadata(config="{"), "its metadata cannot be used"),
    "a deep configuration": (lambda: with_metadata(config="[" * 100_000), "its metadata cannot be used"),
    "a run that is a list": (lambda: with_metadata(run="[]"), "its metadata cannot be used"),
    "a run without its loss": (lambda: with_metadata(run=json.dumps({"step": 1})), "its metadata cannot be used"),
    "a loss that is NaN": (lambda: with_run(val_loss=float("nan")), "NaN is not a finite number"),
    "a loss that is text": (lambda: with_run(val_loss="low"), "its metadata cannot be used"),
    "a self-test of another model": (lambda: with_run(self_test="x" * 32), "which its trainer recorded"),
    "a self-test of unknown characters": (lambda: with_run(self_test="ä" * 32), "which its trainer recorded"),
    "a list without a list": (lambda: with_run(items={"n": 1}), "its metadata cannot be used"),
    "too large": (lambda: bytes(MAX_BYTES + 1), str(MAX_BYTES)),
}


class Server:
    """A service whose folders can be looked at."""

    def __init__(self, service: Service, folder: Path, temporary: Path) -> None:
        self.service, self.folder, self.temporary = service, folder, temporary

    def files(self) -> dict[Path, int]:
        """All files and folders, and their sizes."""
        paths = [*self.folder.rglob("*"), *self.temporary.rglob("*")]
        return {path: path.stat().st_size for path in paths if not path.is_socket()}

    def peak_kb(self) -> int:
        """The most memory that the worker has had."""
        (worker,) = self.service.workers()
        lines = Path(f"/proc/{worker}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Server]:
    """It serves a model, has one of another name, and has taken an upload before."""
    folder, temporary = tmp_path_factory.mktemp("checkpoints"), tmp_path_factory.mktemp("temporary")
    registry.promote(random_checkpoint(seed=41).save(folder))
    settings = {"CHECKPOINT_DIR": str(folder), "REDIS_URL": redis_server.url, "TMPDIR": str(temporary)}
    with Service(**settings, MAX_MODEL_BYTES=str(MAX_BYTES)) as service:
        good = save(TENSORS, self_test.record(MODEL).metadata())
        assert service.client.put("/models/good", content=good, headers=BINARY).status_code == 201
        yield Server(service, folder, temporary)


@pytest.mark.parametrize("name", UPLOADS)
def test_it_is_refused(server: Server, name: str) -> None:
    """By a 4xx with the reason and without a path of the server; folders and the models in memory stay as they were."""
    make, reason = UPLOADS[name]
    content, client = make(), server.service.client
    before, models, peak = server.files(), client.get("/models").json(), server.peak_kb()
    for address in ("/models/bad", "/models/good"):
        answer = client.put(address, content=content, headers=BINARY)
        error = answer.json()["error"]
        assert answer.status_code == (413 if len(content) > MAX_BYTES else 422), error
        assert reason in json.dumps(error, ensure_ascii=False), error
        assert str(server.folder) not in answer.text
        assert str(server.temporary) not in answer.text
        assert len(answer.text) < 10_000, "the answer repeats what was sent"
    assert server.files() == before
    assert client.get("/models").json() == models
    assert client.get("/models/bad").status_code == 404
    assert server.peak_kb() - peak < MAX_GROWTH_KB
    assert client.post("/generate", json={"max_chars": 5}).status_code == 200
