"""Appearance, accessibility and speed: every view in light, dark and on a phone; first paint and frame rate."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.page.conftest import OTHER, SHOTS, Visit
from tests.servers import Service, eventually

Visiting = Callable[..., Visit]
AXE = Path(pytest.importorskip("axe_playwright_python").__file__).parent / "axe.min.js"
DEVICES: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
    "phone-dark": {"color_scheme": "dark", "viewport": {"width": 390, "height": 844}, "is_mobile": True},
}
SHAKESPEARE = (
    "QUEEN.\nWhat, will you go? The night is long,\nAnd I have sworn it.\n\nKING.\nThen let us go, ere the day.\n"
)
PROMPT = os.environ.get("PAGE_PROMPT", "hello")


def generate(v: Visit) -> None:
    """A text in colors, with the details of one character."""
    v.open("generate")
    v.generate(prompt=PROMPT, max_chars=500, seed=11, temperature=0.7)
    v.pane().locator("[data-part=more]").evaluate("e => { e.open = false }")
    v.wait_until_done()
    v.page.check(".pane .color")
    v.character(60).hover()
    v.page.wait_for_selector("[data-part=panel] .is-sampled")


def fork(v: Visit) -> None:
    generate(v)
    v.character(200).click()
    v.pane().get_by_role("button", name="Fork").click()
    v.generate("fork", temperature=1.2, max_chars=150)
    v.wait_until_done("fork")
    v.character(230, "fork").hover()
    v.page.locator("[aria-label='A text, fork'] .is-sampled").wait_for()


def invalid(v: Visit) -> None:
    v.allowed.append("422")
    v.open("generate")
    v.generate(temperature="hot")
    v.page.wait_for_selector("#main-temperature-error")


def score(v: Visit) -> None:
    v.open("score")
    text = "hello and now the rest of it" if PROMPT == "hello" else SHAKESPEARE
    v.page.fill("#score-text", text)
    v.page.get_by_role("button", name="Score").click()
    v.page.wait_for_function("t => document.querySelector('#score-letters')?.textContent === t", arg=text)
    v.page.locator("#score-letters .line > span").nth(7).hover()
    v.page.wait_for_selector("#score-panel .is-sampled")


def inspect(v: Visit) -> None:
    v.open("inspect")
    text = "it's a text in lines\nof which the second\nis not the last\n" if PROMPT == "hello" else SHAKESPEARE
    v.page.fill("#inspect-text", text)
    v.page.get_by_role("button", name="Look inside", exact=True).click()
    v.page.wait_for_function("t => document.querySelector('#strips .strip')?.children.length === t", arg=len(text))
    v.page.locator("#strips .strip > span").nth(9).click()


def train(v: Visit) -> None:
    """A finished training with its curve, samples and advice; the first test that needs one starts it."""
    client = httpx.Client(base_url=v.host, timeout=60)
    jobs = client.get("/jobs").json()["jobs"]
    if not jobs:
        body = {"corpus": "shakespeare", "minutes": 0.1, "promote": "never"}
        jobs = [client.post("/retrain", json=body).json()]
    eventually(lambda: client.get(f"/jobs/{jobs[0]['job_id']}").json()["state"] == "finished", within_s=300)
    client.close()
    v.open("train")
    v.page.wait_for_selector("#models tr")
    v.page.wait_for_selector("#curve polyline.val", state="attached")
    v.page.wait_for_selector("#samples pre")


def status(v: Visit) -> None:
    """After a second poll, which gives the throughput."""
    v.open("status")
    v.page.wait_for_function("() => /[0-9] characters\\/s/.test(document.querySelector('#tiles')?.textContent)")


def compare(v: Visit) -> None:
    """Two models beside each other, from one beginning."""
    v.open("generate")
    v.page.fill("#main-prompt", PROMPT)
    v.pane().get_by_role("button", name="Compare").click()
    v.page.fill("#fork-model", OTHER)
    v.page.keyboard.press("Enter")
    v.pane("fork").get_by_text(f"({OTHER})").wait_for()
    for pane in ("main", "fork"):
        v.wait_until_done(pane)


def key(v: Visit) -> None:
    v.open("train")
    v.page.evaluate("() => document.querySelector('#key').showModal()")


VIEWS = {f.__name__: f for f in (generate, fork, invalid, score, inspect, train, status, compare, key)}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_is_accessible_and_fits(visit: Visiting, page_service: Service, view: str, device: str) -> None:
    """axe finds nothing, nothing is wider than the window and no text is cut off. Takes a screenshot."""
    v = visit(page_service, **DEVICES[device])
    VIEWS[view](v)
    SHOTS.mkdir(parents=True, exist_ok=True)
    size = v.page.viewport_size
    height = max(size["height"], v.page.evaluate("() => document.documentElement.scrollHeight"))
    v.page.set_viewport_size({**size, "height": height})  # full_page would leave out what was never in view
    v.page.evaluate("() => scrollTo({top: 0, behavior: 'instant'})")
    v.page.evaluate("() => new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")
    v.page.screenshot(path=SHOTS / f"{view}-{device}.png")
    v.page.evaluate(AXE.read_text())
    report = v.page.evaluate("() => axe.run({resultTypes: ['violations']})")
    result = [
        f"{rule['id']}: {node['target']} {node['failureSummary']}"
        for rule in report["violations"]
        for node in rule["nodes"]
    ]
    assert result == []
    wide = v.page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0
    assert v.page.evaluate(CUT_OFF) == []


@pytest.mark.parametrize("device", ["light", "phone"])
def test_the_report_is_opened_from_learn(visit: Visiting, page_service: Service, device: str) -> None:
    """In a tab of its own, which runs no script and loads nothing; axe finds nothing in it. Takes a screenshot."""
    v = visit(page_service, **DEVICES[device])
    train(v)
    with v.page.context.expect_page() as opened:
        v.page.get_by_role("button", name="What it learned").click()
    report = Visit(opened.value, v.host, v.problems).watch()
    report.page.wait_for_url("**/report")  # a tab that is still being opened cannot be reloaded
    report.page.reload()  # now it is watched from its beginning
    report.page.get_by_role("heading", name="Memorization").wait_for()
    report.page.screenshot(path=SHOTS / f"report-{device}.png", full_page=True)
    copy = v.page.context.new_page()  # the report's own policy would not let axe run
    copy.set_content(report.page.content())
    copy.evaluate(AXE.read_text())
    assert copy.evaluate("() => axe.run({resultTypes: ['violations']})")["violations"] == []
    wide = copy.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0


CUT_OFF = """() => [...document.querySelectorAll('button, label, th, td, dd, dt, h1, h2, h3, h4, p, a, caption')]
  .filter(e => e.checkVisibility() && !e.matches('.visually-hidden, .skip') && !e.closest('thead'))
  .filter(e => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== 'inline')
  .map(e => e.tagName + ': ' + e.textContent.slice(0, 60))"""


def test_numbers_have_units(visit: Visiting, page_service: Service) -> None:
    """Losses are per character, surprise is in bits, times are in seconds or milliseconds."""
    v = visit(page_service)
    generate(v)
    assert "bits of surprise" in v.pane().locator("[data-part=panel]").inner_text()
    assert "characters/s" in v.status()
    train(v)
    assert v.page.get_by_role("columnheader", name="Validation loss, per character", exact=True).count() == 2
    assert " nats = " in v.page.locator("#models").inner_text()
    status(v)
    assert " ms" in v.page.locator("#tiles").inner_text()


def test_the_first_paint_is_fast(visit: Visiting, page_service: Service) -> None:
    """Within a second, in the best of three visits, because the machine may be busy."""
    paints = []
    for _ in range(3):
        v = visit(page_service).open()
        paints.append(
            v.page.evaluate("() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 1e9")
        )
    print(f"first paint after {min(paints):.0f} ms (of {[round(p) for p in paints]})")
    assert min(paints) <= 1000


FRAMES = """async (ms) => {
  const at = [];
  await new Promise(resolve => {
    const end = performance.now() + ms;
    const tick = now => { at.push(now); performance.now() < end ? requestAnimationFrame(tick) : resolve(); };
    requestAnimationFrame(tick);
  });
  return at;
}"""


def slowest_second(at: list[float]) -> int:
    """The fewest frames in any second."""
    seconds = [a for a in at if a + 1000 <= at[-1]]
    return min(sum(a <= b < a + 1000 for b in at) for a in seconds)


def test_a_long_text_streams_and_scrolls_smoothly(visit: Visiting, page_service: Service) -> None:
    """At least 30 frames per second while 10,000 characters stream in and while they are scrolled.

    The best of three tries, because the machine may be busy.
    """
    best = {"stream": 0, "scroll": 0}
    for _ in range(3):
        v = visit(page_service).open()
        v.page.check(".pane .color")
        v.generate(prompt=PROMPT, max_chars=10_000, seed=3)
        streamed = v.page.evaluate(FRAMES, 3000)
        v.wait_until_done(timeout_s=180)
        assert v.page.locator(".line > span").count() == 10_000 + len(PROMPT)
        v.page.evaluate(
            "() => { const e = document.querySelector('.letters'); e.scrollTop = 0;"
            " const step = () => { e.scrollTop += 60; requestAnimationFrame(step); }; step(); }"
        )
        scrolled = v.page.evaluate(FRAMES, 2500)
        best["stream"] = max(best["stream"], slowest_second(streamed))
        best["scroll"] = max(best["scroll"], slowest_second(scrolled))
        v.page.context.close()
        if min(best.values()) >= 30:
            break
    print(f"frames in the slowest second: {best}")
    assert min(best.values()) >= 30
