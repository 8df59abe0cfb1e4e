"""What is sent again and when: the policy by itself, without a server."""

from __future__ import annotations

import pickle
import typing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

import longhand
from longhand.errors import APIError, ConnectionFailed, LonghandError, response_error, stream_error
from longhand.retry import RetryPolicy
from service import errors
from service.schemas import GenerateRequest

REFUSED = ConnectionFailed("refused", was_sent=False)
LOST = ConnectionFailed("lost", was_sent=True)
NEVER_IN_A_STREAM = {
    "body_too_large",
    "corpus_conflict",
    "forbidden",
    "job_has_ended",
    "job_queue_full",
    "key_reused",
    "malformed_body",
    "model_conflict",
    "model_not_allowed",
    "no_turn",
    "unauthorized",
    "unknown_corpus",
    "unknown_model",
    "unknown_report",
    "unsupported_cell",
    "wrong_media_type",
}
"""Codes of errors that end a request before its stream begins."""


def answer(status: int, code: str = "", retry_after: str = "") -> APIError:
    """The error of a response of the service, or without a code of a gateway."""
    headers = {"Retry-After": retry_after} if retry_after else {}
    request = httpx.Request("POST", "http://user:secret@server:81/generate?key=1")
    body = {"json": {"error": {"code": code, "message": "no"}}} if code else {"text": "<h1>Bad\nGateway</h1>"}
    return response_error(httpx.Response(status, headers=headers, request=request, **body))


@pytest.mark.parametrize(
    ("error", "if_repeatable", "else_"),
    [
        (REFUSED, True, True),
        (LOST, True, False),
        (answer(429, "queue_full", "1"), True, True),
        (answer(503, "draining", "1"), True, True),
        (answer(409, "session_conflict", "1"), True, True),
        (answer(503, "storage_failed"), False, False),
        (answer(409, "session_conflict"), False, False),
        (answer(422, "invalid_request"), False, False),
        (answer(500, "internal"), False, False),
        (answer(504, "timeout"), False, False),
        (answer(502), True, False),
        (answer(503), True, False),
        (answer(504, retry_after="1"), True, False),
        (answer(301), False, False),
        (longhand.InvalidResponse("no JSON"), False, False),
    ],
    ids=repr,
)
def test_what_is_sent_again(error: LonghandError, if_repeatable: bool, else_: bool) -> None:
    """The table of longhand/retry.py."""
    for is_repeatable, expected in ((True, if_repeatable), (False, else_)):
        attempts = RetryPolicy(60).attempts()
        if expected:
            assert attempts.delay_after(error, is_repeatable=is_repeatable) >= 0
        else:
            with pytest.raises(type(error)) as raised:
                attempts.delay_after(error, is_repeatable=is_repeatable)
            assert (raised.value, raised.value.attempts) == (error, 1)


def test_retry_after_is_obeyed_up_to_the_bound() -> None:
    """In seconds and as a date; a time beyond the bound ends it at once, and the error says when it would have been."""
    assert RetryPolicy(60).attempts().delay_after(answer(429, "queue_full", "7"), is_repeatable=False) == 7
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 25 < RetryPolicy(60).attempts().delay_after(answer(503, "no_model", date), is_repeatable=False) <= 30
    past = format_datetime(datetime.now(UTC) - timedelta(seconds=30), usegmt=True)
    assert 0 < RetryPolicy(60).attempts().delay_after(answer(503, "no_model", past), is_repeatable=False) <= 0.1
    with pytest.raises(longhand.Overloaded):
        RetryPolicy(0).attempts().delay_after(answer(429, "queue_full", "0"), is_repeatable=True)
    late = answer(429, "job_queue_full", "61")
    with pytest.raises(longhand.Overloaded) as raised:
        RetryPolicy(60).attempts().delay_after(late, is_repeatable=True)
    assert "the next would be 61.0 s later" in raised.value.__notes__[0]


def test_delays_grow_and_end() -> None:
    """Without a Retry-After they double up to 5 s; together they never pass the bound."""
    attempts = RetryPolicy(1e6).attempts()
    delays = [attempts.delay_after(LOST, is_repeatable=True) for _ in range(60)]
    assert all(0.05 * 2**n <= delay <= 0.1 * 2**n for n, delay in enumerate(delays[:5]))
    assert max(delays) <= 5
    with pytest.raises(ConnectionFailed):
        RetryPolicy(0).attempts().delay_after(LOST, is_repeatable=True)
    for wrong in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="retry_for_s: got"):
            RetryPolicy(wrong)


def service_errors(kind: type[errors.ServiceError] = errors.ServiceError) -> list[type[errors.ServiceError]]:
    return [kind, *(element for sub in kind.__subclasses__() for element in service_errors(sub))]


@pytest.mark.parametrize("kind", service_errors(), ids=lambda kind: kind.__name__)
def test_every_error_of_the_service_has_its_class(kind: type[errors.ServiceError]) -> None:
    """By status; a 5xx that has no class of its own is a ServerError. In a stream the code says the same."""
    error = answer(kind.status, kind.code)
    assert (error.status, error.code, str(error)) == (kind.status, kind.code, "no")
    assert (type(error) is longhand.ServerError) == (kind.status in (500, 507))
    in_stream = stream_error(f'{{"error": {{"code": "{kind.code}", "message": "no", "field": "x", "expected": "y"}}}}')
    assert isinstance(in_stream, APIError)
    assert (in_stream.field, in_stream.expected) == ("x", "y")
    if kind.code not in NEVER_IN_A_STREAM and "code" in vars(kind):
        assert in_stream.status == kind.status
        assert type(in_stream) is type(error)
        assert (in_stream.retry_after_s is not None) == (kind.retry_after_s is not None)


def client_of(*answers: httpx.Response | httpx.TransportError) -> longhand.Client:
    """A client whose requests get these answers, one after the other."""
    left = iter(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        following = next(left)
        if isinstance(following, httpx.TransportError):
            raise following
        return following

    return longhand.Client(http=httpx.Client(transport=httpx.MockTransport(answer), base_url="http://server"))


def events(*lines: str) -> httpx.Response:
    return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, text="".join(f"{x}\n\n" for x in lines))


START = 'event: start\ndata: {"session_id": null, "position": 1, "seed": 5, "model": {"fingerprint": "f", "name": "n"}}'


def test_a_text_that_was_not_stored_is_not_continued_by_another() -> None:
    """Its session store was away: the request again would draw another text, so none is sent, and the error arrives."""
    refused = 'event: error\ndata: {"error": {"code": "draining", "message": "no"}}'
    lost = events(START, 'id: 3\ndata: {"text": "ab"}', refused)
    with client_of(lost) as client, client.stream("a") as stream, pytest.raises(longhand.Unavailable):
        list(stream)
    assert stream.text == "ab"


def test_an_event_that_is_no_object_is_an_invalid_response() -> None:
    answer = events(START, "id: 3\ndata: [1]")
    expected = pytest.raises(longhand.InvalidResponse, match="is not an object")
    with client_of(answer) as client, client.stream("a") as stream, expected:
        list(stream)


def test_what_was_deleted_by_a_request_whose_answer_was_lost_is_deleted() -> None:
    """Not found at the second attempt is the first one's success; at the first attempt it is an error."""
    missing = httpx.Response(404, json={"error": {"code": "unknown_corpus", "message": "no"}})
    with client_of(httpx.ReadError("lost"), missing) as client:
        client.delete_corpus("a")
    with client_of(missing) as client, pytest.raises(longhand.NotFound):
        client.delete_session("a")


@pytest.mark.parametrize("first", [httpx.ConnectError("refused"), httpx.Response(503, headers={"Retry-After": "0"})])
def test_what_was_not_there_is_not_found_after_a_refusal(first: httpx.Response | httpx.TransportError) -> None:
    """The first attempt was not done, so nothing was deleted by it."""
    missing = httpx.Response(404, json={"error": {"code": "unknown_session", "message": "no"}})
    with client_of(first, missing) as client, pytest.raises(longhand.NotFound) as raised:
        client.delete_session("a")
    assert raised.value.attempts == 2


def test_errors_survive_another_process() -> None:
    """As from a pool of processes: class, message and attributes are the same."""
    for error in (answer(429, "queue_full", "7"), LOST, longhand.InvalidResponse("no JSON")):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_a_gateway_s_error_is_quoted() -> None:
    """In one line, without the address's credentials."""
    error = answer(502)
    assert str(error) == "http://server:81 answered 502: <h1>Bad Gateway</h1>"
    assert (error.code, error.field, error.retry_after_s) == ("", None, None)
    assert isinstance(stream_error("nothing"), longhand.InvalidResponse)


def test_the_parameters_are_those_of_the_service() -> None:
    """Those of `generate` and `items` are the fields of the body, but for `n`: a call is one text."""
    of_items = {"items", "unique", "novel"}
    fields = set(GenerateRequest.model_fields) - {"prompt", "stream", "n"}
    assert set(typing.get_type_hints(longhand.GenerateOptions)) == fields - of_items
    of_texts = {"items", "session_id", "position", "stop", "logprobs", "on_new_model", "structured_outputs"}
    assert set(typing.get_type_hints(longhand.ItemOptions)) == fields - of_texts
    with pytest.raises(ValueError, match="items: got 3"):
        longhand.Client().stream("a", items=3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="n: got 2"):
        longhand.Client().stream("a", n=2)  # type: ignore[call-arg]
