"""Writing on the page: the text is the service's, however it is cut, rewound, forked, reloaded or lost."""

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

ASKED: dict[str, Any] = {"prompt": "hello", "seed": 7, "temperature": 0.9}
STATUS = "document.querySelector('[data-part=status]')"
Visiting = Callable[..., Visit]


def alone(tiny: Checkpoint, prompt: str, n: int, temperature: float = 0.9, seed: int = 7) -> str:
    """What a stepper alone writes."""
    stepper, _ = choose(tiny.network(), 1)
    return "".join(write(stepper, ALPHABET, prompt, n, SamplingParams(temperature), seed=seed, block_steps=256))


def test_a_text_is_written_rewound_forked_and_found_again(visit: Visiting, service: Service, tiny: Checkpoint) -> None:
    """The whole way of a text; at each turn it is to the character what the model alone writes from there."""
    v = visit(service).open()
    v.ask(**ASKED, max_chars=200)
    first = alone(tiny, "hello", 200)
    assert v.until_written() == "hello" + first
    assert re.search(r"200 characters, .* characters/s, as long as was asked for\. Position 205, seed 7\.", v.status())

    v.letter(104).click()  # the 100th of its own: all after it goes
    assert v.pane().get_by_role("button", name="Go on from here").is_visible()
    v.ask(temperature=0.5, max_chars=50, seed="")
    kept = "hello" + first[:100]
    second = kept + alone(tiny, kept, 50, 0.5)
    assert v.until_written() == second

    v.letter(119).click()
    v.pane().get_by_role("button", name="Fork").click()
    v.pane("fork").wait_for()
    assert v.text("fork") == second[:120]
    v.ask("fork", temperature=2, max_chars=60)
    forked = second[:120] + alone(tiny, second[:120], 60, 2)
    assert v.until_written("fork") == forked
    assert v.text() == second

    v.page.reload()
    v.page.wait_for_function(f"() => document.querySelectorAll('.letters')[1]?.textContent.length === {len(forked)}")
    assert v.until_written() == second  # both sessions live in the address
    assert v.until_written("fork") == forked
    assert v.page.input_value("#main-temperature") == "0.5"
    v.letter(119).click()  # the cut is not kept, so the fork's origin goes on from its end
    v.letter(119).click()
    v.ask(max_chars=40)
    assert v.until_written() == second + alone(tiny, second, 40, 0.5)


def test_another_browser_goes_on(visit: Visiting, service: Service, tiny: Checkpoint) -> None:
    """The address is the session: opened elsewhere, in mid-text, it goes on with every character, and says so here."""
    v = visit(service).open()
    v.ask(**ASKED, max_chars=19_000)
    v.page.wait_for_function("() => document.querySelector('.letters').textContent.length > 300")
    elsewhere = visit(service)
    elsewhere.page.goto(v.page.url)
    # Only then it writes: a page that has just been opened does not yet, either. A text that is done by then is shown
    # whole as well, if it has fewer than 20,000 characters.
    elsewhere.page.wait_for_function("() => document.querySelector('.letters').textContent.length > 300")
    whole = "hello" + alone(tiny, "hello", 19_000)
    assert elsewhere.until_written() == whole
    here = v.until_written()
    assert "another request has taken this session over" in v.status() or here == whole


def test_a_cut_connection_is_gone_on_with(
    visit: Visiting, store: Path, redis_server: RedisServer, tiny: Checkpoint
) -> None:
    """The service is killed in mid-stream and started again: the page says so, waits, and has the exact text."""
    dying = Service(CHECKPOINT_DIR=str(store), REDIS_URL=redis_server.url, SNAPSHOT_S="0.05", LEASE_S="1")
    dying.start()
    v = visit(dying).open()
    v.allowed += ["ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_CONNECTION_RESET", "net::ERR_"]
    v.ask(**ASKED, max_chars=20_000)
    v.page.wait_for_function("() => document.querySelector('.letters').textContent.length > 1500")
    dying.kill()
    dying.client.close()
    v.page.wait_for_function(f"() => /connection was lost at position/.test({STATUS}.textContent)")
    assert len(v.text()) < 20_005
    v.page.evaluate(
        f"() => {{ window.said = []; new MutationObserver(() => said.push({STATUS}.textContent))"
        f".observe({STATUS}, {{childList: true, characterData: true, subtree: true}}) }}"
    )
    dying.start()
    assert v.until_written(timeout_s=120) == "hello" + alone(tiny, "hello", 20_000)
    assert any("The connection is back" in said for said in v.page.evaluate("() => said"))
    v.page.goto("about:blank")
    dying.stop()


def test_stop_keeps_what_is_shown(visit: Visiting, service: Service, tiny: Checkpoint) -> None:
    """Stopped in mid-text, it goes on with the very next character."""
    v = visit(service).open()
    v.ask(**ASKED, max_chars=50_000)
    v.page.wait_for_function("() => document.querySelector('.letters').textContent.length > 200")
    v.pane().get_by_role("button", name="Stop").click()
    shown = v.until_written()
    assert "Stopped at position" in v.status()
    v.allowed.append("409")  # the service sees the hang-up at its next block; the page asks again until then
    v.ask(max_chars=30)
    assert v.until_written() == shown + alone(tiny, shown, 30)


def test_the_keyboard_does_it_all(visit: Visiting, service: Service, tiny: Checkpoint) -> None:
    """Tab, type, Enter; arrows go through the text and tell each character; Enter goes back to one."""
    v = visit(service).open()
    v.page.focus("#main-seed")
    v.page.keyboard.type("7")
    v.page.keyboard.press("Enter")
    text = v.until_written()
    assert text == alone(tiny, "", 400, 0.8)
    v.page.focus(".letters")
    for key in ("Home", "ArrowRight", "ArrowRight", "ArrowLeft"):
        v.page.keyboard.press(key)
    heard = v.pane().locator("[data-part=voice]")
    v.page.wait_for_function("() => /bits of surprise/.test(document.querySelector('[data-part=voice]').textContent)")
    spoken = {" ": "space", "\n": "new line"}.get(text[1], text[1])
    assert heard.inner_text().startswith(f"{spoken}, ")
    v.page.keyboard.press("Enter")
    assert v.pane().get_by_role("button", name="Go on from here").is_visible()
    v.ask(max_chars=20)
    assert v.until_written() == text[:2] + alone(tiny, text[:2], 20, 0.8)


def test_a_letter_tells_what_it_was_drawn_from(visit: Visiting, service: Service) -> None:
    """The distribution on hover is POST /generate's logprobs, for the filters that were set; so is the surprise."""
    drawn = {**ASKED, "temperature": 0.7, "max_chars": 60}
    told = service.generate(**drawn, top_k=8, logprobs=10)
    v = visit(service).open()
    v.ask(**drawn, top_k=8)
    text = v.until_written()
    assert text == "hello" + told["text"]
    for index in (0, 1, 17, 59):
        v.letter(5 + index).hover()
        rows = table(v, text[5 + index])
        look = told["logprobs"][index]
        assert [(c, p) for c, p, _ in rows[: len(look["top"])]] == [(c, p) for c, _, p in look["top"]]
        for (_, _, own), (_, logprob, _) in zip(rows, look["top"], strict=False):
            assert own == pytest.approx(2.718281828459045**logprob, rel=1e-9)
        assert sum(p for _, p, _ in rows) == pytest.approx(1, abs=1e-3)
        surprise = -look["logprob"] / 0.6931471805599453
        assert f"{surprise:.2f} bits of surprise" in v.pane().locator("[data-part=panel]").inner_text()


def test_a_prompt_s_letters_are_told_too(visit: Visiting, service: Service) -> None:
    """What the model did not write is read by it when pointed at: POST /score's distribution."""
    v = visit(service).open()
    v.ask(**ASKED, max_chars=20)
    text = v.until_written()
    scored = service.client.post("/score", json={"text": text, "logprobs": 10}).json()["logprobs"]
    v.letter(2).hover()
    v.page.wait_for_function("() => /Read again/.test(document.querySelector('[data-part=panel]').textContent)")
    assert [(c, p) for c, p, _ in table(v, text[2])[:10]] == [(c, p) for c, _, p in scored[2]["top"]]


def test_the_request_can_be_copied_as_curl(visit: Visiting, service: Service) -> None:
    """The command shown is the request: run with the same body, the service writes the same text."""
    v = visit(service).open()
    v.page.fill("#main-prompt", "it's")
    v.page.fill("#main-stop", "\\n\nzz")
    v.page.fill("#main-seed", "7")
    v.pane().get_by_role("button", name="Copy as curl").click()
    line = v.pane().locator("[data-part=command]").inner_text()
    body = json.loads(re.fullmatch(r"curl -N --json '(.*)' http://\S+/generate", line, re.S)[1].replace("'\\''", "'"))  # type: ignore[index]
    assert (body["prompt"], body["stop"], body["seed"], body["stream"]) == ("it's", ["\n", "zz"], 7, True)
    expected = service.generate(**{**body, "stream": False})
    v.ask()
    assert v.until_written() == "it's" + expected["text"]


def table(v: Visit, character: str) -> list[tuple[str, float, float]]:
    """The panel's rows once it tells of this character: character ('' is the rest), drawn from, model."""
    rows: Any = v.pane().locator("[data-part=panel] tbody tr")
    v.page.wait_for_function(
        "c => document.querySelector('[data-part=panel] .is-drawn')?.dataset.character === c", arg=character
    )
    return [
        (r["character"], float(r["probability"]), float(r["model"]))
        for r in rows.evaluate_all("rows => rows.map(r => ({...r.dataset}))")
    ]
