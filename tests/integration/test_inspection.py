"""/score, /inspect and log-probabilities: surprisal, gates, and what each character was sampled from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.checkpoints import registry
from model.checkpoints.file_format import Checkpoint
from model.cli import main
from model.evaluation import protocols
from model.network.gates import gate_activations
from service.routes.page import FOLDER
from tests.conftest import ALPHABET, random_checkpoint
from tests.integration.application import Application
from tests.servers import RedisServer, Service, read_events

PAYLOAD: dict[str, Any] = {"prompt": "hello", "seed": 7, "temperature": 0.7, "top_k": 12, "top_p": 0.9, "min_p": 0.01}
TEXT = "the first of us\nwho says it's so\nis not the last"


def rows(tiny: Checkpoint, text: str) -> torch.Tensor:
    """The oracle's logits (T, V) in float64 for each of a new text's characters, the plain network in one pass."""
    ids = torch.tensor([[ALPHABET.start, *ALPHABET.encode(text)]])
    network = tiny.network(torch.float64)
    with torch.inference_mode():
        logits, _ = network(ids[:, :-1], network.zero_state(1))
    result: torch.Tensor = logits[0]
    return result


def drawn_from(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float, typical_p: float
) -> list[float]:
    """The filters by their definition, one character at a time in plain Python: probabilities (V,)."""
    if temperature == 0:
        return [float(i == int(logits.argmax())) for i in range(len(logits))]
    probs = torch.softmax(logits / temperature, dim=-1).tolist()
    order = sorted(range(len(probs)), key=lambda i: -probs[i])[: top_k or None]
    within = sum(probs[i] for i in order)
    kept, cumulative = list[int](), 0.0
    for i in order:
        if (cumulative < top_p * within or not kept) and probs[i] >= min_p * probs[order[0]]:
            kept.append(i)
        cumulative += probs[i]
    if typical_p < 1:
        whole = sum(probs[i] for i in kept)
        information = {i: -math.log(probs[i] / whole) for i in kept}
        entropy = sum(probs[i] / whole * information[i] for i in kept)
        nearest, kept, cumulative = sorted(kept, key=lambda i: abs(information[i] - entropy)), [], 0.0
        for i in nearest:
            if cumulative < typical_p:
                kept.append(i)
            cumulative += probs[i] / whole
    whole = sum(probs[i] for i in kept)
    return [probs[i] / whole if i in kept else 0.0 for i in range(len(probs))]


def adjusted(logits: torch.Tensor, how: dict[str, Any], generated: str) -> torch.Tensor:
    """Bias and penalties by their definition, one character at a time in plain Python."""
    if not {"logit_bias", "repetition_penalty", "frequency_penalty", "presence_penalty"} & set(how):
        return logits
    size = how.get("penalty_window", 64)
    window, own = (how["prompt"] + generated)[-size:], generated[-size:]
    changed = []
    for character, start in zip(ALPHABET.characters, logits.tolist(), strict=True):
        logit = start + how.get("logit_bias", {}).get(character, 0.0)
        if character in window:
            r = how.get("repetition_penalty", 1.0)
            logit = logit / r if logit > 0 else logit * r
        logit -= how.get("frequency_penalty", 0.0) * own.count(character)
        changed.append(logit - (how.get("presence_penalty", 0.0) if character in own else 0.0))
    return torch.tensor(changed, dtype=logits.dtype)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "how",
    [
        PAYLOAD,
        {"prompt": "", "seed": 3},
        {**PAYLOAD, "temperature": 0},
        {**PAYLOAD, "typical_p": 0.6},
        {**PAYLOAD, "repetition_penalty": 1.5, "frequency_penalty": 0.3, "presence_penalty": 1.0, "penalty_window": 9},
        {**PAYLOAD, "logit_bias": {"e": -100.0, "a": 1.5}, "frequency_penalty": -0.5},
        {**PAYLOAD, "stop": ["e", "a"]},
    ],
)
def test_logprobs_are_what_the_characters_were_drawn_from(
    service: Service, tiny: Checkpoint, how: dict[str, Any], stream: bool
) -> None:
    """Each character's log-probability and share, and the ten most probable, equal the oracle's; the text stays."""
    body = {**how, "max_chars": 80}
    answer = read(service, {**body, "logprobs": 10}, stream)
    assert answer["text"] == service.generate(**body)["text"]
    assert len(answer["logprobs"]) == len(answer["text"])
    logits = rows(tiny, how["prompt"] + answer["text"])[len(how["prompt"]) :]
    for t, (entry, character, row) in enumerate(zip(answer["logprobs"], answer["text"], logits, strict=True)):
        model = torch.log_softmax(row, dim=-1)
        probs = drawn_from(adjusted(row, how, answer["text"][:t]), *(how.get(k, d) for k, d in KNOBS.items()))
        own = ALPHABET.characters.index(character)
        assert entry["logprob"] == pytest.approx(float(model[own]), abs=2e-4)
        assert entry["probability"] == pytest.approx(probs[own], abs=2e-4)
        assert len(entry["top"]) == 10
        for (c, logprob, probability), best in zip(entry["top"], model.sort(descending=True).values[:10], strict=True):
            i = ALPHABET.characters.index(c)
            assert logprob == pytest.approx(float(best), abs=2e-4)
            assert logprob == pytest.approx(float(model[i]), abs=2e-4)
            assert probability == pytest.approx(probs[i], abs=2e-4)


KNOBS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}


def read(service: Service, body: dict[str, Any], stream: bool) -> dict[str, Any]:
    """A JSON answer, or a streamed one put together."""
    if not stream:
        return service.generate(**body)
    pieces = [e.data for e in service.events(**body) if e.name == "message"]
    assert all(len(p["logprobs"]) == len(p["text"]) for p in pieces)
    return {"text": "".join(p["text"] for p in pieces), "logprobs": [entry for p in pieces for entry in p["logprobs"]]}


def test_there_are_none_unless_requested(service: Service) -> None:
    """Without the field there are none, with 0 only each character's own."""
    assert "logprobs" not in service.generate(**PAYLOAD, max_chars=5)
    assert all("logprobs" not in e.data for e in service.events(**PAYLOAD, max_chars=5))
    own = service.generate(**PAYLOAD, max_chars=5, logprobs=0)["logprobs"]
    assert [set(entry) for entry in own] == [{"logprob"}] * 5
    assert own == [
        {"logprob": entry["logprob"]} for entry in service.generate(**PAYLOAD, max_chars=5, logprobs=3)["logprobs"]
    ]


def test_logprobs_go_on_with_a_session_and_with_a_lost_stream(service: Service) -> None:
    """Cut into turns, resumed in the middle, after a long prompt that is kept as a prefix: always the same looks."""
    prompt = "to be or not to be " * 300  # longer than a stride of the stored prefixes
    whole = service.generate(**{**PAYLOAD, "prompt": prompt}, max_chars=60, logprobs=4)
    again = service.generate(**{**PAYLOAD, "prompt": prompt}, max_chars=60, logprobs=4)
    assert again["usage"]["reused_chars"] > 0
    assert again["logprobs"] == whole["logprobs"]
    first = service.generate(**{**PAYLOAD, "prompt": prompt}, max_chars=25, logprobs=4)
    knobs = {k: PAYLOAD.get(k, default) for k, default in KNOBS.items()}
    rest = service.generate(session_id=first["session_id"], max_chars=35, logprobs=4, **knobs)
    close(first["logprobs"] + rest["logprobs"], whole["logprobs"])
    after = len(prompt) + 40
    path = f"/sessions/{rest['session_id']}/stream?logprobs=4&from={after}"
    events = [e for e in read_events(service.client.get(path)) if e.name == "message"]
    assert "".join(e.data["text"] for e in events) == whole["text"][40:]
    close([entry for e in events for entry in e.data["logprobs"]], whole["logprobs"][40:])


def close(some: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    assert len(some) == len(others)
    for a, b in zip(some, others, strict=True):
        assert a["logprob"] == b["logprob"]  # the stepper's own: to the bit
        assert [c for c, _, _ in a["top"]] == [c for c, _, _ in b["top"]]
        assert [p for _, p, _ in a["top"]] == pytest.approx([p for _, p, _ in b["top"]], abs=1e-4)


def test_score_is_the_loss_of_model_evaluate(service: Service, tiny: Checkpoint) -> None:
    """Its mean is protocol (b)'s loss after a line's end, and each character's surprise the oracle's, in bits."""
    text = TEXT * 60
    scored = service.client.post("/score", json={"text": text}).json()
    ids = np.array([ALPHABET.start, *ALPHABET.encode(text)])
    assert scored["nats_per_character"] == pytest.approx(protocols.loss(tiny.network(), ids), abs=1e-5)
    assert scored["bits_per_character"] == pytest.approx(scored["nats_per_character"] / math.log(2))
    assert scored["characters"] == len(scored["surprisal"]) == len(text)
    logprobs = torch.log_softmax(rows(tiny, text), dim=-1)
    expected = -logprobs.gather(-1, torch.from_numpy(ids[1:, None]))[:, 0] / math.log(2)
    assert scored["surprisal"] == pytest.approx(expected.tolist(), abs=3e-4)
    assert "logprobs" not in scored


def test_score_is_what_model_score_says(
    service: Service, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The number at the terminal, of a file that begins with the line's end that every text follows."""
    file = tmp_path / "text.txt"
    file.write_text("\n" + TEXT * 20)
    assert (
        main(["score", str(file), "--checkpoint", str(next(store.glob("val*"))), "--part", "all", "--protocols", "b"])
        == 0
    )
    scored = service.client.post("/score", json={"text": TEXT * 20}).json()
    output = capsys.readouterr().out
    assert f"{scored['nats_per_character']:.4f}" in output
    assert f"{scored['bits_per_character']:.4f}" in output


def test_score_goes_on_from_a_session_and_leaves_it(service: Service) -> None:
    """In a session a text is scored as what follows: as the rest of one text; the session stays where it is."""
    begun = service.generate(**PAYLOAD, max_chars=50)
    text = "hello" + begun["text"]
    whole = service.client.post("/score", json={"text": text + TEXT, "logprobs": 2}).json()
    after = service.client.post("/score", json={"text": TEXT, "session_id": begun["session_id"], "logprobs": 2}).json()
    assert after["position"] == len(text)
    assert after["surprisal"] == pytest.approx(whole["surprisal"][len(text) :], abs=1e-3)
    assert [x["top"][0][0] for x in after["logprobs"]] == [x["top"][0][0] for x in whole["logprobs"][len(text) :]]
    assert service.client.get(f"/sessions/{begun['session_id']}").json()["position"] == len(text)


def test_score_skips_what_the_model_does_not_know(service: Service) -> None:
    """Skipped characters are null in their places; the others are as if they had not been there."""
    scored = service.client.post("/score", json={"text": "hÉllo", "on_unknown": "skip", "logprobs": 1}).json()
    plain = service.client.post("/score", json={"text": "hllo"}).json()
    assert scored["surprisal"][1] is None
    assert scored["logprobs"][1] is None
    assert [s for s in scored["surprisal"] if s is not None] == plain["surprisal"]
    assert scored["characters"] == 4


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("of", ["i", "f", "g", "o", "c", "h"])
def test_inspect_is_model_gates(service: Service, tiny: Checkpoint, layer: int, of: str) -> None:
    """Gates, c and h of the units that were named, and one of them of all units, equal model.network.gates."""
    body = {"text": TEXT, "layer": layer, "units": [0, 5, 23], "map": of}
    result = service.client.post("/inspect", json=body).json()
    oracle = gate_activations(tiny.network(), [ALPHABET.start, *ALPHABET.encode(TEXT)])[layer]
    for unit in result["units"]:
        for name in ("i", "f", "g", "o", "c", "h"):
            assert unit[name] == pytest.approx(getattr(oracle, name)[1:, unit["unit"]].tolist(), abs=1e-5)
        assert unit["old_c"] == pytest.approx(oracle.c[:-1, unit["unit"]].tolist(), abs=1e-5)
    assert result["item_starts"] == []
    values = getattr(oracle, of)[1:]
    expected = np.tanh(values) if of == "c" else values
    assert np.array(result["map"]["values"]) == pytest.approx(expected.T, abs=1e-3)
    assert (result["n_layers"], result["n_hidden"], result["characters"]) == (2, 24, len(TEXT))


def test_inspect_ranks_units_by_what_they_tell(service: Service, tiny: Checkpoint) -> None:
    """The correlations that it tells are numpy's, of tanh(c) with the feature; what does not vary is not ranked."""
    result = service.client.post("/inspect", json={"text": TEXT}).json()["unit_correlations"]
    layers = gate_activations(tiny.network(), [ALPHABET.start, *ALPHABET.encode(TEXT)])
    in_line = [len(TEXT[: i + 1].rpartition("\n")[2]) for i in range(len(TEXT))]
    best = result["position_in_line"]["units"]
    assert len(best) == 8
    for unit in best:
        values = np.tanh(layers[unit["layer"]].c[1:, unit["unit"]])
        assert unit["r"] == pytest.approx(float(np.corrcoef(values, in_line)[0, 1]), abs=1e-3)
    every = [abs(np.corrcoef(np.tanh(layer.c[1:, u]), in_line)[0, 1]) for layer in layers for u in range(24)]
    assert abs(best[0]["r"]) == pytest.approx(max(every), abs=1e-3)
    assert result["inside_quotes"]["units"] == []


BAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("/generate", {"logprobs": 11}, "logprobs", "less than or equal to 10"),
    ("/generate", {"logprobs": True}, "logprobs", "integer"),
    ("/score", {}, "text", "required"),
    ("/score", {"text": ""}, "text", "at least 1 character"),
    ("/score", {"text": "hÉllo"}, "text", "'É' (U+00C9) at 1"),
    ("/score", {"text": "ÉÉ", "on_unknown": "skip"}, "text", "contains none"),
    ("/score", {"text": "a" * 100_001}, "text", "at most 100000"),
    ("/score", {"text": "a" * 10_001, "logprobs": 1}, "text", "at most 10000"),
    ("/score", {"text": "a", "session_id": "short"}, "session_id", "pattern"),
    ("/inspect", {"text": ""}, "text", "at least 1 character"),
    ("/inspect", {"text": "a" * 1001}, "text", "at most 1000"),
    ("/inspect", {"text": "a", "layer": 2}, "layer", "0 to 1"),
    ("/inspect", {"text": "a", "units": [0, 24]}, "units.1", "0 to 23"),
    ("/inspect", {"text": "a", "units": [-1]}, "units.0", "greater than or equal to 0"),
    ("/inspect", {"text": "a", "units": [1, 1]}, "units", "each once"),
    ("/inspect", {"text": "a", "units": list(range(17))}, "units", "at most 16"),
    ("/inspect", {"text": "a", "map": "x"}, "map", "'i', 'f', 'g'"),
    ("/inspect", {"text": "a", "mapp": "c"}, "mapp", "no such field"),
]


@pytest.mark.parametrize(("path", "body", "field", "says"), BAD, ids=lambda v: str(v)[:30])
def test_a_bad_look_is_named(service: Service, path: str, body: dict[str, Any], field: str, says: str) -> None:
    """422 with the field, its value and what was expected."""
    response = service.client.post(path, json=body)
    assert response.status_code == 422
    error = response.json()["error"]
    assert error["field"] == field
    assert says in error["message"]
    assert error["expected"]


def test_a_bad_look_at_a_stream_is_named(service: Service) -> None:
    """The resumed stream's query too, before its first byte."""
    made = service.generate(**PAYLOAD, max_chars=5)
    response = service.client.get(f"/sessions/{made['session_id']}/stream?logprobs=eleven")
    assert (response.status_code, response.json()["error"]["field"]) == (422, "logprobs")


def test_an_unknown_session_is_404(service: Service) -> None:
    """As everywhere."""
    response = service.client.post("/score", json={"text": "a", "session_id": "x" * 32})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "unknown_session")


@pytest.fixture(scope="module")
def gru(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("gru")
    registry.promote(random_checkpoint("gru").save(folder))
    with Service(CHECKPOINT_DIR=str(folder), REDIS_URL=redis_server.url) as service:
        yield service


def test_other_cells_are_scored_but_have_other_gates(gru: Service, service: Service) -> None:
    """A gru: /inspect says 409 and why; /score and logprobs work; a session of another model is 409, too."""
    refused = gru.client.post("/inspect", json={"text": "hello"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "unsupported_cell")
    assert "got 'gru', expected 'lstm'" in refused.json()["error"]["message"]
    ids = np.array([ALPHABET.start, *ALPHABET.encode(TEXT)])
    expected = protocols.loss(random_checkpoint("gru").network(), ids)
    assert gru.client.post("/score", json={"text": TEXT}).json()["nats_per_character"] == pytest.approx(
        expected, abs=1e-5
    )
    answer = gru.generate(**PAYLOAD, max_chars=20, logprobs=10)
    assert [entry["top"][0][1] >= entry["logprob"] - 1e-4 for entry in answer["logprobs"]] == [True] * 20
    other = service.generate(**PAYLOAD, max_chars=5)["session_id"]
    response = gru.client.post("/score", json={"text": "a", "session_id": other})
    assert (response.status_code, response.json()["error"]["code"]) == (409, "model_changed")


def test_a_model_whose_file_is_gone_cannot_be_inspected(tmp_path: Path) -> None:
    """It goes on writing; inspection, which would read the file again, is 503 before the first byte."""
    path = random_checkpoint().save(tmp_path)
    registry.promote(path)
    with Application(CHECKPOINT_DIR=str(tmp_path)) as service:
        path.unlink()
        for response in (
            service.post(max_chars=5, logprobs=1, stream=True),
            service.client.post("/score", json={"text": "a"}),
            service.client.post("/inspect", json={"text": "a"}),
        ):
            assert (response.status_code, response.json()["error"]["code"]) == (503, "no_model")
        assert len(service.generate(max_chars=5, logprobs=0)["logprobs"]) == 5


def test_the_page_is_served_by_the_service_alone(service: Service) -> None:
    """Its files, and nothing else, with a policy that lets nothing in or out; a second visit transfers none of it."""
    first = service.client.get("/")
    assert first.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = first.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    assert service.client.get("/", headers={"If-None-Match": first.headers["ETag"]}).status_code == 304
    assert service.client.get("/page/main.js").headers["Content-Type"].startswith("text/javascript")
    for path in ("/page/app.py", "/page/..%2fapp.py", "/page/%2e%2e/settings.py", "/page/"):
        assert service.client.get(path).status_code == 404


def test_the_page_is_small() -> None:
    """All its files together: at most 150 KB, as they lie there; the reference at /docs is a page of its own."""
    for folder, limit in ((FOLDER, 150), (FOLDER / "docs", 6)):
        sizes = [path.stat().st_size for path in folder.iterdir() if path.is_file()]
        assert sum(sizes) <= limit * 1024
