"""An exported page in a browser, from a file and without a network: our text, to the character."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.checkpoints.file_format import Checkpoint
from model.config import ModelConfig
from model.export.page.render import to_page
from model.network.char_rnn import CharRNN
from model.network.gates import gate_activations
from model.network.sampling import SamplingParams
from model.stepper.choose import choose
from model.stepper.generate import write
from model.text.items.layout import ItemLayout
from model.text.items.record import ItemRecord
from model.text.vocab import Vocabulary
from tests.conftest import random_checkpoint
from tests.e2e.page import browser as chromium
from tests.e2e.page.conftest import Visit
from tests.e2e.page.test_appearance import AXE, DEVICES
from tests.model.export.test_page import HOSTILE, NAME
from tests.model.export.trained import trained
from tests.servers import Service

pytestmark = pytest.mark.usefixtures("native_code")
NO_WASM = "delete globalThis.WebAssembly"


def of_a_list() -> Checkpoint:
    return replace(random_checkpoint(n_layers=2), items=ItemRecord(ItemLayout("lines"), 10, 2, 0, 12))


def of_the_quick_preset() -> Checkpoint:
    """The shape that the quick preset has on the default text, with random weights."""
    torch.manual_seed(0)
    config = ModelConfig(84, 320, 1, 64)
    network = CharRNN(config)
    network.head.weight.data.mul_(12)
    vocab = Vocabulary("\n" + "".join(map(chr, range(32, 115))))
    return Checkpoint(config, vocab, dict(network.state_dict()), 2.5, 100, 10, 2.5, "0" * 64, {})


CHECKPOINTS: dict[str, Callable[[], Checkpoint]] = {
    "1 x 24": trained,
    "2 x 24": lambda: trained(n_layers=2),
    "3 x 21": lambda: random_checkpoint(n_layers=3, n_hidden=21),
    "1 x 320": of_the_quick_preset,
    "list": of_a_list,
    "hostile": lambda: random_checkpoint(alphabet=HOSTILE),
}


@dataclass
class Exported:
    """An open page; what it requests, prints or does not allow is collected."""

    page: Any
    url: str
    problems: list[str] = field(default_factory=list)

    def open(self) -> Exported:
        self.page.on("console", lambda m: self.problems.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda e: self.problems.append(f"uncaught: {e}"))
        self.page.on("dialog", lambda d: self.problems.append(f"dialog: {d.message}"))
        self.page.on("request", lambda r: self.problems.append(r.url) if r.url != self.url else None)
        self.page.goto(self.url)
        self.page.locator("#start:enabled").wait_for()
        return self

    def write(self, prompt: str = "", **fields: float) -> str:
        """Press the button, wait for the end, and return the text."""
        for name, value in {"prompt": prompt, **fields}.items():
            self.page.fill(f"#{name}", str(value))
        self.page.click("#start")
        self.page.locator("#stop:disabled").wait_for()
        return self.text()

    def text(self) -> str:
        text: str = self.page.locator("#text").evaluate("e => e.textContent")
        return text

    def status(self) -> str:
        status: str = self.page.inner_text("#status")
        return status


Opening = Callable[..., Exported]


@pytest.fixture
def exported(browser: Any, tmp_path: Path) -> Iterator[Opening]:
    """A function that opens the page of a checkpoint offline; `script` runs before the page's own."""
    contexts: list[Any] = []
    pages: list[Exported] = []

    def new(
        checkpoint: Checkpoint, name: str = "m", script: str = "", in_browser: Any = None, **options: Any
    ) -> Exported:
        path = tmp_path / f"{len(contexts)}.html"
        path.write_bytes(to_page(checkpoint, name))
        contexts.append((in_browser or browser).new_context(offline=True, **options))
        contexts[-1].set_default_timeout(60_000)
        page = contexts[-1].new_page()
        if script:
            page.add_init_script(script)
        pages.append(Exported(page, path.as_uri()).open())
        return pages[-1]

    yield new
    for context in contexts:
        context.close()
    assert [problem for page in pages for problem in page.problems] == []


def ours(checkpoint: Checkpoint, prompt: str, n: int, temperature: float, seed: int = 1) -> str:
    """What the service writes with int8 weights."""
    stepper, reason = choose(checkpoint.network(), n_slots=1, device="cpu", precision="int8")
    assert reason == "native, int8"
    params = SamplingParams(temperature=temperature)
    text = prompt + "".join(write(stepper, checkpoint.vocab, prompt, n, params, seed))
    return text.replace("\ud800", "\ufffd")  # half a character does not come out of the browser as it is


@pytest.mark.parametrize("engine", ["WebAssembly", "plain JavaScript"])
@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_the_text_is_ours(kind: str, engine: str, exported: Opening) -> None:
    """Greedy and sampled, with and without a prompt, in WebAssembly and without it: the service's int8 text."""
    checkpoint = CHECKPOINTS[kind]()
    page = exported(checkpoint, script=NO_WASM if engine == "plain JavaScript" else "")
    prompt = ours(checkpoint, "", 7, 1.0, 9)
    if kind == "hostile":
        prompt = "<script>"  # a text field has none of these
    assert page.write("", temperature=0, count=500) == ours(checkpoint, "", 500, 0)
    assert page.write(prompt, temperature=0, count=500) == ours(checkpoint, prompt, 500, 0)
    for temperature, seed in ((1, 3), (0.7, 2**63 - 1)):
        text = page.write(prompt, temperature=temperature, seed=seed, count=500)
        assert text == ours(checkpoint, prompt, 500, temperature, seed)
    assert engine in page.status()


def test_two_browsers_write_the_same(browser: Any, exported: Opening) -> None:
    """A seed is a text: another process of the browser writes it again."""
    args = ["--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    other = browser.browser_type.launch(executable_path=chromium.find(), args=args)
    try:
        texts = [exported(trained(), in_browser=b).write("tea ", seed=77, count=1000) for b in (browser, other)]
    finally:
        other.close()
    assert texts[0] == texts[1] == ours(trained(), "tea ", 1000, 0.8, 77)


def test_the_file_is_small() -> None:
    """At most 1.6 times a byte for each weight, and 100 KB."""
    checkpoint = of_the_quick_preset()
    assert len(to_page(checkpoint, "m")) <= 1.6 * checkpoint.config.n_parameters + 100_000


def test_hostile_names_and_characters_are_shown(exported: Opening) -> None:
    """Markup in the vocabulary, in the name and in what is written stays text; no script of theirs runs."""
    checkpoint = random_checkpoint(alphabet=HOSTILE)
    page = exported(checkpoint, NAME)
    assert page.page.inner_text("h1").replace("\ufffd", "") == NAME.replace("\u2028", "").replace("\0", "")
    prompt = "</script><script>alert(1)</script>"
    assert page.write(prompt, temperature=1, count=300) == ours(checkpoint, prompt, 300, 1)
    assert page.page.locator("#text script, #text img, h1 img").count() == 0
    assert page.page.locator("script").count() == 3


def test_nothing_else_runs_or_loads(exported: Opening) -> None:
    """The policy stops a script that somebody adds, and every connection."""
    page = exported(random_checkpoint())
    ran = page.page.evaluate("""async () => {
        const script = document.createElement("script");
        script.textContent = "globalThis.ran = true";
        document.body.append(script);
        const image = new Image();
        const failed = new Promise((resolve) => { image.onerror = () => resolve(true); });
        image.src = "data:image/gif;base64,R0lGODlhAQABAAAAACw=";
        const connected = await fetch("data:,x").then(() => true, () => false);
        return [globalThis.ran ?? false, connected, await failed];
    }""")
    assert ran == [False, False, True]
    assert len(page.problems) >= 3
    assert all("Content Security Policy" in problem or problem.startswith("data:") for problem in page.problems)
    page.problems.clear()


def test_the_gates_of_a_unit(exported: Opening) -> None:
    """A chosen character shows the unit's gates after it, near those of the network; the text is colored by them."""
    checkpoint, prompt = trained(n_layers=2), "tea coffee milk\nsugar "
    page = exported(checkpoint)
    text = page.write(prompt, temperature=1, count=50)
    layers = gate_activations(checkpoint.network(), [checkpoint.vocab.start, *checkpoint.vocab.encode(text)])
    page.page.fill("#layer", "2")
    page.page.fill("#unit", "5")
    page.page.locator("#text").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft"):
        page.page.keyboard.press(key)
    details = page.page.locator("#details", has_text="Character 2, ")
    details.wait_for()
    displayed = dict(
        part.split(" ") for part in details.inner_text().partition("after it: ")[2].rstrip(".").split(", ")
    )
    for name in "ifgoch":
        assert float(displayed[name]) == pytest.approx(getattr(layers[1], name)[2, 4], abs=0.05), name
    page.page.select_option("#color", "4")
    page.page.locator("#text [class^=hot], #text [class^=cold]").first.wait_for()
    assert page.text() == text
    signs = page.page.locator("#text span").evaluate_all(
        "spans => spans.flatMap(s => [...s.textContent].map(() => s.className[0] ?? ''))"
    )
    cell = layers[1].c[1:, 4]
    clear = np.abs(cell) > 0.05
    assert [sign for sign, ok in zip(signs, clear, strict=True) if ok] == [
        "h" if value > 0 else "c" for value in cell[clear]
    ]


def test_keys_and_colors_in_one_moment(exported: Opening) -> None:
    """Keys that come faster than the page reads all count, and a color that is chosen between them is shown."""
    page = exported(trained(n_layers=2))
    page.write("tea coffee milk\nsugar ", temperature=1, count=50)
    page.page.evaluate(
        """() => {
          const [text, color] = ["text", "color"].map((id) => document.getElementById(id));
          const press = (key) => text.dispatchEvent(new KeyboardEvent("keydown", { key }));
          for (let i = 0; i < 20; i++) press("ArrowRight");
          color.value = "4";
          color.dispatchEvent(new Event("change"));
          for (let i = 0; i < 5; i++) press("ArrowLeft");
        }"""
    )
    page.page.locator("#details", has_text="Character 15, ").wait_for()
    page.page.locator("#text [class^=hot], #text [class^=cold]").first.wait_for()
    assert page.page.locator("#text .chosen").count() == 1
    assert "Character 15, " in page.page.inner_text("#details")


def test_the_list_of_models_has_it(
    visit: Callable[..., Visit], page_service: Service, tiny: Checkpoint, browser: Any, tmp_path: Path
) -> None:
    """The button's file, opened from the disk and offline, writes what the service writes."""
    page = visit(page_service).open("train").page
    row = page.locator(f"tr[data-model='{tiny.fingerprint}']")
    with page.expect_download() as download:
        row.get_by_role("button", name="Download page").click()
    assert download.value.suggested_filename == tiny.file_name.replace(".safetensors", "-page.html")
    path = tmp_path / "page.html"
    download.value.save_as(path)
    context = browser.new_context(offline=True)
    exported_page = Exported(context.new_page(), path.as_uri()).open()
    assert exported_page.write("hello", temperature=0.8, seed=3, count=200) == ours(tiny, "hello", 200, 0.8, 3)
    assert exported_page.problems == []
    context.close()


def test_wrong_input_is_explained(exported: Opening) -> None:
    """A character that the model lacks is named; a setting out of range is not used."""
    page = exported(trained())
    page.page.fill("#prompt", "tea Ω")
    page.page.click("#start")
    assert page.page.inner_text("#problem") == 'The model does not know "Ω" (U+03A9).'
    page.page.fill("#prompt", "tea")
    page.page.fill("#seed", "-1")
    page.page.click("#start")
    assert page.text() == ""
    assert page.page.locator("#seed:invalid").count() == 1


def test_stop_ends_it(exported: Opening) -> None:
    """A long text stops where the button is pressed; what was written stays."""
    page = exported(trained())
    page.page.fill("#count", "1000000")
    page.page.click("#start")
    page.page.locator("#text span").first.wait_for()
    page.page.click("#stop")
    page.page.locator("#status", has_text="a second").wait_for()
    text = page.text()
    assert 0 < len(text) < 1_000_000
    assert page.page.inner_text("#status").startswith("Stopped: ")
    assert text == ours(trained(), "", len(text), 0.8)


def test_a_color_ends_no_text(exported: Opening) -> None:
    """One that is chosen while the page writes is shown when the text is whole, or stopped."""
    page = exported(trained())
    for count, says in ((30_000, "30,000 characters, "), (1_000_000, "Stopped: ")):
        page.page.select_option("#color", "none")
        page.page.fill("#count", str(count))
        page.page.click("#start")
        page.page.locator("#status", has_text="Writing").wait_for()
        page.page.locator("#text span").first.wait_for()
        page.page.select_option("#color", "4")
        if says == "Stopped: ":
            page.page.click("#stop")
        page.page.locator("#status", has_text="a second").wait_for()
        page.page.locator("#text div:first-child [class^=hot], #text div:first-child [class^=cold]").first.wait_for()
        assert page.page.inner_text("#status").startswith(says)


@pytest.mark.parametrize("device", DEVICES)
def test_it_is_accessible_and_fits(device: str, exported: Opening) -> None:
    """No violation of axe with colors and details on, and nothing wider than the screen."""
    page = exported(trained(), "a name", bypass_csp=True, **DEVICES[device])
    page.write("tea ", temperature=1, count=400)
    page.page.select_option("#color", "4")
    page.page.locator("#text [class^=hot], #text [class^=cold]").first.wait_for()
    page.page.locator("#text").press("ArrowRight")
    page.page.locator("#details", has_text="Character 1,").wait_for()
    page.page.evaluate(AXE.read_text())
    violations = page.page.evaluate(
        "async () => (await axe.run()).violations.map(v => [v.id, v.impact, v.nodes[0].html])"
    )
    assert violations == []
    assert page.page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
