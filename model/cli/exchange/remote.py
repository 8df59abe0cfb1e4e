"""A checkpoint to or from a Longhand server: PUT and GET /models/{id}/file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from model.checkpoints import file_format
from model.checkpoints.names import is_fingerprint
from model.errors import CheckpointError, ConfigError

_TIMEOUT_S = 60.0
_CHUNK_BYTES = 1 << 20


def check_url(url: str) -> None:
    """Check the address of a server.

    Raises:
        ConfigError: It is none.
    """
    try:
        parsed = httpx.URL(url)
        is_valid = parsed.scheme in ("http", "https") and bool(parsed.host)
    except (httpx.InvalidURL, ValueError):
        is_valid = False
    if not is_valid:
        raise ConfigError(field="url", value=url, expected="the address of a Longhand server, http:// or https://")


def send(url: str, path: Path) -> str:
    """Send a checkpoint file to a server, and return what became of it in words.

    Raises:
        CheckpointError: The file cannot be used, or the server did not take it.
    """
    fingerprint = file_format.load(path).fingerprint
    with _client(url) as client, open(path, "rb") as file:
        response = client.put(
            f"models/{fingerprint}/file",
            content=iter(lambda: file.read(_CHUNK_BYTES), b""),
            headers={"Content-Type": "application/octet-stream", "Content-Length": str(path.stat().st_size)},
        )
        _check(response, url)
        verb, name = "stored as" if response.status_code == 201 else "was there as", response.json()["name"]
        promotion = f"POST {url.rstrip('/')}/models/{fingerprint}/promote"
        return f"{fingerprint} {verb} {name}; it is served after {promotion}"


def fetch(url: str, model: str | None, folder: Path) -> Path:
    """Fetch a checkpoint file from a server into a folder.

    Args:
        url: The server.
        model: The fingerprint of a checkpoint, or a model's name, whose promoted one is fetched; None: what is served.
        folder: Where the file is written.

    Raises:
        CheckpointError: The server has no such model, or sent another one.
    """
    with _client(url) as client:
        if model is not None and not is_fingerprint(model):
            response = client.get(f"models/{model}")
            _check(response, url)
            promoted = response.json()["id"]
            if promoted is None:
                raise CheckpointError(f"has no promoted checkpoint of the model {model!r}", field=url)
            model_id = str(promoted)
        elif model is not None:
            model_id = model
        else:
            response = client.get("models")
            _check(response, url)
            serving = response.json()["serving"]
            if serving is None:
                raise CheckpointError("serves no model", field=url)
            model_id = str(serving["fingerprint"])
        path = folder / "fetched.safetensors"
        with client.stream("GET", f"models/{model_id}/file") as response, open(path, "wb") as file:
            if response.is_error:
                response.read()
            _check(response, url)
            for chunk in response.iter_bytes(_CHUNK_BYTES):
                file.write(chunk)
    received = file_format.load(path).fingerprint
    if received != model_id:
        raise CheckpointError(f"sent the model {received}", field=url, value=received, expected=model_id)
    return path


@contextmanager
def _client(url: str) -> Iterator[httpx.Client]:
    """Open a client with the key in ADMIN_KEY, if there is one: on a command line everybody could read it."""
    key = os.environ.get("ADMIN_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=_TIMEOUT_S) as client:
            yield client
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"did not answer as a Longhand server does ({error})", field=url) from error


def _check(response: httpx.Response, url: str) -> None:
    """Raise CheckpointError with the server's message for an answer that is an error."""
    if response.is_success:
        return
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = response.reason_phrase
    hint = "; the key is read from ADMIN_KEY" if response.status_code in (401, 403) else ""
    raise CheckpointError(f"answered {response.status_code}: {message}{hint}", field=url)
