"""Corpora that are too large for memory: the ids are in a file, which is memory-mapped.

Two passes over the text: the first finds its characters and its hash, the second writes one id per character, in one
byte or two. The ids are cached under the hash of the text, so that a second run on the same text maps them at once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from model.atomic_files import atomic_write
from model.config import TrainConfig
from model.errors import TextError
from model.text.corpus import Corpus, Ids, id_type
from model.text.decoding import TextDecoder, decode_file
from model.text.text_statistics import TextStatistics
from model.text.vocab import Vocabulary

LARGE_BYTES = 64 * 2**20
"""Texts from this size on are memory-mapped. Smaller ones are read as a whole, which is simpler and fast."""
_CHUNK_BYTES = 4 * 2**20

OnProgress = Callable[[str, float], None]
"""Called with the stage, "reading" or "encoding", and the part of it that is done, 0 to 1."""


def read_corpus(
    path: Path, config: TrainConfig, cache: Path, on_progress: OnProgress = lambda _stage, _done: None
) -> Corpus:
    """Read a text of any size as a corpus.

    Args:
        path: The text file.
        config: The sizes of the split and the limits to check.
        cache: The folder for the ids of large texts.
        on_progress: Called while a large text is read.

    Raises:
        TextError: The text cannot be used.
        StorageError: The cache cannot be written.
    """
    return _load_mapped(path, config, cache, on_progress) if is_large(path) else Corpus.from_file(path, config)


def is_large(path: Path) -> bool:
    """Whether a text file is memory-mapped; one that cannot be read is not, and the error comes from reading it."""
    try:
        return path.stat().st_size >= LARGE_BYTES
    except OSError:
        return False


def _load_mapped(path: Path, config: TrainConfig, cache: Path, on_progress: OnProgress) -> Corpus:
    decoder, statistics = TextDecoder(f"corpus {path}"), TextStatistics()
    size = path.stat().st_size
    for text in decode_file(path, decoder, _CHUNK_BYTES):
        statistics.update(text)
        on_progress("reading", min(1.0, decoder.n_bytes / size))
    try:
        vocab = Vocabulary.of(statistics.characters, config.max_vocab)
        ids = _map_ids(path, vocab, statistics, cache, on_progress)
        return Corpus.from_ids(vocab, ids, statistics.sha256, config, decoder.notes)
    except TextError as error:
        error.field = f"corpus {path}"
        raise


def _map_ids(path: Path, vocab: Vocabulary, statistics: TextStatistics, cache: Path, on_progress: OnProgress) -> Ids:
    """Map the cached ids; write them first if they are missing or incomplete."""
    ids_file = cache / f"{statistics.sha256}.ids"
    dtype = np.dtype(id_type(vocab))
    n_bytes = statistics.n_characters * dtype.itemsize
    if not ids_file.exists() or ids_file.stat().st_size != n_bytes:
        decoder, size = TextDecoder(f"corpus {path}"), path.stat().st_size
        with atomic_write(ids_file) as file:
            for text in decode_file(path, decoder, _CHUNK_BYTES):
                file.write(vocab.encode(text).astype(dtype).tobytes())
                on_progress("encoding", min(1.0, decoder.n_bytes / size))
            if file.tell() != n_bytes:
                raise TextError("changed while it was read", expected="a file that does not change")
    mapped: Ids = np.memmap(ids_file, dtype=dtype, mode="r")
    return mapped
