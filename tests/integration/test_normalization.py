"""Prompts, stop strings and texts to be scored are normalized as the training text was, through HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from model.checkpoints import registry
from model.config import ModelConfig, TrainConfig
from model.text.corpus import Corpus
from model.training.loop import fit
from tests.integration.application import Application
from tests.servers import Service

COMPOSED = "KING.\ncaf\u00e9 "
SPELLINGS = [
    COMPOSED,
    COMPOSED.replace("\n", "\r\n"),
    COMPOSED.replace("\n", "\r"),
    "\ufeff" + COMPOSED,
    COMPOSED.replace("\u00e9", "e\u0301"),
    "\ufeffKING.\r\ncafe\u0301 ",
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Serve a small model of a composed text."""
    folder = tmp_path_factory.mktemp("models")
    config = TrainConfig(steps=5, batch_size=2, seq_length=8, validations=1)
    corpus = Corpus.from_text(COMPOSED * 90, config)
    registry.promote(fit(corpus, ModelConfig(len(corpus.vocab), n_hidden=8, n_embed=4), config, folder))
    with Application(CHECKPOINT_DIR=str(folder)) as service:
        yield service


def post(service: Service, address: str, **body: Any) -> dict[str, Any]:
    response = service.client.post(address, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_however_it_is_typed(spelling: str, service: Service) -> None:
    """Line ends of any kind, a byte order mark, a decomposed letter: the same text, position, score and gates."""
    plain = post(service, "/generate", prompt=COMPOSED, seed=1, max_chars=30)
    answer = post(service, "/generate", prompt=spelling, seed=1, max_chars=30)
    assert answer["text"] == plain["text"]
    assert answer["position"] == len(COMPOSED) + 30
    scored = post(service, "/score", text=spelling)
    assert scored["text"] == COMPOSED
    assert scored["surprisal"] == post(service, "/score", text=COMPOSED)["surprisal"]
    assert post(service, "/inspect", text=spelling)["text"] == COMPOSED


def test_stop_strings(service: Service) -> None:
    """A stop string in another spelling ends the text where the composed one does."""
    text = post(service, "/generate", prompt="", seed=3, max_chars=400)["text"]
    for stop, spelling in (("\n", "\r\n"), ("\u00e9", "e\u0301"), ("K", "\ufeffK")):
        assert stop in text
        answer = post(service, "/generate", prompt="", seed=3, max_chars=400, stop=[spelling])
        assert answer["text"] == text[: text.index(stop)]
        assert answer["finish_reason"] == "stop"
    response = service.client.post("/generate", json={"stop": ["\ufeff"]})
    assert response.status_code == 422
    assert response.json()["error"]["field"] == "stop.0"


def test_a_position_counts_the_normalized_characters(service: Service) -> None:
    """The characters that an error names are those of the normalized text."""
    response = service.client.post("/generate", json={"prompt": "\ufeff\r\n\u4e2d"})
    assert response.status_code == 422
    assert response.json()["error"]["value"] == [{"position": 1, "character": "\u4e2d"}]
