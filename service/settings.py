"""The only reader of the environment. A value that cannot be used stops the start: key, value, what was expected."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from model import data_folder
from model.config import Device, WeightPrecision

_KEY_CHARS = 16
_FOLDERS = {"checkpoint": "checkpoints", "corpora": "corpora", "runs": "runs"}
_SECRETS = ("admin_key", "api_keys", "redis_url", "jobs_redis_url")  # a URL may hold a password


class SettingsError(Exception):
    """Raised when the environment holds a value that cannot be used."""


class Settings(BaseSettings):
    """Every setting with its reason; the environment variable is the name in capitals."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for every network this machine is on")
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    workers: int = Field(
        1, ge=1, le=256, description="processes; each has its own model and slots, all share the sessions"
    )
    redis_url: str = Field(
        "", description="where sessions live; empty keeps them in this process, so WORKERS must be 1"
    )
    jobs_redis_url: str = Field(
        "", description="where the line of trainings stands; empty: REDIS_URL, unless that is a cluster: it cannot be"
    )
    longhand_home: Path = Field(
        data_folder.DEFAULT, description="folder of all data; the three folders below lie in it unless they are set"
    )
    checkpoint_dir: Path = Field(Path("data/checkpoints"), description="its promoted.json names the model to serve")
    corpora_dir: Path = Field(Path("data/corpora"), description="training texts that were sent to the service")
    runs_dir: Path = Field(Path("data/runs"), description="where trainings work, a folder each, gone when they end")
    device: Device = Field("auto", description="auto takes a GPU where there is one")
    precision: WeightPrecision = Field("fp32", description="of the native CPU stepper's weights; int8 is twice as fast")
    slots: int = Field(64, ge=1, le=4096, description="texts that are written at the same time")
    max_waiting: int = Field(64, ge=0, le=65536, description="places in the line before the slots; beyond it: 429")
    block_ms: float = Field(
        20.0, ge=1, le=1000, description="how long a block takes: the pace of events; longer for many texts"
    )
    max_chars: int = Field(100_000, ge=1, le=10**8, description="the most that one request may ask for")
    max_body_bytes: int = Field(1 << 20, ge=1024, le=1 << 30, description="the largest request body")
    session_ttl_s: int = Field(86_400, ge=1, description="a session that nobody uses for so long is forgotten")
    turn_ttl_s: int = Field(
        900, ge=1, description="so long a turn is remembered: its stream can be resumed, its text rewound"
    )
    session_recent_text_chars: int = Field(
        1024, ge=0, le=65536, description="text kept of each session, for a new model to read; 0 keeps none"
    )
    prefix_ttl_s: int = Field(
        3600, ge=1, description="the state of a long prompt that nobody sends for so long is forgotten"
    )
    snapshot_s: float = Field(1.0, gt=0, le=3600, description="a running stream's state is saved so often")
    drain_s: float = Field(
        20.0, ge=0, le=3600, description="a worker that is told to stop lets its texts run so long, then ends them"
    )
    drain_notice_s: float = Field(
        0.0, ge=0, le=600, description="first it takes requests so long, /readyz failing already: a proxy's time to see"
    )
    lease_s: float = Field(10.0, ge=0.5, le=3600, description="after so long without a word, a turn counts as lost")
    trusted_proxies: int = Field(
        0, ge=0, le=10, description="proxies in front: so many last entries of X-Forwarded-For are believed"
    )
    admin_key: str = Field("", description="guards retrain, jobs, corpora and models; without it: on loopback only")
    api_keys: Annotated[tuple[str, ...], NoDecode] = Field((), description="comma-separated; set, generating needs one")
    rate_limit: str = Field("", description="what one key or address may generate, like 60/minute; empty: no limit")
    max_queued_jobs: int = Field(8, ge=1, le=1000, description="places in the line of trainings; beyond it: 429")
    max_corpus_bytes: int = Field(1 << 28, ge=1024, le=1 << 40, description="the largest training text")
    keep_models: int = Field(
        10, ge=1, le=10_000, description="checkpoints kept, beside the promoted and the one before"
    )

    @property
    def queue_url(self) -> str:
        """The Redis that holds the line of trainings; empty when there is none. RQ has no way with a cluster."""
        return self.jobs_redis_url or ("" if "+cluster" in self.redis_url else self.redis_url)

    def require_queue(self) -> str:
        """Raised: SettingsError without a Redis for the line of trainings."""
        if not self.queue_url:
            raise SettingsError("JOBS_REDIS_URL='': expected it to name a Redis, where REDIS_URL is empty or a cluster")
        return self.queue_url

    @model_validator(mode="before")
    @classmethod
    def _folders_below_home(cls, values: dict[str, Any]) -> dict[str, Any]:
        home = Path(values.get("longhand_home") or data_folder.DEFAULT)
        return {**{f"{name}_dir": home / folder for name, folder in _FOLDERS.items()}, **values}

    @field_validator("jobs_redis_url")
    @classmethod
    def _no_cluster(cls, value: str) -> str:
        if "+cluster" in value:
            raise ValueError("expected one Redis, or its sentinels: the line of trainings cannot be in a cluster")
        return value

    @field_validator("admin_key")
    @classmethod
    def _long_enough(cls, value: str) -> str:
        if value and (len(value) < _KEY_CHARS or value != value.strip()):
            raise ValueError(f"expected at least {_KEY_CHARS} characters, none of them a space")
        return value

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split(cls, value: str | tuple[str, ...]) -> tuple[str, ...]:
        keys = tuple(key.strip() for key in value.split(",")) if isinstance(value, str) else value
        for key in keys:
            cls._long_enough(key or " ")
        return keys

    @field_validator("rate_limit")
    @classmethod
    def _rate(cls, value: str) -> str:
        if value and not re.fullmatch(r"[1-9][0-9]{0,8}/(second|minute|hour|day)", value):
            raise ValueError("expected a number and a span, like 60/minute (second, minute, hour, day)")
        return value


def read_settings() -> Settings:
    """Raised: SettingsError for the first values that cannot be used."""
    try:
        settings = Settings()  # type: ignore[call-arg]  # every field has a default, in the form Field(default, ...)
    except ValidationError as e:
        lines = [_line(str(x["loc"][0]), x["input"], x["msg"]) for x in e.errors()]
        raise SettingsError("; ".join(lines)) from e
    if settings.workers > 1 and not settings.redis_url:
        raise SettingsError(
            f"WORKERS={settings.workers!r}: more than one needs REDIS_URL, or they would not share sessions"
        )
    return settings


def _line(name: str, value: Any, message: str) -> str:
    shown = "..." if name in _SECRETS else repr(value)
    return f"{name.upper()}={shown}: {message.removeprefix('Value error, ')}"


def loopback_only(settings: Settings) -> bool:
    """Whether only this machine can reach the service."""
    return settings.host in {"127.0.0.1", "::1", "localhost"}


def describe() -> str:
    """All settings with their defaults and reasons, one a line."""
    fields = Settings.model_fields.items()
    return os.linesep.join(f"{name.upper()}={field.default or ''}  # {field.description}" for name, field in fields)
