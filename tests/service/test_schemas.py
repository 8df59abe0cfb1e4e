"""What the bodies of requests refuse before anything is done with them."""

from __future__ import annotations

from typing import Any

import pydantic
import pytest

from model.structured_outputs.specification import MAX_JSON_BYTES
from service.openai.schemas import CompletionRequest
from service.schemas import GenerateRequest

LONG = {"title": "é" * (MAX_JSON_BYTES // 2)}


@pytest.mark.parametrize(
    "body", [{"regex": "a" * MAX_JSON_BYTES}, {"choice": ["a"] * 999 + ["b" * MAX_JSON_BYTES]}, {"json": LONG}]
)
@pytest.mark.parametrize("request_type", [GenerateRequest, CompletionRequest])
def test_a_specification_has_a_greatest_length(request_type: type[pydantic.BaseModel], body: dict[str, Any]) -> None:
    """It is stored with the session's turn. The error says how long it may be."""
    with pytest.raises(pydantic.ValidationError, match=f"at most {MAX_JSON_BYTES} bytes of JSON"):
        request_type.model_validate({"structured_outputs": body})


def test_a_response_format_has_the_same_greatest_length() -> None:
    """The same schema in the form of the OpenAI protocol."""
    wrapped: dict[str, Any] = {"type": "json_schema", "json_schema": {"schema": LONG}}
    with pytest.raises(pydantic.ValidationError, match=f"at most {MAX_JSON_BYTES} bytes of JSON"):
        CompletionRequest.model_validate({"response_format": wrapped})
    wrapped["json_schema"] = {"schema": {"title": "é" * (MAX_JSON_BYTES // 2 - 40)}}
    assert CompletionRequest.model_validate({"response_format": wrapped})
