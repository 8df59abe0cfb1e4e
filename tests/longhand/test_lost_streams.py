"""Streams that are lost, at every place where one can be lost, and while workers are killed: every character once."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import longhand
from model.checkpoints import registry
from model.checkpoints.names import store_folder
from model.text.vocab import Vocabulary
from tests.conftest import random_checkpoint
from tests.longhand.clients import KINDS, Cut, CuttingProxy, client_of
from tests.servers import RedisServer, Service, eventually

LETTERS = Vocabulary("".join(sorted("\n abcäößéñ→日本語😀🚀")))
CHARS = 4000
STREAMS, KILLS = int(os.environ.get("CLIENT_STREAMS", "16")), int(os.environ.get("CLIENT_KILLS", "3"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of checkpoints."""
    return tmp_path_factory.mktemp("letters")


@pytest.fixture(scope="module")
def letters(root: Path, redis_server: RedisServer) -> Iterator[Service]:
    """A service whose text has characters of one to four bytes, in many small events."""
    registry.promote(random_checkpoint(n_layers=1, n_hidden=64, alphabet=LETTERS).save(root))
    settings = {"LEASE_S": "1", "SNAPSHOT_INTERVAL_S": "0.05", "BLOCK_MS": "1"}
    with Service(CHECKPOINT_DIR=str(root), REDIS_URL=redis_server.url, **settings) as service:
        yield service


@pytest.fixture(scope="module")
def expected(letters: Service) -> str:
    return str(letters.generate(prompt="ab", seed=3, max_chars=CHARS)["text"])


def after(marker: bytes, n: int = 1, plus: int = 0) -> Cut:
    """Behind the n-th place where these bytes were sent, and so many bytes further."""

    def cut(sent: bytes) -> int:
        at = -1
        for _ in range(n):
            at = sent.find(marker, at + 1)
            if at < 0:
                return -1
        at += len(marker) + plus
        return at if at <= len(sent) else -1

    return cut


def inside_a_character(sent: bytes) -> int:
    """Behind the second byte of a character of three or four bytes, in the third text or later."""
    begin = after(b'data: {"text":"', 3)(sent)
    places = [i for i, byte in enumerate(sent) if byte >= 0xE0 and 0 <= begin < i and i + 2 <= len(sent)]
    return places[0] + 2 if places else -1


TEXT = b'data: {"text":"'
CUTS = {
    "before the response": lambda _: 0,
    "inside the response's head": after(b"HTTP/1.1 200"),
    "before the first event": after(b"\r\n\r\n"),
    "inside the first event": after(b"event: start\n", plus=10),
    "before any text": after(b"\n\n"),
    "behind an event": after(b"\n\n", 4),
    "inside an event's id": after(b"\nid: ", 3, plus=1),
    "between an event's lines": after(b"\nid: ", 3, plus=len("100\n")),
    "inside a text": after(TEXT, 3, plus=1),
    "inside a character": inside_a_character,
    "before an event's empty line": after(b'"}\n', 3),
    "before the last event": after(b"event: done\n", plus=-len(b"event: done\n")),
    "inside the last event": after(b"event: done\ndata: ", plus=20),
    "before the last event's empty line": after(b'"reencoded":false}\n', 2),
    "behind the last event": after(b'"reencoded":false}\n\n', 2),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", CUTS)
def test_a_cut_stream(letters: Service, expected: str, kind: str, place: str) -> None:
    """Wherever the connection is cut: the text is whole, and positions and result are those of an uncut stream."""
    with CuttingProxy(letters.port, CUTS[place]) as proxy, client_of(kind, proxy.url) as client:
        with client.stream("ab", seed=3, max_chars=CHARS) as stream:
            position = 2
            for chunk in stream:
                position += len(chunk.text)
                assert chunk.position == position
        assert proxy.n_cut == 1
    assert stream.text == expected
    result = stream.result
    assert (result.finish_reason, result.position, result.saved) == ("length", CHARS + 2, True)
    assert (result.usage.prompt_chars, result.usage.generated_chars) == (2, CHARS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_that_is_cut_again_and_again(letters: Service, expected: str, kind: str) -> None:
    """Ten times, each time after some text: the time that failures may take begins again with each text."""
    cuts = [after(TEXT, n % 3 + 1, plus=1 + n % 2) for n in range(10)]
    with CuttingProxy(letters.port, *cuts) as proxy, client_of(kind, proxy.url, retry_for_s=5) as client:
        whole = client.generate("ab", seed=3, max_chars=CHARS, logprobs=1)
        assert proxy.n_cut == 10
    assert whole.text == expected
    assert whole.logprobs is not None
    assert len(whole.logprobs) == CHARS


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_of_a_named_model_goes_on_with_its_checkpoint(letters: Service, root: Path, kind: str) -> None:
    """Also when another one of that name was promoted before the stream was lost: all characters are of the first."""
    folder = store_folder(root, kind)
    first, second = (random_checkpoint(n_hidden=48, alphabet=LETTERS, seed=seed).save(folder) for seed in (1, 2))
    registry.promote(first)
    request: dict[str, Any] = {"prompt": "ab", "seed": 3, "max_chars": CHARS, "model": kind}
    whole = letters.generate(**request)
    with CuttingProxy(letters.port, after(b"\n\n", 4)) as proxy, client_of(kind, proxy.url) as client:
        with client.stream(**request) as stream:
            next(stream)
            registry.promote(second)
            for _ in stream:
                pass
        assert proxy.n_cut == 1
    assert (stream.text, stream.result.model.fingerprint) == (whole["text"], whole["model"]["fingerprint"])
    assert letters.generate(**request)["model"]["fingerprint"] != whole["model"]["fingerprint"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_that_is_always_cut_ends_with_an_error(letters: Service, expected: str, kind: str) -> None:
    """When no attempt brings new text, the bound holds, too; what was received can be read, and gone on with later."""
    cuts = [after(TEXT, 4), *[after(b"event: start\n")] * 1000]
    with CuttingProxy(letters.port, *cuts) as proxy, client_of(kind, proxy.url, retry_for_s=1) as client:
        stream = client.stream("ab", seed=3, max_chars=CHARS)
        with pytest.raises(longhand.ConnectionFailed) as raised:
            list(stream)
        assert raised.value.attempts > 2
        assert stream.session_id is not None
        part = stream.text
    with client_of(kind, letters.url) as client, client.resume(stream.session_id, after=stream.position) as rest:
        list(rest)
    assert part
    assert part + rest.text == expected


@dataclass
class Talk:
    """A session whose turns are generated until the kills are over, and what its client received of it."""

    seed: int
    texts: list[str] = field(default_factory=list)
    chunks: int = 0
    reconnects: int = 0


TURN = {"max_chars": 400, "temperature": 0.9}


def test_streams_through_kills(tmp_path: Path, redis_server: RedisServer) -> None:
    """Workers are killed with -9, one after the other: every stream of both clients has the text of a quiet run.

    `make client-kills` is the long profile.
    """
    registry.promote(random_checkpoint(n_layers=2, n_hidden=512).save(tmp_path))
    settings = {"WORKERS": "2", "LEASE_S": "1", "SNAPSHOT_INTERVAL_S": "0.2", "SLOTS": "128", "MAX_CHARS": "10000000"}
    talks, over = [Talk(seed) for seed in range(STREAMS)], threading.Event()
    with Service(CHECKPOINT_DIR=str(tmp_path), REDIS_URL=redis_server.url, **settings) as service:
        with ThreadPoolExecutor(STREAMS + 1) as pool:
            blocking = [pool.submit(talk_blocking, service.url, talk, over) for talk in talks[::2]]
            awaiting = pool.submit(asyncio.run, talk_all(service.url, talks[1::2], over))
            try:
                kill_workers(service, talks)
            finally:
                over.set()
            for future in (*blocking, awaiting):
                future.result()
        quiet = longhand.Client(service.url)
        with ThreadPoolExecutor(STREAMS) as pool:
            wrong = list(pool.map(lambda talk: quiet_text(quiet, talk) != "".join(talk.texts), talks))
        quiet.close()
    reconnects = sum(talk.reconnects for talk in talks)
    chars = sum(len("".join(talk.texts)) for talk in talks)
    print(f"{STREAMS} streams, {KILLS} kills, {reconnects} resumed, {chars} characters")
    assert not any(wrong)
    assert reconnects >= KILLS


def kill_workers(service: Service, talks: list[Talk]) -> None:
    """Kill the worker with the most connections, each time when streams have gone on since.

    Clients keep their connections, so the one that has begun last may have none.
    """
    for _ in range(KILLS):
        received = [talk.chunks for talk in talks]
        eventually(lambda old=received: all(t.chunks > n for t, n in zip(talks, old, strict=True)), within_s=120)  # type: ignore[misc]
        victim = max(service.workers(), key=lambda pid: len(os.listdir(f"/proc/{pid}/fd")))
        service.kill_worker(victim)
        eventually(lambda pid=victim: pid not in service.workers() and len(service.workers()) == 2)  # type: ignore[misc]


def talk_blocking(url: str, talk: Talk, over: threading.Event) -> None:
    session: dict[str, str] = {}
    with longhand.Client(url, retry_for_s=120) as client:
        while not over.is_set():
            with client.stream("" if session else "hello", seed=talk.seed, **session, **TURN) as stream:  # type: ignore[arg-type]
                for _ in stream:
                    talk.chunks += 1
            session = note(talk, stream.result, stream.reconnects)


async def talk_all(url: str, talks: list[Talk], over: threading.Event) -> None:
    async with longhand.AsyncClient(url, retry_for_s=120) as client:

        async def run(talk: Talk) -> None:
            session: dict[str, str] = {}
            while not over.is_set():
                stream = client.stream("" if session else "hello", seed=talk.seed, **session, **TURN)  # type: ignore[arg-type]
                async with stream:
                    async for _ in stream:
                        talk.chunks += 1
                session = note(talk, stream.result, stream.reconnects)

        await asyncio.gather(*map(run, talks))


def note(talk: Talk, result: longhand.Generation, reconnects: int) -> dict[str, str]:
    """Keep what a turn brought; returns the session to go on with."""
    talk.texts.append(result.text)
    talk.reconnects += reconnects
    assert result.saved
    assert result.session_id is not None
    assert result.position == len("hello") + len("".join(talk.texts))
    return {"session_id": result.session_id}


def quiet_text(client: longhand.Client, talk: Talk) -> str:
    chars = sum(map(len, talk.texts))
    return client.generate("hello", seed=talk.seed, max_chars=chars, temperature=0.9).text
