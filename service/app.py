"""create_app: all the wiring of the service, on one screen."""

from __future__ import annotations

import atexit

import torch
from flask import Flask
from flask.json.provider import DefaultJSONProvider

from model import checkpoint
from model.checkpoint import Checkpoint
from model.errors import CheckpointError
from model.stepper import Stepper
from model.stepper.reference import ReferenceStepper
from service import errors
from service.engine.engine import Engine
from service.generation import Generation, Policy
from service.routes import generate, health, sessions
from service.serving import Served, Serving
from service.settings import Settings, read_settings
from service.store.connect import connect
from service.store.memory import MemorySessions
from service.store.prefixes import MemoryPrefixes, PrefixStore, RedisPrefixes
from service.store.redis import RedisSessions
from service.store.sessions import SessionStore


def create_app(settings: Settings | None = None) -> Flask:
    """Load the promoted model, start its engine, and connect the routes to them.

    Raised: SettingsError, CheckpointError.
    """
    settings = settings or read_settings()
    store: SessionStore
    prefixes: PrefixStore
    if settings.redis_url:
        client = connect(settings.redis_url)
        store = RedisSessions(client, settings.session_ttl_s, settings.turn_ttl_s)
        prefixes = RedisPrefixes(client, settings.prefix_ttl_s)
    else:
        store, prefixes = MemorySessions(settings.session_ttl_s, settings.turn_ttl_s), MemoryPrefixes()
    serving = Serving()
    policy = Policy(settings.max_chars, settings.lease_s, settings.snapshot_s, settings.session_tail_chars)
    generation = Generation(serving, store, prefixes, policy)

    app = Flask(__name__, static_folder=None)
    app.json = _Json(app)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    errors.register(app)
    app.register_blueprint(generate.blueprint(generation))
    app.register_blueprint(sessions.blueprint(generation, store))
    app.register_blueprint(health.blueprint(serving, store))

    serving.serve(_load(settings))
    atexit.register(serving.stop)
    return app


def _load(settings: Settings) -> Served:
    """The promoted checkpoint on a running engine."""
    path = checkpoint.promoted(settings.checkpoint_dir)
    if path is None:
        raise CheckpointError(
            f"{settings.checkpoint_dir}: nothing has been promoted; python -m model train makes a model"
        )
    loaded = checkpoint.load(path)
    engine = Engine(
        _stepper(loaded, settings),
        loaded.vocab,
        loaded.fingerprint,
        max_waiting=settings.max_waiting,
        block_s=settings.block_ms / 1000,
    )
    engine.start()
    return Served(engine, path.name)


class _Json(DefaultJSONProvider):
    """Text is text: characters are not escaped, and an object keeps the order in which it was written."""

    ensure_ascii = False
    sort_keys = False


def _stepper(loaded: Checkpoint, settings: Settings) -> Stepper:
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return ReferenceStepper(loaded.network(), settings.slots, device=device)
