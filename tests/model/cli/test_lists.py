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


def test_a_list_is_detected_and_stated(names: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The notes say what it is; both losses are in every validation; --items text overrules it."""
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


def test_fewer_items_than_requested_have_a_reason(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_a_text_has_no_loss_of_items(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A corpus that is no list, or is to be read as a text, is refused instead of scored as one item."""
    path = tmp_path / "text.txt"
    path.write_text("bana bilo.\nfana, and\n" * 40)
    for arguments in (["--items", "auto"], ["--items", "text"], ["--items", "auto", "--each"]):
        _, err = output(["score", str(path), *arguments, "--store", str(store)], capsys, 2)
        assert err.startswith(f"error: corpus {path}: it is read as a text, not as a list, expected a list, or"), err


def test_each_line_has_an_answer(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Equal items are printed as often as they occur, also if the training dropped them; blank ones are counted."""
    out, path = str(tmp_path / "models"), tmp_path / "lines.txt"
    path.write_text("\n".join([*NAMES, *NAMES[:50]]))
    assert main(["train", str(path), "--items", "lines", "--duplicates", "drop", "--out", out, *TRAIN]) == 0
    path.write_text("bana\n\nbana\nkilo\nbana\n")
    for folder in (str(store), out):
        lines, err = output(["score", str(path), "--each", "--json", "--store", folder], capsys)
        assert [json.loads(line)["text"] for line in lines.splitlines()] == ["bana", "bana", "kilo", "bana"]
        assert err == "note: 1 blank items were left out\n"
    once, _ = output(["score", str(path), "--each", "--json", "--duplicates", "drop", "--store", out], capsys)
    assert [json.loads(line)["text"] for line in once.splitlines()] == ["bana", "kilo"]


@pytest.mark.parametrize(
    ("arguments", "data"),
    [
        (["--column", "name"], "id,name\n1,bana\n2,kilo\n"),
        (["--column", "name"], '{"id": 1, "name": "bana"}\n{"id": 2, "name": "kilo"}\n'),
        (["--column", "name", "--items", "jsonl"], '{"id": 1, "name": "bana"}\n{"id": 2, "name": "kilo"}'),
        (["--separator", "; "], "bana; kilo\n"),
    ],
)
def test_a_table_comes_from_the_standard_input(arguments: list[str], data: str, store: Path) -> None:
    """With a column the standard input is a table, not lines."""
    command = [sys.executable, "-m", "model", "score", "-", "--store", str(store), "--each", "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, input=data, capture_output=True, text=True, check=True, timeout=60)
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["bana", "kilo"]


def test_items_are_sampled_with_penalties_and_bias(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A character with a bias of -100 is in no item, and penalties change the items."""
    command = ["sample", "--store", str(store), "--items", "30", "--no-unique"]
    plain, _ = output(command, capsys)
    assert "a" in plain
    assert "a" not in output([*command, "--logit-bias", '{"a": -100}'], capsys)[0]
    assert output([*command, "--presence-penalty", "1.5"], capsys)[0] != plain


def test_options_of_lists_are_refused_for_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For the training of a text, and for its model, in one line that names the option."""
    path, out = tmp_path / "text.txt", str(tmp_path / "out")
    path.write_text("bana bilo.\nfana, and\n" * 40)
    options = (["--duplicates", "drop"], ["--max-item-chars", "1000"], ["--long-items", "cut"], ["--no-novelty"])
    for kind in ([], ["--items", "text"]):
        for option in options:
            _, err = output(["train", str(path), *kind, *option, "--out", out, *TRAIN], capsys, 2)
            name = option[0].removeprefix("--").removeprefix("no-").replace("-", "_")
            assert err.startswith(f"error: {name}: got ")
            assert err.endswith("the corpus is read as a text, not as a list (--items lines, for example)\n")
    assert main(["train", str(path), "--out", out, *TRAIN]) == 0
    for option in (["--column", "a"], ["--json"], ["--rank-by", "bits"], ["--duplicates", "keep"]):
        _, err = output(["score", str(path), *option, "--store", out], capsys, 2)
        assert "expected none: the model was trained on a text, so it scores no items\n" in err


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
        (["score", "-"], "corpus: got '-', expected a file, or --each for the standard input"),
        (["score", "x", "--json"], "json: got True, expected none without --each or --above"),
        (["score", "x", "--rank-by", "bits"], "rank_by: got 'bits', expected none without --each or --above"),
        (["score", "x", "--each", "--part", "all"], "part: got 'all', expected none with --each or --above"),
        (["score", "-", "--each", "--duplicates", "drop"], "duplicates: got 'drop', expected keep: lines of the"),
        (["sample", "--novel"], "novel: got True, expected none without --items"),
        (["sample", "--no-unique"], "no_unique: got True, expected none without --items"),
        (["sample", "--min-chars", "1"], "min_chars: got 1, expected none without --items"),
        (["sample", "--json"], "json: got True, expected none without --items"),
        (["sample", "a\nb", "--items", "3"], r"prefix: got 'a\nb', expected a text without '\n', which ends an item"),
        (["sample", "--items", "3", "--logit-bias", '{"é": 1}'], "the model's vocabulary lacks 'é'"),
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
    displayed, _ = output(["sample", "--store", out, "--items", "2", "--json"], capsys)
    assert all(json.loads(line)["seen_in_training"] is None for line in displayed.splitlines())
