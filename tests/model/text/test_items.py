"""Lists: how items are found in a file, split by their hashes, and read in a new order each epoch."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.config import TrainConfig
from model.errors import ConfigError, TextError
from model.text.corpus import Corpus
from model.text.items.detection import detect
from model.text.items.layout import ItemLayout, unescape
from model.text.items.reading import items_of
from model.text.items.splitting import SplittableItems
from model.text.items.streams import ItemStreams
from model.text.memory_map import read_corpora

CONFIG = TrainConfig(batch_size=2, seq_length=5, val_fraction=0.3)
LINES = ItemLayout(items="lines")
LISTS = st.lists(st.text("abcdef", min_size=1, max_size=6), min_size=30, max_size=80)


def read(path: Path, layout: ItemLayout, config: TrainConfig = CONFIG) -> Corpus:
    """Read a file as a corpus."""
    return read_corpora([path], lambda _sizes, _n: config, path.parent / "cache", layout=layout)


def split(items: list[str], config: TrainConfig = CONFIG) -> dict[str, set[int]]:
    """The parts that each item is in."""
    made = SplittableItems.of(items_of("\n".join(items), LINES))
    parts: dict[str, set[int]] = {}
    for item, part in zip(made.items, made.part_of(config).tolist(), strict=True):
        parts.setdefault(item, set()).add(part)
    return parts


@given(items=LISTS.filter(lambda items: len(set(items)) > 10), more=LISTS, order=st.randoms())
def test_an_item_has_one_part_that_nothing_else_changes(items: list[str], more: list[str], order: object) -> None:
    """Equal items are in one part; adding items and another order of the file move none."""
    before = split(items)
    assert all(len(parts) == 1 for parts in before.values())
    together = [*items, *more]
    order.shuffle(together)  # type: ignore[attr-defined]
    after = split(together)
    assert all(after[item] == parts for item, parts in before.items())


def test_a_sorted_list_is_the_same_corpus(tmp_path: Path) -> None:
    """Every part has the same ids, whatever the order of the file: the same training, to the bit."""
    items = [f"{n * 7919 % 1000:03d}{'ab' * (n % 5)}" for n in range(400)]
    corpora = []
    for name, order in (("given", items), ("sorted", sorted(items))):
        (tmp_path / name).write_text("\n".join(order) + "\n")
        corpora.append(read(tmp_path / name, LINES))
    for part in ("train", "val", "test"):
        assert np.array_equal(getattr(corpora[0], part), getattr(corpora[1], part))


def test_groups_stay_together_and_no_item_leaks(tmp_path: Path) -> None:
    """Rows of one group are in one part; an item of a validation group that is trained on elsewhere is left out."""
    rows = [f"item{n},group{n % 40}" for n in range(600)] + [f"everywhere,group{n}" for n in range(40)]
    path = tmp_path / "list.csv"
    path.write_text("\n".join(["name,family", *rows]) + "\n")
    corpus = read(path, ItemLayout(items="csv", column="name", group_column="family"))
    train, val = (set(corpus.vocab.decode(part).split("\n")[1:]) for part in (corpus.train, corpus.val))
    assert train
    assert val
    assert not train & val
    assert not {int(item[4:]) % 40 for item in train - {"everywhere"}} & {int(item[4:]) % 40 for item in val}
    assert any("left out" in note for note in corpus.notes)


KINDS: dict[str, tuple[ItemLayout, str]] = {
    "lines": (LINES, "{}\n"),
    "paragraphs": (ItemLayout(items="paragraphs"), "{}\n\n"),
    "separator": (ItemLayout(items="separator", separator="; "), "{}; "),
    "csv": (ItemLayout(items="csv", column="a b"), '7,"{}"\r\n'),
    "tsv": (ItemLayout(items="tsv", column="a b"), "7\t{}\n"),
    "jsonl": (ItemLayout(items="jsonl", column="a b"), '{{"n": 7, "a b": "{}"}}\n'),
}
HEADERS = {"csv": "n,a b\n", "tsv": "n\ta b\n"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compressed", [False, True])
def test_every_kind_of_file_gives_the_same_items(kind: str, compressed: bool, tmp_path: Path) -> None:
    """Lines, blank lines, a string, CSV, TSV and JSON Lines, compressed or not, with a byte order mark."""
    layout, row = KINDS[kind]
    items = [f"item {n}é" for n in range(40)]
    data = ("\ufeff" + HEADERS.get(kind, "") + "".join(row.format(item) for item in items)).encode()
    path = tmp_path / "list"
    path.write_bytes(gzip.compress(data) if compressed else data)
    corpus = read(path, layout)
    text = corpus.vocab.decode(np.concatenate([corpus.train, corpus.val, corpus.test]))
    assert sorted(text.split(corpus.vocab.end)[1:]) == sorted(items)
    assert any(note.startswith("a list of 40 items") for note in corpus.notes)
    assert compressed == any("decompressed" in note for note in corpus.notes)


def test_what_was_left_out_or_changed_is_counted(tmp_path: Path) -> None:
    """Blank items, equal items, long items and line ends have a note each."""
    path = tmp_path / "list"
    path.write_bytes("\r\n".join([*map(str, range(20)), "", "  ", "7", "x" * 30]).encode())
    layout = ItemLayout(items="lines", max_item_chars=10, long_items="cut", duplicates="drop")
    corpus = read(path, layout)
    joined = "; ".join(corpus.notes)
    for phrase in (
        "21 items, one a line; 21 of them",
        "2 blank",
        "1 items that equal",
        "1 items were cut to 10",
        "CR LF",
    ):
        assert phrase in joined
    skipped = items_of("a\n" + "x" * 30, ItemLayout(items="lines", max_item_chars=10, long_items="skip"))
    assert (skipped.items, skipped.n_skipped) == (["a"], 1)


def test_the_end_of_an_item_is_in_none(tmp_path: Path) -> None:
    """Items with line ends end with another character, and so does the start of every text."""
    path = tmp_path / "list"
    path.write_text("".join(f"line {n}\nmore\n\n" for n in range(30)))
    corpus = read(path, ItemLayout(items="paragraphs"))
    assert corpus.vocab.end == "\x1e"
    assert corpus.item_end == corpus.vocab.start == corpus.vocab.characters.index("\x1e")
    assert corpus.vocab.decode(corpus.train).startswith("\x1eline ")


@pytest.mark.parametrize(
    ("layout", "text", "message"),
    [
        (LINES, "one item", "has 1 items, expected at least 10 different items"),
        (LINES, "same\n" * 50, "has 50 items and they are all equal"),
        (LINES, "ok\n" * 20 + "x" * 1001, r"the item in line 21 has 1,001 characters \('xxx.*expected at most 1,000"),
        (ItemLayout(items="csv", column="nam"), "name,age\na,1\n", "has no column 'nam', expected one of name, age"),
        (ItemLayout(items="csv"), "name,age\na,1\n", r"has 2 columns and none was named, expected .* name, age"),
        (ItemLayout(items="jsonl", column="b"), '{"a": "x"}\n', "has no column 'b', expected one of a"),
        (ItemLayout(items="jsonl"), '{"a": "x"}\n{"a"\n', "line 2 is not JSON"),
        (ItemLayout(items="jsonl"), '{"a": ["x"]}\n', r'line 1: a is \["x"\], expected a string'),
        (
            ItemLayout(items="jsonl"),
            '{"a": "x"}\n{"a": "\\ud800"}\n',
            r'line 2: a is "\\ud800", with half of a surrogate',
        ),
        (
            ItemLayout(items="jsonl", column="a", group_column="b"),
            '{"a": "x", "b": "\\udfff"}\n',
            r'line 1: b is "\\udfff", with half of a surrogate',
        ),
        (ItemLayout(items="jsonl"), '{"a": ' + "[" * 100_000 + "\n", "line 1 is not JSON"),
        (ItemLayout(items="csv"), 'name\n"a\n', "line 2: unexpected end of data"),
    ],
)
def test_a_list_that_cannot_be_used_is_one_clear_error(
    layout: ItemLayout, text: str, message: str, tmp_path: Path
) -> None:
    """It names the line or the columns, and what would be accepted."""
    path = tmp_path / "list"
    path.write_text(text)
    with pytest.raises(TextError, match=message):
        read(path, layout)


def test_paragraphs_keep_their_indentation() -> None:
    """The blank lines between two items are left out, with the spaces in them, and nothing of the items."""
    text = "\n\n  one\n    two\n \t \n\n\tthree\n\n    four  \n  \nfive\n\n"
    result = items_of(text, ItemLayout(items="paragraphs"))
    assert result.items == ["  one\n    two", "\tthree", "    four  ", "five"]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("a,b" * 100_000 + "\n1,2\n", "csv"),
        ("a\tb" * 100_000, "tsv"),
        (json.dumps({"a": "x" * 300_000}) + "\n", "jsonl"),
        (json.dumps({"a": "x" * 300_000})[:250_000], "jsonl"),
        ('{"a":' * 100_000, "jsonl"),
        ('{"a":' * 100_000 + "\n", "csv"),
        ("", "csv"),
    ],
)
def test_tables_with_an_endless_first_line(text: str, kind: str) -> None:
    """The first line decides also where it is longer than what is examined, nested too deeply, or not there."""
    assert detect(text, ItemLayout(column="a")).items == kind


def test_lines_that_are_nested_too_deeply_are_no_json() -> None:
    """A line that looks like an object and nests deeper than the parser can go leaves a list of lines."""
    lines = [f'{{"n": {n}, "a": {"[" * 1800}' for n in range(105)]
    assert detect("\n".join(lines), ItemLayout(max_item_chars=2000)).items == "lines"


@pytest.mark.parametrize("cut", [1, 11, -9, -1])
def test_a_broken_gzip_file_is_refused(cut: int, tmp_path: Path) -> None:
    """Cut off anywhere, or with damaged bytes inside."""
    data = gzip.compress("\n".join(map(str, range(3000))).encode())
    path = tmp_path / "list.gz"
    path.write_bytes(data[:cut])
    with pytest.raises(TextError, match=r"gzip|UTF-8"):
        read(path, LINES)
    damaged = bytearray(data)
    damaged[len(data) // 2] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(TextError, match=r"gzip|UTF-8"):
        read(path, LINES)


def test_mixed_encodings_name_line_and_byte(tmp_path: Path) -> None:
    """One line in Latin-1 among lines in UTF-8."""
    path = tmp_path / "list"
    path.write_bytes("é\n".encode() * 30 + "é\n".encode("latin-1"))
    with pytest.raises(TextError, match=r"byte 90 is 0xe9 .* in line 31"):
        read(path, LINES)


def test_a_list_is_detected() -> None:
    """Names, commands, log lines and JSON Lines are lists; prose, verse, code and few lines are texts."""
    names = "".join(f"na{n}me\n" for n in range(300))
    logs = "".join(
        f"2024-05-01 12:00:{n % 60:02d} INFO user {n} logged in, from 10.0.0.{n % 255}\n" for n in range(300)
    )
    commands = "".join(f"git commit -m 'change {n}' --author me\n" for n in range(300))
    prose = "".join(
        f"It was the {n} best of times, it was the worst of\ntimes, and the {n} wind blew. So\n" for n in range(300)
    )
    verse = "".join(f"Speak, I am {n}.\nAnd so am I, {n + 1}\n\n" for n in range(300))
    code = "".join(f"def f{n}():\n    return {n}\n" for n in range(300))
    table = "".join(json.dumps({"name": f"n{n}"}) + "\n" for n in range(300))
    result = {text: detect(text, ItemLayout()).items for text in (names, logs, commands, prose, verse, code, table)}
    assert [result[t] for t in (names, logs, commands)] == ["lines"] * 3
    assert all(detect(t, ItemLayout()).items == "text" for t in (prose, verse, code, names[:300]))
    assert result[table] == "jsonl"
    assert detect("a\tb\n", ItemLayout(), "x.tsv.gz").items == "tsv"
    assert detect(names, ItemLayout(items="text")).items == "text"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"items": "words"}, "items: got 'words', expected one of auto, text, lines"),
        ({"items": "separator"}, "separator: got '', expected the string between two items"),
        ({"items": "lines", "column": "a"}, "column: got 'a', expected none, or items = csv, tsv, jsonl"),
        ({"items": "lines", "separator": "x"}, "separator: got 'x', expected none"),
        ({"max_item_chars": 0}, "max_item_chars: got 0, expected a whole number from 1"),
        ({"rows": 3}, "rows: no such field"),
    ],
)
def test_a_layout_that_contradicts_itself(values: dict[str, object], message: str) -> None:
    """Every field is checked, alone and with the others."""
    with pytest.raises(ConfigError, match=message):
        ItemLayout.from_dict(values)
    assert ItemLayout.from_dict(LINES.as_dict()) == LINES
    assert unescape(r"\n--\t\\") == "\n--\t\\"


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=40),
    batch_size=st.integers(1, 5),
    seq_length=st.integers(1, 9),
)
def test_each_epoch_reads_every_item_whole_in_a_new_order(lengths: list[int], batch_size: int, seq_length: int) -> None:
    """Within an epoch each item is read from its start to the next item's, by at least one row; windows join."""
    ids = np.concatenate([[0, *[1 + i % 200] * n] for i, n in enumerate(lengths)]).astype(np.uint8)
    streams, rows = ItemStreams(ids, 0, batch_size, seq_length, seed=3), slice(0, batch_size)
    items = {bytes(item) for item in bytes(ids)[1:].split(b"\0")}
    for epoch in range(2):
        read_by_rows: list[list[int]] = [[] for _ in range(batch_size)]
        for step in range(epoch * streams.epoch_steps, (epoch + 1) * streams.epoch_steps):
            x, y = streams.window(step, rows)
            assert x.shape == y.shape == (batch_size, seq_length)
            assert bool((x[:, 1:] == y[:, :-1]).all())
            for row, (inputs, targets) in enumerate(zip(x.tolist(), y.tolist(), strict=True)):
                assert not read_by_rows[row] or read_by_rows[row][-1] == inputs[0]
                read_by_rows[row] = [*(read_by_rows[row] or inputs[:1]), *targets]
        texts = [bytes(row) for row in read_by_rows]
        assert all(text[0] == 0 for text in texts)  # every row begins an epoch with an item
        whole = {item for text in texts for item in text.split(b"\0")[1:-1]}
        assert items <= whole


def test_the_order_is_another_one_in_each_epoch_and_by_seed() -> None:
    """It is a function of the seed and the epoch alone, whatever was read before."""
    ids = np.concatenate([[0, n + 1, n + 2] for n in range(100)]).astype(np.uint8)
    orders = {}
    for seed in (1, 2):
        streams = ItemStreams(ids, 0, 1, 10, seed)
        for epoch in (1, 0, 2):
            orders[seed, epoch] = streams.window(epoch * streams.epoch_steps, slice(0, 1))[0].tolist()
    assert len({str(order) for order in orders.values()}) == len(orders)
    again = ItemStreams(ids, 0, 1, 10, 1)
    assert again.window(again.epoch_steps, slice(0, 1))[0].tolist() == orders[1, 1]
