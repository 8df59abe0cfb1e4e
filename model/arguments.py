"""Arguments of command lines: values are checked when they are parsed, and every error is one line with exit code 2.

All programs of the project parse their arguments with these, so that a wrong value is refused before any work is done,
in the same words everywhere: `error: --lr: got '-1', expected a number above 0, at most 1`.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from typing import Any, NoReturn

from model.config import TrainConfig, check_value
from model.errors import ConfigError

USAGE_ERROR = 2
"""The exit code after a value that cannot be used."""

MINUTES = next(f for f in fields(TrainConfig) if f.name == "minutes")
"""The setting that --minutes of the service's programs stands for."""

_QUOTED_CHARACTERS = 80


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows an option with its choices, or with N for a number; examples at the end keep their lines."""

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return getattr(action.type, "metavar", None) or super()._get_default_metavar_for_optional(action)


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser, with one line per error, and a help that lists choices."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """Create the parser, as argparse does."""
        super().__init__(*args, **{"formatter_class": HelpFormatter, **options})

    def error(self, message: str) -> NoReturn:
        """Print the error and exit."""
        message = message.removeprefix("argument ").replace("\n", " ")
        print(f"error: {message}", file=sys.stderr)
        sys.exit(USAGE_ERROR)


def number(
    kind: type[int] | type[float],
    minimum: float,
    maximum: float,
    *,
    exclusive_minimum: bool = False,
    accepts: Callable[[float], bool] | None = None,
    expected: str = "",
) -> Callable[[str], Any]:
    """Return the type of an argument that is a number in a range.

    Args:
        kind: int or float.
        minimum: The smallest value.
        maximum: The largest value.
        exclusive_minimum: Whether the smallest value itself is not allowed.
        accepts: A check that replaces the range.
        expected: The accepted values in words, for a check of its own.
    """
    low = f"above {minimum:g}, at most" if exclusive_minimum else f"from {minimum:g} to"
    words = f"{'a whole number' if kind is int else 'a number'}{f': {expected}' if expected else f' {low} {maximum:g}'}"

    def in_range(value: float) -> bool:
        return minimum <= value <= maximum and not (exclusive_minimum and value == minimum)

    def parse(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            raise unexpected(text, words) from None
        if not (accepts or in_range)(value):
            raise unexpected(text, words)
        return value

    return _with_metavar(parse, "N")


def setting(f: Field[Any]) -> Callable[[str], Any]:
    """Return the type of an argument for one field of ModelConfig or TrainConfig, checked by the field's metadata."""
    kind = {"int": int, "float": float}.get(str(f.type), str)

    def parse(text: str) -> Any:
        value: Any = text
        with contextlib.suppress(ValueError):
            value = kind(text)
        try:
            check_value(f, value)
        except ConfigError as e:
            raise unexpected(text, e.expected) from None
        return value

    return _with_metavar(parse, "N" if kind in (int, float) else "")


def one_of(choices: Sequence[str]) -> Callable[[str], str]:
    """Return the type of an argument that is one of several words."""

    def parse(text: str) -> str:
        if text not in choices:
            raise unexpected(text, f"one of {', '.join(choices)}")
        return text

    return _with_metavar(parse, "{" + ",".join(choices) + "}")


def _with_metavar(parse: Callable[[str], Any], metavar: str) -> Callable[[str], Any]:
    """Return the type of an argument, with what the help shows for its value."""
    parse.metavar = metavar  # type: ignore[attr-defined]
    return parse


def checked(check: Callable[[str], object]) -> Callable[[str], str]:
    """Return the type of an argument that a function checks, by raising ConfigError for what it does not accept."""

    def parse(text: str) -> str:
        try:
            check(text)
        except ConfigError as e:
            raise argparse.ArgumentTypeError(str(ConfigError(e.problem, value=e.value, expected=e.expected))) from None
        return text

    return parse


def unexpected(text: str, expected: str) -> argparse.ArgumentTypeError:
    """Return the error about an argument, with the text that was given, shortened where it is long."""
    quoted = text if len(text) <= _QUOTED_CHARACTERS else f"{text[:_QUOTED_CHARACTERS]}..."
    return argparse.ArgumentTypeError(f"got {quoted!r}, expected {expected}")
