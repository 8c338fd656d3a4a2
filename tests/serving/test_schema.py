"""Requests drawn from the app's own OpenAPI document: none may break the server."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error

from tests.serving.served import Served

PATHS = ("/generate", "/v1/chat/completions", "/v1/completions", "/v1/models", "/metrics")


@pytest.mark.parametrize("path", PATHS)
def test_no_request_breaks_the_server(served: Served, path: str) -> None:
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    (operation,) = [one for one in operations if one.path == path]
    statuses = set()

    @given(case=operation.as_strategy())
    @settings(
        max_examples=60, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    def ask(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict):  # short answers
            sampling = case.body.get("sampling") if path == "/generate" else case.body
            if isinstance(sampling, dict):
                sampling["max_tokens"] = 2
            case.body.pop("model", None)
        response = case.call(timeout=60)
        statuses.add(response.status_code)
        case.validate_response(response, checks=[not_a_server_error])

    ask()
    assert statuses & {200, 400}


def test_the_engine_has_survived(served: Served) -> None:
    assert served.client.get("/health").status_code == 200
    assert served.text()
