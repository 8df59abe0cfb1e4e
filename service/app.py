"""create_app: all the wiring of the service, on one screen."""

from __future__ import annotations

import atexit
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Blueprint, Flask, request
from flask.json.provider import DefaultJSONProvider
from werkzeug.middleware.proxy_fix import ProxyFix

from model.checkpoints import file_format, self_test
from model.stepper.choose import choose
from service.engine.engine import Engine
from service.errors import StoreUnavailable
from service.generation.generation import Generation, Policy
from service.inspection.inspection import InspectionService
from service.inspection.token_logprobs import OnDemandNetwork
from service.jobs.queue import JobQueue
from service.models.manager import LoadedModel, ModelManager, free
from service.models.watcher import CheckpointWatcher
from service.operations.auth import Authenticator
from service.operations.drain import Drain
from service.operations.limits import RateLimiter
from service.operations.metrics import Metrics
from service.routes import (
    converters,
    corpora,
    error_responses,
    generate,
    health,
    inspection,
    jobs,
    metrics,
    models,
    page,
    sessions,
)
from service.settings import Settings, loopback_only, read_settings
from service.store.connect import connect
from service.store.corpora import Corpora
from service.store.memory import MemorySessions
from service.store.prefixes import MemoryPrefixes, PrefixStore, RedisPrefixes
from service.store.promotions import MemoryPromotions, Promotions, RedisPromotions
from service.store.redis import RedisSessions
from service.store.sessions import SessionStore

log = logging.getLogger(__name__)


def create_app(settings: Settings | None = None) -> Flask:
    """Connect the routes to what they need, and serve what is promoted, now and whenever that changes.

    Raised: SettingsError.
    """
    settings = settings or read_settings()
    store: SessionStore
    prefixes: PrefixStore
    promotions: Promotions
    queue: JobQueue | None = None
    if settings.redis_url:
        client = connect(settings.redis_url)
        store = RedisSessions(client, settings.session_ttl_s, settings.turn_ttl_s)
        prefixes, promotions = RedisPrefixes(client, settings.prefix_ttl_s), RedisPromotions(client)
    else:
        store, prefixes = MemorySessions(settings.session_ttl_s, settings.turn_ttl_s), MemoryPrefixes()
        promotions = MemoryPromotions()
    if settings.queue_url:
        queue = JobQueue(connect(settings.queue_url), settings.max_queued_jobs)
    serving = ModelManager(lambda: _bootstrap_job(queue))
    counted = Metrics()
    reloader = CheckpointWatcher(
        serving, settings.checkpoint_dir, lambda path: load(path, settings, counted), promotions.wait, counted
    )
    drain = Drain(serving, settings.drain_notice_s, settings.drain_timeout_s)
    policy = Policy(
        settings.max_chars, settings.lease_s, settings.snapshot_interval_s, settings.session_recent_text_chars
    )
    generation = Generation(serving, store, prefixes, policy)
    texts = Corpora(settings.corpora_dir, settings.max_corpus_bytes)

    app = Flask(__name__, static_folder=None)
    app.json = _Json(app)
    if settings.trusted_proxies:  # or all clients would be one: the proxy
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=settings.trusted_proxies, x_proto=0)  # type: ignore[method-assign]
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    error_responses.register(app)
    converters.register(app)
    authenticator = Authenticator(settings.admin_key, settings.api_keys, loopback_only=loopback_only(settings))
    limiter = RateLimiter(settings.rate_limit, settings.redis_url)
    for blueprint in (
        generate.blueprint(generation),
        sessions.blueprint(generation, store, settings.session_recent_text_chars),
        inspection.blueprint(InspectionService(serving, store, settings.max_chars)),
    ):
        app.register_blueprint(_guarded(blueprint, _check_api(authenticator, limiter)))
    for blueprint in (
        jobs.blueprint(queue, texts, lambda: serving.is_closed),
        models.blueprint(settings.checkpoint_dir, serving, promotions),
        corpora.blueprint(texts, settings.max_corpus_bytes),
    ):
        app.register_blueprint(_guarded(blueprint, _check_admin(authenticator)))
    app.register_blueprint(health.blueprint(serving, store, reloader, drain))
    app.register_blueprint(metrics.blueprint(counted))
    app.register_blueprint(page.blueprint())

    app.extensions["drain"] = drain  # for who runs the app to connect with its signals
    reloader.start()
    atexit.register(serving.stop)
    atexit.register(reloader.stop)
    return app


def load(path: Path, settings: Settings, counted: Metrics) -> LoadedModel:
    """A checkpoint on an engine that runs, tested and warm. Raised: CheckpointError."""
    loaded = file_format.load(path)
    self_test.verify_checkpoint(loaded)
    stepper, why = choose(loaded.network(), settings.slots, settings.device, settings.precision)
    log.info("stepper: %s", why)
    try:
        self_test.verify_stepper(stepper, loaded)
    except BaseException:
        free(stepper)
        raise
    engine = Engine(
        stepper,
        loaded.vocab,
        loaded.fingerprint,
        max_waiting=settings.max_waiting,
        block_s=settings.block_ms / 1000,
        observer=counted.engine_observer(stepper.n_slots),
    )
    engine.start()
    return LoadedModel(engine, path.name, stepper, OnDemandNetwork(path, loaded.fingerprint))


def _bootstrap_job(queue: JobQueue | None) -> dict[str, Any]:
    """What is told while there is no model: the job that makes one."""
    try:
        job_id = queue.bootstrap_job_id() if queue is not None else None
    except StoreUnavailable:
        return {}
    return {"job": f"/jobs/{job_id}"} if job_id is not None else {}


def _guarded(blueprint: Blueprint, check: Callable[[], None]) -> Blueprint:
    blueprint.before_request(check)
    return blueprint


def _check_admin(authenticator: Authenticator) -> Callable[[], None]:
    def check() -> None:
        authenticator.check_admin(request.headers.get("Authorization"), request.host, request.remote_addr or "")

    return check


def _check_api(authenticator: Authenticator, limiter: RateLimiter) -> Callable[[], None]:
    def check() -> None:
        authorization = request.headers.get("Authorization")
        authenticator.check_api(authorization, request.remote_addr or "")
        limiter.hit(authenticator.client_id(authorization, request.remote_addr or ""))

    return check


class _Json(DefaultJSONProvider):
    """Text is text: characters are not escaped, and an object keeps the order in which it was written."""

    ensure_ascii = False
    sort_keys = False
