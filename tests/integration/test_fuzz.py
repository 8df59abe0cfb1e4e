"""The API fuzzed by its own description: valid and invalid requests; every answer is as the document says.

Quick here; `make fuzz-api` sends more than 10,000 (FUZZ_EXAMPLES for each operation and kind of data).
"""

from __future__ import annotations

import contextlib
import copy
import os
import re
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import FlakyStrategyDefinition
from hypothesis.stateful import run_state_machine_as_test
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import positive_data_acceptance
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

from service.openapi.document import Limits, document
from service.openapi.operations import OPERATIONS
from tests.servers import RedisServer, Service

LIMITS = Limits(max_chars=300, max_prompt_chars=2000)
SCHEMA = schemathesis.openapi.from_dict(document(LIMITS))
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "3"))
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=EXAMPLES < 20,
    database=None,
)
MODES = {mode.value: mode for mode in GenerationMode}
NAMES = [operation.name for operation in OPERATIONS]
DECIDED_BY_THE_MODEL = {
    "generate", "score", "inspect", "create_completion", "tokenize", "detokenize", "retrain", "resume_stream",
    "fork_session", "put_corpus", "preview_corpus", "upload_model", "upload_into_model",
}  # fmt: skip
"""Valid requests that may be refused: the vocabulary, the texts, the file or another field decide. Also, an integer of
JSON Schema may be written 7.0, which bodies refuse."""

LINKED = {
    "get_session": ["generate", "delete_session", "resume_stream", "fork_session"],
    "get_job": ["retrain", "cancel_job"],  # without follow_job: no worker takes the jobs, so their events do not end
    "get_corpus": ["put_corpus", "delete_corpus", "retrain"],
}
"""How something is read, and what else is done with it."""


def _linked_schema() -> Any:
    """The document without the links of a fork: the library would begin with forks of sessions that do not exist."""
    described = copy.deepcopy(document(LIMITS))
    del described["paths"]["/sessions/{session_id}/fork"]["post"]["responses"]["201"]["links"]
    return schemathesis.openapi.from_dict(described)


def _has_input(name: str) -> bool:
    """Whether there is anything about a request that could be invalid."""
    operation = next(operation for operation in OPERATIONS if operation.name == name)
    return bool(operation.body or operation.parameters or re.search(r"{(?!model}|file})", operation.path))


CASES = [(name, mode) for name in NAMES for mode in MODES if mode == "positive" or _has_input(name)]


@pytest.fixture(scope="module")
def fuzzed(store: Path, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service of its own: requests change its sessions, corpora and jobs. No worker takes the jobs."""
    folder = tmp_path_factory.mktemp("corpora")
    environment = {"CHECKPOINT_DIR": str(store), "REDIS_URL": redis_server.url, "CORPORA_DIR": str(folder)}
    limits = {"MAX_CHARS": str(LIMITS.max_chars), "MAX_PROMPT_CHARS": str(LIMITS.max_prompt_chars)}
    with Service(**environment, **limits) as service:
        yield service


def fuzz(url: str, name: str, mode: GenerationMode) -> None:
    """Send requests to one operation, and check every answer."""
    operation = SCHEMA.find_operation_by_id(name)
    with requests.Session() as session:
        excluded = [positive_data_acceptance] if name in DECIDED_BY_THE_MODEL else []
        if name == "generate":  # a tiny timeout_s is answered with 504, as the document says
            excluded.append(not_a_server_error)

        @FUZZ
        @given(case=operation.as_strategy(generation_mode=mode))
        def run(case: Any) -> None:
            answer = case.call_and_validate(base_url=url, session=session, excluded_checks=excluded, timeout=60)
            assert answer.status_code < 500 or answer.status_code == 504

        run()


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_every_answer_conforms(fuzzed: Service, name: str, mode: str) -> None:
    """A documented status, type, header and body, no 5xx; invalid data is refused."""
    fuzz(fuzzed.url, name, MODES[mode])
    assert fuzzed.client.get("/healthz").status_code == 200


@pytest.mark.parametrize("read", LINKED)
def test_what_is_made_can_be_used(fuzzed: Service, read: str) -> None:
    """By the document's links: sessions, jobs and corpora are read, continued, forked and deleted; deleted is gone."""
    linked = _linked_schema().include(operation_id=[read, *LINKED[read]])
    used: Counter[tuple[str, int]] = Counter()

    class Links(linked.as_state_machine()):  # type: ignore[misc]
        def setup(self) -> None:
            self._session = requests.Session()

        def teardown(self) -> None:
            self._session.close()

        def get_call_kwargs(self, _case: Any) -> dict[str, Any]:
            return {"base_url": fuzzed.url, "session": self._session, "timeout": 60}

        def before_call(self, case: Any) -> None:
            if case.operation.definition.raw["operationId"] == "generate" and isinstance(case.body, dict):
                case.body["on_unknown"] = "skip"  # else hardly any prompt is accepted

        def validate_response(self, response: Any, case: Any, **_kwargs: Any) -> None:
            name = case.operation.definition.raw["operationId"]
            used[name, response.status_code] += 1
            excluded = [positive_data_acceptance, not_a_server_error]
            case.validate_response(response, excluded_checks=excluded)
            assert response.status_code < 500 or response.status_code == 504

    # What a request may be depends on what the service has stored, so a run of Hypothesis cannot always repeat itself;
    # then it stops, and the next run begins anew.
    for _ in range(max(1, EXAMPLES // 3)):
        with contextlib.suppress(FlakyStrategyDefinition):
            run_state_machine_as_test(Links, settings=settings(FUZZ, stateful_step_count=12, max_examples=12))
    assert used.total() >= 8 * EXAMPLES, used
    assert used[read, 200], used


@pytest.mark.parametrize(
    ("status", "content_type", "body", "problem"),
    [
        (200, "application/json", '{"status": "perhaps"}', "violates schema"),
        (200, "application/json", '{"status": "ok", "more": 1}', "violates schema"),
        (202, "application/json", '{"status": "ok"}', "status code"),
        (200, "text/html", "<p>ok", "content type|Content-Type"),
        (500, "application/json", '{"error": {"code": "internal", "message": "-"}}', "[Ss]erver error"),
    ],
)
def test_a_route_that_lies_is_caught(status: int, content_type: str, body: str, problem: str) -> None:
    """The control: a server whose /healthz answers otherwise than the document says."""

    @Request.application
    def liar(_request: Request) -> Response:
        return Response(body, status, content_type=content_type)

    server = make_server("127.0.0.1", 0, liar)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with pytest.raises(FailureGroup) as caught:
            fuzz(f"http://127.0.0.1:{server.server_port}", "health", GenerationMode.POSITIVE)
        assert re.search(problem, str(caught.value) + str(caught.value.exceptions))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
