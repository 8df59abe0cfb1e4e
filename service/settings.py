"""The service's settings: the only module that reads environment variables.

A value that cannot be used stops the start, with the variable, its value and what was expected.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from model import data_folder
from model.config import Device, PrecisionChoice
from service.redis_url import check_url, redacted

ROOT_PATH = r"(/[A-Za-z0-9._~-]+)+"
"""A path below which the service is offered."""
RATE = "[1-9][0-9]{0,8}/(second|minute|hour|day)"
"""A rate, as a regular expression."""
_MIN_KEY_CHARS = 16
_FOLDERS = {"checkpoint": "checkpoints", "corpora": "corpora", "runs": "runs"}
_SECRETS = ("admin_key", "api_keys")
_URLS = ("redis_url", "jobs_redis_url")  # they may contain a password


class SettingsError(Exception):
    """Raised when an environment variable has a value that cannot be used."""


class Settings(BaseSettings):
    """All settings. The environment variable of a setting is its name in capitals."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 listens on every network interface")
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    workers: int = Field(
        1,
        ge=1,
        le=256,
        description="worker processes of the service; each has its own model and slots, all share the sessions",
    )
    redis_url: str = Field(
        "",
        description="Redis that stores the sessions; empty stores them in the process, which needs WORKERS=1, but make "
        "serve and longhand serve start a Redis of their own, and so allow any WORKERS",
    )
    jobs_redis_url: str = Field(
        "", description="Redis of the job queue; empty uses REDIS_URL, unless that is a cluster, which RQ cannot use"
    )
    longhand_home: Path = Field(
        data_folder.DEFAULT, description="folder of all data; the three folders below lie in it unless they are set"
    )
    checkpoint_dir: Path = Field(
        Path("data/checkpoints"),
        description="folder of the checkpoints; its promoted.json names the one to serve; models/NAME is a model's",
    )
    corpora_dir: Path = Field(Path("data/corpora"), description="folder of the uploaded training texts")
    runs_dir: Path = Field(
        Path("data/runs"),
        description="folder of running training jobs; a job's own folder is removed when it ends, one without a record "
        "after a day",
    )
    device: Device = Field("auto", description="cpu or cuda; auto uses a GPU if there is one")
    precision: PrecisionChoice = Field(
        "auto",
        description="number format of the weights in the CPU stepper: fp32, or int8, which is up to 3.5 times as fast; "
        "auto is int8 for a checkpoint whose training measured that it adds at most 0.001 nats to the loss",
    )
    slots: int = Field(64, ge=1, le=4096, description="requests that one worker process generates at the same time")
    max_waiting: int = Field(
        64, ge=0, le=65536, description="requests that may wait for a slot in one worker process; more get 429"
    )
    block_ms: float = Field(
        20.0, ge=1, le=1000, description="target milliseconds of a generation block; a stream sends one event per block"
    )
    max_chars: int = Field(100_000, ge=1, le=10**8, description="largest max_chars that a request may have")
    max_prompt_chars: int = Field(50_000, ge=0, le=10**8, description="largest length of a prompt in characters")
    max_generation_s: float = Field(
        3600.0,
        gt=0,
        le=86_400,
        description="seconds after which a request to generate ends with its text so far, whatever its timeout_s",
    )
    max_body_bytes: int = Field(
        1 << 20, ge=1024, le=1 << 30, description="largest request body in bytes; corpora have their own limit"
    )
    session_ttl_s: int = Field(86_400, ge=1, description="seconds without a request after which a session is deleted")
    turn_ttl_s: int = Field(900, ge=1, description="seconds for which a finished turn can still be resumed or rewound")
    session_recent_text_chars: int = Field(
        1024,
        ge=0,
        le=65536,
        description="characters of recent text kept per session, which a new model re-encodes; 0 keeps none",
    )
    prefix_ttl_s: int = Field(
        3600, ge=1, description="seconds for which the state of a long prompt stays cached after its last use"
    )
    snapshot_interval_s: float = Field(
        1.0, gt=0, le=3600, description="seconds between two snapshots of the state of a running stream"
    )
    drain_timeout_s: float = Field(
        20.0, ge=0, le=3600, description="seconds that running requests get to finish when a worker process shuts down"
    )
    drain_notice_s: float = Field(
        0.0,
        ge=0,
        le=600,
        description="seconds for which a process that shuts down still accepts requests while /readyz answers 503",
    )
    lease_s: float = Field(
        10.0,
        ge=0.5,
        le=3600,
        description="seconds after which a session's lease expires if its process stops renewing it",
    )
    trusted_proxies: int = Field(
        0, ge=0, le=10, description="number of reverse proxies in front, whose entries in X-Forwarded-For are trusted"
    )
    admin_key: str = Field(
        "",
        description="key for /retrain, /jobs, /corpora, /preview and /models, of at least 16 characters; empty allows "
        "them to clients on this machine, not through a proxy, and only while HOST is loopback (else 403)",
    )
    api_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="comma-separated keys for generation, of at least 16 characters each; empty allows it without one",
    )
    api_keys_file: Path | None = Field(
        None,
        description="JSON file with the digests of more keys, each with its models and its rate; read again when it "
        "changes",
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="comma-separated host names, besides localhost, that requests may name when HOST is loopback and "
        "there are no API keys",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="comma-separated origins whose web pages may use the service, such as https://app.example; "
        "empty: none; * allows all, and needs API_KEYS",
    )
    root_path: str = Field(
        "",
        description="path below which a reverse proxy offers the service, such as /longhand; empty: none, or the "
        "X-Forwarded-Prefix of a trusted proxy",
    )
    rate_limit: str = Field(
        "",
        description="requests that generate, score or inspect, resumed streams and forks included, allowed per key or "
        "client address, such as 60/minute; what is refused before (401, 403, 422) is not counted; empty: no limit",
    )
    chars_limit: str = Field(
        "",
        description="characters in /score and /inspect allowed per key or client address, such as 1000000/minute; "
        "empty: no limit",
    )
    max_queued_jobs: int = Field(8, ge=1, le=1000, description="training jobs that may wait in the queue; more get 429")
    max_corpus_bytes: int = Field(
        1 << 28, ge=1024, le=1 << 40, description="largest size of an uploaded training text in bytes"
    )
    max_model_bytes: int = Field(
        1 << 27, ge=1024, le=1 << 33, description="largest size of an uploaded checkpoint in bytes"
    )
    models_memory_mb: int = Field(
        512,
        ge=1,
        le=1 << 20,
        description="memory of one process for the models that requests name, in MB, beside the default model; the one "
        "whose memory was used least of late makes place",
    )
    metrics_models: int = Field(
        0,
        ge=0,
        le=100,
        description="models whose names are labels in GET /metrics, in each process; all others are counted together. "
        "A model gets its label after ten requests in a process; until then it is counted with the others. Nobody "
        "needs a key for /metrics, so with 0 it names no model",
    )
    keep_checkpoints: int = Field(
        10, ge=1, le=10_000, description="checkpoints kept per model besides the promoted one and its predecessor"
    )

    @property
    def queue_url(self) -> str:
        """The Redis of the job queue; empty if there is none."""
        return self.jobs_redis_url or ("" if "+cluster" in self.redis_url else self.redis_url)

    def require_queue(self) -> str:
        """Return `queue_url`.

        Raises:
            SettingsError: No Redis is configured that can hold the job queue.
        """
        if not self.queue_url:
            raise SettingsError(
                "JOBS_REDIS_URL='': expected the URL of a Redis for the job queue; REDIS_URL is empty or a cluster"
            )
        return self.queue_url

    @model_validator(mode="before")
    @classmethod
    def _folders_below_home(cls, values: dict[str, Any]) -> dict[str, Any]:
        home = Path(values.get("longhand_home") or data_folder.DEFAULT)
        return {**{f"{name}_dir": home / folder for name, folder in _FOLDERS.items()}, **values}

    @field_validator("host")
    @classmethod
    def _without_brackets(cls, value: str) -> str:
        return value[1:-1] if value.startswith("[") and value.endswith("]") else value

    @field_validator("redis_url", "jobs_redis_url")
    @classmethod
    def _usable_url(cls, value: str) -> str:
        if value:
            check_url(value)
        return value

    @field_validator("jobs_redis_url")
    @classmethod
    def _not_a_cluster(cls, value: str) -> str:
        if "+cluster" in value:
            raise ValueError("expected a single Redis or sentinels: the job queue cannot be in a cluster")
        return value

    @field_validator("admin_key")
    @classmethod
    def _long_enough(cls, value: str) -> str:
        if value and (len(value) < _MIN_KEY_CHARS or value != value.strip()):
            raise ValueError(f"expected at least {_MIN_KEY_CHARS} characters without spaces around them")
        return value

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split(cls, value: str | tuple[str, ...]) -> tuple[str, ...]:
        keys = tuple(key.strip() for key in value.split(",")) if isinstance(value, str) else value
        for key in keys:
            cls._long_enough(key or " ")
        return keys

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _host_names(cls, value: str | tuple[str, ...]) -> tuple[str, ...]:
        hosts = tuple(host.strip().lower() for host in (value.split(",") if isinstance(value, str) else value))
        for host in hosts:
            if not re.fullmatch(r"[a-z0-9._-]+|[0-9a-f:]+", host):
                raise ValueError("expected comma-separated host names without scheme and port, such as box.example")
        return hosts

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _origins(cls, value: str | tuple[str, ...]) -> tuple[str, ...]:
        origins = tuple(origin.strip().lower() for origin in (value.split(",") if isinstance(value, str) else value))
        for origin in origins:
            if not re.fullmatch(
                r"\*|[a-z][a-z0-9+.-]*://[a-z0-9._-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?", origin
            ):
                raise ValueError("expected comma-separated origins without a path, such as https://app.example, or *")
        return origins

    @field_validator("root_path")
    @classmethod
    def _path(cls, value: str) -> str:
        path = value.rstrip("/")
        if path and not re.fullmatch(ROOT_PATH, path):
            raise ValueError("expected a path that begins with a slash, such as /longhand")
        return path

    @field_validator("cors_origins")
    @classmethod
    def _any_origin_needs_keys(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if "*" in value and not (info.data.get("api_keys") or info.data.get("api_keys_file")):
            raise ValueError("expected API_KEYS, too: without keys every web page could use the service")
        return value

    @field_validator("rate_limit", "chars_limit")
    @classmethod
    def _rate(cls, value: str) -> str:
        if value and not re.fullmatch(RATE, value):
            raise ValueError("expected a number per second, minute, hour or day, such as 60/minute")
        return value


def read_settings(*, embeds_redis: bool = False) -> Settings:
    """Read the environment.

    Args:
        embeds_redis: Whether the caller starts a Redis server of its own where REDIS_URL is empty.

    Raises:
        SettingsError: Some variables have values that cannot be used.
    """
    try:
        settings = Settings()  # type: ignore[call-arg]  # every field has a default, in the form Field(default, ...)
    except ValidationError as e:
        problems = [_problem(str(x["loc"][0]), x["input"], x["msg"]) for x in e.errors()]
        raise SettingsError("; ".join(problems)) from None  # a traceback would show all values, secrets too
    if settings.workers > 1 and not settings.redis_url and not embeds_redis:
        raise SettingsError(
            f"WORKERS={settings.workers!r}: more than one needs REDIS_URL, because sessions must be shared"
        )
    return settings


def _problem(name: str, value: Any, message: str) -> str:
    value_text = redacted(str(value)) if name in _URLS else "..." if name in _SECRETS else repr(value)
    return f"{name.upper()}={value_text}: {message.removeprefix('Value error, ')}"


def loopback_only(settings: Settings) -> bool:
    """Tell whether the service listens on loopback, where only this machine can reach it."""
    return settings.host in {"127.0.0.1", "::1", "localhost"}


def describe() -> str:
    """Return all settings with their defaults and descriptions, one per line."""
    fields = Settings.model_fields.items()
    return os.linesep.join(f"{name.upper()}={field.default or ''}  # {field.description}" for name, field in fields)
