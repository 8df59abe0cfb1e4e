"""The use cases: generate a turn, resume one, fork a session. This module knows no HTTP.

Every error that has a status code of its own is raised here, before the first byte is sent. The order is always:
lease the model, validate, lease the session, plan, start. A turn that is generated again says its model: it is read
first. What was acquired is given back if a step fails.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace

from model.checkpoints.names import DEFAULT, is_fingerprint
from model.network.sampling import MAX_SEED
from model.structured_outputs.masks import RowConstraint
from service.engine.stream import Stream
from service.errors import (
    KeyReused,
    ModelChanged,
    ModelConflict,
    ModelNotAllowed,
    NoTurn,
    SessionBusy,
    StoreUnavailable,
    TurnInterrupted,
    UnknownModel,
    UnknownSession,
)
from service.generation.batch import RunningBatch
from service.generation.commit import AlreadySaved, CommitPolicy, NotSaved, SaveTurn, SessionLease
from service.generation.items.plan import plan_items
from service.generation.items.running import RunningItems
from service.generation.plan import GenerationPlan, Origin, PlanOptions, plan_again, plan_turn
from service.generation.rewind import rewound_session
from service.generation.running import RunningGeneration
from service.generation.validation import ValidatedRequest, check_penalty_window, validate
from service.inspection.token_logprobs import TokenLogprobs
from service.models.loaded_model import LoadedModel, ModelLease
from service.models.manager import ModelManager
from service.schemas import GenerateRequest
from service.store.prefixes import PrefixStore
from service.store.sessions import (
    LeasedSession,
    Session,
    SessionStore,
    StoredTurn,
    TurnRecord,
    digest,
    new_session_id,
    new_token,
)

LEASE_WAIT_S = 0.5
"""For the end of a text whose client has left: the worker that has it notices that within a quarter of a second."""
_LEASE_POLL_S = 0.025


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """The operator's choices."""

    max_chars: int
    lease_s: float
    snapshot_interval_s: float
    recent_text_chars: int
    max_prompt_chars: int = 50_000
    max_s: float = 3600.0  # how long one request may generate


class GenerationService:
    """Starts generations."""

    def __init__(
        self, models: ModelManager, sessions: SessionStore, prefixes: PrefixStore, options: GenerationOptions
    ) -> None:
        """Connect the service to what it uses."""
        self._models = models
        self._sessions = sessions
        self._prefixes = prefixes
        self._options = options

    @property
    def max_chars(self) -> int:
        """The length of the longest text that one request may generate."""
        return self._options.max_chars

    @property
    def max_prompt_chars(self) -> int:
        """The length of the longest prompt."""
        return self._options.max_prompt_chars

    def generate(
        self,
        request: GenerateRequest,
        idempotency_key: str = "",
        key_id: str = "",
        check_client: Callable[[], None] = lambda: None,
    ) -> RunningGeneration:
        """Start to answer a request; one that was sent before with the same Idempotency-Key gets the same turn again.

        Args:
            request: What to generate.
            idempotency_key: Chosen by the client; empty for none.
            key_id: Of the client's API key: an Idempotency-Key belongs to it. Empty if no API keys are set.
            check_client: Called now and then while the session is rewound; what it raises ends the work.

        Raises:
            BadRequest: A value cannot be used.
            UnknownSession: The session does not exist.
            UnknownModel: The model that the request names, or the session's, does not exist.
            SessionConflict: Another request writes the session, or it is not where the request expects it.
            KeyReused: The key was used for another request, or for a turn that is no longer stored.
            StoreUnavailable: A session is needed, and its store does not answer.
            QueueFull: Every slot and every place in the queue is taken.
            NoModel: No model is served.
            Draining: This worker is shutting down.
        """
        with ExitStack() as on_error:
            name = self._model_name(request)
            key = digest(*([key_id] if key_id else []), idempotency_key) if idempotency_key else ""
            own_id = self._session_of(request, key)
            turn = self._turn_of(own_id, key)
            lease = on_error.enter_context(
                self._models.admit(request.model or name, name) if turn is None else self._admit_again(turn)
            )
            model = lease.model
            validated = validate(request, model, self._options.max_chars, self._options.max_prompt_chars)
            check_penalty_window(request, self._options.recent_text_chars)
            self._check_capacity(model, request.logprobs)
            request_digest = digest(request.model_dump_json())
            session_id, leased = self._lease_session(request.session_id, own_id, key, request_digest)
            is_new = request.session_id is None and not key
            session_lease = self._session_lease(session_id, leased, on_error, is_new=is_new)
            plan = self._plan(model, validated, key, request_digest, session_id, leased, name, check_client)
            generation = self._start(plan, lease, session_lease)
            on_error.pop_all()
            return generation

    def generate_batch(self, request: GenerateRequest) -> RunningBatch:
        """Start `n` texts of one prompt, which belong to no session. Text i is that of the request's seed plus i.

        Raises:
            BadRequest: A value cannot be used.
            QueueFull: Every slot and every place in the queue is taken.
            NoModel: No model is served.
            Draining: This worker is shutting down.
        """
        with self._models.admit(request.model) as lease:
            return self._batch(request, lease.model, None)

    def continue_prompts(self, request: GenerateRequest, model: LoadedModel, prompts: list[str]) -> RunningBatch:
        """Start `n` texts of each of several prompts, as `generate_batch` does for one.

        Args:
            request: What to generate; its prompt is not used.
            model: The model, of which the caller has a lease.
            prompts: At least one, as the model reads it.

        Raises:
            BadRequest: A value cannot be used.
            QueueFull: Every slot and every place in the queue is taken.
            Draining: This worker is shutting down.
        """
        return self._batch(request, model, prompts)

    def _batch(self, request: GenerateRequest, model: LoadedModel, prompts: list[str] | None) -> RunningBatch:
        validated = validate(request, model, self._options.max_chars, self._options.max_prompt_chars)
        self._check_capacity(model, request.logprobs)
        seed = secrets.randbits(53) if request.seed is None else request.seed
        seeds = [(seed + k) & MAX_SEED for k in range(request.n)]
        plans = []
        for prompt in [validated.prompt] if prompts is None else prompts:
            plan = self._plan(model, replace(validated, prompt=prompt), "", "", None, None, DEFAULT)
            plans.append([_with_seed(plan, seed) for seed in seeds])
        return RunningBatch(model, plans, self._start_member, self._prefixes)

    def generate_items(self, request: GenerateRequest) -> RunningItems:
        """Start whole items of a model of a list, which belong to no session.

        Raises:
            BadRequest: A value cannot be used.
            QueueFull: Every slot and every place in the queue is taken.
            NoModel: No model is served.
            Draining: This worker is shutting down.
        """
        with self._models.admit(request.model) as lease:
            limit_s = self._options.max_s
            span_s = limit_s if request.timeout_s is None else min(request.timeout_s, limit_s)
            deadline = time.monotonic() + span_s
            options = self._options
            plan = plan_items(request, lease.model, options.max_chars, options.max_prompt_chars, deadline)
            self._check_capacity(lease.model, None)
            return RunningItems(lease.model, plan)

    def _start_member(self, model: LoadedModel, plan: GenerationPlan, stream: Stream) -> RunningGeneration:
        """Start a text whose stream is one of a group; it has a lease of its own."""
        with ExitStack() as on_error:
            lease = on_error.enter_context(model.acquire())
            generation = self._start(plan, lease, None, stream)
            on_error.pop_all()
            return generation

    def resume(
        self, session_id: str, after: int | None, top_logprobs: int | None = None, model_id: str | None = None
    ) -> RunningGeneration:
        """Generate a session's last turn again, from the character after a position, whichever worker began it.

        Args:
            session_id: The session.
            after: The last position that the client has; None: it has nothing of the turn.
            top_logprobs: Alternatives for each character.
            model_id: The name or id of the model to resume with; None: the one that generated the turn.

        Raises:
            UnknownSession: The session does not exist.
            NoTurn: The session has no turn that could be resumed.
            BadRequest: The position is beyond the turn.
            ModelChanged: The turn was generated by another model.
            StoreUnavailable: The store does not answer.
            QueueFull: Every slot and every place in the queue is taken.
            NoModel: No model is served.
            Draining: This worker is shutting down.
        """
        with ExitStack() as on_error:
            session, turn = self._sessions.load(session_id)
            lease = on_error.enter_context(self._admit_again(turn, model_id))
            self._check_capacity(lease.model, top_logprobs)
            session_lease = None
            if turn is None or not turn.is_complete or session is None:
                leased = self._sessions.acquire(session_id, lease_s=self._options.lease_s, force=True)
                session_lease = self._session_lease(session_id, leased, on_error)
                session, turn = leased.session, leased.turn
            if turn is None:
                raise NoTurn("the session has no turn that could be resumed")
            options = self._plan_options(top_logprobs)
            plan = plan_again(lease.model, session_id, turn, session, after, options)
            generation = self._start(plan, lease, session_lease)
            on_error.pop_all()
            return generation

    def is_received(self, session_id: str, after: int) -> bool:
        """Whether a client that has a session's text up to a position has all of its last turn, which is complete.

        Raises:
            StoreUnavailable: The store does not answer.
        """
        session, turn = self._sessions.load(session_id)
        return turn is not None and turn.is_complete and session is not None and session.position == after

    def fork(
        self, session_id: str, position: int | None, seed: int | None, check_client: Callable[[], None] = lambda: None
    ) -> tuple[str, Session]:
        """Create a copy of a session, as it is or as it was at a position.

        Args:
            session_id: The session to copy.
            position: None: where it is now.
            seed: Of the new session; None: the same.
            check_client: Called now and then while the position is looked for; what it raises ends the work.

        Returns:
            The new session's id, and the session.

        Raises:
            UnknownSession: The session does not exist.
            SessionConflict: The position cannot be reached; or the first turn has not ended, and there is no position.
            StoreUnavailable: The store does not answer.
            QueueFull: The engine cannot take the work that the position needs.
        """
        session, turn = self._sessions.load(session_id)
        if session is None and (turn is None or turn.is_complete):  # a turn may outlive its session
            raise UnknownSession("the session does not exist or has expired")
        if position is not None:
            with self._admit_again(turn) as lease:
                length = self._options.recent_text_chars
                session = rewound_session(lease.model, turn, session, position, length, check_client)
        if session is None:
            raise TurnInterrupted(
                "the session's first turn has not ended: resume it with GET /sessions/{id}/stream, or send with "
                "`position` how much of the text you have",
                position=0,
            )
        fork = replace(session, seed=session.seed if seed is None else seed)
        fork_id = new_session_id()
        self._sessions.create(fork_id, fork)
        return fork_id, fork

    def _admit_again(self, turn: StoredTurn | None, model_id: str | None = None) -> ModelLease:
        """Lease the model to generate a stored turn again with.

        If the client names none, it is the checkpoint that generated the turn, or, if that cannot be used any more, the
        one that its model's name stands for now, which refuses the turn.
        """
        if turn is None or model_id is not None:
            return self._models.admit(model_id)
        with suppress(UnknownModel, ModelConflict, ModelNotAllowed):  # the last where its file is no longer the model's
            return self._models.admit(turn.record.fingerprint, turn.record.model)
        return self._models.admit(turn.record.model)

    def _check_capacity(self, model: LoadedModel, top_logprobs: int | None) -> None:
        """Reject a request before any work is done for it."""
        model.engine.check_capacity()
        if top_logprobs:
            model.network.get()

    # ---- the session

    def _model_name(self, request: GenerateRequest) -> str:
        """The name under which the session goes on: the request's, or the session's. An id is no name.

        Raises:
            StoreUnavailable: The session says it, and its store does not answer.
            ModelNotAllowed: The request may use none of that name.
        """
        name = DEFAULT
        if request.session_id is not None:
            name = self._models.of_session(self._sessions, request.session_id)
        elif request.model is not None and is_fingerprint(request.model):
            name = self._models.name_of(request.model)
        return name if request.model is None or is_fingerprint(request.model) else request.model

    def _session_of(self, request: GenerateRequest, key: str) -> str:
        """The id of the request's session, or of the one that it creates.

        Raises:
            StoreUnavailable: An Idempotency-Key says the id, and the store does not answer: it is unknown whether the
                turn of this key has begun.
        """
        if request.session_id is not None:
            return request.session_id
        return _id_for_key(key, self._sessions.idempotency_salt(key)) if key else new_session_id()

    def _turn_of(self, session_id: str, key: str) -> StoredTurn | None:
        """The turn of a request that was sent before with the same Idempotency-Key, if it is the session's last one."""
        turn = self._sessions.load(session_id)[1] if key else None
        return turn if turn is not None and turn.record.key == key else None

    def _lease_session(self, session_id: str | None, new_id: str, key: str, request: str) -> tuple[str, LeasedSession]:
        """Lease the request's session or a new one. That of a random id begins with its turn."""
        if session_id is not None:
            return session_id, self._acquire_when_free(session_id, key, request)
        if not key:
            return new_id, LeasedSession(new_token(), None, None)
        lease_s = self._options.lease_s
        return new_id, self._sessions.acquire(new_id, lease_s=lease_s, is_new=True, key=key, request=request)

    def _acquire_when_free(self, session_id: str, key: str, request: str) -> LeasedSession:
        """Lease a session, waiting a moment for the request that has it: its client may just have stopped it."""
        give_up_at = time.monotonic() + LEASE_WAIT_S
        while True:
            try:
                return self._sessions.acquire(session_id, lease_s=self._options.lease_s, key=key, request=request)
            except SessionBusy:
                if time.monotonic() >= give_up_at:
                    raise
            time.sleep(_LEASE_POLL_S)

    def _session_lease(
        self, session_id: str, leased: LeasedSession, on_error: ExitStack, *, is_new: bool = False
    ) -> SessionLease:
        lease = SessionLease(self._sessions, session_id, leased.token, self._options.lease_s, is_new=is_new)
        on_error.callback(lease.abandon)
        return lease

    # ---- the plan

    def _plan(
        self,
        model: LoadedModel,
        validated: ValidatedRequest,
        key: str,
        request_digest: str,
        session_id: str | None,
        leased: LeasedSession | None,
        name: str,
        check_client: Callable[[], None] = lambda: None,
    ) -> GenerationPlan:
        request = validated.request
        if leased is not None and session_id is not None and key:
            if leased.turn is not None and leased.turn.record.key == key:
                again = self._plan_options(request.logprobs)
                return plan_again(model, session_id, leased.turn, leased.session, None, again)
            if leased.has_key or (request.session_id is None and leased.session is not None):
                raise KeyReused("this Idempotency-Key was used before, for a turn that is no longer stored")
        start = self._start_session(model, request, leased, check_client) if leased is not None else None
        if start is not None and start.model != name:
            start = replace(start, model=name)
        record = TurnRecord(
            start_position=start.position if start else 0,
            prompt=validated.prompt,
            max_chars=request.max_chars,
            sampling=request.sampling,
            stop=validated.stop,
            seed=_seed(request, start, leased),
            fingerprint=model.fingerprint,
            numerics=model.engine.numerics,
            reencoded=start is not None and not model.wrote(start.state),
            key=key,
            request=request_digest,
            min_chars=request.min_chars,
            logit_bias=validated.logit_bias,
            structured_outputs=validated.structured_outputs.as_dict() if validated.structured_outputs else {},
            model=name,
        )
        options = self._plan_options(request.logprobs, request.timeout_s)
        is_new_session = request.session_id is None
        return plan_turn(model, record, session_id, start, self._prefixes, options, is_new_session=is_new_session)

    def _plan_options(self, top_logprobs: int | None, timeout_s: float | None = None) -> PlanOptions:
        limit_s = self._options.max_s
        deadline = time.monotonic() + (limit_s if timeout_s is None else min(timeout_s, limit_s))
        return PlanOptions(top_logprobs, self._options.snapshot_interval_s, deadline)

    def _start_session(
        self, model: LoadedModel, request: GenerateRequest, leased: LeasedSession, check_client: Callable[[], None]
    ) -> Session | None:
        """The session that the turn continues; None for a new one."""
        session, turn = leased.session, leased.turn
        if request.position is not None:
            length = self._options.recent_text_chars
            session = rewound_session(model, turn, session, request.position, length, check_client)
        elif turn is not None and not turn.finish_reason:
            raise TurnInterrupted(
                "the session's last turn was interrupted: resume it with GET /sessions/{id}/stream, or send with "
                "`position` how much of the text you have",
                position=session.position if session else 0,
            )
        elif session is None and request.session_id is not None:
            raise UnknownSession("the session does not exist or has expired")
        if session is not None and not model.wrote(session.state):
            if request.on_new_model == "conflict":
                raise ModelChanged("the session was written by another model", position=session.position)
            if not session.recent_text and session.position:
                raise ModelChanged("the session was written by another model, and none of its text is stored")
        return session

    # ---- the start

    def _start(
        self,
        plan: GenerationPlan,
        lease: ModelLease,
        session_lease: SessionLease | None,
        member: Stream | None = None,
    ) -> RunningGeneration:
        """Start a generation. This is the only place that does."""
        logprobs = _token_logprobs(plan, lease.model)
        stream = lease.model.engine.submit(plan.sequence, member)
        try:
            policy = _commit_policy(plan, session_lease)
        except BaseException:
            stream.close()
            raise
        recent_text_chars = self._options.recent_text_chars
        return RunningGeneration(plan, lease, stream, policy, logprobs, self._prefixes, recent_text_chars)


def _commit_policy(plan: GenerationPlan, lease: SessionLease | None) -> CommitPolicy:
    """Decide what is stored; a turn that begins is stored here, after the engine has accepted it.

    Raises:
        SessionConflict: Another request has taken the session over.
        StoreUnavailable: The turn belongs to a session that exists, and its store does not answer.
    """
    if plan.origin is Origin.COMPLETE and plan.session_id is not None:
        if lease is not None:
            lease.abandon()
        return AlreadySaved(plan.session_id)
    if lease is None:
        return NotSaved()
    if plan.origin is Origin.NEW:
        try:
            lease.begin(plan.record, plan.start)
        except StoreUnavailable:
            if not plan.is_new_session:
                raise
            return NotSaved()
    return SaveTurn(lease, plan.start, plan.stored)


def _token_logprobs(plan: GenerationPlan, model: LoadedModel) -> TokenLogprobs | None:
    if plan.top_logprobs is None:
        return None
    sequence = plan.sequence
    logprobs = TokenLogprobs(
        model.network,
        model.engine.vocab,
        plan.record.sampling,
        plan.top_logprobs,
        window=sequence.window,
        logit_bias=sequence.logit_bias,
        constraint=None if sequence.automaton is None else RowConstraint(sequence.automaton, 0, sequence.budget),
    )
    if sequence.start_position >= plan.record.prompt_end:  # else the state at the prompt's end will be captured
        logprobs.begin_at(sequence.state, int(sequence.feed[0]))
    return logprobs


def _seed(request: GenerateRequest, start: Session | None, leased: LeasedSession | None) -> int:
    """The request's seed, else the session's, else a random one."""
    if request.seed is not None:
        return request.seed
    if start is not None:
        return start.seed
    if leased is not None and leased.turn is not None:
        return leased.turn.record.seed
    return secrets.randbits(53)


def _with_seed(plan: GenerationPlan, seed: int) -> GenerationPlan:
    return replace(plan, record=replace(plan.record, seed=seed), sequence=replace(plan.sequence, seed=seed))


def _id_for_key(key: str, salt: str) -> str:
    """The id of the session that a request with this Idempotency-Key creates: always the same, and not guessable."""
    return digest("session", key, salt) + digest("again", key, salt)[:16]
