"""PUT, GET and DELETE /corpora/{name}: the texts that a model can be trained on."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify, request
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge

from service.corpora import Corpora, too_large
from service.errors import BadRequest


def blueprint(corpora: Corpora, max_bytes: int) -> Blueprint:
    routes = Blueprint("corpora", __name__, url_prefix="/corpora")

    @routes.get("")
    def listing() -> Response:
        return jsonify(corpora=corpora.listing())

    @routes.put("/<path:name>")  # path: a name with a slash is answered as a bad name, not as an unknown address
    def put(name: str) -> tuple[Response, int, dict[str, str]]:
        """The body is the text. It is read as it comes, and no further than the limit."""
        request.max_content_length = max_bytes
        only_new = request.headers.get("If-None-Match") == "*"
        try:
            stored, is_new = corpora.put(name, request.stream.read, only_new=only_new)
        except RequestEntityTooLarge as e:
            raise too_large(max_bytes, request.content_length) from e
        except ClientDisconnected as e:
            raise BadRequest(
                "body: ended before its Content-Length; nothing was stored",
                field="body", value=None, expected=f"{request.content_length} bytes",
            ) from e  # fmt: skip
        return jsonify(stored), 201 if is_new else 200, {"Location": f"/corpora/{name}"}

    @routes.get("/<path:name>")
    def get(name: str) -> Response:
        return jsonify(corpora.get(name))

    @routes.delete("/<path:name>")
    def delete(name: str) -> Response:
        corpora.delete(name)
        return Response(status=204)

    return routes
