"""A request's work is bounded: the prompt, the time, and the characters that a client may have scored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.application import Application
from tests.servers import Service


@pytest.fixture(scope="module")
def limited(store: Path) -> Iterator[Service]:
    """A service with small limits."""
    limits = {"MAX_PROMPT_CHARS": "100", "MAX_GENERATION_S": "0.5", "MAX_CHARS": "100000000", "CHARS_LIMIT": "1000/day"}
    with Application(CHECKPOINT_DIR=str(store), **limits) as service:
        yield service


def test_a_long_prompt_is_refused(limited: Service) -> None:
    """Before anything is done for it, in every kind of request that has one; the longest allowed one is read."""
    for body in ({"max_chars": 0}, {"max_chars": 5, "stream": True}):
        refused = limited.post(prompt="a" * 101, **body)
        error = refused.json()["error"]
        assert (refused.status_code, error["field"], error["expected"]) == (422, "prompt", "at most 100 characters")
    assert limited.post(prompt="a" * 100, max_chars=0).status_code == 200


def test_the_server_ends_a_text_in_time(limited: Service) -> None:
    """With its text so far, which is saved and can be continued; a client may only shorten the time."""
    for timeout in ({}, {"timeout_s": 600}):
        answer = limited.generate(max_chars=10**8, **timeout)
        assert (answer["finish_reason"], answer["saved"]) == ("timeout", True)
        assert len(answer["text"]) > 0
        assert limited.generate(session_id=answer["session_id"], max_chars=3)["finish_reason"] == "length"


def test_characters_are_counted_not_requests(limited: Service) -> None:
    """/score and /inspect share a client's characters; then 429 with the time to wait; generation goes on."""
    assert limited.client.post("/score", json={"text": "a" * 600}).status_code == 200
    refused = limited.client.post("/score", json={"text": "a" * 600})
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limited")
    assert int(refused.headers["Retry-After"]) >= 1
    assert limited.client.post("/inspect", json={"text": "a" * 300}).status_code == 200
    assert limited.client.post("/inspect", json={"text": "a" * 300}).status_code == 429
    assert limited.post(max_chars=1).status_code == 200
