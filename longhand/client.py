"""The synchronous client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Generic, Literal, Self, Unpack

import httpx

from longhand.core import DEFAULT_URL, Core, generate_call, http_options, items_call
from longhand.resumable import GenerationStream, ItemStream, ItemT, JobStream, ResultT, ResumableStream
from longhand.retry import RetryPolicy
from longhand.schemas import (
    Checkpoint,
    Chunk,
    Corpus,
    Fork,
    GenerateOptions,
    Generation,
    Item,
    ItemOptions,
    ItemScores,
    ItemsResult,
    Job,
    JobEvent,
    LayoutOptions,
    Models,
    NamedModel,
    Score,
    Session,
)
from longhand.transport import SyncTransport, run


class Client:
    """A client of one server. It can be used by several threads at once.

    Every method raises a LonghandError if it does not succeed (longhand/errors.py). What can succeed later is sent
    again (longhand/retry.py).
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        key: str | None = None,
        retry_for_s: float = 60.0,
        timeout_s: float = 60.0,
        http: httpx.Client | None = None,
    ) -> None:
        """Connect nothing yet.

        Args:
            base_url: The server's address.
            key: One of API_KEYS; for training and promotion, ADMIN_KEY.
            retry_for_s: How long failures in a row are tolerated; 0: nothing is sent again.
            timeout_s: For connecting, and without a byte from the server. A stream has a sign of life every 5 seconds.
            http: An httpx client to use instead, with its own base_url, headers and time-outs; `close` closes it.

        Raises:
            ValueError: A value cannot be used.
        """
        retry = RetryPolicy(retry_for_s)
        if http is None:
            http = httpx.Client(**http_options(base_url, key, timeout_s))
        self._core = Core(SyncTransport(http), retry)

    def __enter__(self) -> Self:
        """Return the client; it is closed at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the client."""
        self.close()

    def close(self) -> None:
        """Close all connections."""
        run(self._core.transport.close())

    # ---- texts

    def generate(
        self, prompt: str = "", *, idempotency_key: str | None = None, **options: Unpack[GenerateOptions]
    ) -> Generation:
        """Generate a text and return it whole.

        Args:
            prompt: The text to continue.
            idempotency_key: The same request with the same key gives the same turn; None: one is made.
            options: Parameters of POST /generate (docs/api.md).
        """
        with self.stream(prompt, idempotency_key=idempotency_key, **options) as stream:
            for _ in stream:
                pass
        return stream.result

    def stream(
        self, prompt: str = "", *, idempotency_key: str | None = None, **options: Unpack[GenerateOptions]
    ) -> Stream:
        """Generate a text and return its chunks as they are generated; arguments as for `generate`.

        A stream that is lost is resumed on whichever worker answers, with the next character.
        """
        initial_call = generate_call(prompt, options, idempotency_key)
        return Stream(GenerationStream(self._core, initial_call=initial_call, logprobs=options.get("logprobs")))

    def resume(self, session_id: str, *, after: int | None = None, logprobs: int | None = None) -> Stream:
        """Return a session's last text as a stream again.

        Args:
            session_id: The session.
            after: The position of the last character that is known; None: the whole text.
            logprobs: As for `generate`.
        """
        return Stream(GenerationStream(self._core, session_id=session_id, after=after, logprobs=logprobs))

    def score(
        self,
        text: str,
        *,
        session_id: str | None = None,
        logprobs: int | None = None,
        on_unknown: Literal["error", "skip"] | None = None,
        model: str | None = None,
    ) -> Score:
        """Return the loss of a text, alone or as the continuation of a session."""
        return run(self._core.score(text, session_id, logprobs, on_unknown, model))

    def items(self, n: int, prompt: str = "", **options: Unpack[ItemOptions]) -> Items:
        """Generate items of a list, and return them as a stream; needs a model of a list.

        A stream that is lost is requested again with the same seed, and goes on with the next item.

        Args:
            n: How many.
            prompt: The beginning of each.
            options: Parameters of POST /generate (docs/api.md).
        """
        return Items(ItemStream(self._core, items_call(n, prompt, options)))

    def score_items(
        self,
        items: Sequence[str],
        *,
        rank_by: Literal["bits", "bits_per_character", "peak_bits"] | None = None,
        on_unknown: Literal["error", "skip"] | None = None,
        model: str | None = None,
    ) -> ItemScores:
        """Return the surprisal of each item, and its rank among the validation items; needs a model of a list."""
        return run(self._core.score_items(items, rank_by, on_unknown, model))

    # ---- sessions

    def session(self, session_id: str) -> Session:
        """Return what a session holds."""
        return run(self._core.session(session_id))

    def fork(self, session_id: str, *, position: int | None = None, seed: int | None = None) -> Fork:
        """Copy a session, as it is or as it was at a position.

        A request that is repeated because its answer was lost leaves a copy that expires unused.
        """
        return run(self._core.fork(session_id, position, seed))

    def delete_session(self, session_id: str) -> None:
        """Delete a session."""
        run(self._core.delete_session(session_id))

    # ---- training

    def retrain(self, *, idempotency_key: str | None = None, **settings: Any) -> Job:
        """Queue a training and return its job.

        Args:
            idempotency_key: As for `generate`.
            settings: Parameters of POST /retrain (docs/api.md).
        """
        return run(self._core.retrain(settings, idempotency_key))

    def jobs(self) -> list[Job]:
        """Return the stored jobs, the latest first."""
        return run(self._core.jobs())

    def job(self, job_id: str) -> Job:
        """Return a job."""
        return run(self._core.job(job_id))

    def follow_job(self, job_id: str) -> JobProgress:
        """Return a job's progress as a stream, resumed when it is lost; its result is the job that has ended."""
        return JobProgress(JobStream(self._core, job_id))

    def cancel_job(self, job_id: str) -> Job:
        """Cancel a queued or running job."""
        return run(self._core.cancel_job(job_id))

    def put_corpus(self, name: str, text: str, **layout: Unpack[LayoutOptions]) -> Corpus:
        """Store a text to train on.

        Args:
            name: The corpus.
            text: Its text.
            layout: How the items of a list lie in it; without, it is detected.
        """
        return run(self._core.put_corpus(name, text, layout))

    def corpora(self) -> list[Corpus]:
        """Return the stored texts."""
        return run(self._core.corpora())

    def delete_corpus(self, name: str) -> None:
        """Delete a stored text."""
        run(self._core.delete_corpus(name))

    # ---- models

    def models(self, model: str = "default", *, after: str | None = None, limit: int | None = None) -> Models:
        """Return a page of the models by name, the checkpoints of one of them, and the default model's promoted one.

        Args:
            model: The model whose checkpoints are listed.
            after: List the names after this one, such as `next` of the page before.
            limit: The most names of a page.
        """
        return run(self._core.models(model, after, limit))

    def model(self, name: str) -> NamedModel:
        """Return a model and its checkpoints."""
        return run(self._core.model(name))

    def delete_model(self, name: str) -> None:
        """Delete a model with all its checkpoints."""
        run(self._core.delete_model(name))

    def promote(self, model_id: str, *, model: str = "default") -> Checkpoint:
        """Make a checkpoint the one that answers under its model's name."""
        return run(self._core.promote(model_id, model))

    def rollback(self, *, model: str = "default") -> Checkpoint:
        """Undo the last promotion of a model, and return the checkpoint that is promoted now."""
        return run(self._core.rollback(model))


class _LiveStream(Generic[ItemT, ResultT]):
    """A stream that is read while it is made. Use it in a `with` block, or read it to its end."""

    def __init__(self, stream: ResumableStream[ItemT, ResultT]) -> None:
        """Wrap the stream; a method of Client makes it."""
        self._stream = stream

    def __enter__(self) -> Self:
        """Send the request; its errors are raised here."""
        run(self._stream.open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the stream."""
        self.close()

    def __iter__(self) -> Iterator[ItemT]:
        """Return the stream itself."""
        return self

    def __next__(self) -> ItemT:
        """Return what comes next."""
        item = run(self._stream.receive())
        if item is None:
            raise StopIteration
        return item

    def close(self) -> None:
        """Stop here."""
        run(self._stream.close())

    @property
    def reconnects(self) -> int:
        """How often the stream was continued over a new connection."""
        return self._stream.reconnects

    @property
    def result(self) -> ResultT:
        """How it ended, once the stream was read to its end."""
        if self._stream.result is None:
            raise RuntimeError("the stream was not read to its end yet")
        return self._stream.result


class Stream(_LiveStream[Chunk, Generation]):
    """A text while it is generated: its chunks, and the whole text as the result.

    When it is closed early, the server keeps the session at what was sent, or a little further.
    """

    def __init__(self, stream: GenerationStream) -> None:
        """Wrap the stream; Client.stream and Client.resume make it."""
        super().__init__(stream)
        self._generation = stream

    @property
    def text(self) -> str:
        """What was received so far."""
        return self._generation.text

    @property
    def session_id(self) -> str | None:
        """The session; None before the first event, and if the server could not store it."""
        return self._generation.session_id

    @property
    def position(self) -> int | None:
        """The position after the last character that was received; None before the first event."""
        return self._generation.position


class Items(_LiveStream[Item, ItemsResult]):
    """Items while they are generated, and how their generation ended."""


class JobProgress(_LiveStream[JobEvent, Job]):
    """A job's events, and the job once it has ended. It goes on when the stream is closed."""
