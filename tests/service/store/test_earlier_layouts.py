"""Sessions and turns that earlier versions stored in Redis are read, continued and resumed."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model.checkpoints import file_format
from model.checkpoints.file_format import Checkpoint
from model.network.sampling import SamplingParams
from service.errors import KeyReused, TurnInterrupted
from service.generation.running import RunningGeneration
from service.generation.service import GenerationOptions, GenerationService
from service.models.manager import ModelManager
from service.schemas import GenerateRequest
from service.store.connect import connect
from service.store.prefixes import MemoryPrefixes
from service.store.redis import RedisSessions
from service.store.sessions import digest
from tests.servers import RedisServer
from tests.service.models.loaded import load

FOLDER = Path(__file__).parent.parent.parent / "fixtures" / "stored_sessions_1"
STORED: dict[str, Any] = json.loads((FOLDER / "sessions.json").read_text())
SAMPLING = STORED["sampling"]


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[Any]:
    """A Redis with the bytes of the earlier version."""
    client = connect(redis_server.url)
    for session in STORED["sessions"].values():
        key = f"lh:{{{digest(session['session_id'])}}}"
        client.delete(key, f"{key}:turn")
        client.set(key, base64.b64decode(session["record"]))
        for field, value in session["turn"].items():
            client.hset(f"{key}:turn", field, base64.b64decode(value))
    client.set(f"lh:salt:{digest(STORED['idempotency_key'])}", base64.b64decode(STORED["salt"]))
    yield client
    client.close()


@pytest.fixture(scope="module")
def checkpoints() -> dict[str, Checkpoint]:
    """The models that wrote the sessions, by fingerprint."""
    loaded = [file_format.load(path) for path in FOLDER.glob("*.safetensors")]
    return {checkpoint.fingerprint: checkpoint for checkpoint in loaded}


@pytest.fixture
def generation(client: Any, checkpoints: dict[str, Checkpoint]) -> Iterator[GenerationService]:
    """The first of the models, on the stepper that wrote the sessions."""
    manager = ModelManager()
    manager.serve(load(checkpoints[STORED["fingerprints"][0]]))
    yield GenerationService(
        manager, RedisSessions(client, 60, 60), MemoryPrefixes(), GenerationOptions(1000, 60, 1, 40)
    )
    manager.stop()


def request(**fields: Any) -> GenerateRequest:
    """A body, validated."""
    return GenerateRequest.model_validate(fields)


def text_of(running: RunningGeneration) -> str:
    """The whole text, committed."""
    text = "".join(chunk.text for chunk in running.chunks(5.0) if chunk is not None)
    assert running.finish().saved
    running.close()
    return text


@pytest.mark.parametrize("name", ["finished", "interrupted", "reprimed", "layout_1"])
def test_a_stored_session_is_read(client: Any, name: str) -> None:
    """Its position, seed and recent text, the bits of its state, and the record of its last turn."""
    stored = STORED["sessions"][name]
    session, turn = RedisSessions(client, 60, 60).load(stored["session_id"])
    assert session is not None
    assert session.seed == stored["seed"]
    assert base64.b64decode(stored["record"]).endswith(session.state.values.tobytes() + session.recent_text.encode())
    if name == "layout_1":
        assert (session.position, session.recent_text, turn) == (stored["position"], stored["before"], None)
        return
    assert turn is not None
    record = turn.record
    assert record.sampling == SamplingParams.from_dict(SAMPLING)
    assert (record.prompt, record.seed, record.reencoded) == (stored["prompt"], stored["seed"], name == "reprimed")
    if name == "interrupted":
        assert turn.start is not None
        assert turn.previous_save is not None
        assert (record.start_position, turn.start.position, turn.status) == (36, 36, "interrupted")
        assert turn.start.position < turn.previous_save.position < session.position
    else:
        assert (session.position, turn.status) == (stored["position"], "length")
        assert session.recent_text == (stored.get("before", "") + stored["prompt"] + stored["text"])[-40:]


def test_a_finished_turn_is_sent_again_and_continued(generation: GenerationService) -> None:
    """The same text to the character, from any of them, and then the text that followed it."""
    stored = STORED["sessions"]["finished"]
    session_id, prompt_end = stored["session_id"], len(stored["prompt"])
    for after in (None, prompt_end + 13):
        expected = stored["text"][(after or prompt_end) - prompt_end :]
        assert text_of(generation.resume(session_id, after)) == expected
    body = request(session_id=session_id, max_chars=20, **SAMPLING)
    assert text_of(generation.generate(body)) == stored["continuation"]


def test_an_idempotency_key_of_the_earlier_version_is_known(generation: GenerationService) -> None:
    """It finds its session. As the digest of a request has changed, the turn is refused, and not begun again."""
    body = request(prompt="hello ", max_chars=40, seed=7, stop=["qqq"], **SAMPLING)
    with pytest.raises(KeyReused, match="Idempotency-Key was used"):
        generation.generate(body, STORED["idempotency_key"])


def test_an_interrupted_turn_is_resumed(generation: GenerationService) -> None:
    """From its saves, to its end; until then the session cannot be continued without saying where."""
    stored = STORED["sessions"]["interrupted"]
    with pytest.raises(TurnInterrupted):
        generation.generate(request(session_id=stored["session_id"]))
    prompt_end = stored["start_position"] + len(stored["prompt"])
    seen = stored["seen"]
    assert seen + text_of(generation.resume(stored["session_id"], prompt_end + len(seen))) == stored["text"]


def test_a_session_of_another_model_is_re_encoded(generation: GenerationService) -> None:
    """Its recent text is read by today's model, as by the one that wrote it."""
    stored = STORED["sessions"]["reprimed"]
    running = generation.generate(request(session_id=stored["session_id"], max_chars=5))
    assert running.start_info()["reencoded"] is True
    assert running.start_info()["position"] == stored["position"]
    assert len(text_of(running)) == 5
