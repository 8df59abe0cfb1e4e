"""The OpenAI protocol, spoken by its official client: to a real server, and without one where only answers matter."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest
import redis

from model.checkpoints.file_format import Checkpoint
from tests.conftest import ALPHABET, ENDLESS_CHARS
from tests.disconnecting_clients import scoring_is_full
from tests.integration.application import Application
from tests.integration.test_inspection import rows
from tests.servers import RedisServer, Service, eventually

API_KEY, ADMIN_KEY = "a-readers-key-001", "the-operators-key"
SAMPLED: dict[str, Any] = {"model": "longhand", "prompt": "hello", "seed": 7, "temperature": 0.9, "top_p": 0.95}


def client_of(service: Service, api_key: str = API_KEY, **options: Any) -> openai.OpenAI:
    if isinstance(service, Application):
        options["http_client"] = service.client
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key=api_key, **options)


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[openai.OpenAI]:
    with client_of(service, max_retries=0) as client:
        yield client


def own_text(service: Service, max_chars: int, **body: Any) -> str:
    """The text of POST /generate."""
    fields = {"prompt": "hello", "seed": 7, "temperature": 0.9, "top_p": 0.95, **body}
    text: str = service.generate(**fields, max_chars=max_chars)["text"]
    return text


def test_a_completion_is_the_text_of_generate(client: openai.OpenAI, service: Service, tiny: Checkpoint) -> None:
    """Whole: the same characters as /generate, the usage in characters, the fingerprint of the checkpoint."""
    answer = client.completions.create(**SAMPLED, max_tokens=60)
    assert answer.choices[0].text == own_text(service, 60)
    assert (answer.object, answer.model, answer.system_fingerprint) == ("text_completion", "longhand", tiny.fingerprint)
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].logprobs is None
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 60, 65)
    assert len(client.completions.create(model="longhand", prompt=None).choices[0].text) == 200


def test_a_stream_is_the_same_text_and_ends_with_the_usage(client: openai.OpenAI, service: Service) -> None:
    """Chunks add up to the text; the finish reason comes once, at the end; then the usage without choices."""
    chunks = list(
        client.completions.create(**SAMPLED, max_tokens=60, stream=True, stream_options={"include_usage": True})
    )
    *texts, usage = chunks
    assert "".join(chunk.choices[0].text for chunk in texts) == own_text(service, 60)
    assert [chunk.choices[0].finish_reason for chunk in texts] == [None] * (len(texts) - 1) + ["length"]
    assert all(chunk.usage is None for chunk in texts)
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.total_tokens == 65
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_has_data_lines_only(service: Service) -> None:
    """Neither names nor ids of events; the last line is [DONE]."""
    with service.client.stream(
        "POST", "/v1/completions", json={**SAMPLED, "stream": True, "max_tokens": 9}
    ) as response:
        lines = [line for line in response.read().decode().split("\n") if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"


def test_async(service: Service) -> None:
    """The asynchronous client: several completions at once, and a stream."""

    async def ask() -> tuple[list[str], str]:
        async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="-") as client:
            answers = await asyncio.gather(*(client.completions.create(**SAMPLED, max_tokens=30) for _ in range(4)))
            stream = await client.completions.create(**SAMPLED, max_tokens=30, stream=True)
            return [a.choices[0].text for a in answers], "".join([c.choices[0].text async for c in stream])

    texts, streamed = asyncio.run(ask())
    assert {*texts, streamed} == {own_text(service, 30)}


@pytest.mark.parametrize("stream", [False, True])
def test_several_texts_of_several_prompts(client: openai.OpenAI, service: Service, stream: bool) -> None:
    """Choice k of a prompt is the text of the seed plus k; the choices of the second prompt follow the first's.

    There are more of them than slots and places in the queue.
    """
    prompts, n = ["hello", "so it is", ""], 8
    answer = client.completions.create(**{**SAMPLED, "prompt": prompts}, n=n, max_tokens=20, stream=stream)
    texts = [""] * (n * len(prompts))
    parts: Any = answer if stream else [answer]
    for part in parts:
        for choice in part.choices:
            texts[choice.index] += choice.text
    assert texts == [own_text(service, 20, prompt=prompt, seed=7 + k) for prompt in prompts for k in range(n)]


def test_prompts_of_token_ids(client: openai.OpenAI, service: Service) -> None:
    """Ids and lists of ids are the texts that they stand for."""
    ids = [ALPHABET.encode(text).tolist() for text in ("hello", "so")]
    single = client.completions.create(**{**SAMPLED, "prompt": ids[0]}, max_tokens=20)
    assert single.choices[0].text == own_text(service, 20)
    both = client.completions.create(**{**SAMPLED, "prompt": ids}, max_tokens=20)
    assert [c.text for c in both.choices] == [own_text(service, 20), own_text(service, 20, prompt="so")]


@pytest.mark.parametrize("max_tokens", [0, 12])
@pytest.mark.parametrize("stream", [False, True])
def test_echo_with_logprobs(client: openai.OpenAI, tiny: Checkpoint, max_tokens: int, stream: bool) -> None:
    """Prompt and text have log-probabilities: the oracle's. The first is null; the chosen one is the same twice."""
    answer = client.completions.create(**SAMPLED, max_tokens=max_tokens, echo=True, logprobs=3, stream=stream)
    parts = [part.choices[0] for part in (answer if stream else [answer])]  # type: ignore[union-attr]
    text = "".join(part.text for part in parts)
    assert text.startswith("hello")
    assert len(text) == 5 + max_tokens
    displayed = [part.logprobs for part in parts if part.logprobs is not None]
    tokens = [token for part in displayed for token in part.tokens or ()]
    logprobs = [value for part in displayed for value in part.token_logprobs or ()]
    top = [values for part in displayed for values in part.top_logprobs or ()]
    assert "".join(tokens) == text
    assert [offset for part in displayed for offset in part.text_offset or ()] == list(range(len(text)))
    assert (logprobs[0], top[0]) == (None, None)
    oracle = rows(tiny, text).log_softmax(-1)
    for i, character in enumerate(text[1:], start=1):
        assert (
            top[i][character] == logprobs[i] == pytest.approx(float(oracle[i][ALPHABET.encode(character)[0]]), abs=2e-4)
        )
        best = [ALPHABET.characters[j] for j in oracle[i].argsort(descending=True)[:3].tolist()]
        assert set(best) | {character} == set(top[i])


def test_best_of_answers_with_the_most_probable(client: openai.OpenAI) -> None:
    """n of best_of texts, by the mean log-probability of their characters."""
    all_of_them = client.completions.create(**SAMPLED, max_tokens=20, n=6, logprobs=0)

    def mean(choice: Any) -> float:
        return float(sum(choice.logprobs.token_logprobs)) / 20

    best = sorted(all_of_them.choices, key=mean, reverse=True)[:2]
    answer = client.completions.create(**SAMPLED, max_tokens=20, n=2, best_of=6)
    assert [choice.text for choice in answer.choices] == [choice.text for choice in best]
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 120


def test_a_text_that_ended_at_once_is_not_the_best(client: openai.OpenAI) -> None:
    """Of texts of which some begin with the stop string, one of the others is chosen."""
    texts = [choice.text for choice in client.completions.create(**SAMPLED, max_tokens=20, n=8).choices]
    stop = texts[0][0]
    assert not all(text.startswith(stop) for text in texts)
    answer = client.completions.create(**SAMPLED, max_tokens=20, n=1, best_of=8, stop=stop)
    assert answer.choices[0].text


def test_stop(client: openai.OpenAI, service: Service) -> None:
    """A string or a list; one that the model cannot write is no error, because agents send such strings always."""
    text = own_text(service, 60)
    stop = text[20:23]
    for value in (stop, [stop, "<|im_end|>"], ["\u2029", stop]):
        answer = client.completions.create(**SAMPLED, max_tokens=60, stop=value)
        assert answer.choices[0].text == text[: text.index(stop)]
        assert answer.choices[0].finish_reason == "stop"


def test_what_people_tune(client: openai.OpenAI, service: Service) -> None:
    """Penalties, biases by token id and min_tokens do what they do on /generate."""
    bias = {str(ALPHABET.encode(c)[0]): -100 for c in "e "}
    answer = client.completions.create(
        **SAMPLED, max_tokens=60, frequency_penalty=0.7, presence_penalty=0.3, logit_bias=bias, stop="a",
        extra_body={"min_tokens": 30, "repetition_penalty": 1.2},
    )  # fmt: skip
    own = own_text(
        service, 60, frequency_penalty=0.7, presence_penalty=0.3, logit_bias={"e": -100, " ": -100}, stop=["a"],
        min_chars=30, repetition_penalty=1.2,
    )  # fmt: skip
    assert answer.choices[0].text == own
    assert not set(own) & set("e ")
    assert len(own) >= 30


def test_explicit_nulls_are_defaults(service: Service) -> None:
    """Every optional field may be null."""
    names = (
        "best_of", "echo", "logprobs", "n", "seed", "stop", "stream", "stream_options", "suffix", "temperature",
        "top_p", "user", "prompt", "max_tokens", "top_k", "min_p", "min_tokens", "logit_bias", "presence_penalty",
        "frequency_penalty", "repetition_penalty",
    )  # fmt: skip
    response = service.client.post("/v1/completions", json={"model": "longhand", **dict.fromkeys(names)})
    assert response.status_code == 200, response.text


def test_models(client: openai.OpenAI, tiny: Checkpoint) -> None:
    """The served model under the name that stays and under its fingerprint; another name is a 404."""
    listed = {model.id: model for model in client.models.list()}
    assert set(listed) == {"longhand", tiny.fingerprint}
    for name, model in listed.items():
        assert client.models.retrieve(name) == model
        assert model.created > 1_600_000_000
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("gpt-4")
    assert (error.value.code, error.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"n": 0}, "n"),
        ({"n": 2, "best_of": 1}, "best_of"),
        ({"n": 100, "prompt": ["a", "b", "c"]}, "n"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"logit_bias": {"10000": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"extra_body": {"min_tokens": 300}}, "min_tokens"),
        ({"logprobs": 6}, "logprobs"),
        ({"prompt": "\u2603"}, "prompt"),
        ({"prompt": [10_000]}, "prompt.0"),
        ({"prompt": [[1], [2, 10_000]]}, "prompt.1.1"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"max_tokens": 100_000, "n": 2, "logprobs": 1}, "logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"extra_body": {"max_token": 3}}, "max_token"),
    ],
)
def test_a_bad_value_is_a_bad_request(client: openai.OpenAI, body: dict[str, Any], param: str) -> None:
    """400 with the field's name."""
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(**{**SAMPLED, **body})
    assert error.value.param == param
    assert error.value.type == "invalid_request_error"
    assert error.value.code == "invalid_request"


def test_an_unknown_address_answers_in_the_protocols_form(client: openai.OpenAI) -> None:
    """The chat protocol is not offered: 404, and the client reads why."""
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="longhand", messages=[{"role": "user", "content": "hello"}])
    assert error.value.type == "not_found_error"


def test_keys(store: Path) -> None:
    """A wrong key is an AuthenticationError; the right one opens /v1."""
    with Application(CHECKPOINT_DIR=str(store), API_KEYS=API_KEY) as service:
        with pytest.raises(openai.AuthenticationError) as error:
            client_of(service, "not-one-of-the-keys").completions.create(**SAMPLED)
        assert error.value.code == "invalid_api_key"
        assert len(client_of(service).completions.create(**SAMPLED, max_tokens=3).choices[0].text) == 3


def test_a_foreign_origin_is_a_permission_error(service: Service) -> None:
    """403: a web page of another site may not use the service of this machine."""
    with client_of(service, default_headers={"Origin": "https://evil.example"}) as page:
        with pytest.raises(openai.PermissionDeniedError) as error:
            page.completions.create(**SAMPLED)
        assert error.value.type == "permission_error"


def test_a_full_server_is_a_rate_limit_error_that_the_client_waits_for(store: Path) -> None:
    """429 with Retry-After; with retries, the client gets its text once there is room."""
    settings = {"SLOTS": "1", "MAX_WAITING": "0", "MAX_CHARS": str(ENDLESS_CHARS)}
    with Application(CHECKPOINT_DIR=str(store), **settings) as service:
        begun = threading.Event()

        def occupy() -> None:
            with service.client.stream(
                "POST", "/v1/completions", json={**SAMPLED, "max_tokens": ENDLESS_CHARS, "stream": True}
            ) as r:
                for _ in r.iter_lines():
                    begun.set()
                    if ended.is_set():
                        break

        ended = threading.Event()
        other = threading.Thread(target=occupy)
        other.start()
        assert begun.wait(30)
        with pytest.raises(openai.RateLimitError) as error:
            client_of(service, max_retries=0).completions.create(**SAMPLED)
        assert int(error.value.response.headers["retry-after"]) >= 1
        assert error.value.type == "rate_limit_error"
        ended.set()
        other.join()
        patient = client_of(service, max_retries=5)
        assert len(patient.completions.create(**SAMPLED, max_tokens=3).choices[0].text) == 3


def test_a_full_server_scores_no_prompt(endless: Service) -> None:
    """The queue is full: 429 before anything is done, not when the prompt has been scored, for which there is no room.

    So the code is that of the queue, although both are full.
    """
    with ExitStack() as streams:
        for _ in range(16):
            text = {"max_chars": ENDLESS_CHARS, "stream": True}
            streams.enter_context(endless.client.stream("POST", "/generate", json=text))
        streams.enter_context(scoring_is_full(endless))
        body = {**SAMPLED, "echo": True, "logprobs": 1, "max_tokens": 1}
        refused = endless.client.post("/v1/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    eventually(lambda: endless.client.get("/readyz").json()["in_flight"] == 0)


def test_without_a_model(tmp_path: Path) -> None:
    """No model: an empty list, and an InternalServerError of 503 that says when to come again."""
    with Application(CHECKPOINT_DIR=str(tmp_path)) as service, client_of(service, max_retries=0) as client:
        assert list(client.models.list()) == []
        with pytest.raises(openai.InternalServerError) as error:
            client.completions.create(**SAMPLED)
        assert (error.value.status_code, error.value.code) == (503, "no_model")
        assert error.value.response.headers["retry-after"] == "5"


def test_an_error_in_a_stream_is_raised_by_the_client(store: Path) -> None:
    """A worker that stops ends its streams with an error, which the client raises."""
    settings = {"CHECKPOINT_DIR": str(store), "REDIS_URL": "", "DRAIN_TIMEOUT_S": "0", "MAX_CHARS": str(ENDLESS_CHARS)}
    with Service(**settings) as service, client_of(service) as client:
        stream = client.completions.create(**SAMPLED, max_tokens=ENDLESS_CHARS, stream=True)
        next(stream)
        service.signal_workers(signal.SIGTERM)
        with pytest.raises(openai.APIError, match="shutting down") as error:
            for _ in stream:
                pass
        assert error.value.code == "draining"


def test_nothing_is_stored(service: Service, redis_server: RedisServer) -> None:
    """A completion leaves no session behind."""
    with redis.Redis.from_url(redis_server.url) as store:
        before = {key for key in store.scan_iter() if not key.startswith(b"lh:prefix")}
        with client_of(service) as client:
            client.completions.create(**SAMPLED, max_tokens=30, n=3)
        assert {key for key in store.scan_iter() if not key.startswith(b"lh:prefix")} <= before


def test_a_client_that_leaves_frees_all_its_slots(endless: Service) -> None:
    """A stream of many texts that is closed early: nothing of it goes on."""
    with client_of(endless) as client:
        stream = client.completions.create(**SAMPLED, n=12, max_tokens=ENDLESS_CHARS, stream=True)
        next(stream)
        stream.close()
    eventually(lambda: endless.client.get("/readyz").json()["in_flight"] == 0)


def test_the_tokenizer(service: Service) -> None:
    """Ids and back; what lm-evaluation-harness asks for is there."""
    info = service.client.get("/tokenizer_info").json()
    assert (info["bos_token"], info["eos_token"], info["vocab_size"]) == ("\n", "\n", len(ALPHABET))
    body = {"prompt": "hello\nyou", "add_special_tokens": False, "return_token_strs": True}
    tokens = service.client.post("/tokenize", json=body).json()
    assert tokens["tokens"] == ALPHABET.encode("hello\nyou").tolist()
    assert (tokens["count"], "".join(tokens["token_strs"])) == (9, "hello\nyou")
    assert service.client.post("/detokenize", json={"tokens": tokens["tokens"]}).json() == {"prompt": "hello\nyou"}
    assert service.client.post("/tokenize", json={"prompt": ""}).json()["tokens"] == []
    for path, wrong in (
        ("/tokenize", {"prompt": "\u2603"}),
        ("/tokenize", {}),
        ("/detokenize", {"tokens": [len(ALPHABET)]}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": [1], "model": "gpt-4"}),
    ):
        refused = service.client.post(path, json=wrong)
        assert refused.status_code in (404, 422), wrong
        assert refused.json()["error"]["message"]
