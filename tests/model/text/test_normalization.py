"""Texts and prompts are normalized alike, in one piece or in chunks, and the checkpoint says how."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.checkpoints.file_format import load
from model.cli import main
from model.config import ModelConfig, TrainConfig
from model.errors import UnknownCharacters
from model.text.corpus import Corpus
from model.text.decoding import TextDecoder, read_text
from model.text.normalization import IncrementalComposer, normalization_of, normalize
from model.text.vocab import Vocabulary
from model.training.loop import fit
from tests.servers import ROOT

COMPOSED, DECOMPOSED = "caf\u00e9 na\u00efve\n", "cafe\u0301 nai\u0308ve\n"
MARKS = "ae\u0301\u0308\u0327\u00e9\u1100\u1161\u11a8\uac00\u3099\u304b\u0b47\u0b3e\u2126\ufb1d\u4e2d\U0001f600\n"
CONFIG = TrainConfig(steps=5, batch_size=2, seq_length=8, validations=1)


@given(text=st.text(alphabet=MARKS, max_size=60), cuts=st.lists(st.integers(0, 5), max_size=60))
def test_the_chunks_do_not_matter(text: str, cuts: list[int]) -> None:
    """Letters and their marks, Korean jamo, kana, Indic vowels: cut anywhere, the result is that of the whole."""
    composer, parts, rest = IncrementalComposer(), [], text
    for size in cuts:
        parts.append(composer.compose(rest[:size]))
        rest = rest[size:]
    parts.append(composer.compose(rest, final=True))
    assert "".join(parts) == unicodedata.normalize("NFC", text)
    assert composer.n_received == len(text)


@given(text=st.text(alphabet=MARKS + "\r\ufeff", min_size=1, max_size=60))
def test_a_prompt_is_read_as_a_file_is(text: str) -> None:
    """`normalize` does to a prompt what the decoder does to a file with the same text."""
    if text == "\ufeff":
        return  # an empty file is refused
    decoder = TextDecoder("text")
    assert decoder.decode(text.encode(), final=True) == normalize(text)


def test_a_decoded_text_is_composed_and_says_so(tmp_path: Path) -> None:
    """A decomposed file becomes the composed text; a note has the numbers; a composed file has no note."""
    file = tmp_path / "text.txt"
    file.write_text(DECOMPOSED)
    assert read_text(file) == (COMPOSED, ["characters were composed to Unicode NFC (13 became 11)"])
    assert read_text(file, "newlines") == (DECOMPOSED, [])
    file.write_text(COMPOSED)
    assert read_text(file) == (COMPOSED, [])


def test_a_checkpoint_records_it(tmp_path: Path) -> None:
    """What was trained on is recorded, however the text came; a vocabulary has the composed characters."""
    corpus = Corpus.from_text(DECOMPOSED * 60, CONFIG)
    assert corpus.vocab.characters == "".join(sorted(set(COMPOSED)))
    assert corpus.sha256 == Corpus.from_text(COMPOSED * 60, CONFIG).sha256
    assert Corpus.from_texts([DECOMPOSED * 60], CONFIG).vocab == corpus.vocab
    checkpoint = load(fit(corpus, ModelConfig(len(corpus.vocab), n_hidden=4, n_embed=4), CONFIG, tmp_path))
    assert checkpoint.vocab.normalization == "nfc"
    assert checkpoint.vocab.normalize("\ufeff" + DECOMPOSED.replace("\n", "\r\n")) == COMPOSED


def test_earlier_checkpoints_have_none() -> None:
    """A checkpoint that records nothing: line ends as its reader changed them, nothing composed."""
    for path in (ROOT / "tests/fixtures/checkpoint_format_1").glob("*.safetensors"):
        assert load(path).vocab.normalization == "newlines"
    assert normalization_of("\nab", None) == "newlines"
    assert normalize("\ufeffe\u0301\r\n", "newlines") == "e\u0301\n"
    assert normalization_of("\n\rab", None) == normalization_of("a\ufeff", None) == "none"
    assert normalize("\ufeff\r\n", "none") == "\ufeff\r\n"
    with pytest.raises(ValueError, match="its normalization is 'nfkc', expected one of none, newlines, nfc"):
        normalization_of("ab", "nfkc")
    with pytest.raises(UnknownCharacters):
        Vocabulary("ab").encode("\r")  # encode itself changes nothing


def test_sample_and_score_normalize(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command line reads prompts and texts as the training read its text."""
    file = tmp_path / "text.txt"
    file.write_text(COMPOSED * 200)
    few = ["--steps", "5", "--n-hidden", "8", "--validations", "1", "--out", str(tmp_path)]
    assert main(["train", str(file), *few]) == 0
    outputs = []
    for prompt in (COMPOSED, "\ufeff" + DECOMPOSED.replace("\n", "\r\n"), DECOMPOSED.replace("\n", "\r")):
        capsys.readouterr()
        assert main(["sample", prompt, "--store", str(tmp_path), "--max-chars", "20"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0].startswith(COMPOSED)
    assert outputs == outputs[:1] * 3
    scores = []
    for text in (COMPOSED, DECOMPOSED):
        file.write_text(text * 200)
        assert main(["score", str(file), "--store", str(tmp_path)]) == 0
        scores.append(capsys.readouterr().out)
    assert scores[0] == scores[1]
    assert main(["info", "--store", str(tmp_path)]) == 0
    assert "normalization nfc" in capsys.readouterr().out
