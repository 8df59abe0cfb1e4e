"""What requests say in the query of their address."""

from __future__ import annotations

import re

from flask import request

from model.checkpoints.names import DEFAULT, NAME, NAME_EXPECTED, is_model_name
from service.errors import BadRequest

MAX_LISTED = 1000
"""Models of one page of a list."""
DEFAULT_LISTED = 100


def model_argument() -> str | None:
    """Return the name or id of a model in the query.

    Raises:
        BadRequest: It can be neither.
    """
    value = request.args.get("model")
    if value is not None and not re.fullmatch(NAME, value):
        raise BadRequest("model", value, f"a string that matches the pattern {NAME}")
    return value


def model_name_argument(field: str = "model", default: str = DEFAULT) -> str:
    """Return the name of a model in the query.

    Args:
        field: The name of the argument.
        default: What is returned if the query has none.

    Raises:
        BadRequest: It can be no name.
    """
    value = request.args.get(field)
    if value is None:
        return default
    if not is_model_name(value):
        raise BadRequest(field, value, NAME_EXPECTED)
    return value


def limit_argument() -> int:
    """Return how many models a page of a list has.

    Raises:
        BadRequest: It is no such number.
    """
    value = request.args.get("limit", str(DEFAULT_LISTED))
    if not re.fullmatch("[0-9]{1,4}", value) or not 1 <= int(value) <= MAX_LISTED:
        raise BadRequest("limit", value, f"an integer from 1 to {MAX_LISTED}")
    return int(value)
