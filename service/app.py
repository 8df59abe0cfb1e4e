"""create_app: all the wiring of the service, on one screen."""

from __future__ import annotations

import atexit
from typing import Any

from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from model.atomic_files import remove_abandoned
from service.access.api_keys import ApiKeys
from service.access.auth import Authenticator
from service.access.limits import RateLimiter
from service.errors import StoreUnavailable
from service.generation.service import GenerationOptions, GenerationService
from service.inspection.service import InspectionService
from service.jobs.queue import JobQueue
from service.models.automaton_cache import CompilationCache
from service.models.loader import ModelLoader
from service.models.manager import ModelManager
from service.models.named_models import NamedModels
from service.models.stores.model_stores import ModelStores
from service.models.stores.uploads import remove_abandoned_uploads
from service.models.watcher import CheckpointWatcher
from service.openai.completions import CompletionService
from service.openai.models import ModelList
from service.openai.tokenizer import Tokenizer
from service.openapi.document import Limits
from service.operations.drain import Drain
from service.operations.metrics import Metrics
from service.routes import (
    access,
    converters,
    corpora,
    cors,
    error_responses,
    generate,
    health,
    inspection,
    jobs,
    metrics,
    model,
    model_files,
    models,
    openai,
    openapi,
    page,
    sessions,
)
from service.routes.json_provider import JsonProvider
from service.routes.root_path import RootPath
from service.settings import Settings, loopback_only, read_settings
from service.store.connect import connect
from service.store.corpora import Corpora
from service.store.stores import connect_stores


def create_app(settings: Settings | None = None) -> Flask:
    """Connect the routes to what they need, load the promoted model, and start to watch for others.

    Raises:
        SettingsError: The environment has a value that cannot be used.
    """
    s = settings or read_settings()
    stores = connect_stores(s)
    queue = JobQueue(connect(s.queue_url), s.max_queued_jobs) if s.queue_url else None
    all_corpora = Corpora(s.corpora_dir, s.max_corpus_bytes)
    counters = Metrics(s.metrics_models)
    model_stores = ModelStores(s.checkpoint_dir)
    automata = CompilationCache(counters.count_automaton_lookup)
    block_s = s.block_ms / 1000

    def end_worker() -> None:
        drain.begin_alone()

    load = ModelLoader(
        s.device,
        s.precision,
        s.slots,
        s.max_waiting,
        block_s,
        lambda n_slots, path: counters.engine_observer(n_slots, model_stores.name_of(path)),
        automata,
        end_worker,
    )
    named = NamedModels(model_stores, load, s.models_memory_mb << 20, counters)
    manager = ModelManager(lambda: _bootstrap_job(queue), named, access.allowed_models)
    watcher = CheckpointWatcher(manager, s.checkpoint_dir, load, stores.promotions.wait, counters)
    options = GenerationOptions(
        s.max_chars,
        s.lease_s,
        s.snapshot_interval_s,
        s.session_recent_text_chars,
        s.max_prompt_chars,
        s.max_generation_s,
    )
    generation = GenerationService(manager, stores.sessions, stores.prefixes, options)
    inspector = InspectionService(manager, stores.sessions, s.max_chars)
    completions = CompletionService(manager, generation, inspector)
    model_list = ModelList(manager, model_stores)
    tokenizer = Tokenizer(manager, s.max_prompt_chars)
    for folder in (s.checkpoint_dir, s.corpora_dir):
        remove_abandoned(folder)
    remove_abandoned_uploads()
    model_stores.remove_deleted()
    drain = Drain(manager, s.drain_notice_s, s.drain_timeout_s)
    authenticator = Authenticator(
        s.admin_key,
        ApiKeys(s.api_keys, s.api_keys_file),
        loopback_only=loopback_only(s),
        allowed_hosts=s.allowed_hosts,
        allowed_origins=s.cors_origins,
        behind_proxy=s.trusted_proxies > 0,
    )
    limiter = RateLimiter(s.rate_limit, stores.redis)
    scored_characters = RateLimiter(s.chars_limit, stores.redis)

    app = Flask(__name__, static_folder=None)
    app.json = JsonProvider(app)
    app.config["MAX_CONTENT_LENGTH"] = s.max_body_bytes
    app.wsgi_app = RootPath(app.wsgi_app, s.root_path)  # type: ignore[method-assign]
    if s.trusted_proxies:  # without it, every client has the proxy's address
        app.wsgi_app = ProxyFix(  # type: ignore[method-assign]
            app.wsgi_app, x_for=s.trusted_proxies, x_proto=0, x_prefix=s.trusted_proxies
        )
    error_responses.register(app, counters.count_refused_request, counters.count_denied_request)
    converters.register(app)
    cors.register(app, s.cors_origins)
    access.for_everyone(app, authenticator)
    for blueprint in (
        generate.blueprint(generation),
        model.blueprint(manager),
        sessions.blueprint(generation, stores.sessions, manager, s.session_recent_text_chars),
        inspection.blueprint(inspector, scored_characters),
        openai.blueprint(completions, model_list, tokenizer, scored_characters),
    ):
        app.register_blueprint(access.for_clients(blueprint, authenticator, limiter))
    for blueprint in (
        jobs.blueprint(queue, all_corpora, s.checkpoint_dir, lambda: manager.is_closed),
        models.blueprint(model_stores, manager, stores.promotions, load.publish),
        model_files.blueprint(model_stores, s.max_model_bytes),
        corpora.blueprint(all_corpora, s.max_corpus_bytes),
    ):
        app.register_blueprint(access.for_operators(blueprint, authenticator))
    app.register_blueprint(health.blueprint(manager, stores.sessions, watcher, drain))
    app.register_blueprint(metrics.blueprint(counters))
    app.register_blueprint(openapi.blueprint(Limits(s.max_chars, s.max_prompt_chars)))
    app.register_blueprint(page.blueprint())

    app.extensions["drain"] = drain  # the server connects it with its signals
    watcher.start()
    atexit.register(manager.stop)
    atexit.register(watcher.stop)
    return app


def _bootstrap_job(queue: JobQueue | None) -> dict[str, Any]:
    """The details of the error NoModel: the job that trains the first model, if there is one."""
    try:
        job_id = queue.bootstrap_job_id() if queue is not None else None
    except StoreUnavailable:
        return {}
    return {"job": f"/jobs/{job_id}"} if job_id is not None else {}
