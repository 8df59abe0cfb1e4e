"""Reading of corpora: one text or several, small ones in memory, large ones as a file of ids that is memory-mapped.

A large corpus is read twice: the first pass determines its characters and its hash, the second writes one id per
character, in one byte or two. So a corpus needs the same little memory at any size. The ids are cached under the hash
of the text, so that a second run on the same text maps them at once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np

from model.atomic_files import atomic_write
from model.config import TrainConfig
from model.errors import TextError, UnknownCharacters
from model.text.corpus import Corpus, CorpusSizes, Ids, TextSizes, check_lengths, id_type
from model.text.decoding import TextDecoder, decode_file, read_text, text_bytes
from model.text.items.detection import SAMPLE_CHARS, detect
from model.text.items.layout import TEXT, ItemLayout
from model.text.items.reading import ItemList
from model.text.items.splitting import SplittableItems
from model.text.normalization import normalize
from model.text.text_statistics import TextStatistics
from model.text.vocab import Vocabulary

LARGE_BYTES = 8 * 2**20
"""Corpora from this size on are memory-mapped. Reading a text as a whole takes up to 17 bytes for each character."""
_CHUNK_BYTES = 4 * 2**20

Source = Path | str
"""A text file, or a text itself."""

OnProgress = Callable[[str, float], None]
"""Called with the stage, "reading" or "encoding", and the part of it that is done, 0 to 1."""

ConfigOf = Callable[[CorpusSizes, int], TrainConfig]
"""Returns the settings for texts of these lengths, or for a list, of so many distinct characters."""


def read_corpus(
    path: Path, config: TrainConfig, cache: Path, on_progress: OnProgress = lambda _stage, _done: None
) -> Corpus:
    """Read a text file of any size as a corpus: see `read_corpora`."""
    return read_corpora([path], lambda _lengths, _n_distinct: config, cache, on_progress)


def read_corpora(
    sources: Sequence[Source],
    config_of: ConfigOf,
    cache: Path,
    on_progress: OnProgress = lambda _stage, _done: None,
    layout: ItemLayout = TEXT,
) -> Corpus:
    """Read texts of any size as a corpus. Each is split, so that the end of each is in the validation part.

    A list is split by its items. It is read as a whole, which takes about 100 bytes an item beside its characters.

    Args:
        sources: The texts.
        config_of: Returns the settings: the sizes of the split and the limits to check.
        cache: The folder for the ids of large corpora.
        on_progress: Called while a large corpus is read.
        layout: Whether the texts are lists, and how their items lie in the files.

    Raises:
        TextError: The texts cannot be used; the error names the files.
        StorageError: The cache cannot be written.
    """
    try:
        layout = detect_layout(sources, layout)
        if layout.is_list:
            return _read_list(sources, config_of, layout, on_progress)
        if is_large(sources):
            return _read_mapped(sources, config_of, cache, on_progress)
        return _read_whole(sources, config_of)
    except TextError as error:
        error.field = error.field or f"corpus {', '.join(_name(source) for source in sources)}"
        raise


def detect_layout(sources: Sequence[Source], layout: ItemLayout) -> ItemLayout:
    """Return the layout with "auto" replaced by what the texts are: a list only if each is one, of the same kind.

    Raises:
        TextError: A file cannot be used.
    """
    if layout.items != "auto":
        return layout
    detected = []
    for source in sources:
        if isinstance(source, str):
            detected.append(detect(source, layout))
            continue
        start = ""
        for text in _decode(source, TextDecoder(_label(source))):
            start += text
            if len(start) > SAMPLE_CHARS:
                break
        detected.append(detect(start, layout, source.name))
    return detected[0] if all(other == detected[0] for other in detected) else replace(layout, items="text")


def _read_list(sources: Sequence[Source], config_of: ConfigOf, layout: ItemLayout, on_progress: OnProgress) -> Corpus:
    split, sha256, notes = read_items(sources, layout, on_progress)
    config = config_of(split, len(split.alphabet))
    return Corpus.from_items(split, layout, config, sha256, notes)


def read_items(
    sources: Sequence[Source], layout: ItemLayout, on_progress: OnProgress = lambda _stage, _done: None
) -> tuple[SplittableItems, str, list[str]]:
    """Read the items of lists.

    Returns:
        The items, the hash of the texts, and notes on what they are and what was changed.

    Raises:
        TextError: A file cannot be used as a list, or there are too few items.
    """
    items, digest, notes = ItemList(layout), hashlib.sha256(), []
    n_bytes, n_read = max(1, sum(_n_bytes(source) for source in sources)), 0
    for source in sources:
        decoder, chunks = TextDecoder(_label(source)), []
        for text in _decode(source, decoder):
            chunks.append(text)
            on_progress("reading", min(1.0, (n_read + decoder.n_bytes) / n_bytes))
        text = "".join(chunks)
        digest.update(text.encode())
        n_read += decoder.n_bytes
        notes += _labelled(decoder.notes, source, sources)
        items.add(text, _label(source))
    split = SplittableItems.of(items, f"corpus {', '.join(_name(source) for source in sources)}")
    return split, digest.hexdigest(), [*notes, *items.notes]


def text_files_sha256(paths: Sequence[Path]) -> str:
    """Return the identity of the corpus of these text files, in hex, without reading any of them as a whole.

    Raises:
        TextError: A file cannot be used.
    """
    statistics = TextStatistics()
    for path in paths:
        for text in _decode(path, TextDecoder(_label(path))):
            statistics.update(text)
    return statistics.sha256


def is_large(sources: Sequence[Source]) -> bool:
    """Whether texts are memory-mapped, by their bytes before compression.

    A file that cannot be read counts nothing: the error comes from reading it.
    """
    n_bytes = 0
    for source in sources:
        enough = LARGE_BYTES - n_bytes
        n_bytes += len(source) if isinstance(source, str) else text_bytes(source, enough)
        if n_bytes >= LARGE_BYTES:
            return True
    return False


def _read_whole(sources: Sequence[Source], config_of: ConfigOf) -> Corpus:
    texts, notes = [], []
    for source in sources:
        text, source_notes = (normalize(source), []) if isinstance(source, str) else read_text(source)
        texts.append(text)
        notes += _labelled(source_notes, source, sources)
    config = config_of(TextSizes([len(text) for text in texts]), len(set[str]().union(*texts)))
    return Corpus.from_texts(texts, config, notes)


def _read_mapped(sources: Sequence[Source], config_of: ConfigOf, cache: Path, on_progress: OnProgress) -> Corpus:
    statistics, lengths, notes = TextStatistics(), [], []
    n_bytes, n_read = max(1, sum(_n_bytes(source) for source in sources)), 0
    for source in sources:
        decoder, before = TextDecoder(_label(source)), statistics.n_characters
        for text in _decode(source, decoder):
            statistics.update(text)
            on_progress("reading", min(1.0, (n_read + decoder.n_bytes) / n_bytes))
        n_read += decoder.n_bytes
        lengths.append(statistics.n_characters - before)
        notes += _labelled(decoder.notes, source, sources)
    sizes = TextSizes(lengths)
    config = config_of(sizes, len(statistics.characters))
    vocab = Vocabulary.of(statistics.characters, config.max_vocab)
    check_lengths(sizes, config)
    n_val, n_test = sizes.evaluation_sizes(config)
    ids_file = cache / f"{_cache_key(statistics.sha256, lengths, config)}.ids"
    dtype = np.dtype(id_type(vocab))
    if not ids_file.exists() or ids_file.stat().st_size != statistics.n_characters * dtype.itemsize:
        with atomic_write(ids_file) as file:
            _write_ids(file, sources, sizes, config, vocab, on_progress)
    ids: Ids = np.memmap(ids_file, dtype=dtype, mode="r")
    n_train = len(ids) - n_val - n_test
    train, val, test = ids[:n_train], ids[n_train : n_train + n_val], ids[n_train + n_val :]
    return Corpus(vocab, train, val, statistics.sha256, tuple(notes), test)


def _write_ids(
    file: IO[bytes],
    sources: Sequence[Source],
    sizes: TextSizes,
    config: TrainConfig,
    vocab: Vocabulary,
    on_progress: OnProgress,
) -> None:
    """Write the ids of all texts: first their training parts, then their validation parts, then their test parts."""
    dtype = np.dtype(id_type(vocab))
    split = sizes.parts(config)
    totals = [sum(of_texts) for of_texts in zip(*split, strict=True)]
    next_id = [sum(totals[:part]) for part in range(len(totals))]  # of each part, where its next id is written
    n_written = 0
    for source, length, (n_train, n_val, _) in zip(sources, sizes.lengths, split, strict=True):
        position = 0
        for text in _decode(source, TextDecoder(_label(source))):
            try:
                ids = vocab.encode(text).astype(dtype)
            except UnknownCharacters:
                break
            if position + len(ids) > length:
                break
            cuts = np.clip(np.array([n_train, n_train + n_val]) - position, 0, len(ids))
            for part, piece in enumerate(np.split(ids, cuts)):
                file.seek(next_id[part] * dtype.itemsize)
                file.write(piece.tobytes())
                next_id[part] += len(piece)
            position += len(ids)
            n_written += len(ids)
            on_progress("encoding", n_written / sizes.n_characters)
        if position != length:
            raise TextError("changed while it was read", field=_label(source), expected="a file that does not change")


def _cache_key(sha256: str, lengths: Sequence[int], config: TrainConfig) -> str:
    """Return the name of the file of ids: the text's hash, and for several texts also that of the way they are split.

    One text lies in the file in its own order, whatever its split is.
    """
    if len(lengths) == 1:
        return sha256
    split = f"{list(lengths)} {config.val_fraction} {config.test_fraction}"
    return f"{sha256}-{hashlib.sha256(split.encode()).hexdigest()[:16]}"


def _decode(source: Source, decoder: TextDecoder) -> Iterator[str]:
    if isinstance(source, Path):
        yield from decode_file(source, decoder, _CHUNK_BYTES)
        return
    for start in range(0, len(source), _CHUNK_BYTES):
        yield decoder.decode(source[start : start + _CHUNK_BYTES].encode())
    yield decoder.decode(b"", final=True)


def _n_bytes(source: Source) -> int:
    if isinstance(source, str):
        return len(source)
    try:
        return os.stat(source).st_size
    except OSError:
        return 0


def _name(source: Source) -> str:
    return str(source) if isinstance(source, Path) else "built in"


def _label(source: Source) -> str:
    return f"corpus {_name(source)}"


def _labelled(notes: Sequence[str], source: Source, sources: Sequence[Source]) -> list[str]:
    return [note if len(sources) == 1 else f"{_name(source)}: {note}" for note in notes]
