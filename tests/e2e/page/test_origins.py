"""The page below a path of a proxy, and pages of other origins that use the service."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.page.conftest import Visit
from tests.servers import RedisServer, Service

Visiting = Callable[..., Visit]
FETCH = """async (url) => {
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: '{"max_chars": 5}' };
  try {
    return (await (await fetch(url + "/generate", options)).json()).text.length;
  } catch (error) {
    return String(error);
  }
}"""


class Below:
    """A service as a proxy offers it: below a path."""

    def __init__(self, service: Service, path: str) -> None:
        self.url = service.url + path


@pytest.fixture(scope="module")
def below(store: Path, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Below]:
    folder = str(tmp_path_factory.mktemp("corpora"))
    environment = {"CHECKPOINT_DIR": str(store), "REDIS_URL": redis_server.url, "CORPORA_DIR": folder}
    with Service(**environment, ROOT_PATH="/text/longhand") as service:
        yield Below(service, "/text/longhand")


def test_every_view_works_below_a_path(visit: Visiting, below: Below) -> None:
    """Text, scores, gates, jobs and status; a request outside the path is a failure of the visit."""
    v = visit(below).open()
    v.generate(max_chars=40, prompt="hello")
    assert len(v.wait_until_done()) == 45
    v.page.fill("#main-model", "default")
    v.page.keyboard.press("Enter")
    v.pane().get_by_text("(default)").wait_for()
    v.open("score")
    v.page.fill("#score-text", "so it is")
    v.page.locator("#score button.primary").click()
    v.page.wait_for_function("() => document.querySelector('#score-letters')?.textContent === 'so it is'")
    v.open("inspect")
    v.page.fill("#inspect-text", "so it is")
    v.page.locator("#inspect button.primary").click()
    v.page.wait_for_selector("#view-inspect canvas, #view-inspect svg", state="attached")
    v.open("train")
    v.page.wait_for_function("() => /served/.test(document.querySelector('#models')?.textContent)")
    v.open("status")
    v.page.wait_for_function("() => /since the service started/.test(document.querySelector('#tiles')?.textContent)")


class _Blank(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><link rel=icon href=data:,><title>another site</title>")

    def log_message(self, *_: Any) -> None:
        """Write nothing."""


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """The origin of another site."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Blank) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_page_of_another_origin_works_only_when_configured(
    browser: Any, service: Service, store: Path, elsewhere: str
) -> None:
    """The browser refuses the answer of a service that does not name the page's origin."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(elsewhere)
    with Service(CHECKPOINT_DIR=str(store), REDIS_URL="", CORS_ORIGINS=elsewhere) as configured:
        assert page.evaluate(FETCH, configured.url) == 5
    assert "TypeError" in page.evaluate(FETCH, service.url)
    context.close()
