"""The first minute: which model writes, an example in one click, another seed, two models, lists, nothing lost."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from model.checkpoints import registry
from model.checkpoints.file_format import Checkpoint
from tests.conftest import random_checkpoint
from tests.e2e.page.conftest import Visit
from tests.integration.lists import list_checkpoint, store_of
from tests.servers import RedisServer, Service

Visiting = Callable[..., Visit]
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
def two_models(
    tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer
) -> Iterator[tuple[Service, list[Checkpoint]]]:
    """A service with two models, of which the first is promoted."""
    folder = tmp_path_factory.mktemp("two")
    models = [random_checkpoint(seed=1), random_checkpoint(seed=2)]
    paths = [model.save(folder) for model in models]
    registry.promote(paths[0])
    with Service(CHECKPOINT_DIR=str(folder), REDIS_URL=redis_server.url) as service:
        yield service, models


@pytest.fixture(scope="module")
def list_service(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Service]:
    """A service whose model is of a list."""
    folder = store_of(tmp_path_factory.mktemp("list"), list_checkpoint())
    with Service(CHECKPOINT_DIR=str(folder), REDIS_URL=redis_server.url) as service:
        yield service


def chips(v: Visit, pane: str = "main") -> Any:
    v.pane(pane).locator(".chip").first.wait_for()
    return v.pane(pane).locator(".chip")


@pytest.mark.parametrize("device", [{}, PHONE], ids=["desktop", "phone"])
def test_a_text_in_one_click(visit: Visiting, service: Service, device: dict[str, Any]) -> None:
    """The page says which model writes; an example is what the model wrote; the text is in view when it comes."""
    v = visit(service, **device).open()
    written = service.client.post("/generate", json={"n": 6, "max_chars": 120, "temperature": 0.7, "seed": 1}).json()
    first = chips(v).first
    example = first.inner_text()
    assert any(example in result["text"] for result in written["results"])
    assert "bits per character" in v.pane().locator("[data-part=model-name]").inner_text()
    first.click()
    text = v.wait_until_done()
    assert text.startswith(example)
    assert len(text) >= 200
    v.page.wait_for_function(  # the page scrolls smoothly
        "() => { const box = document.querySelector('.letters')?.getBoundingClientRect();"
        " return box?.top >= 0 && box.top < 0.7 * innerHeight }"
    )


def test_try_again_draws_another_seed(visit: Visiting, service: Service) -> None:
    """Another text after the same prompt, in a session that is its own; with “same seed” the same text again."""
    v = visit(service).open()
    v.generate(prompt="hello", max_chars=60)
    texts = [v.wait_until_done()]
    again = v.pane().get_by_role("button", name="Try again")
    for _ in range(2):
        again.click()
        texts.append(v.wait_until_done())
    assert len(set(texts)) == 3
    assert all(text.startswith("hello") and len(text) == 65 for text in texts)
    v.page.check("[data-part=same-seed]")
    again.click()
    assert v.wait_until_done() == texts[-1]
    v.page.uncheck("[data-part=same-seed]")
    v.generate(prompt=" and", max_chars=30)
    longer = v.wait_until_done()
    assert longer.startswith(texts[-1] + " and")
    again.click()
    last = v.wait_until_done()
    assert last.startswith(texts[-1] + " and")
    assert (len(last), last == longer) == (len(longer), False)


def test_going_on_from_a_character_draws_another_seed(visit: Visiting, service: Service) -> None:
    """The field says random, so it is."""
    v = visit(service).open()
    v.generate(prompt="hello", max_chars=80)
    before = v.wait_until_done()
    v.character(20).click()
    v.pane().get_by_role("button", name="Continue from here").click()
    after = v.wait_until_done()
    assert after[:21] == before[:21]
    assert after[21:85] != before[21:85]


def test_shortcuts(visit: Visiting, service: Service) -> None:
    """Ctrl+Enter writes from within the prompt, Esc stops."""
    v = visit(service).open()
    v.unfold()
    v.page.fill("#main-max_chars", "100000")
    v.page.focus("#main-prompt")
    v.page.keyboard.press("Control+Enter")
    v.page.wait_for_function("() => document.querySelector('.letters')?.textContent.length > 200")
    v.page.keyboard.press("Escape")
    assert len(v.wait_until_done()) < 100_000
    assert "Stopped" in v.status()


def test_new_and_back_lose_nothing(visit: Visiting, service: Service) -> None:
    """The text before is behind Back and in the list of recent texts; a reload knows what was the prompt."""
    v = visit(service).open()
    v.generate(prompt="hello", max_chars=40)
    first = v.wait_until_done()
    v.pane().get_by_role("button", name="New").click()
    assert v.text() == ""
    v.generate(prompt="so it", max_chars=40)
    second = v.wait_until_done()
    displayed = "t => document.querySelector('.letters')?.textContent === t"
    v.page.go_back()
    v.page.wait_for_function(displayed, arg=first)
    v.page.locator("#recent summary").click()
    v.page.locator("#recent-list button", has_text="so it").click()
    v.page.wait_for_function(displayed, arg=second)
    v.page.reload()
    v.page.wait_for_function(displayed, arg=second)
    assert v.page.locator(".letters .prompt").all_inner_texts() == list("so it")


def test_unknown_characters_are_named_and_skipped(visit: Visiting, service: Service) -> None:
    """Which ones, in plain words; the button skips them, and their number is said."""
    v = visit(service).open()
    v.allowed.append("422")
    v.generate(prompt="KING hello KING", max_chars=30, seed=7)
    note = v.page.locator("#main-prompt-error")
    note.wait_for()
    assert note.inner_text().startswith("This model has never seen K, I, N, G.")
    note.get_by_role("button", name="Skip them").click()
    text = v.wait_until_done()
    assert text.startswith(" hello ")
    assert len(text) == 37
    assert "8 characters that the model has never seen were skipped." in v.status()


def test_two_models_side_by_side(visit: Visiting, two_models: tuple[Service, list[Checkpoint]]) -> None:
    """The fork's text is the other model's own, nothing is promoted, and the first text is as it was."""
    service, (served, other) = two_models
    v = visit(service).open()
    v.generate(prompt="hello", max_chars=50, seed=7)
    text = v.wait_until_done()
    v.character(4).click()
    v.pane().get_by_role("button", name="Fork").click()
    fork = v.pane("fork")
    fork.wait_for()
    assert v.page.locator(".removed").count() == 0
    fork.locator("#fork-model").fill(other.fingerprint)
    fork.locator("#fork-model").press("Enter")
    fork.get_by_text(f"({other.fingerprint})").wait_for()
    v.generate("fork", max_chars=50)
    expected = service.generate(prompt="hello", max_chars=50, seed=7, model=other.fingerprint)
    assert v.wait_until_done("fork") == "hello" + expected["text"]
    assert v.text() == text
    assert service.client.get("/model").json()["id"] == served.fingerprint
    v.page.reload()
    v.page.wait_for_function(
        "t => document.querySelectorAll('.letters')[1]?.textContent === t", arg="hello" + expected["text"]
    )


def test_a_session_of_another_model_goes_on(visit: Visiting, two_models: tuple[Service, list[Checkpoint]]) -> None:
    """Its text is shown without an error, and the served model continues it after reading it."""
    service, (_, other) = two_models
    session = service.generate(prompt="hello", max_chars=50, seed=7, model=other.fingerprint)
    v = visit(service).open(f"generate?s={session['session_id']}")
    v.pane().get_by_text("Another model wrote it").wait_for()
    assert v.pane().locator("[data-part=status].error").count() == 0
    assert v.text() == "hello" + session["text"]
    v.generate(max_chars=30)
    assert len(v.wait_until_done()) == 85
    assert "Another model wrote the text before." in v.pane().locator("[data-part=note]").inner_text()


@pytest.mark.parametrize("device", [{}, PHONE], ids=["desktop", "phone"])
def test_a_list_is_written_as_items(visit: Visiting, list_service: Service, device: dict[str, Any]) -> None:
    """One click: items in rows, whole and different, as `items` gives them; Copy gives one a line."""
    v = visit(list_service, **device).open()
    chips(v).last.click()
    v.wait_until_done()
    items = v.page.locator(".items .item").all_inner_texts()
    assert len(set(items)) == 20
    assert re.match(r"20 of 20 items", v.status())
    begins = chips(v).first
    letters = begins.inner_text().rstrip("…")
    begins.click()
    v.page.wait_for_function(
        "l => { const all = [...document.querySelectorAll('.items .item')];"
        " return all.length && all.every(e => e.textContent.startsWith(l)) }",
        arg=letters,
    )


def test_two_bad_fields_are_both_marked(visit: Visiting, service: Service) -> None:
    """Each with its own message, also those that were folded away."""
    v = visit(service).open()
    v.allowed.append("422")
    v.unfold()
    v.page.fill("#main-temperature", "hot")
    v.page.fill("#main-top_k", "-1")
    v.pane().locator("[data-part=more]").evaluate("e => { e.open = false }")
    v.pane().locator("[data-part=generate]").click()
    for name in ("temperature", "top_k"):
        v.page.locator(f"#main-{name}-error").wait_for()
        assert v.page.locator(f"#main-{name}-error").inner_text().startswith(name)


def test_a_view_begins_at_its_top(visit: Visiting, service: Service) -> None:
    """Wherever the one before was scrolled to."""
    v = visit(service, viewport={"width": 390, "height": 500}).open()
    v.page.evaluate("() => scrollTo({top: document.documentElement.scrollHeight, behavior: 'instant'})")
    v.page.evaluate("() => { location.hash = '#inspect' }")
    v.page.locator("#view-inspect").wait_for()
    assert v.page.evaluate("() => scrollY") == 0


def write_list(v: Visit, **fields: Any) -> list[str]:
    """Fill in fields, write a list, and return its items when all are there."""
    v.unfold()
    for name, value in fields.items():
        v.page.fill(f"#main-{name}", str(value))
    v.pane().get_by_role("button", name="Write a list").click()
    v.wait_until_done()
    items: list[str] = v.page.locator(".items .item").all_inner_texts()
    return items


def test_a_failed_request_keeps_what_is_shown(visit: Visiting, list_service: Service, service: Service) -> None:
    """The list, or the text, stays until the first new item or character; without a result nothing can be copied."""
    v = visit(list_service).open()
    v.allowed.append("422")
    chips(v)
    result = [v.pane().locator(f"[data-part={part}]") for part in ("copy", "save", "link")]
    assert all(button.is_disabled() for button in result)
    v.unfold()
    v.page.fill("#main-temperature", "hot")
    v.pane().get_by_role("button", name="Write a list").click()
    v.page.locator("#main-temperature-error").wait_for()
    assert all(button.is_disabled() for button in result)
    items = write_list(v, temperature=1, items=12)
    assert len(items) == 12
    v.page.fill("#main-temperature", "hot")
    v.pane().get_by_role("button", name="Write a list").click()
    v.page.locator("#main-temperature-error").wait_for()
    assert v.page.locator(".items .item").all_inner_texts() == items
    assert all(button.is_enabled() for button in result)
    with v.page.expect_download() as download:
        result[1].click()
    assert download.value.path().read_text() == "".join(f"{item}\n" for item in items)

    v = visit(service).open()
    v.allowed.append("422")
    v.generate(prompt="hello", max_chars=40)
    text = v.wait_until_done()
    v.page.fill("#main-temperature", "hot")
    for press in (v.pane().get_by_role("button", name="Try again"), chips(v).first):
        press.click()
        v.page.locator("#main-temperature-error").wait_for()
        v.wait_until_done()
        assert v.text() == text


def test_a_list_has_an_address(visit: Visiting, list_service: Service) -> None:
    """Its link writes the same items elsewhere, and so does its line in Recent texts; the command has its seed."""
    v = visit(list_service).open()
    chips(v)
    items = write_list(v, prompt="a", items=7, temperature=1.3)
    address = v.page.url
    seed = int(re.search(r"seed (\d+)", v.status())[1])  # type: ignore[index]
    v.pane().get_by_role("button", name="Copy as curl").click()
    assert f'"seed":{seed}' in v.pane().locator("[data-part=command]").inner_text()
    other = visit(list_service)
    other.page.goto(address)
    other.page.wait_for_function("() => document.querySelectorAll('.items .item').length === 7")
    other.wait_until_done()
    assert other.page.locator(".items .item").all_inner_texts() == items
    assert [other.page.input_value(f"#main-{name}") for name in ("prompt", "items", "temperature", "seed")] == [
        *("a", "7", "1.3", "")
    ]
    assert write_list(v, items=5) != items
    v.page.locator("#recent summary").click()
    lines = v.page.locator("#recent-list button")
    lines.nth(1).click()
    v.page.wait_for_function("() => document.querySelectorAll('.items .item').length === 7")
    v.wait_until_done()
    assert v.page.locator(".items .item").all_inner_texts() == items
    damaged = visit(list_service).open("generate?s.list=%7B")
    damaged.pane().get_by_text("The address of this list is damaged").wait_for()


def test_what_does_not_hold_for_lists_is_not_offered(visit: Visiting, list_service: Service) -> None:
    """No pattern, no length, no color of characters; bits are explained, and can be sorted by; a file has a name."""
    v = visit(list_service).open()
    chips(v)
    v.unfold()
    unfit = ["#main-structured_outputs", "#main-max_chars", "#main-stop", "[data-part=colors]"]
    assert [v.page.locator(f"[aria-label='A text, main'] {one}").is_visible() for one in unfit] == [False] * 4
    assert "Point at a character" not in v.page.inner_text("#view-generate")
    items = write_list(v, items=10)
    assert "bits of surprise: fewer = more typical" in v.page.inner_text("[data-part=items-about]")
    v.page.check("[data-part=sort]")
    bits = [float(text.split()[0]) for text in v.page.locator(".items .hint").all_inner_texts()]
    assert bits == sorted(bits)
    v.page.uncheck("[data-part=sort]")
    assert v.page.locator(".items .item").all_inner_texts() == items
    with v.page.expect_download() as download:
        v.pane().get_by_role("button", name="Download").click()
    name = download.value.suggested_filename
    assert name.endswith("-list.txt"), "not as the file is named that the model learned"
    assert name not in ("text-list.txt", "default-list.txt")
    v.page.uncheck("[data-part=as-items]")
    assert [v.page.locator(one).first.is_visible() for one in unfit[:3]] == [True] * 3
