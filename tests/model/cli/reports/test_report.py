"""The report on a model: one page without scripts, whose figures are those of the model and its corpus."""

from __future__ import annotations

import base64
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from model.checkpoints import registry
from model.checkpoints.file_format import load
from model.cli import main
from model.export.report import ReportExtent, to_report
from tests.model.cli.test_lists import NAMES, TRAIN


class Page(HTMLParser):
    """A page's table rows, marked passages, plots and tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: dict[str, str] = {}
        self.marked: list[str] = []
        self.plots: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self._open: list[str] = []
        self._name = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open.append(tag)
        self.tags.add(tag)
        values = [value or "" for name, value in attrs if name in ("src", "href")]
        self.links += values
        if tag == "img":
            self.plots.append(base64.b64decode(values[0].removeprefix("data:image/svg+xml;base64,")).decode())
        if tag == "mark":
            self.marked.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        tag = self._open[-1] if self._open else ""
        if tag == "th":
            self._name = data
        elif tag == "td":
            self.rows[self._name] = data
        elif tag == "mark":
            self.marked[-1] += data


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a promoted model of names, which have all the characters of markup, and its corpus."""
    folder = tmp_path_factory.mktemp("names")
    (folder / "names.txt").write_text("\n".join([*NAMES, *(f"<b>{n}</b>&" for n in range(60))]))
    arguments = ["train", str(folder / "names.txt"), "--items", "lines", "--val-fraction", "0.3"]
    assert main([*arguments, "--out", str(folder / "models"), *TRAIN]) == 0
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a promoted model of a text."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text("".join(f"the {n % 7} cats <sat> on {n % 11} mats.\n" for n in range(900)))
    assert main(["train", str(folder / "text.txt"), "--out", str(folder / "models"), *TRAIN]) == 0
    return folder


def report(folder: Path, *arguments: str) -> Page:
    """Make a report of the promoted model, and check what holds for every page."""
    out = folder / "report.html"
    assert main(["report", "--store", str(folder / "models"), "--out", str(out), *arguments]) == 0
    written = out.read_text()
    page = Page(written)
    assert not page.tags & {"script", "link", "iframe", "object", "b"}
    assert all(link.startswith("data:image/svg+xml;base64,") for link in page.links)
    for plot in page.plots:
        assert ElementTree.fromstring(plot).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314 - our own
        assert "<script" not in plot
    assert main(["report", "--store", str(folder / "models"), "--out", str(out), *arguments]) == 0
    assert out.read_text() == written
    return page


def test_the_figures_of_a_list_are_those_of_its_items(names: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As many training and held-out items as `sample` generates; the corpus and the losses come from the run."""
    page = report(names, "--items", "500", "--seed", "3")
    capsys.readouterr()
    command = ["sample", "--store", str(names / "models"), "--items", "500", "--seed", "3", "--no-unique"]
    assert main([*command, "--min-chars", "0", "--json"]) == 0
    items = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    corpus = set((names / "names.txt").read_text().split("\n"))
    seen = sum(item["seen_in_training"] for item in items)
    held_out = sum(item["text"] in corpus and not item["seen_in_training"] for item in items)
    assert page.rows["generated items"] == "500"
    assert page.rows["training items"] == f"{seen} ({seen / 500:.2%})"
    assert page.rows["held-out items"] == f"{held_out} ({held_out / 500:.2%})"
    assert page.rows["training items that are expected"].endswith("%")
    (curves, novelty, lengths) = page.plots
    assert "validation (items)" in curves
    assert "no training item" in novelty
    assert "held-out" in lengths
    for item in items[:10]:
        assert item["text"] in page.rows or not item["text"]


def test_the_longest_copied_run_of_a_text_is_marked(text: Path) -> None:
    """It is in the training text, and each sample has one; a held-out passage has its own beside it."""
    page = report(text, "--max-chars", "400")
    corpus = (text / "text.txt").read_text()
    training = corpus[: -int(len(corpus) * 0.1)]
    assert len(page.marked) == 3
    for n, marked in enumerate(page.marked, 1):
        assert marked in training
        own = page.rows[f"sample {n}: the longest run that is in the training text"]
        assert own == f"{len(marked):,} characters: {marked!r}"
        assert re.match(r"\d+ characters: ", page.rows[f"a held-out passage of 400 characters: the same ({n})"])
    assert len(page.plots) == 1


def test_without_the_corpus_the_rest_is_there(names: Path, text: Path, tmp_path: Path) -> None:
    """A model that lies alone has no loss curves and no held-out items; the page says what is missing."""
    for folder in (names, text):
        alone = tmp_path / folder.name / "models"
        alone.mkdir(parents=True)
        path = registry.promoted_path(folder / "models")
        assert path is not None
        (alone / path.name).write_bytes(path.read_bytes())
        registry.promote(alone / path.name)
        page = report(alone.parent)
        assert page.rows["corpus"].endswith("not at hand")
        assert any("the corpus is not at hand (--corpus)" in value for value in page.rows.values())
        named = report(alone.parent, "--corpus", str(folder / f"{'names' if folder == names else 'text'}.txt"))
        assert not named.rows["corpus"].endswith("not at hand")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x.safetensors"], "out: got 'x.safetensors', expected a file that ends in .html"),
        (["--max-chars", "9"], "max_chars: got 9, expected none: it is for a model of a text"),
        (["--corpus", "missing.txt"], "cannot be read (No such file or directory)"),
        (["--run", "missing"], "run missing: not a run's folder"),
    ],
)
def test_arguments_that_do_not_fit(
    names: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, and no page."""
    capsys.readouterr()
    assert main(["report", "--store", str(names / "models"), *arguments]) in (1, 2)
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_another_corpus_is_refused(names: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Named by its hash, beside the one of the model."""
    other = names / "other.txt"
    other.write_text((names / "names.txt").read_text() + "\none more")
    capsys.readouterr()
    assert main(["report", "--store", str(names / "models"), "--corpus", str(other)]) == 2
    assert "expected the corpus of the model, sha256 " in capsys.readouterr().err
    assert main(["report", "--store", str(text / "models"), "--items", "5"]) == 2
    assert "items: got 5, expected none: it is for a model of a list" in capsys.readouterr().err


def test_without_matplotlib_a_report_has_its_figures_as_numbers(names: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the report of a job in the image, which has no matplotlib; the command asks for it before any work."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    path = registry.promoted_path(names / "models")
    assert path is not None
    page = Page(to_report(path, load(path), None, [], ReportExtent(items=50)).decode())
    assert page.rows["generated items"] == "50"
    assert page.rows["plots"].startswith("left out")
    assert page.plots == []
    assert page.rows["generated: mean, median, longest"]


def test_a_report_ends_in_time(names: Path) -> None:
    """With the items that there are by then."""
    path = registry.promoted_path(names / "models")
    assert path is not None
    page = Page(to_report(path, load(path), None, [], ReportExtent(items=1_000_000, seconds=0.5)).decode())
    assert 0 < int(page.rows["generated items"].replace(",", "")) < 1_000_000
