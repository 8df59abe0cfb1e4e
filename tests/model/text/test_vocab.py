"""Characters <-> ids."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import TextError, UnknownCharacters
from model.text.vocab import Vocabulary


@given(st.text(min_size=2).filter(lambda t: len(set(t)) > 1))
def test_every_text_survives_its_own_vocabulary(text: str) -> None:
    """Encoding and decoding gives the text back, whatever its characters; ids follow the characters' order."""
    vocab = Vocabulary.of(text)
    assert vocab.characters == "".join(sorted(set(text)))
    assert vocab.decode(vocab.encode(text)) == text


@given(st.text())
def test_unknown_characters_are_named_once_with_their_position(text: str) -> None:
    """The error has the first position of each unknown character, in order; skipping keeps the known ones."""
    vocab = Vocabulary("\nabc")
    unknown = [(i, c) for i, c in enumerate(text) if c not in "\nabc" and c not in text[:i]]
    assert vocab.decode(vocab.encode(text, "skip")) == "".join(c for c in text if c in "\nabc")
    if unknown:
        with pytest.raises(UnknownCharacters) as e:
            vocab.encode(text)
        assert e.value.unknown == unknown


def test_a_lone_surrogate_is_an_unknown_character() -> None:
    """It cannot be encoded as UTF-8, and the error can name it."""
    with pytest.raises(UnknownCharacters, match=r"U\+D800"):
        Vocabulary("ab").encode("a\ud800")


@pytest.mark.parametrize("text", ["", "a", "aaaa"])
def test_a_text_of_one_character_has_nothing_to_learn(text: str) -> None:
    """At least two distinct characters."""
    with pytest.raises(TextError, match="at least 2"):
        Vocabulary.of(text)


def test_too_many_characters_are_refused_with_the_limit() -> None:
    """A binary file is recognized by its vocabulary."""
    with pytest.raises(TextError, match="300 distinct characters, expected at most max_vocab = 256"):
        Vocabulary.of("".join(map(chr, range(300))), 256)


@pytest.mark.parametrize("characters", ["ba", "aa", "a"])
def test_a_vocabulary_is_in_order(characters: str) -> None:
    """A stored vocabulary that was modified is refused."""
    with pytest.raises(TextError):
        Vocabulary(characters)


def test_a_text_starts_after_a_newline() -> None:
    """The id before the first character is the newline's, or 0 where there is none."""
    assert Vocabulary("\t\nab").start == 1
    assert Vocabulary("ab").start == 0
