"""Lists at the command line: train, sample whole items, score them from files and pipes, and every wrong argument."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from model.cli import main
from tests.servers import ROOT

TRAIN = [
    "--steps",
    "60",
    "--n-hidden",
    "16",
    "--lr",
    "0.02",
    "--validations",
    "3",
    "--batch-size",
    "8",
    "--seq-length",
    "16",
]
NAMES = [f"{first}{second}{n % 7 * 'a'}" for n, first in enumerate("bdfgklmnprstvz" * 15) for second in ("ana", "ilo")]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compressed list of names."""
    path = tmp_path_factory.mktemp("lists") / "names.txt.gz"
    path.write_bytes(gzip.compress(("\n".join(NAMES) + "\n").encode()))
    return path


@pytest.fixture(scope="module")
def store(names: Path) -> Path:
    """A folder with a promoted model of the names."""
    out = names.parent / "models"
    assert main(["train", str(names), "--items", "lines", "--out", str(out), *TRAIN]) == 0
    return out


def output(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> tuple[str, str]:
    """Standard output and error of a command with this exit code."""
    capsys.readouterr()
    assert main(arguments) == code
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_a_list_is_found_out_and_said(names: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The notes say what was found; both losses are in every validation; --items text overrules it."""
    path = tmp_path / "names.txt"
    path.write_text("\n".join(f"{name}{n}" for n, name in enumerate(NAMES)))
    out, _ = output(["train", str(path), "--out", str(tmp_path / "a"), *TRAIN], capsys)
    assert "a list of 420 items, one a line; 420 of them are different" in out
    assert "bits per item" in out
    assert "items protocol" in out
    out, _ = output(["train", str(path), "--items", "text", "--out", str(tmp_path / "b"), *TRAIN], capsys)
    assert "a list of" not in out
    assert "stateful protocol" in out


def test_sampled_items_are_whole_and_come_with_their_probability(
    store: Path, names: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The items as lines and as JSON are the same, and `score` gives each the same probability."""
    command = ["sample", "--store", str(store), "--items", "30", "--seed", "4"]
    lines, _ = output(command, capsys)
    rows = [json.loads(line) for line in output([*command, "--json"], capsys)[0].splitlines()]
    assert [row["text"] for row in rows] == lines.splitlines()
    assert len({row["text"] for row in rows}) == 30
    path = names.parent / "sampled.txt"
    path.write_text(lines)
    scored, _ = output(["score", str(path), "--items", "lines", "--store", str(store), "--each", "--json"], capsys)
    for row, line in zip(rows, scored.splitlines(), strict=True):
        assert json.loads(line)["bits"] == pytest.approx(-row["logprob"] / 0.6931471805599453, abs=1e-9)
    novel, _ = output([*command, "--novel"], capsys)
    assert not set(novel.splitlines()) & {row["text"] for row in rows if row["seen_in_training"]}


def test_fewer_items_than_asked_for_are_said(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What there is comes on standard output, and why it is not more on standard error."""
    out, err = output(["sample", "--store", str(store), "--items", "5000", "--max-chars", "1"], capsys)
    assert len(out.splitlines()) < 30
    assert "of 5000 items: the model has no more such items to give" in err


def test_the_loss_of_the_parts(store: Path, names: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`score` splits the list as the training did: the validation loss is the checkpoint's."""
    out, _ = output(["score", str(names), "--store", str(store)], capsys)
    info, _ = output(["info", "--store", str(store)], capsys)
    loss = next(line for line in info.splitlines() if line.startswith("validation")).split()[1]
    assert f"(items) {loss} nats" in out
    native, _ = output(["score", str(names), "--store", str(store), "--precision", "fp32"], capsys)
    assert f"(items) {loss} nats" in native


def test_lines_of_a_pipe_are_scored_as_they_come(store: Path) -> None:
    """A line is answered before the next one is written, and only those above the rank are shown."""
    command = [sys.executable, "-m", "model", "score", "-", "--store", str(store), "--above", "90", "--json"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in ("bana", "ba?a"):
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
            if line == "ba?a":
                answer = json.loads(process.stdout.readline())
                assert answer["text"] == line
        assert answer == {
            "text": "ba?a", "bits": None, "bits_per_character": None, "peak": {"position": 2, "bits": None},
            "rank": 100.0, "unknown": "?",
        }  # fmt: skip
        process.stdin.close()
        assert process.stdout.read() == ""
        assert process.wait() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "--items", "3", "--min-chars", "9", "--max-chars", "8"], "min_chars: got 9, expected at most"),
        (["sample", "éa", "--items", "3"], "the model's vocabulary lacks 'é'"),
        (["score", "missing.txt", "--items", "lines"], "cannot be read (No such file or directory)"),
        (["score", "--items", "lines"], "corpus: got None, expected a file of items"),
        (["score", "x", "--protocols", "a"], "protocols: got 'a', expected none: a list has the protocol items"),
    ],
)
def test_arguments_that_do_not_fit(
    arguments: list[str], message: str, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that names what would do."""
    capsys.readouterr()
    assert main([*arguments, "--store", str(store)]) in (1, 2)
    assert message in capsys.readouterr().err


def test_a_list_and_options_that_contradict_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Training refuses a list that it cannot use, in one line, before any step."""
    table = tmp_path / "t.csv"
    table.write_text("name,age\n" + "".join(f"n{n},{n}\n" for n in range(200)))
    cases = [
        ([str(table)], "has 2 columns and none was named, expected the column of the items, one of name, age"),
        ([str(table), "--column", "nam"], "has no column 'nam', expected one of name, age"),
        ([str(table), "--items", "lines", "--column", "name"], "column: got 'name', expected none"),
        ([str(table), "--items", "separator"], "separator: got '', expected the string between two items"),
        ([str(table), "--items", "lines", "--max-item-chars", "2"], "the item in line 1 has 8 characters"),
    ]
    for arguments, message in cases:
        capsys.readouterr()
        assert main(["train", *arguments, "--out", str(tmp_path / "out")]) in (1, 2)
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1


def test_novelty_without_the_hashes(names: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model trained with --no-novelty says so, and shows null for each item."""
    out = str(tmp_path / "out")
    assert main(["train", str(names), "--items", "lines", "--no-novelty", "--out", out, *TRAIN]) == 0
    capsys.readouterr()
    assert main(["sample", "--store", out, "--items", "2", "--novel"]) == 2
    assert "novel: the checkpoint has no hashes of its training items" in capsys.readouterr().err
    shown, _ = output(["sample", "--store", out, "--items", "2", "--json"], capsys)
    assert all(json.loads(line)["seen_in_training"] is None for line in shown.splitlines())
