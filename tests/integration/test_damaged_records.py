"""What is read back from Redis is checked before it runs: a damaged record fails its own request, and no other text."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from model.network.state import HiddenState
from service.store.prefixes import STRIDE, prefix_keys
from service.store.sessions import Session, digest
from tests.conftest import ALPHABET
from tests.servers import Service

Damage = Callable[[HiddenState], HiddenState]
DAMAGES: dict[str, Damage] = {
    "a tensor less": lambda s: replace(s, values=s.values[:1]),
    "a layer more": lambda s: replace(s, values=np.concatenate([s.values, s.values[:, :1]], axis=1)),
    "a unit less": lambda s: replace(s, values=s.values[:, :, 1:]),
    "another type": lambda s: replace(s, values=s.values.astype(np.float64)),
    "not a number": lambda s: replace(s, values=s.values * np.nan),
    "infinite": lambda s: replace(s, values=s.values + np.inf),
    "an id that the vocabulary lacks": lambda s: replace(s, next_input=len(ALPHABET)),
    "a negative id": lambda s: replace(s, next_input=-1),
    "an id beyond 32 bits": lambda s: replace(s, next_input=2**40),
    "a negative position": lambda s: replace(s, position=-5),
    "a position beyond all texts": lambda s: replace(s, position=2**64),
    "a position that is text": lambda s: replace(s, position="9"),  # type: ignore[arg-type]
}


def beside_a_long_text(service: Service, act: Callable[[], None]) -> None:
    """Run `act` while another client's text is generated, which must be the text that it is without it."""
    body = {"prompt": "be", "max_chars": 6000, "seed": 11}
    expected = service.generate(**body)["text"]
    got: list[str] = []
    neighbour = threading.Thread(target=lambda: got.append(service.streamed_text(**body)))
    neighbour.start()
    act()
    neighbour.join()
    assert got == [expected]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_session_fails_its_own_requests(service: Service, redis_client: Any, damage: str) -> None:
    """With 409 and the reason, whichever way it is used; a text that runs beside it is whole."""
    session_id = service.generate(prompt="to be", max_chars=9)["session_id"]
    key = f"lh:{{{digest(session_id)}}}"
    session = Session.from_bytes(redis_client.get(key))
    redis_client.set(key, replace(session, state=DAMAGES[damage](session.state)).to_bytes())
    redis_client.delete(f"{key}:turn")  # as when it has expired: with a turn, a wrong position is noticed by that alone

    def use() -> None:
        requests: list[tuple[str, dict[str, Any]]] = [("/generate", {"max_chars": 4}), ("/score", {"text": "be"})]
        for path, body in requests:
            response = service.client.post(path, json={**body, "session_id": session_id})
            error = response.json()["error"]
            assert (response.status_code, error["code"]) == (409, "unreadable_session"), response.text
            assert "cannot be used" in error["message"]

    beside_a_long_text(service, use)
    assert service.client.delete(f"/sessions/{session_id}").status_code == 204


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_prefix_is_read_again(service: Service, redis_client: Any, damage: str) -> None:
    """The prompt is read as if nothing were cached, and its state is cached anew."""
    prompt = ("to be or not " * STRIDE)[: STRIDE + 100]
    body = {"prompt": prompt, "max_chars": 20, "seed": 5}
    first = service.generate(**body)
    model = service.client.get("/readyz").json()["model"]
    numerics = Session.from_bytes(redis_client.get(f"lh:{{{digest(first['session_id'])}}}")).state.numerics
    _, key = prefix_keys(model["fingerprint"], numerics, ALPHABET.encode(prompt))[-1]
    state = HiddenState.from_bytes(redis_client.get(key))
    redis_client.set(key, DAMAGES[damage](state).to_bytes())

    def use() -> None:
        again = service.generate(**body)
        assert (again["text"], again["usage"]["reused_chars"]) == (first["text"], 0)

    beside_a_long_text(service, use)
    assert redis_client.get(key) == state.to_bytes()
    assert service.generate(**body)["usage"]["reused_chars"] == len(prompt)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_chars", -1),
        ("max_chars", 10**12),
        ("max_chars", "9"),
        ("prompt", "\u2603"),
        ("prompt", 7),
        ("start_position", 3),
        ("seed", 2**70),
        ("seed", 1.5),
        ("stop", [""]),
        ("stop", "a"),
        ("sampling", {"temperature": "hot"}),
        ("sampling", {"temperature": -1}),
        ("sampling", {"top_k": 2**40}),
        ("reencoded", "yes"),
    ],
)
def test_a_damaged_turn_fails_its_own_requests(service: Service, redis_client: Any, field: str, value: Any) -> None:
    """With 409 and the reason, when it is resumed."""
    session_id = service.generate(prompt="to be", max_chars=9)["session_id"]
    key = f"lh:{{{digest(session_id)}}}:turn"
    redis_client.hset(key, "turn", json.dumps({**json.loads(redis_client.hget(key, "turn")), field: value}))
    with service.client.stream("GET", f"/sessions/{session_id}/stream") as response:
        response.read()
        assert (response.status_code, response.json()["error"]["code"]) == (409, "unreadable_session"), response.text


@pytest.mark.parametrize(("field", "value"), [("until", b"soon"), ("end", b"\xff"), ("end", b"well"), ("start", b"x")])
def test_a_damaged_field_of_a_turn_fails_its_own_requests(
    service: Service, redis_client: Any, field: str, value: bytes
) -> None:
    """Also the fields that are no JSON: 409 with the reason, for every address of the session."""
    session_id = service.generate(prompt="to be", max_chars=9)["session_id"]
    redis_client.hset(f"lh:{{{digest(session_id)}}}:turn", field, value)
    for response in (service.client.get(f"/sessions/{session_id}"), service.post(session_id=session_id, max_chars=1)):
        if (field, response.request.method) == ("until", "POST"):
            assert response.status_code == 200  # a lease without an end counts as none
        else:
            assert (response.status_code, response.json()["error"]["code"]) == (409, "unreadable_session")


def test_a_header_that_never_ends_is_a_damaged_session(service: Service, redis_client: Any) -> None:
    """JSON of 30,000 nested lists exhausts no stack."""
    session_id = service.generate(max_chars=3)["session_id"]
    key = f"lh:{{{digest(session_id)}}}"
    state = struct.pack("<H", 30_000) + b"[" * 30_000
    redis_client.set(key, struct.pack("<BQI", 2, 1, len(state)) + state)
    response = service.post(session_id=session_id, max_chars=1)
    assert (response.status_code, response.json()["error"]["code"]) == (409, "unreadable_session")
