"""A line in the log for each change that an operator makes: what, and by which key from which address."""

from __future__ import annotations

import logging

from flask import g, has_request_context

log = logging.getLogger("service.audit")
"""Its lines are of level INFO; the server gives it the handlers of its own log."""


def record(change: str) -> None:
    """Write a line.

    Args:
        change: What was done, such as `promoted 0123456789abcdef of the model default`. No secret, no text of a client.
    """
    operator = g.get("operator", "") if has_request_context() else ""
    log.info("%s, by %s", change, operator or "nobody known")
