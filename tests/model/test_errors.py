"""Errors carry their parts as attributes, and their message is made from them."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from model import errors
from model.errors import ConfigError, ModelError, TextTooShort, UnknownCharacters


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConfigError(field="lr", value=-1, expected="a number above 0"), "lr: got -1, expected a number above 0"),
        (ConfigError("not a setting", field="lr", expected="one of a, b"), "lr: not a setting, expected one of a, b"),
        (ConfigError("not a setting", field="lr"), "lr: not a setting"),
        (ConfigError(field="lr", value=None), "lr: got None"),
        (ConfigError("the disk is full"), "the disk is full"),
        (
            TextTooShort("it has 3 characters", needed=5, expected="at least 5"),
            "it has 3 characters, expected at least 5",
        ),
        (UnknownCharacters([(3, "é")]), "the model's vocabulary lacks 'é' (U+00E9) at 3"),
    ],
)
def test_the_message_is_made_from_the_attributes(error: ModelError, message: str) -> None:
    """Every combination of parts; a copy and a pickled error are the same error."""
    assert str(error) == message
    for other in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(other) is type(error)
        assert str(other) == message
        assert vars(other) == vars(error)


def test_a_name_can_be_added_where_it_is_known() -> None:
    """Whoever knows which file it was sets the field, and the message follows."""
    error = TextTooShort("it has 3 characters", needed=5, expected="at least 5")
    error.field = "corpus a.txt"
    assert str(error) == "corpus a.txt: it has 3 characters, expected at least 5"


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    """Every class is in it, indented by its depth."""
    drawn = {}
    for line in (errors.__doc__ or "").splitlines():
        name = line.lstrip("│├└─ ").split(" ")[0]
        if isinstance(getattr(errors, name, None), type):
            drawn[name] = (len(line) - len(line.lstrip("│├└─ "))) // 4
    classes = {
        name: cls.__mro__.index(ModelError)
        for name, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, ModelError)
    }
    assert drawn == classes
