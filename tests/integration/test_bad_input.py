"""Everything that a client can get wrong: a clear error naming field, value and expectation, and never a 500."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from tests.servers import Service

BAD = [
    ({"max_chars": -1}, "max_chars", "greater than or equal to 0"),
    ({"max_chars": 10**9}, "max_chars", "at most 100000"),
    ({"max_chars": 1.5}, "max_chars", "integer"),
    ({"max_chars": "100"}, "max_chars", "integer"),
    ({"max_chars": True}, "max_chars", "integer"),
    ({"max_chars": None}, "max_chars", "integer"),
    ({"temperature": -0.1}, "temperature", "0 or 0.01 to 100"),
    ({"temperature": 1e-5}, "temperature", "0 or 0.01 to 100"),
    ({"temperature": 101}, "temperature", "0 or 0.01 to 100"),
    ({"temperature": "hot"}, "temperature", "number"),
    ({"top_k": -1}, "top_k", "0 to 65536"),
    ({"top_p": 0}, "top_p", "above 0, at most 1"),
    ({"top_p": 1.01}, "top_p", "above 0, at most 1"),
    ({"min_p": 2}, "min_p", "0 to 1"),
    ({"typical_p": 0}, "typical_p", "above 0, at most 1"),
    ({"repetition_penalty": 0}, "repetition_penalty", "above 0, at most 10"),
    ({"frequency_penalty": 2.5}, "frequency_penalty", "-2 to 2"),
    ({"presence_penalty": -3}, "presence_penalty", "-2 to 2"),
    ({"penalty_window": 0}, "penalty_window", "1 to 1024"),
    ({"min_chars": -1}, "min_chars", "greater than or equal to 0"),
    ({"min_chars": 11, "max_chars": 10}, "min_chars", "at most max_chars, which is 10"),
    ({"logit_bias": {"e": 101}}, "logit_bias", "a number from -100 to 100"),
    ({"logit_bias": {"e": "low"}}, "logit_bias.e", "number"),
    ({"logit_bias": {"he": 1}}, "logit_bias", "single characters"),
    ({"logit_bias": {"Q": 1}}, "logit_bias.Q", "'Q' (U+0051) at 0"),
    ({"logit_bias": [1]}, "logit_bias", "object"),
    ({"seed": -1}, "seed", "greater than or equal to 0"),
    ({"seed": 2**63}, "seed", "less than or equal to"),
    ({"stop": "a"}, "stop", "array"),
    ({"stop": [""]}, "stop", "1 to 256 characters"),
    ({"stop": ["a"] * 17}, "stop", "at most 16 strings"),
    ({"stop": ["a", 1]}, "stop.1", "string"),
    ({"prompt": 5}, "prompt", "string"),
    ({"prompt": "hé\tllo, é"}, "prompt", "'é' (U+00E9) at 1, '\\t' (U+0009) at 2, ',' (U+002C) at 6"),
    ({"stop": ["Q"]}, "stop.0", "'Q' (U+0051) at 0"),
    ({"on_unknown": "ignore"}, "on_unknown", "'error' or 'skip'"),
    ({"session_id": "short"}, "session_id", "pattern"),
    ({"session_id": "../../../../../../etc/passwd"}, "session_id", "pattern"),
    ({"session_id": "x" * 65}, "session_id", "pattern"),
    ({"stream": "yes"}, "stream", "boolean"),
    ({"temprature": 1}, "temprature", "no such field, expected one of the fields temperature, top_k"),
]


@pytest.mark.parametrize(("body", "field", "says"), BAD, ids=lambda v: str(v)[:40])
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_field_is_named(service: Service, body: dict[str, Any], field: str, says: str, stream: bool) -> None:
    """422 with the field, its value and what was expected, before the first byte of a stream."""
    response = service.post(**({"stream": True} if stream and "stream" not in body else {}), **body)
    assert response.status_code == 422
    error = response.json()["error"]
    assert error["code"] == "invalid_request"
    assert error["field"] == field
    assert error["message"].startswith(f"{field}: ")
    assert says in error["message"]
    assert "value" in error
    assert error["expected"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_must_be_finite(service: Service, number: str) -> None:
    """Not a number, and infinities, are refused by name."""
    response = raw(service, f'{{"temperature": {number}}}'.encode())
    assert response.status_code == 422
    assert response.json()["error"]["field"] == "temperature"


@pytest.mark.parametrize(
    "body", [b"{", b"\xff\xfe", b'{"prompt": "\xff"}', b'{"prompt": "\\ud800"}', b"[1]", b'"a"', b"7"]
)
def test_a_body_that_is_no_json_object_is_said(service: Service, body: bytes) -> None:
    """400 malformed_body, with what the parser saw."""
    response = raw(service, body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "malformed_body"
    assert "expected a JSON object" in response.json()["error"]["message"]


def test_an_empty_body_is_all_defaults(service: Service) -> None:
    """No body and {} ask for the same."""
    assert raw(service, b"").status_code == 200
    assert raw(service, b"{}").status_code == 200


def test_a_body_over_the_limit_is_refused(service: Service) -> None:
    """10 MB: 413 with the sizes; the service goes on."""
    response = raw(service, json.dumps({"prompt": "a" * 10_000_000}).encode())
    assert response.status_code == 413
    error = response.json()["error"]
    assert (error["field"], error["expected"]) == ("body", "at most 1048576 bytes")
    assert str(error["value"]) in error["message"]


def test_only_json_is_read(service: Service) -> None:
    """A page in a browser can send forms and text anywhere, but not JSON: other types get 415."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", None):
        headers = {"Content-Type": kind} if kind else {}
        response = service.client.post("/generate", content=b"{}", headers=headers)
        assert response.status_code == 415
        assert response.json()["error"]["field"] == "Content-Type"


def test_other_paths_and_methods_are_answered_in_the_same_form(service: Service) -> None:
    """404 and 405 carry the same error object as all else."""
    for response, status in ((service.client.get("/nowhere"), 404), (service.client.get("/generate"), 405)):
        assert response.status_code == status
        assert response.json()["error"]["code"]
    assert "POST" in service.client.get("/generate").headers["Allow"]


@pytest.mark.parametrize("id", ["short", "x" * 65, "a.b" * 10, "é" * 30])
def test_a_session_id_of_another_shape_is_said(service: Service, id: str) -> None:
    """422, not 404: it cannot ever have been one."""
    for method in ("GET", "DELETE"):
        response = service.client.request(method, f"/sessions/{id}")
        assert response.status_code == 422
        assert response.json()["error"]["field"] == "session_id"


def test_a_bad_request_on_a_session_leaves_it_whole(service: Service) -> None:
    """After a refused turn the session is where it was, and free."""
    begun = service.generate(prompt="hello", max_chars=10)
    id = begun["session_id"]
    assert service.post(session_id=id, prompt="Q").status_code == 422
    assert service.generate(session_id=id, max_chars=5)["position"] == begun["position"] + 5


def test_garbage_on_the_socket_harms_nobody(service: Service) -> None:
    """What is not HTTP is dropped, and the next request is answered."""
    with socket.create_connection(("127.0.0.1", service.port)) as s:
        s.sendall(b"\x00\x01\x02 garbage\r\n\r\n")
        s.recv(1000)
    assert service.client.get("/healthz").status_code == 200


def raw(service: Service, body: bytes) -> Any:
    return service.client.post("/generate", content=body, headers={"Content-Type": "application/json"})
