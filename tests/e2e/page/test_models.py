"""Models by name on the page: chosen anywhere, compared, trained into, and with a key that is bound to some of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from model.checkpoints import registry
from model.checkpoints.names import store_folder
from tests.conftest import random_checkpoint
from tests.e2e.page.conftest import OTHER, Visit
from tests.servers import RedisServer, Service, eventually

Visiting = Callable[..., Visit]
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
NAMES = ["default", "names", "verses"]
CELL = {"names": "gru"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models, of which `names` is a GRU."""
    root = tmp_path_factory.mktemp("names")
    for seed, name in enumerate(NAMES):
        store = store_folder(root, name)
        store.mkdir(parents=True, exist_ok=True)
        registry.promote(random_checkpoint(seed=seed, cell=CELL.get(name, "lstm")).save(store))
    return root


@pytest.fixture(scope="module")
def named(folder: Path, redis_server: RedisServer) -> Iterator[Service]:
    with Service(CHECKPOINT_DIR=str(folder), REDIS_URL=redis_server.url) as service:
        yield service


def choose(v: Visit, name: str, pane: str = "main") -> None:
    """Choose a model by the keyboard alone."""
    v.page.locator(f"#{pane}-model").focus()
    v.page.keyboard.type(name)
    v.page.keyboard.press("Enter")


def displayed(v: Visit, name: str) -> None:
    v.page.locator("[data-part=model-name]", has_text=f"({name})").first.wait_for()


@pytest.mark.parametrize("device", [{}, PHONE], ids=["desktop", "phone"])
def test_a_model_is_chosen_by_its_name(visit: Visiting, named: Service, device: dict[str, Any]) -> None:
    """All names are offered; the text is the chosen model's, also after a reload; its session remembers it."""
    v = visit(named, **device).open()
    displayed(v, "default")
    v.page.wait_for_function("() => document.querySelectorAll('#model-names option').length === 3")
    assert v.page.locator("#model-names option").evaluate_all("all => all.map(e => e.value)") == NAMES
    choose(v, "verses")
    displayed(v, "verses")
    v.generate(prompt="hello", max_chars=50, seed=7)
    expected = "hello" + named.generate(prompt="hello", max_chars=50, seed=7, model="verses")["text"]
    assert v.wait_until_done() == expected
    v.page.reload()
    v.page.wait_for_function("t => document.querySelector('.letters')?.textContent === t", arg=expected)
    displayed(v, "verses")
    other = visit(named, **device).open(v.page.url.partition("#")[2].replace("&s.model=verses", ""))
    displayed(other, "verses")  # by the session alone
    other.generate(max_chars=30)
    assert len(other.wait_until_done()) == 85


def test_the_default_model_takes_a_session_back(visit: Visiting, named: Service) -> None:
    """A session remembers the model; another choice moves it, and the text before stays."""
    v = visit(named).open()
    choose(v, "verses")
    displayed(v, "verses")
    v.generate(prompt="hello", max_chars=40)
    before = v.wait_until_done()
    choose(v, "default")
    displayed(v, "default")
    v.generate(max_chars=40)
    after = v.wait_until_done()
    assert after.startswith(before)
    assert len(after) == 85
    session = v.page.evaluate("() => new URLSearchParams(location.hash.split('?')[1]).get('s')")
    assert named.client.get(f"/sessions/{session}").json()["model_name"] == "default"


def test_an_unknown_name_is_answered_with_close_ones(visit: Visiting, named: Service) -> None:
    """In the service's words, at the field; what was chosen before stays."""
    v = visit(named).open()
    v.allowed += ["404", "422"]
    displayed(v, "default")
    for name, says in (("verse", "verses"), ("No Name!", "a string that matches")):
        v.page.locator("#main-model").fill("")
        choose(v, name)
        v.page.locator("#main-model-error", has_text=says).wait_for()
        assert v.page.get_attribute("#main-model", "aria-describedby") == "main-model-error"
        displayed(v, "default")


def test_all_views_use_the_chosen_model(visit: Visiting, named: Service) -> None:
    """Score, Look inside and Status, and a choice in one of them holds in the others."""
    v = visit(named).open("score")
    text = "it's not the first"
    v.page.fill("#score-text", text)
    scores = {}
    v.page.get_by_role("button", name="Score").click()
    for name in ("default", "verses"):
        choose(v, name)
        displayed(v, name)
        scores[name] = named.client.post("/score", json={"text": text, "model": name}).json()["bits_per_character"]
        v.page.locator("#score-status", has_text=f"{scores[name]:.3f} bits per character").wait_for()
    assert scores["default"] != scores["verses"]
    v.page.get_by_role("link", name="Look inside").click()
    displayed(v, "verses")
    v.page.locator("#inspect-status", has_text="layer 1 of 2").wait_for()
    choose(v, "names")
    v.page.locator("#inspect-status", has_text="This model is a GRU").wait_for()
    v.page.get_by_role("link", name="Status").click()
    identity = named.client.get("/model?model=names").json()["id"]
    v.page.locator("#tiles", has_text=f"fingerprint {identity}").wait_for()
    v.page.get_by_role("link", name="Write").click()
    displayed(v, "names")


@pytest.mark.parametrize("device", [{}, PHONE], ids=["desktop", "phone"])
def test_two_models_write_from_one_beginning(visit: Visiting, named: Service, device: dict[str, Any]) -> None:
    """One button, one choice: both write, with the same seed; another choice has both write again."""
    v = visit(named, **device).open()
    displayed(v, "default")
    v.page.fill("#main-prompt", "hello")
    v.pane().get_by_role("button", name="Compare").click()
    for other in ("verses", "names"):
        choose(v, other, "fork")
        v.pane("fork").get_by_text(f"({other})").wait_for()
        pane = "document.querySelector('#fork-prompt')?.closest('.pane')"
        v.page.wait_for_function(f"() => {pane}?.querySelector('.line')")
        texts = [v.wait_until_done(pane) for pane in ("main", "fork")]
        seed = int(v.page.input_value("#main-seed"))
        assert v.page.input_value("#fork-seed") == str(seed)
        for text, name in zip(texts, ("default", other), strict=True):
            assert text == "hello" + named.generate(prompt="hello", max_chars=200, seed=seed, model=name)["text"]


def test_a_key_that_is_bound_to_some_models(
    visit: Visiting, folder: Path, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Only these are offered; what is not allowed is said in plain words, and asks for no other key."""
    key = "a-key-for-two-models"
    entry = {"name": "poet", "sha256": hashlib.sha256(key.encode()).hexdigest(), "models": ["names", "verses"]}
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [entry]}))
    keys = str(tmp_path / "keys.json")
    with Service(CHECKPOINT_DIR=str(folder), REDIS_URL=redis_server.url, API_KEYS_FILE=keys) as service:
        v = visit(service)
        v.allowed += ["401", "403"]
        v.open()
        v.generate(prompt="hello", max_chars=40)
        v.page.wait_for_selector("#key[open]")
        v.page.fill("#key-field", key)
        v.page.get_by_role("button", name="Use this key").click()
        says = "this key may not use the model 'default'; it may use: names, verses"
        v.pane().locator("[data-part=status]", has_text=says).wait_for()
        displayed(v, "names")
        offered = v.page.locator("#model-names option").evaluate_all("all => all.map(e => e.value)")
        assert offered == ["names", "verses"]
        v.generate(max_chars=40)
        assert len(v.wait_until_done()) == 45
        choose(v, "default")
        v.page.locator("#main-model-error", has_text=says).wait_for()
        assert v.page.locator("#key[open]").count() == 0
        displayed(v, "names")
        v.pane().get_by_role("button", name="Compare").press("Enter")
        v.pane("fork").get_by_text("(names)").wait_for()  # a second text begins with what this key may use
        assert v.pane("fork").locator(".error").count() == 0
        choose(v, "verses", "fork")
        v.pane("fork").get_by_text("(verses)").wait_for()
        assert len(v.wait_until_done("fork")) == 45
        v.wait_until_done()
        v.page.goto("about:blank")


def test_a_training_into_a_name(visit: Visiting, page_service: Service, tmp_path: Path) -> None:
    """Its model is made; tables, promotion, roll back and deletion are of that name, and the default model stays."""
    client = page_service.client
    served = client.get("/model").json()["id"]
    v = visit(page_service)
    v.allowed += ["404", "422"]
    v.open("train")
    v.page.locator("#names tr", has_text=OTHER).wait_for()
    model = v.page.get_by_label("Keep as model")
    model.fill("Not A Name")
    v.page.get_by_role("button", name="Train", exact=True).click()
    v.page.locator("#retrain-model-error", has_text="model: got 'Not A Name'").wait_for()
    model.fill("sonnets")
    model.press("Tab")
    v.page.locator("#models", has_text="No model has this name yet").wait_for()
    v.page.fill("#retrain-minutes", "0.05")
    v.page.get_by_role("button", name="Train", exact=True).click()
    v.page.locator("#job-title", has_text="for sonnets").wait_for()
    v.page.wait_for_function(
        "() => /^finished/.test(document.querySelector('#job-state')?.textContent)", timeout=180_000
    )
    trained = client.get("/models/sonnets").json()["id"]
    assert trained
    other = random_checkpoint(seed=9)
    answer = client.put(
        "/models/sonnets",
        content=other.save(tmp_path).read_bytes(),
        headers={"Content-Type": "application/octet-stream"},
    )
    assert answer.status_code == 201, answer.text
    v.page.get_by_role("button", name=OTHER, exact=True).click()
    v.page.locator("#models-title", has_text=f"Checkpoints of the model {OTHER}").wait_for()
    v.page.locator("#names").get_by_role("button", name="sonnets", exact=True).click()
    row = v.page.locator(f"#models [data-model='{other.fingerprint}']")
    row.get_by_role("button", name="Promote").click()
    v.page.locator("#models-status", has_text="Promoted").wait_for()
    eventually(lambda: client.get("/models/sonnets").json()["id"] == other.fingerprint)
    v.page.get_by_role("button", name="Roll back to").click()
    eventually(lambda: client.get("/models/sonnets").json()["id"] == trained)
    assert client.get("/model").json()["id"] == served
    v.page.on("dialog", lambda dialog: dialog.accept())
    v.page.get_by_role("button", name="Delete the model sonnets").click()
    v.page.locator("#models-status", has_text="Deleted the model sonnets").wait_for()
    assert client.get("/models/sonnets").status_code == 404
    assert v.page.input_value("#retrain-model") == ""
