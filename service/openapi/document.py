"""Assemble the OpenAPI 3.1 document: operations, schemas of bodies and answers, errors, limits of this server."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from model import __version__
from service.errors import ServiceError
from service.openai.errors import error_object, status_of
from service.openapi.answers import ErrorAnswer, OpenAIErrorAnswer
from service.openapi.operations import (
    BINARY,
    EVENTS,
    JSON,
    OPERATIONS,
    PATH_PARAMETERS,
    TEXT,
    Answer,
    Guard,
    Link,
    Operation,
)

_REF = "#/components/schemas/{model}"
_OF_EVERY_GUARD: dict[Guard, tuple[int, ...]] = {
    Guard.PUBLIC: (403, 500),
    Guard.CLIENT: (401, 403, 429, 500),
    Guard.OPERATOR: (401, 403, 429, 500),
}
_SCHEMAS: dict[str, dict[str, Any]] = {JSON: {"type": "object"}, EVENTS: {}}
_RETRY_AFTER = {"description": "seconds after which a repetition can succeed", "schema": {"type": "integer"}}
_DESCRIPTION = (
    "Longhand generates text, a character at a time. A request that is not HTTP, is too slow or has too large a head "
    "is answered by the server itself with 400, 408, 414, 417, 431, 501 or 503, in the form of ErrorAnswer."
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What this server accepts at most."""

    max_chars: int
    max_prompt_chars: int


def document(limits: Limits, root_path: str = "") -> dict[str, Any]:
    """Return the document; what it contains must not be changed.

    Args:
        limits: The server's, which become limits of the fields.
        root_path: The path below which the service is offered.
    """
    return {**_document(limits), "servers": [{"url": root_path or "/"}]}


@cache
def _document(limits: Limits) -> dict[str, Any]:
    models = _models()
    _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=_REF, by_alias=True)
    schemas = definitions["$defs"]
    _limit(schemas, limits)
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Longhand", "version": __version__, "description": _DESCRIPTION},
        "tags": [{"name": tag} for tag in dict.fromkeys(operation.tag for operation in OPERATIONS)],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "api_key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "a key of API_KEYS or API_KEYS_FILE",
                },
                "admin_key": {"type": "http", "scheme": "bearer", "description": "ADMIN_KEY, if it is set"},
            },
        },
    }


def _models() -> list[type[BaseModel]]:
    """Every model that an operation names."""
    models: dict[type[BaseModel], None] = {ErrorAnswer: None, OpenAIErrorAnswer: None}
    for operation in OPERATIONS:
        for model in (operation.body, *(answer.model for answer in operation.answers.values())):
            if model is not None:
                models[model] = None
    return list(models)


def _limit(schemas: dict[str, Any], limits: Limits) -> None:
    """Write this server's limits into the schemas of the bodies."""
    properties = schemas["GenerateRequest"]["properties"]
    properties["max_chars"]["maximum"] = limits.max_chars
    properties["prompt"]["maxLength"] = limits.max_prompt_chars
    properties = schemas["CompletionRequest"]["properties"]
    properties["max_tokens"]["anyOf"][0]["maximum"] = limits.max_chars
    schemas["TokenizeRequest"]["properties"]["prompt"]["maxLength"] = limits.max_prompt_chars
    schemas["ScoreRequest"]["properties"]["text"]["maxLength"] = limits.max_chars


def _operation(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.name,
        "tags": [operation.tag],
        "summary": operation.summary,
        "security": _security(operation.guard),
        "responses": {str(status): _answer(answer) for status, answer in operation.answers.items()},
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": PATH_PARAMETERS.get(name, {"type": "string"})}
        for name in _names_in(operation.path)
    ]
    parameters += [
        {"name": p.name, "in": p.location, "schema": p.schema, "description": p.description}
        for p in operation.parameters
    ]
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        content = {JSON: {"schema": _reference(operation.body), "example": operation.example}}
        described["requestBody"] = {"required": True, "content": content}
    elif operation.text_body:
        content = {TEXT: {"schema": {"type": "string", "minLength": 1}, "example": "once upon a time\n"}}
        described["requestBody"] = {"required": True, "content": content}
    elif operation.binary_body:
        content = {BINARY: {"schema": {"type": "string", "format": "binary"}}}
        described["requestBody"] = {"required": True, "content": content}
    for status in sorted({*operation.errors, *_OF_EVERY_GUARD[operation.guard]}):
        described["responses"][str(status)] = _error(operation, status)
    return described


def _security(guard: Guard) -> list[dict[str, list[str]]]:
    """The keys; an empty requirement stands for a server on which no key is set."""
    if guard is Guard.PUBLIC:
        return []
    return [{}, {"admin_key": []}] if guard is Guard.OPERATOR else [{}, {"api_key": []}, {"admin_key": []}]


def _answer(answer: Answer) -> dict[str, Any]:
    described: dict[str, Any] = {"description": answer.description}
    content: dict[str, Any] = {}
    if answer.model is not None:
        content[JSON] = {"schema": _reference(answer.model), "example": answer.example}
    for media_type in answer.other:
        content[media_type] = {"schema": _SCHEMAS.get(media_type, {"type": "string"})}
    if content:
        described["content"] = content
    if answer.headers:
        described["headers"] = {
            name: {"description": text, "schema": {"type": "string"}} for name, text in answer.headers.items()
        }
    if answer.links:
        described["links"] = {link.operation: _link(link) for link in answer.links}
    return described


def _link(link: Link) -> dict[str, Any]:
    values = {link.parameter: link.value}
    return {"operationId": link.operation, "requestBody" if link.in_body else "parameters": values}


def _error(operation: Operation, status: int) -> dict[str, Any]:
    is_openai = operation.path.startswith("/v1/")
    errors = [e for e in _errors() if (status_of(e) if is_openai else e.status) == status]
    causes = "; ".join(f"{e.code}: {_summary(e)}" for e in errors)
    first = errors[0]
    message = _summary(first)
    example = (
        error_object(status, first.code, message) if is_openai else {"error": {"code": first.code, "message": message}}
    )
    model = OpenAIErrorAnswer if is_openai else ErrorAnswer
    described: dict[str, Any] = {
        "description": causes,
        "content": {JSON: {"schema": _reference(model), "example": example}},
    }
    if any(e.retry_after_s is not None for e in errors):
        described["headers"] = {"Retry-After": _RETRY_AFTER}
    return described


def _errors() -> list[type[ServiceError]]:
    """Every class of error, the base included, in the order of their definition."""

    def below(cls: type[ServiceError]) -> Iterator[type[ServiceError]]:
        yield cls
        for subclass in cls.__subclasses__():
            yield from below(subclass)

    return list(below(ServiceError))


def _summary(error: type[ServiceError]) -> str:
    if error is ServiceError:
        return "an error on our side; the log has the details"
    text = (inspect.getdoc(error) or "").partition("\n\n")[0].replace("\n", " ")
    return text.removeprefix("Raised when ").rstrip(".")


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REF.format(model=model.__name__)}


def _names_in(path: str) -> list[str]:
    return [part[1:-1] for part in path.split("/") if part.startswith("{")]
