"""Training texts: decoded while they are uploaded, stored complete or not at all, never outside their folder."""

from __future__ import annotations

import gzip
import io
import os
import re
import tempfile
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import StorageError, TextError
from model.text.decoding import read_text
from model.text.items.layout import ItemLayout
from model.text.text_statistics import text_sha256
from service.errors import BadRequest, BodyTooLarge, CorpusConflict, ServiceError, UnknownCorpus
from service.store import corpora as corpora_module
from service.store.corpora import MAX_PREVIEW_BYTES, Corpora, CorpusInfo

BYTES = st.one_of(
    st.binary(max_size=40),
    st.text(alphabet="ab\r\n\ufeffé中😀", max_size=40).map(str.encode),
    st.builds(bytes.__add__, st.text(alphabet="aé\r\n", max_size=9).map(str.encode), st.binary(max_size=4)),
)


def chunked(data: bytes, cuts: list[int]) -> io.BytesIO:
    """Return a body that arrives in chunks of these sizes."""

    class Body(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(cuts.pop() if cuts else 7)

    return Body(data)


def stored_text(corpora: Corpora, name: str) -> tuple[str, list[str]]:
    """Return the decoded text of a corpus, and the notes on it."""
    source = corpora.source(name)
    assert isinstance(source, Path)
    return read_text(source)


LINES = "".join(f"name{n * 37 % 500}\n" for n in range(500)).encode()
TABLE = b"kind,name\n" + b"".join(b"k%d,name%d\n" % (n % 7, n) for n in range(40))


def put(corpora: Corpora, name: str, data: bytes, layout: ItemLayout | None = None) -> CorpusInfo:
    """Store a corpus whose upload says how its items lie."""
    return corpora.put(name, io.BytesIO(data).read, layout=layout)[0]


def test_a_corpus_is_found_out_to_be_a_list_or_not(tmp_path: Path) -> None:
    """From its first lines, and said with what was counted."""
    corpora = Corpora(tmp_path, 10**6)
    result = put(corpora, "names", LINES)
    assert (result.layout, result.is_declared) == ({"items": "lines"}, False)
    assert result.notes == ["a list of 500 items, one a line; 500 of them are different"]
    prose = put(corpora, "prose", b"It was a dark and stormy night.\n" * 500)
    assert (prose.layout, prose.is_declared, prose.notes) == ({"items": "text"}, False, [])
    assert put(corpora, "t.csv", b"name\nx\n").notes[0].startswith("it seems to be a list, but cannot be trained on")
    assert corpora.get("shakespeare").layout == {"items": "text"}


def test_what_an_upload_declares_belongs_to_its_text(tmp_path: Path) -> None:
    """It is there again when the statistics are lost; another text, the same one sent without it, or none has none."""
    corpora = Corpora(tmp_path, 10**6)
    layout = ItemLayout("csv", column="name", group_column="kind", long_items="cut", max_item_chars=5)
    info = put(corpora, "table", TABLE, layout)
    assert (info.layout, info.is_declared) == (layout.as_dict(), True)
    assert "30 items were cut to 5 characters" in info.notes
    (tmp_path / ".table.json").unlink()
    assert corpora.get("table") == info
    assert put(corpora, "table", LINES).is_declared is False
    put(corpora, "table", TABLE, layout)
    (tmp_path / "table").write_bytes(LINES)  # by hand
    assert (corpora.get("table").layout, corpora.get("table").is_declared) == ({"items": "lines"}, False)
    put(corpora, "table", TABLE, layout)
    assert put(corpora, "table", TABLE).is_declared is False
    put(corpora, "table", TABLE, layout)
    (tmp_path / ".table.layout").write_text("{damaged")
    (tmp_path / ".table.json").unlink()
    assert corpora.get("table").is_declared is False
    put(corpora, "table", TABLE, layout)
    corpora.delete("table")
    assert list(tmp_path.iterdir()) == []


def test_a_text_that_is_not_replaced_keeps_what_it_declares(tmp_path: Path) -> None:
    """An upload that is refused changes nothing."""
    corpora = Corpora(tmp_path, 10**6)
    before = put(corpora, "names", LINES, ItemLayout("lines", duplicates="drop"))
    for data, layout in ((LINES[:20], ItemLayout("lines")), (b"\xff", ItemLayout("text")), (b"", None)):
        with pytest.raises(BadRequest):
            put(corpora, "names", data, layout)
    (tmp_path / ".names.json").unlink()
    assert corpora.get("names") == before
    overruled = put(corpora, "names", LINES, ItemLayout("text"))
    assert (overruled.layout, overruled.is_declared) == ({"items": "text"}, True)


@pytest.mark.parametrize(
    ("data", "layout", "field", "says"),
    [
        (b"a\n", ItemLayout("lines"), "body", "has 1 items, expected at least 10 different items"),
        (b"a\n" * 50, ItemLayout("lines"), "body", "has 50 items and they are all equal"),
        (b"x" * 2000 + b"\n" + LINES, ItemLayout("lines"), "body", "the item in line 1 has 2,000 characters"),
        (TABLE, ItemLayout("csv", column="nome"), "column", "has no column 'nome', expected one of kind, name"),
        (TABLE, ItemLayout("csv"), "column", "has 2 columns and none was named"),
        (TABLE, ItemLayout("csv", column="name", group_column="x"), "group_column", "has no column 'x'"),
        (LINES, ItemLayout("jsonl", column="x"), "body", "line 1 is not JSON"),
        (gzip.compress(LINES)[:-9], ItemLayout("lines"), "body", "gzip compression ends too early"),
    ],
)
def test_items_that_are_not_as_declared_are_refused(
    tmp_path: Path, data: bytes, layout: ItemLayout, field: str, says: str
) -> None:
    """The error names what is wrong, and nothing is stored."""
    with pytest.raises(BadRequest, match=re.escape(says)) as refused:
        put(Corpora(tmp_path / "corpora", 10**6), "names", data, layout)
    assert refused.value.field == field
    assert list((tmp_path / "corpora").iterdir()) == []


@given(data=BYTES, cuts=st.lists(st.integers(1, 9), max_size=40))
def test_a_body_in_chunks_is_decoded_as_the_whole_file(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, cuts: list[int]
) -> None:
    """However it is cut: the same text and notes as reading the file at once, or the same error message."""
    folder = tmp_path_factory.mktemp("corpora")
    (folder / "whole").write_bytes(data)
    corpora = Corpora(folder / "sent", 1000)
    try:
        text, notes = read_text(folder / "whole")
    except TextError as e:
        with pytest.raises(BadRequest) as refused:
            corpora.put("whole", chunked(data, cuts).read)
        expected = str(e).replace(f"corpus {folder / 'whole'}: ", "corpus whole: ")
        message = str(refused.value).removeprefix("body: ")
        assert (message, refused.value.field) == (expected.replace("; expected", ", expected"), "body")
        assert list((folder / "sent").iterdir()) == []
        return
    stored, is_new = corpora.put("whole", chunked(data, cuts).read)
    assert is_new
    assert (folder / "sent" / "whole").read_bytes() == data
    assert stored.sha256 == text_sha256(text)
    assert (stored.n_characters, len(stored.alphabet), stored.notes) == (len(text), len(set(text)), notes)
    assert stored_text(corpora, "whole") == (text, notes)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "/etc/passwd", ".hidden", "A", "é", "a b", "a\n", "x" * 65, "-a", "..\\x"]
)
def test_a_name_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    """Every operation refuses a name of another form before it touches a file."""
    corpora = Corpora(tmp_path / "corpora", 1000)
    for operation in (lambda: corpora.put(name, io.BytesIO(b"ab").read), lambda: corpora.get(name)):
        with pytest.raises(BadRequest, match="name: got"):
            operation()
    with pytest.raises(BadRequest, match="name: got"):
        corpora.delete(name)
    assert not (tmp_path / "corpora").exists()


def test_a_text_over_the_limit_is_not_read_on(tmp_path: Path) -> None:
    """It is refused as soon as the limit is exceeded, and leaves nothing."""
    corpora = Corpora(tmp_path, 100)
    body = chunked(b"a" * 1000, [])
    with pytest.raises(BodyTooLarge, match="expected at most 100 bytes"):
        corpora.put("big", body.read)
    assert body.tell() <= 107
    assert list(tmp_path.iterdir()) == []
    corpora.put("fits", io.BytesIO(b"a" * 100).read)


def test_a_reader_gets_the_old_text_or_the_new_one(tmp_path: Path) -> None:
    """While another one is uploaded under its name, and after that was refused, the old one is complete."""
    corpora = Corpora(tmp_path, 10**6)
    corpora.put("text", io.BytesIO(b"old text").read)
    sent = iter([b"new ", b"\xff"])

    def read(size: int) -> bytes:
        assert stored_text(corpora, "text") == ("old text", [])
        return next(sent)

    with pytest.raises(BadRequest, match="byte 4 is 0xff"):
        corpora.put("text", read)
    assert stored_text(corpora, "text") == ("old text", [])
    stored, is_new = corpora.put("text", io.BytesIO(b"new text").read)
    assert not is_new
    assert corpora.get("text") == stored
    assert sorted(p.name for p in tmp_path.iterdir()) == [".text.json", "text"]


def test_an_existing_corpus_can_be_protected(tmp_path: Path) -> None:
    """only_new refuses to replace; the built-in text cannot be replaced or deleted at all."""
    corpora = Corpora(tmp_path, 1000)
    corpora.put("mine", io.BytesIO(b"ab").read, only_new=True)
    with pytest.raises(CorpusConflict, match="exists already"):
        corpora.put("mine", io.BytesIO(b"cd").read, only_new=True)
    with pytest.raises(CorpusConflict, match="built in"):
        corpora.put("shakespeare", io.BytesIO(b"cd").read)
    with pytest.raises(CorpusConflict, match="built in"):
        corpora.delete("shakespeare")
    assert [c["name"] for c in corpora.listing()] == ["shakespeare", "mine"]
    corpora.delete("mine")
    with pytest.raises(UnknownCorpus):
        corpora.delete("mine")
    assert list(tmp_path.iterdir()) == []


def test_a_file_changed_by_hand_is_scanned_again(tmp_path: Path) -> None:
    """The statistics follow the file, not the ones stored beside it."""
    corpora = Corpora(tmp_path, 1000)
    corpora.put("text", io.BytesIO(b"abc").read)
    (tmp_path / "text").write_bytes(b"abcdef")
    os.utime(tmp_path / "text", (1, 1))
    assert corpora.get("text").n_characters == 6
    (tmp_path / ".text.json").write_text('{"bytes": 6, "characters": "abcdef", "of": [1, 6], "put": 1.0}')
    assert corpora.get("text").n_characters == 6  # statistics in the layout of an older version
    (tmp_path / "text").write_bytes(b"\xff")
    with pytest.raises(ServiceError, match="not UTF-8"):
        corpora.get("text")
    assert "not UTF-8" in corpora.listing()[1]["error"]


def test_a_preview_is_small(tmp_path: Path) -> None:
    """It may lie in memory; more than the beginning of a text is refused while it is read."""
    corpora = Corpora(tmp_path / "corpora", 10**9)
    assert corpora.preview("t", io.BytesIO(b"x" * MAX_PREVIEW_BYTES).read).n_bytes == MAX_PREVIEW_BYTES
    with pytest.raises(BodyTooLarge, match=str(MAX_PREVIEW_BYTES)):
        corpora.preview("t", io.BytesIO(b"x" * (MAX_PREVIEW_BYTES + 1)).read)


def test_a_preview_that_cannot_be_written_is_an_error_of_the_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is said to be full, as for a corpus that is stored; a missing folder is an error, too."""
    corpora = Corpora(tmp_path / "corpora", 10**6)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(StorageError, match="temporary folder: a preview cannot be written"):
        corpora.preview("t", io.BytesIO(b"text").read)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", partial(open, "/dev/full", "wb"))
    with pytest.raises(StorageError) as error:
        corpora.preview("t", io.BytesIO(b"text").read)
    assert error.value.is_full


def test_the_built_in_text_that_cannot_be_had_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without a network: the list says why, the other corpora are there, and nothing fails."""

    def unavailable() -> str:
        raise TextError("could not be downloaded", field="corpus", expected="a text file instead")

    monkeypatch.setattr(corpora_module, "default_text", unavailable)
    corpora_module._built_in.cache_clear()
    corpora = Corpora(tmp_path, 1_000_000)
    corpora.put("mine", io.BytesIO(b"a few words\n" * 100).read)
    for use in (corpora.get, corpora.source):
        with pytest.raises(UnknownCorpus, match="could not be downloaded"):
            use("shakespeare")
    built_in, mine = corpora.listing()
    assert "could not be downloaded" in built_in["error"]
    assert "error" not in mine
