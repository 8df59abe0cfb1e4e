"""URL converters: the ids and names in addresses, each with its pattern, declared once.

A value that does not fit is answered with 422 and the name of the field. Flask's own answer, 404, would say that there
is no such session, while there can never be one.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

from flask import Flask
from werkzeug.routing import BaseConverter

from model.checkpoints.names import FINGERPRINT, NO_NAME, OPENAI_DEFAULT
from model.checkpoints.names import NAME as MODEL_NAME
from service.errors import BadRequest
from service.jobs.queue import JOB_ID
from service.routes.error_responses import RoutingError
from service.store.corpora import NAME
from service.store.sessions import SESSION_ID


class _CheckedConverter(BaseConverter):
    """Accepts any one path segment, then checks it."""

    field: ClassVar[str]
    pattern: ClassVar[str]

    def to_python(self, value: str) -> str:
        """Return the value.

        Raises:
            RoutingError: The value does not match the pattern.
        """
        if not re.fullmatch(self.pattern, value):
            raise RoutingError(BadRequest(self.field, value, self.pattern))
        return value


class SessionIdConverter(_CheckedConverter):
    """`<session_id:...>` in an address."""

    field, pattern = "session_id", SESSION_ID


class JobIdConverter(_CheckedConverter):
    """`<job_id:...>` in an address."""

    field, pattern = "job_id", JOB_ID


class ModelIdConverter(_CheckedConverter):
    """`<model_id:...>` in an address: the fingerprint of a checkpoint."""

    field, pattern = "model_id", FINGERPRINT


class ModelNameConverter(_CheckedConverter):
    """`<model_name:...>` in an address: a model's name, which is no fingerprint, nor the default model's other name."""

    field, pattern = "model_name", MODEL_NAME

    def to_python(self, value: str) -> str:
        """Return the value.

        Raises:
            RoutingError: It is no name.
        """
        if re.fullmatch(NO_NAME, value):
            expected = f"a name; the id of a checkpoint, and {OPENAI_DEFAULT}, are none"
            raise RoutingError(BadRequest(self.field, value, expected))
        return super().to_python(value)


class CorpusNameConverter(_CheckedConverter):
    """`<corpus_name:...>` in an address; a name with a slash is a bad name, not an unknown address."""

    part_isolating = False
    regex = r"(?s:[^/].*?)"
    weight = 200
    field, pattern = "name", NAME


_CONVERTERS: dict[str, Any] = {
    "session_id": SessionIdConverter,
    "job_id": JobIdConverter,
    "model_id": ModelIdConverter,
    "model_name": ModelNameConverter,
    "corpus_name": CorpusNameConverter,
}


def register(app: Flask) -> None:
    """Make the converters available; to be called before the blueprints are registered."""
    app.url_map.converters.update(_CONVERTERS)
