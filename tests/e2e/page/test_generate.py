"""The view Generate: the text is exact, however it is continued, rewound, forked, reloaded or disconnected."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.checkpoints.file_format import Checkpoint
from model.network.sampling import SamplingParams
from model.stepper.choose import choose
from model.stepper.generate import write
from tests.conftest import ALPHABET
from tests.e2e.page.conftest import Visit
from tests.servers import RedisServer, Service

REQUEST: dict[str, Any] = {"prompt": "hello", "seed": 7, "temperature": 0.9}
STATUS = "document.querySelector('[data-part=status]')"
Visiting = Callable[..., Visit]


def expected_text(tiny: Checkpoint, prompt: str, n: int, temperature: float = 0.9, seed: int = 7) -> str:
    """The text of the plain loop, without the service."""
    stepper, _ = choose(tiny.network(), 1)
    return "".join(write(stepper, ALPHABET, prompt, n, SamplingParams(temperature), seed=seed, block_steps=256))


def test_a_text_is_generated_rewound_forked_and_reloaded(visit: Visiting, service: Service, tiny: Checkpoint) -> None:
    """At every turn the text equals the plain loop's text from there."""
    v = visit(service).open()
    v.generate(**REQUEST, max_chars=200)
    first = expected_text(tiny, "hello", 200)
    assert v.wait_until_done() == "hello" + first
    assert re.search(
        r"200 characters, .* characters/s; the length that was requested\. Position 205, seed 7\.", v.status()
    )

    v.character(104).click()  # the 100th generated character: the text after it is removed
    assert v.pane().get_by_role("button", name="Continue from here").is_visible()
    v.page.check("[data-part=same-seed]")
    v.generate(temperature=0.5, max_chars=50, seed="")
    kept = "hello" + first[:100]
    second = kept + expected_text(tiny, kept, 50, 0.5)
    assert v.wait_until_done() == second

    v.character(119).click()
    v.pane().get_by_role("button", name="Fork").click()
    v.pane("fork").wait_for()
    assert v.text("fork") == second[:120]
    v.generate("fork", temperature=2, max_chars=60)
    forked = second[:120] + expected_text(tiny, second[:120], 60, 2)
    assert v.wait_until_done("fork") == forked
    assert v.text() == second

    v.page.reload()
    v.page.wait_for_function(f"() => document.querySelectorAll('.letters')[1]?.textContent.length === {len(forked)}")
    assert v.wait_until_done() == second  # both sessions are in the address
    assert v.wait_until_done("fork") == forked
    assert v.page.input_value("#main-temperature") == "0.5"
    v.character(119).click()  # the second click removes the cut: the text continues at its end
    v.character(119).click()
    v.generate(max_chars=40)
    assert v.wait_until_done() == second + expected_text(tiny, second, 40, 0.5)


def test_another_browser_resumes_the_session(visit: Visiting, service: Service, tiny: Checkpoint) -> None:
    """The session shown in another browser in mid-text has every character; the first browser reports the takeover."""
    v = visit(service).open()
    v.generate(**REQUEST, max_chars=19_000)
    v.page.wait_for_function("() => document.querySelector('.letters')?.textContent.length > 300")
    other = visit(service)
    other.page.goto(v.page.url)
    # Wait until the second page streams. A text that has ended by then is shown whole if it has < 20,000 characters.
    other.page.wait_for_function("() => document.querySelector('.letters')?.textContent.length > 300")
    whole = "hello" + expected_text(tiny, "hello", 19_000)
    assert other.wait_until_done() == whole
    here = v.wait_until_done()
    assert "another request has taken this session over" in v.status() or here == whole


def test_a_lost_connection_is_resumed(
    visit: Visiting, store: Path, redis_server: RedisServer, tiny: Checkpoint
) -> None:
    """The service is killed in mid-stream and restarted: the page reports it, waits, and shows the exact text."""
    dying = Service(CHECKPOINT_DIR=str(store), REDIS_URL=redis_server.url, SNAPSHOT_INTERVAL_S="0.05", LEASE_S="1")
    dying.start()
    v = visit(dying).open()
    v.allowed += ["ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_CONNECTION_RESET", "net::ERR_"]
    v.generate(**REQUEST, max_chars=20_000)
    v.page.wait_for_function("() => document.querySelector('.letters')?.textContent.length > 1500")
    dying.kill()
    dying.client.close()
    v.page.wait_for_function(f"() => /connection was lost at position/.test({STATUS}.textContent)")
    assert len(v.text()) < 20_005
    v.page.evaluate(
        f"() => {{ window.messages = []; new MutationObserver(() => messages.push({STATUS}.textContent))"
        f".observe({STATUS}, {{childList: true, characterData: true, subtree: true}}) }}"
    )
    dying.start()
    assert v.wait_until_done(timeout_s=120) == "hello" + expected_text(tiny, "hello", 20_000)
    assert any("Connected again" in message for message in v.page.evaluate("() => messages"))
    v.page.goto("about:blank")
    dying.stop()


def test_stop_keeps_the_visible_text(visit: Visiting, service: Service, tiny: Checkpoint) -> None:
    """After a stop in mid-text, the text continues with the next character."""
    v = visit(service).open()
    v.generate(**REQUEST, max_chars=50_000)
    v.page.wait_for_function("() => document.querySelector('.letters')?.textContent.length > 200")
    v.pane().get_by_role("button", name="Stop").click()
    text = v.wait_until_done()
    assert "Stopped at position" in v.status()
    v.allowed.append("409")  # the service notices the disconnect at its next block; the page retries until then
    v.generate(max_chars=30)
    assert v.wait_until_done() == text + expected_text(tiny, text, 30)


def test_the_keyboard_is_enough(visit: Visiting, service: Service, tiny: Checkpoint) -> None:
    """Enter generates; arrow keys select and describe a character; Enter on it continues from there."""
    v = visit(service).open()
    v.unfold()
    v.page.focus("#main-seed")
    v.page.keyboard.type("7")
    v.page.keyboard.press("Enter")
    text = v.wait_until_done()
    assert text == expected_text(tiny, "", 200, 1)
    v.page.focus(".letters")
    for key in ("Home", "ArrowRight", "ArrowRight", "ArrowLeft"):
        v.page.keyboard.press(key)
    live_region = v.pane().locator("[data-part=voice]")
    v.page.wait_for_function("() => /bits of surprise/.test(document.querySelector('[data-part=voice]')?.textContent)")
    spoken = {" ": "space", "\n": "new line"}.get(text[1], text[1])
    assert live_region.inner_text().startswith(f"{spoken}, ")
    v.page.keyboard.press("Enter")
    assert v.pane().get_by_role("button", name="Continue from here").is_visible()
    v.generate(max_chars=20)
    assert v.wait_until_done() == text[:2] + expected_text(tiny, text[:2], 20, 1)


def test_a_character_shows_its_distribution(visit: Visiting, service: Service) -> None:
    """The distribution and the surprise on hover are the logprobs of POST /generate with the same filters."""
    request = {**REQUEST, "temperature": 0.7, "max_chars": 60}
    result = service.generate(**request, top_k=8, logprobs=10)
    v = visit(service).open()
    v.generate(**request, top_k=8)
    text = v.wait_until_done()
    assert text == "hello" + result["text"]
    for index in (0, 1, 17, 59):
        v.character(5 + index).hover()
        rows = table(v, text[5 + index])
        entry = result["logprobs"][index]
        assert [(c, p) for c, p, _ in rows[: len(entry["top"])]] == [(c, p) for c, _, p in entry["top"]]
        for (_, _, own), (_, logprob, _) in zip(rows, entry["top"], strict=False):
            assert own == pytest.approx(2.718281828459045**logprob, rel=1e-9)
        assert sum(p for _, p, _ in rows) == pytest.approx(1, abs=1e-3)
        surprise = -entry["logprob"] / 0.6931471805599453
        assert f"{surprise:.2f} bits of surprise" in v.pane().locator("[data-part=panel]").inner_text()


def test_a_character_of_the_prompt_is_scored(visit: Visiting, service: Service) -> None:
    """The distribution at a character that the model did not generate is that of POST /score."""
    v = visit(service).open()
    v.generate(**REQUEST, max_chars=20)
    text = v.wait_until_done()
    scored = service.client.post("/score", json={"text": text, "logprobs": 10}).json()["logprobs"]
    v.character(2).hover()
    v.page.wait_for_function("() => /Scored again/.test(document.querySelector('[data-part=panel]')?.textContent)")
    assert [(c, p) for c, p, _ in table(v, text[2])[:10]] == [(c, p) for c, _, p in scored[2]["top"]]


def test_the_request_can_be_copied_as_curl(visit: Visiting, service: Service) -> None:
    """The command contains the request: its body generates the same text."""
    v = visit(service).open()
    v.page.fill("#main-prompt", "it's")
    v.unfold()
    v.page.fill("#main-stop", "\\n\nzz")
    v.page.fill("#main-seed", "7")
    v.pane().get_by_role("button", name="Copy as curl").click()
    line = v.pane().locator("[data-part=command]").inner_text()
    body = json.loads(re.fullmatch(r"curl -N --json '(.*)' http://\S+/generate", line, re.S)[1].replace("'\\''", "'"))  # type: ignore[index]
    assert (body["prompt"], body["stop"], body["seed"], body["stream"]) == ("it's", ["\n", "zz"], 7, True)
    expected = service.generate(**{**body, "stream": False})
    v.generate()
    assert v.wait_until_done() == "it's" + expected["text"]


def table(v: Visit, character: str) -> list[tuple[str, float, float]]:
    """The rows of the panel for this character: (character, probability, the model's probability); '' is all others."""
    rows: Any = v.pane().locator("[data-part=panel] tbody tr")
    v.page.wait_for_function(
        "c => document.querySelector('[data-part=panel] .is-sampled')?.dataset.character === c", arg=character
    )
    return [
        (r["character"], float(r["probability"]), float(r["model"]))
        for r in rows.evaluate_all("rows => rows.map(r => ({...r.dataset}))")
    ]


def test_a_pattern_holds_the_text(visit: Visiting, service: Service) -> None:
    """The new characters match it wholly; what it excludes is shown; its errors stand at the field."""
    v = visit(service).open()
    v.generate(**REQUEST, structured_outputs="[a-c]{6}!", max_chars=40)
    text = v.wait_until_done()
    assert re.fullmatch("hello[a-c]{6}!", text)
    assert re.search(r"7 characters.*; the pattern is complete\..* The pattern cost \d+\.\d bits\.", v.status())
    v.character(6).hover()
    excluded = v.pane().locator("[data-part=panel] tr.is-excluded")
    excluded.first.wait_for()
    assert not {row.get_attribute("data-character") for row in excluded.all()} & set("abc")
    v.allowed.append("422")
    v.generate(structured_outputs="(a")
    error = v.page.locator("#main-structured_outputs-error")
    error.wait_for()
    assert "is malformed: missing )" in error.inner_text()
    v.generate(structured_outputs="a{50}")
    v.page.locator("#main-max_chars-error").wait_for()
    assert "at least 50" in v.page.locator("#main-max_chars-error").inner_text()
    assert v.text() == text
