"""Fixtures for the tests of the page: a real browser, in which a console error or a foreign request fails the test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from model.checkpoints import registry
from model.checkpoints.file_format import Checkpoint
from model.checkpoints.names import store_folder
from tests.conftest import ALPHABET, random_checkpoint
from tests.e2e.page import browser as chromium
from tests.servers import RedisServer, Service, Worker

OTHER = "verses"
"""The name of the other model of `page_service`."""
SHOTS = Path(os.environ.get("SCREENSHOTS", "data/screenshots"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium; without one the tests are skipped, with the reason."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError as e:
        pytest.skip(f"playwright is not installed ({e}): make test-browser")
    path = chromium.find()
    if path is None:
        pytest.skip(chromium.reason_for_none())
    with sync_playwright() as playwright:
        # Chromium's sandbox does not work as root, and a container's /dev/shm is often too small.
        args = ["--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        try:
            browser = playwright.chromium.launch(executable_path=path, args=args)
        except Error as e:
            pytest.skip(f"{path} does not start: {str(e).splitlines()[0]}")
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page with the problems that were seen on it, and the actions that the tests share."""

    page: Any
    host: str
    problems: list[str] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)  # substrings of console errors that the test provokes

    def watch(self) -> Visit:
        self.page.on("console", lambda m: self._console(m) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda e: self.problems.append(f"uncaught: {e}"))
        self.page.on("request", lambda r: self._request(r.url))
        return self

    def _console(self, message: Any) -> None:
        if not any(part in message.text for part in self.allowed):
            self.problems.append(f"console: {message.text} ({message.location.get('url')})")

    def _request(self, url: str) -> None:
        if not url.startswith((self.host + "/", "data:", "blob:")):
            self.problems.append(f"request to another host: {url}")

    def open(self, view: str = "generate") -> Visit:
        """Go to a view and wait for it."""
        self.page.goto(f"{self.host}/#{view}")
        self.page.locator(f"#view-{view.partition('?')[0]}").wait_for()
        return self

    def pane(self, name: str = "main") -> Any:
        return self.page.get_by_role("region", name=f"A text, {name}")

    def generate(self, pane: str = "main", **fields: Any) -> None:
        """Fill in fields, of which some are folded away, and press Write."""
        self.unfold(pane)
        for name, value in fields.items():
            self.page.fill(f"#{pane}-{name}", str(value))
        self.pane(pane).locator("[data-part=generate]").click()

    def unfold(self, pane: str = "main") -> None:
        """Show all settings."""
        self.pane(pane).locator("[data-part=more]").evaluate("e => { e.open = true }")

    def text(self, pane: str = "main") -> str:
        text: str = self.pane(pane).locator("[data-part=letters]").evaluate("e => e.textContent")
        return text

    def status(self, pane: str = "main") -> str:
        status: str = self.pane(pane).locator("[data-part=status]").inner_text()
        return status

    def wait_until_done(self, pane: str = "main", timeout_s: float = 60) -> str:
        """Wait for the end of the turn and return the text that is shown."""
        stop = f"document.querySelector('#{pane}-prompt')?.closest('.pane')?.querySelector('[data-part=stop]')"
        self.page.wait_for_function(f"() => {stop}?.disabled", timeout=timeout_s * 1000)
        self.page.evaluate("() => new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")
        return self.text(pane)

    def character(self, index: int, pane: str = "main") -> Any:
        return self.pane(pane).locator(".line > span").nth(index)


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Visit]]:
    """A function that opens a page of a service; options are those of a Playwright context."""
    contexts, visits = [], []

    def new(service: Any, **options: Any) -> Visit:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.set_default_timeout(30_000)
        contexts.append(context)
        visits.append(Visit(context.new_page(), service.url).watch())
        return visits[-1]

    yield new
    for context in contexts:
        context.close()
    assert [problem for visit in visits for problem in visit.problems] == []


@pytest.fixture(scope="session")
def page_service(
    tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer, tiny: Checkpoint
) -> Iterator[Service]:
    """A service with folders of its own. PAGE_CHECKPOINTS names a folder with a trained model for screenshots."""
    folder = tmp_path_factory.mktemp("page")
    checkpoints = folder / "checkpoints"
    given = os.environ.get("PAGE_CHECKPOINTS")
    if given:
        shutil.copytree(given, checkpoints)
    else:
        checkpoints.mkdir()
        registry.promote(tiny.save(checkpoints))
    other = store_folder(checkpoints, OTHER)
    other.mkdir(parents=True, exist_ok=True)
    registry.promote(random_checkpoint(seed=3).save(other))
    settings = {
        "CHECKPOINT_DIR": str(checkpoints),
        "REDIS_URL": redis_server.url,
        "CORPORA_DIR": str(folder / "corpora"),
        "RUNS_DIR": str(folder / "runs"),
    }
    worker = Worker(**settings)
    worker.start()
    try:
        with Service(**settings) as service:
            yield service
    finally:
        worker.stop()


__all__ = ["ALPHABET", "OTHER", "Visit"]
