"""The views Score, Inspect, Train and Status: a first visit, training on a dropped file, keys, invalid input."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.checkpoints import registry
from model.checkpoints.file_format import Checkpoint
from model.network.gates import gate_activations
from tests.conftest import ALPHABET, random_checkpoint
from tests.e2e.page.conftest import Visit
from tests.integration.launched import Launched
from tests.integration.lists import list_checkpoint
from tests.integration.test_jobs import words
from tests.servers import RedisServer, Service, Worker, eventually

Visiting = Callable[..., Visit]
ADMIN = "the-operators-key"


def test_a_visit_during_the_bootstrap_job(visit: Visiting, tmp_path: Path) -> None:
    """Before there is a model, the page says that one is being trained; a requested text starts once it is ready."""
    corpus = tmp_path / "words.txt"
    corpus.write_text(words(20000))
    launched = Launched(tmp_path, "--corpus", str(corpus), "--minutes", "0.5")
    eventually(lambda: launched.ready() is not None, within_s=60)
    v = visit(Host(str(launched.client.base_url).rstrip("/"))).open()
    v.page.wait_for_function("() => /being trained/.test(document.querySelector('#notice')?.textContent)")
    v.generate(max_chars=300)
    assert len(v.wait_until_done(timeout_s=120)) == 300
    v.page.get_by_role("link", name="Learn", exact=True).click()
    v.page.wait_for_selector("#curve polyline.val", state="attached", timeout=60_000)
    assert re.search(
        r"validation loss [0-9.]+ nats per character", v.page.locator("#curve svg").get_attribute("aria-label")
    )
    v.page.select_option("#curve-unit", "bits")
    assert " bits per character" in v.page.locator("#curve svg").get_attribute("aria-label")
    v.page.wait_for_selector("#samples pre", timeout=60_000)
    v.page.wait_for_function(
        "() => /^finished/.test(document.querySelector('#job-state')?.textContent)", timeout=120_000
    )
    v.page.wait_for_function("() => /served/.test(document.querySelector('#models')?.textContent)")
    assert v.page.locator("#notice").is_hidden()
    assert "docs/course/3-losses.md" in v.page.inner_text("#job")
    v.page.goto("about:blank")
    launched.stop(signal.SIGTERM)


class Host:
    def __init__(self, url: str) -> None:
        self.url = url


def test_the_walk_shows_the_gates(visit: Visiting, service: Service, tiny: Checkpoint) -> None:
    """The numbers are those of model/network/gates.py to the digits shown, at every layer, and the equations hold."""
    text = "who says it's so\nis not the last"
    v = visit(service).open("inspect")
    v.page.fill("#inspect-text", text)
    v.page.get_by_role("button", name="Look inside", exact=True).click()
    v.page.wait_for_function("t => document.querySelector('#strips .strip')?.children.length === t", arg=len(text))
    layers = gate_activations(tiny.network(), [ALPHABET.start, *ALPHABET.encode(text)])
    for number, layer in enumerate(layers):
        v.page.select_option("#inspect-layer", str(number))
        v.page.wait_for_function(
            f"() => /layer {number + 1} of 2/.test(document.querySelector('#inspect-status')?.textContent)"
        )
        best = service.client.post("/inspect", json={"text": text, "layer": number}).json()["unit_correlations"]
        here = [u for feature in best.values() for u in feature["units"] if u["layer"] == number]
        strongest = max(here, key=lambda u: abs(u["r"]))["unit"]
        for unit in (strongest, 5):
            if unit != strongest:
                v.page.fill("#unit", str(unit))
                v.page.press("#unit", "Tab")
            v.page.locator(f"#strips [aria-label*='unit {unit} ']").wait_for()
            for at in (0, 9, len(text) - 1):
                v.page.locator("#strips .strip > span").nth(at).hover()
                displayed = {e["term"]: e["value"] for e in v.page.evaluate(TERMS)}
                old, new = float(layer.c[at, unit]), float(layer.c[1 + at, unit])
                gates = {name: float(getattr(layer, name)[1 + at, unit]) for name in "figoch"}
                expected = {**gates, "old": old, "tanh": float(np.tanh(new))}
                assert set(displayed) == set(expected)
                for name, value in expected.items():
                    assert float(displayed[name]) == pytest.approx(value, abs=0.5001e-3)
    size = v.page.evaluate("() => [document.querySelector('#map').width, document.querySelector('#map').height]")
    assert size == [len(text), 24]
    first = v.page.locator("[data-feature=position_in_line] button").first
    chosen = re.fullmatch(r"layer (\d), unit (\d+)", first.inner_text())
    assert chosen is not None
    first.click()
    v.page.wait_for_function(f"() => document.querySelector('#unit')?.value === '{chosen[2]}'")
    assert v.page.input_value("#inspect-layer") == str(int(chosen[1]) - 1)
    assert v.page.locator("[data-feature=inside_quotes]").inner_text().endswith("It does not vary in this text.")


TERMS = "() => [...document.querySelectorAll('[data-term]')].map(e => ({term: e.dataset.term, value: e.textContent}))"


@pytest.mark.parametrize("kind", ["text", "list"])
def test_the_equations_hold_at_every_character(
    visit: Visiting, tmp_path: Path, redis_server: RedisServer, kind: str
) -> None:
    """c = f x old c + i x g and h = o x tanh(c), to the digits shown; at a line end of a list the old c is 0."""
    checkpoint = list_checkpoint() if kind == "list" else random_checkpoint()
    text = "ab\ncab\n\na" if kind == "list" else "it's\nso\n\nit"
    registry.promote(checkpoint.save(tmp_path))
    with Service(CHECKPOINT_DIR=str(tmp_path), REDIS_URL=redis_server.url) as service:
        v = visit(service).open()
        v.pane().get_by_text("bits per character").wait_for()
        v.page.get_by_role("link", name="Look inside").click()
        for displayed in (text, f"\n{text}"):
            v.page.fill("#inspect-text", displayed)
            v.page.get_by_role("button", name="Look inside", exact=True).click()
            v.page.wait_for_function(
                "n => document.querySelector('#strips .strip')?.children.length === n", arg=len(displayed)
            )
            for at, character in enumerate(displayed):
                v.page.locator("#strips .strip > span").nth(at).dispatch_event("pointerover")
                v.page.locator("#walk-at", has_text=f"Character {at + 1} of {len(displayed)}").wait_for()
                t = {e["term"]: float(e["value"]) for e in v.page.evaluate(TERMS)}
                assert t["c"] == pytest.approx(t["f"] * t["old"] + t["i"] * t["g"], abs=3e-3), (at, t)
                assert t["h"] == pytest.approx(t["o"] * t["tanh"], abs=2e-3), (at, t)
                reply = v.page.inner_text("#walk-voice")
                is_end = kind == "list" and character == "\n"
                assert ("An item ends here: the memory begins again at 0." in reply) == is_end
                assert ("begins after an unseen line end" in reply) == (at == 0 and not is_end)
                if is_end:
                    assert t["old"] == 0
        v.page.goto("about:blank")


def test_the_walk_goes_back_forward_and_plays(visit: Visiting, service: Service) -> None:
    """One character at a time, also by the arrow keys, and by itself until it is paused."""
    v = visit(service).open("inspect")
    v.page.fill("#inspect-text", "so it is")
    v.page.get_by_role("button", name="Look inside", exact=True).click()
    v.page.wait_for_function("() => document.querySelector('#strips .strip')?.children.length === 8")
    at = v.page.locator("#walk-at")
    v.page.locator("#strips .strip > span").first.click()
    assert at.inner_text() == "Character 1 of 8: s"
    v.page.get_by_role("button", name="Forward").click()
    assert at.inner_text() == "Character 2 of 8: o"
    v.page.get_by_role("button", name="Back").click()
    v.page.get_by_role("button", name="Back").click()
    assert at.inner_text() == "Character 8 of 8: s"
    v.page.focus("#strips .strip")
    v.page.keyboard.press("ArrowRight")
    assert at.inner_text() == "Character 1 of 8: s"
    v.page.get_by_role("button", name="Play").click()
    v.page.wait_for_function("() => /Character 3 of 8/.test(document.querySelector('#walk-at')?.textContent)")
    v.page.get_by_role("button", name="Pause").click()
    assert "memory" in v.page.locator("#walk-voice").inner_text()


@pytest.mark.parametrize(("cell", "says"), [("gru", "This model is a GRU"), ("rnn", "This model is a plain RNN")])
def test_other_cells_say_what_they_are(
    visit: Visiting, tmp_path: Path, redis_server: RedisServer, cell: str, says: str
) -> None:
    """Instead of a walk, and without a request that would fail."""
    registry.promote(random_checkpoint(cell=cell).save(tmp_path))
    with Service(CHECKPOINT_DIR=str(tmp_path), REDIS_URL=redis_server.url) as service:
        v = visit(service).open()
        v.pane().locator("[data-part=model-name]").wait_for()
        v.page.get_by_role("link", name="Look inside").click()
        v.page.locator("#inspect-status", has_text=says).wait_for()
        assert v.page.locator("#inspect-result").is_hidden()
        v.page.goto("about:blank")


def test_score_shows_the_losses_of_a_text(visit: Visiting, service: Service) -> None:
    """The bits per character, the colors and the distributions are those of POST /score."""
    text = "it's not the first"
    scored = service.client.post("/score", json={"text": text, "logprobs": 10}).json()
    v = visit(service).open("score")
    v.page.fill("#score-text", text)
    v.page.get_by_role("button", name="Score").click()
    v.page.wait_for_function(f"() => document.querySelector('#score-letters')?.textContent === {json.dumps(text)}")
    assert (
        v.page.locator("#score-status")
        .inner_text()
        .startswith(f"{scored['bits_per_character']:.3f} bits per character")
    )
    v.page.locator("#score-letters .line > span").nth(6).hover()
    rows = v.page.locator("#score-panel tbody tr").evaluate_all("rows => rows.map(r => ({...r.dataset}))")
    top = scored["logprobs"][6]["top"]
    assert [(r["character"], float(r["probability"])) for r in rows[:10]] == [(c, p) for c, _, p in top]
    shades = v.page.locator("#score-letters .line > span").evaluate_all(
        "all => all.map(e => e.className.match(/s(\\d)/)[1])"
    )
    steps = [0.5, 1, 2, 3, 4.5, 6, 8]
    assert [int(s) for s in shades] == [sum(b >= step for step in steps) for b in scored["surprisal"]]


def test_score_continues_the_session_in_generate(visit: Visiting, service: Service) -> None:
    """The text in Generate can be copied; a text can be scored as a continuation of its session."""
    v = visit(service).open()
    v.generate(prompt="hello", max_chars=30, seed=7)
    written = v.wait_until_done()
    v.page.get_by_role("link", name="Score").click()
    v.page.get_by_role("button", name="Copy the text from Write").click()
    v.page.wait_for_function(f"() => document.querySelector('#score-letters')?.textContent === {json.dumps(written)}")
    v.page.check("[name=after]")
    v.page.fill("#score-text", "and more")
    v.page.get_by_role("button", name="Score").click()
    v.page.wait_for_function("() => /position 35 /.test(document.querySelector('#score-status')?.textContent)")
    session = v.page.evaluate("() => new URLSearchParams(location.hash.split('?')[1]).get('s')")
    scored = service.client.post("/score", json={"text": "and more", "session_id": session}).json()
    assert v.page.locator("#score-status").inner_text().startswith(f"{scored['bits_per_character']:.3f} bits")


@pytest.fixture(scope="module")
def training_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with keys, a training worker, and a promoted model of random weights, which any training beats.

    It has a Redis of its own: another worker on the same queue would not have its corpora.
    """
    redis = RedisServer()
    redis.start()
    folder = tmp_path_factory.mktemp("training")
    (folder / "checkpoints").mkdir()
    registry.promote(random_checkpoint(seed=5).save(folder / "checkpoints"))
    settings = {
        "REDIS_URL": redis.url,
        "CHECKPOINT_DIR": str(folder / "checkpoints"),
        "CORPORA_DIR": str(folder / "corpora"),
        "RUNS_DIR": str(folder / "runs"),
        "ADMIN_KEY": ADMIN,
    }
    worker = Worker(**settings)
    worker.start()
    try:
        with Service(**settings) as service:
            yield service
    finally:
        worker.stop()
        redis.remove()


def drop(v: Visit, *files: tuple[str, bytes]) -> None:
    """Drop files onto the field, as from a file manager."""
    data = v.page.evaluate_handle(
        "files => { const d = new DataTransfer();"
        " for (const [name, bytes] of files) d.items.add(new File([new Uint8Array(bytes)], name)); return d; }",
        [[name, list(content)] for name, content in files],
    )
    v.page.dispatch_event("#drop", "drop", {"dataTransfer": data})


def unlock(v: Visit) -> None:
    v.page.fill("#key-field", ADMIN)
    v.page.get_by_role("button", name="Use this key").click()
    v.page.wait_for_selector("#models tr")


def test_a_wrong_key_is_reported_and_a_right_one_accepted(visit: Visiting, training_service: Service) -> None:
    """The view Train asks for the admin key and shows the service's message for a wrong one; it can be cancelled."""
    v = visit(training_service)
    v.allowed.append("401")
    v.open("train")
    v.page.wait_for_selector("#key[open]")
    v.page.fill("#key-field", "not-the-operators-key")
    v.page.keyboard.press("Enter")
    v.page.wait_for_function(
        "() => document.querySelector('#key-error')?.textContent === 'the key in the Authorization header is not valid'"
    )
    assert v.page.get_attribute("#key-field", "aria-invalid") is not None
    v.page.get_by_role("button", name="Cancel", exact=True).click()
    v.page.wait_for_function(
        "() => /is not valid|a key is required/.test(document.querySelector('#train-locked-reason')?.textContent)"
    )
    v.page.get_by_role("button", name="Try again").click()
    unlock(v)
    assert v.page.locator("#train-locked").is_hidden()
    assert "served" in v.page.locator("#models").inner_text()
    stored = v.page.evaluate(
        "() => JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])"
    )
    assert ADMIN not in stored


def test_a_dropped_list_is_stored_as_one(visit: Visiting, training_service: Service) -> None:
    """The field that says how items lie is sent with the file; what is wrong with the file is said beside it."""
    v = visit(training_service)
    v.allowed += ["401", "404", "422"]
    v.open("train")
    unlock(v)
    drop(v, ("Paragraphs.txt", b"one paragraph\n\nthe other\n"))
    v.page.select_option("#retrain-items", "paragraphs")
    v.page.get_by_role("button", name="Train", exact=True).click()
    v.page.wait_for_function(
        "() => /at least 10 different/.test(document.querySelector('#retrain-file-error')?.textContent)"
    )
    drop(v, ("Paragraphs.txt", "\n\n".join(f"paragraph {n}\nof two lines" for n in range(200)).encode()))
    v.page.locator("#preview", has_text="Read as a list").wait_for()
    assert v.page.get_by_label("Keep as model").input_value() == "paragraphs"  # the served model is of a text
    v.page.fill("#retrain-minutes", "0.05")
    v.page.get_by_role("button", name="Train", exact=True).click()
    v.page.wait_for_function("() => /^paragraphs, quick/.test(document.querySelector('#job-title')?.textContent)")
    headers = {"Authorization": f"Bearer {ADMIN}"}
    stored = training_service.client.get("/corpora/paragraphs", headers=headers).json()
    assert (stored["layout"], stored["layout_source"]) == ({"items": "paragraphs"}, "declared")
    v.page.get_by_role("button", name=re.compile("^Cancel paragraphs")).first.click()


def test_a_dropped_file_is_trained_on(visit: Visiting, training_service: Service) -> None:
    """Upload, train, follow, promote, roll back, compare; a second training is cancelled; a third is of two texts."""
    v = visit(training_service)
    v.allowed.append("401")
    v.open("train")
    unlock(v)
    drop(v, ("My Words.txt", words(20000).encode()))
    v.page.locator("#preview", has_text="Read as one text.").wait_for()
    text = words(20000)
    counts = f"{len(text.splitlines()):,} lines, {len(text):,} characters, {len(set(text))} different ones"
    assert counts in v.page.inner_text("#preview")
    # The served model is of another text, so another model is proposed.
    assert [v.page.input_value(f"#retrain-{field}") for field in ("name", "model")] == ["my-words"] * 2
    v.page.fill("#retrain-model", "")
    v.page.fill("#retrain-minutes", "0.1")
    v.page.select_option("#retrain-promote", "always")
    v.page.get_by_role("button", name="Train", exact=True).click()
    v.page.wait_for_function("() => /^my-words, quick/.test(document.querySelector('#job-title')?.textContent)")
    v.page.wait_for_function(
        "() => /^finished.*Promoted/.test(document.querySelector('#job-state')?.textContent)", timeout=120_000
    )
    v.page.wait_for_function("() => document.querySelector('#retrain-status')?.textContent === ''")
    assert v.page.locator("#curve text", has_text="per character").get_attribute("y") == "12"  # above the y axis
    jobs = training_service.client.get("/jobs", headers={"Authorization": f"Bearer {ADMIN}"}).json()["jobs"]
    (first,) = (job for job in jobs if job["request"]["corpus"] == "my-words")
    made = first["result"]["checkpoint"]
    row = v.page.locator(f"#models [data-model='{made['id']}']")
    v.page.wait_for_function(
        f"() => /served/.test(document.querySelector(\"#models [data-model='{made['id']}']\")?.textContent)"
    )
    assert f"{made['val_loss']:.3f} nats" in row.inner_text()
    assert f"{made['val_loss']:.3f} nats" in v.page.locator(f"[data-job='{first['job_id']}']").inner_text()

    v.page.get_by_role("button", name=re.compile("^Roll back to val3.0")).click()
    v.page.wait_for_function("() => /^Promoted val3.0/.test(document.querySelector('#models-status')?.textContent)")
    row.get_by_role("button", name="Promote").click()
    v.page.wait_for_function(
        "() => document.querySelector('#models-status')?.textContent.startsWith('Promoted my-words · quick')"
    )

    v.page.select_option("#retrain-corpus", "my-words")
    v.page.fill("#retrain-minutes", "5")
    v.page.get_by_role("button", name="Train", exact=True).click()
    old = first["job_id"][:4]
    v.page.wait_for_function(
        "old => document.querySelector('#job-title')?.textContent.includes(old) === false", arg=old
    )
    v.page.get_by_role("checkbox", name=re.compile(f"Compare my-words, quick .{old}")).check()
    v.page.wait_for_selector("#curve polyline.val.run1", state="attached", timeout=120_000)  # its first validation
    v.page.get_by_role("button", name="Train", exact=True).click()
    v.page.locator("#retrain-status", has_text=re.compile(r"Queued\..*my-words, quick .* is running")).wait_for()
    v.page.locator("#jobs tr").first.get_by_role("button", name=re.compile("^Cancel")).click()
    v.page.locator("#jobs tr").first.locator(".cancelled").wait_for()
    v.page.get_by_role("button", name=re.compile("^Cancel my-words")).first.click()
    v.page.wait_for_function(
        "() => /^cancelled/.test(document.querySelector('#job-state')?.textContent)", timeout=60_000
    )

    drop(
        v,
        ("Notes.txt", b"To be, or not to be. " * 15),
        ("notes.text", "".join(map(chr, range(0x4E00, 0x5F94))).encode()),
    )
    assert v.page.locator("#retrain-name").is_hidden()
    v.page.fill("#retrain-minutes", "0.05")
    v.page.get_by_role("button", name="Train", exact=True).click()
    v.page.wait_for_function(
        "() => /^notes \\+ notes-2, quick/.test(document.querySelector('#job-title')?.textContent)"
    )
    v.page.wait_for_function(
        "() => /^finished/.test(document.querySelector('#job-state')?.textContent)", timeout=120_000
    )
    assert "max_vocab is 4,510 instead of 4,096" in v.page.inner_text("#notes")


@pytest.mark.parametrize("device", ["desktop", "phone"])
def test_the_first_items_of_a_dropped_list(visit: Visiting, training_service: Service, device: str) -> None:
    """Pasted or dropped: previewed as a list, its items shown while it learns; then written with, and compared."""
    options = {"viewport": {"width": 390, "height": 844}, "has_touch": True} if device == "phone" else {}
    v = visit(training_service, **options)
    v.allowed.append("401")
    v.open("train")
    unlock(v)
    names = "\n".join(f"{a}{b}{c}{d}" for a in "bdfgklmn" for b in "aeiou" for c in "lmnr" for d in ("a", "o", "is"))
    began = time.monotonic()
    if device == "phone":
        v.page.fill("#retrain-paste", names)
        v.page.fill("#retrain-name", "phone-names")
    else:
        drop(v, ("Names.txt", names.encode()))
    v.page.locator("#preview", has_text="480 lines").wait_for()
    assert "Read as a list" in v.page.inner_text("#preview")
    v.page.fill("#retrain-model", "")
    v.page.fill("#retrain-minutes", "0.2")
    v.page.select_option("#retrain-promote", "never")
    v.page.get_by_role("button", name="Train", exact=True).click()
    v.page.wait_for_function("() => /names, quick/.test(document.querySelector('#job-title')?.textContent)")
    v.page.wait_for_selector("#samples pre", timeout=120_000)
    print(f"{device}: the first items {time.monotonic() - began:.1f} s after the drop")
    assert len(v.page.inner_text("#samples pre").split()) > 3
    v.page.wait_for_selector("#job-actions button", timeout=120_000)
    v.page.get_by_role("button", name="Write with it").click()
    v.page.locator("#view-generate").wait_for()
    assert v.pane().locator("[data-part=status]").inner_text() == ""  # no text was written before
    v.pane().locator(".chip").last.click()
    v.wait_until_done()
    assert v.page.locator(".items .item").count() == 20
    v.page.get_by_role("link", name="Learn", exact=True).click()
    v.page.get_by_role("button", name="Compare with the one that serves").click()
    v.wait_until_done("fork")
    v.wait_until_done()
    assert v.pane("fork").locator(".items .item").count() == 20
    assert len(v.text()) >= 200
    v.page.get_by_role("link", name="Learn", exact=True).click()
    with v.page.expect_download() as download:  # a key is needed: an address that is opened would carry none
        v.page.get_by_role("button", name="What it learned").click()
    report = download.value.path().read_text()
    assert "<h2>Memorization</h2>" in report
    assert "<h2>Loss curves</h2>" in report


INVALID = [
    ("max_chars", "-1"), ("max_chars", "1e9"), ("max_chars", "many"), ("temperature", "hot"), ("temperature", "101"),
    ("temperature", "0.001"), ("top_k", "-1"), ("top_k", "1.5"), ("top_p", "0"), ("top_p", "2"), ("min_p", "2"),
    ("typical_p", "0"), ("repetition_penalty", "0"), ("seed", "-1"), ("seed", "12345678901234567890"),
    ("stop", "É"),
]  # fmt: skip


def test_an_invalid_field_shows_the_message_of_the_service(visit: Visiting, service: Service) -> None:
    """An invalid value is sent as it is; the message at the field is the response's own."""
    v = visit(service).open()
    v.allowed.append("422")
    v.unfold()
    for name, value in INVALID:
        field = v.page.locator(f"#main-{name}")
        before = field.input_value()
        field.fill(value)
        with v.page.expect_response("**/generate") as answered:
            v.generate()
        message = answered.value.json()["error"]["message"]
        assert message.startswith(name)
        note = v.page.locator(f"#main-{name}-error")
        note.wait_for()
        assert note.inner_text() == message
        assert field.get_attribute("aria-invalid") == "true"
        assert field.get_attribute("aria-describedby").split() == [f"main-{name}-error", f"main-{name}-help"]
        assert v.page.locator("#view-generate .field .error").count() == 1  # the previous message has been removed
        field.fill(before)


def test_invalid_fields_of_the_other_views(visit: Visiting, service: Service, training_service: Service) -> None:
    """Score's text; Inspect's text, layer and unit; a training's minutes, name and file."""
    v = visit(service).open("score")
    v.allowed.append("422")
    v.page.fill("#score-text", "hÉllo")
    v.page.get_by_role("button", name="Score").click()
    assert text_of(v, "#score-text-error").startswith("This model has never seen É.")
    v.page.get_by_role("button", name="Skip them").click()
    v.page.wait_for_function(
        "() => /1 character that the model/.test(document.querySelector('#score-status')?.textContent)"
    )
    v.page.fill("#score-text", "")
    v.page.get_by_role("button", name="Score").click()
    assert "Write or paste a text" in text_of(v, "#score-text-error")
    v.open("inspect")
    for field, value, says in (
        ("inspect-text", "a" * 1001, "got 1001 characters, expected at most 1000"),
        ("inspect-text", "", "a text of at least 1 character"),
    ):
        before = v.page.input_value(f"#{field}")
        v.page.fill(f"#{field}", value)
        v.page.get_by_role("button", name="Look inside", exact=True).click()
        assert says in text_of(v, f"#{field}-error")
        v.page.fill(f"#{field}", "hello" if field == "inspect-text" else before)
    v.page.get_by_role("button", name="Look inside", exact=True).click()
    v.page.wait_for_selector("#walk-at")
    for value, says in (("99", "units.0: got 99, expected 0 to 23"), ("x", "units.0: got 'x'")):
        v.page.fill("#unit", value)
        v.page.press("#unit", "Tab")
        v.page.wait_for_function("s => document.querySelector('#unit-error')?.textContent.includes(s)", arg=says)

    w = visit(training_service)
    w.allowed += ["401", "422"]
    w.open("train")
    unlock(w)
    w.page.select_option("#retrain-corpus", "")
    w.page.get_by_role("button", name="Train", exact=True).click()
    assert "Choose a file" in text_of(w, "#retrain-file-error")
    drop(w, ("bytes.txt", b"caf\xe9 au lait"))
    w.page.get_by_role("button", name="Train", exact=True).click()
    assert "not UTF-8, byte 3 is 0xe9" in text_of(w, "#retrain-file-error")
    drop(w, ("short.txt", b"abc"))
    w.page.get_by_role("button", name="Train", exact=True).click()
    assert "corpus: " in text_of(w, "#retrain-corpus-error")
    stored = training_service.client.get("/corpora", headers={"Authorization": f"Bearer {ADMIN}"}).json()["corpora"]
    assert "short" not in [corpus["name"] for corpus in stored]  # what cannot be trained on is not kept
    drop(w, ("good.txt", words(20000).encode()))
    w.page.fill("#retrain-name", "No Such Name!")
    w.page.get_by_role("button", name="Train", exact=True).click()
    assert "name: got 'No Such Name!'" in text_of(w, "#retrain-name-error")
    w.page.fill("#retrain-name", "good")
    for value, says in (("-3", "minutes: "), ("soon", "minutes: ")):
        w.page.fill("#retrain-minutes", value)
        w.page.get_by_role("button", name="Train", exact=True).click()
        assert says in text_of(w, "#retrain-minutes-error")


def text_of(v: Visit, selector: str) -> str:
    v.page.wait_for_selector(selector)
    text: str = v.page.locator(selector).inner_text()
    return text


def test_a_key_is_requested_to_generate(visit: Visiting, store: Path, redis_server: RedisServer) -> None:
    """With API_KEYS the page asks for a key at the first text and then generates it."""
    with Service(CHECKPOINT_DIR=str(store), REDIS_URL=redis_server.url, API_KEYS="a-readers-key-001") as service:
        v = visit(service)
        v.allowed.append("401")
        v.open()
        v.generate(prompt="hello", max_chars=20)
        v.page.wait_for_selector("#key[open]")
        assert v.page.inner_text("#key-explanation") == "Enter the key that the operator of this service gave you."
        v.page.fill("#key-field", "a-readers-key-001")
        v.page.get_by_role("button", name="Use this key").click()
        v.page.wait_for_function("() => document.querySelector('.letters')?.textContent.length === 25")
        v.page.goto("about:blank")


def test_status_shows_the_state_of_the_service(visit: Visiting, service: Service) -> None:
    """The numbers are those of /readyz and /metrics."""
    v = visit(service).open("status")
    service.generate(max_chars=500)
    ready: dict[str, Any] = service.client.get("/readyz").json()
    v.page.wait_for_function(
        "() => /characters *since the service started/.test(document.querySelector('#tiles')?.textContent)"
    )
    tiles = v.page.locator("#tiles")
    assert ready["model"]["fingerprint"] in tiles.inner_text()
    assert f"of {ready['slots']} texts" in tiles.inner_text()
    v.page.wait_for_function("() => /[0-9] characters\\/s/.test(document.querySelector('#tiles')?.textContent)")
    v.page.wait_for_function("() => /[0-9] ms/.test(document.querySelector('#tiles')?.textContent)")
