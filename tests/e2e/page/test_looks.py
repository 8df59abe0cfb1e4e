"""How the page looks and how quick it is: every view in light, dark and on a phone; who cannot see it; frames."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.page.conftest import SHOTS, Visit
from tests.servers import Service, eventually

Visiting = Callable[..., Visit]
AXE = Path(pytest.importorskip("axe_playwright_python").__file__).parent / "axe.min.js"
HOW: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
    "phone-dark": {"color_scheme": "dark", "viewport": {"width": 390, "height": 844}, "is_mobile": True},
}
SHAKESPEARE = (
    "QUEEN.\nWhat, will you go? The night is long,\nAnd I have sworn it.\n\nKING.\nThen let us go, ere the day.\n"
)
PROMPT = os.environ.get("SHOWN_PROMPT", "hello")


def write(v: Visit) -> None:
    """A text, a place to go back to, a fork, and a letter that is looked at."""
    v.open("write")
    v.ask(prompt=PROMPT, max_chars=500, seed=11, temperature=0.7)
    v.until_written()
    v.page.check("[data-part=coloured]")
    v.letter(60).hover()
    v.page.wait_for_selector("[data-part=panel] .is-drawn")


def fork(v: Visit) -> None:
    write(v)
    v.letter(200).click()
    v.pane().get_by_role("button", name="Fork").click()
    v.ask("fork", temperature=1.2, max_chars=150)
    v.until_written("fork")
    v.letter(230, "fork").hover()
    v.page.locator("[aria-label='A text, fork'] .is-drawn").wait_for()


def wrong(v: Visit) -> None:
    v.allowed.append("422")
    v.open("write")
    v.ask(temperature="hot")
    v.page.wait_for_selector("#main-temperature-error")


def why(v: Visit) -> None:
    v.open("why")
    v.page.fill("#score-text", "hello and now the rest of it" if PROMPT == "hello" else SHAKESPEARE)
    v.page.get_by_role("button", name="Score").click()
    v.page.wait_for_selector("#score-letters .line > span")
    v.page.wait_for_timeout(300)
    v.page.locator("#score-letters .line > span").nth(7).hover()
    v.page.wait_for_selector("#score-panel .is-drawn")


def inside(v: Visit) -> None:
    v.open("inside")
    text = "it's a text in lines\nof which the second\nis not the last\n" if PROMPT == "hello" else SHAKESPEARE
    v.page.fill("#inspect-text", text)
    v.page.get_by_role("button", name="Look", exact=True).click()
    v.page.wait_for_selector("[data-gate=f] .strip > span")
    v.page.locator("[data-gate=c] .strip > span").nth(9).hover()


def learn(v: Visit) -> None:
    """With a training that has ended, its curve, its samples and its advice; the first who comes asks for it."""
    client = httpx.Client(base_url=v.host, timeout=60)
    jobs = client.get("/jobs").json()["jobs"]
    if not jobs:
        body = {"corpus": "shakespeare", "minutes": 0.1, "promote": "never"}
        jobs = [client.post("/retrain", json=body).json()]
    eventually(lambda: client.get(f"/jobs/{jobs[0]['job_id']}").json()["state"] == "finished", within_s=300)
    client.close()
    v.open("learn")
    v.page.wait_for_selector("#models tr")
    v.page.wait_for_selector("#curve polyline.val", state="attached")
    v.page.wait_for_selector("#samples pre")


def serve(v: Visit) -> None:
    v.open("serve")
    v.page.wait_for_selector(".tile")
    v.page.wait_for_timeout(2500)


def key(v: Visit) -> None:
    v.open("learn")
    v.page.evaluate("() => document.querySelector('#key').showModal()")


VIEWS = {f.__name__: f for f in (write, fork, wrong, why, inside, learn, serve, key)}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_can_be_seen_and_read_by_all(visit: Visiting, shown: Service, view: str, how: str) -> None:
    """axe finds nothing serious, nothing is wider than the window, no text is cut; and it is photographed."""
    v = visit(shown, **HOW[how])
    VIEWS[view](v)
    SHOTS.mkdir(parents=True, exist_ok=True)
    size = v.page.viewport_size
    height = max(size["height"], v.page.evaluate("() => document.documentElement.scrollHeight"))
    v.page.set_viewport_size({**size, "height": height})  # not full_page: what was never in sight is not drawn there
    v.page.evaluate("() => scrollTo({top: 0, behavior: 'instant'})")
    v.page.wait_for_timeout(100)
    v.page.screenshot(path=SHOTS / f"{view}-{how}.png")
    v.page.evaluate(AXE.read_text())
    found = v.page.evaluate("() => axe.run({resultTypes: ['violations']})")
    serious = [
        f"{rule['id']}: {node['target']} {node['failureSummary']}"
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]
    assert serious == []
    wide = v.page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0
    assert v.page.evaluate(CUT) == []


CUT = """() => [...document.querySelectorAll('button, label, th, td, dd, dt, h1, h2, h3, h4, p, a, caption')]
  .filter(e => e.checkVisibility() && !e.matches('.heard, .skip') && !e.closest('thead'))
  .filter(e => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== 'inline')
  .map(e => e.tagName + ': ' + e.textContent.slice(0, 60))"""


def test_numbers_have_units(visit: Visiting, shown: Service) -> None:
    """Losses are told per character, surprise in bits, times in seconds or milliseconds."""
    v = visit(shown)
    write(v)
    assert "bits of surprise" in v.pane().locator("[data-part=panel]").inner_text()
    assert "characters/s" in v.status()
    learn(v)
    assert v.page.get_by_role("columnheader", name="Validation loss, per character").count() == 1
    assert " nats = " in v.page.locator("#models").inner_text()
    serve(v)
    assert " ms" in v.page.locator("#tiles").inner_text()


def test_the_first_paint_is_quick(visit: Visiting, shown: Service) -> None:
    """On this machine within a second, in the better of three visits: others compute here, too."""
    paints = []
    for _ in range(3):
        v = visit(shown).open()
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
    """The fewest frames in any second of those that were timed."""
    seconds = [a for a in at if a + 1000 <= at[-1]]
    return min(sum(a <= b < a + 1000 for b in at) for a in seconds)


def test_a_long_text_streams_and_scrolls_smoothly(visit: Visiting, shown: Service) -> None:
    """10,000 characters: at least 30 frames in every second while they stream in and while they are scrolled through.

    The best of three tries: what else computes on the machine takes frames, too.
    """
    best = {"stream": 0, "scroll": 0}
    for _ in range(3):
        v = visit(shown).open()
        v.page.check("[data-part=coloured]")
        v.ask(prompt=PROMPT, max_chars=10_000, seed=3)
        streamed = v.page.evaluate(FRAMES, 3000)
        v.until_written(timeout_s=180)
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
