"""The OpenAPI document against the service's behaviour, by schemathesis."""

import atexit
import tempfile
from pathlib import Path
from typing import Any

import schemathesis
from fakes import FakePipeline
from hypothesis import HealthCheck, settings
from jobstores import make_settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from serve_app.jobs.desk import JobDesk
from serve_app.web.routes import create_app

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
]
schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(FakePipeline()))


@schema.parametrize()
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_service_behaves_as_its_openapi_document_says(case: schemathesis.Case[Any]) -> None:
    case.call_and_validate(checks=CHECKS)


JOBS_FOLDER = tempfile.TemporaryDirectory(prefix="animegan-test-")
atexit.register(JOBS_FOLDER.cleanup)
desk = JobDesk(make_settings(Path(JOBS_FOLDER.name)))
atexit.register(desk.close)
schema_with_jobs = schemathesis.openapi.from_asgi("/openapi.json", create_app(FakePipeline(jobs=desk)))


@schema_with_jobs.include(path_regex="^/v1/jobs").parametrize()
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_jobs_behave_as_the_openapi_document_says(case: schemathesis.Case[Any]) -> None:
    case.call_and_validate(checks=CHECKS)


def test_openapi_document_describes_every_refusal_of_stylize() -> None:
    document = create_app(FakePipeline()).openapi()
    operation = document["paths"]["/v1/stylize"]["post"]
    refusals = {"304", "400", "401", "404", "408", "413", "415", "422", "429", "503", "507"}
    assert set(operation["responses"]) == {"200", "202"} | refusals
    assert set(operation["requestBody"]["content"]) == {"image/*", "application/octet-stream", "multipart/form-data"}


def test_openapi_document_describes_every_refusal_of_an_edit_as_openais_clients_read_it() -> None:
    document = create_app(FakePipeline()).openapi()
    operation = document["paths"]["/v1/images/edits"]["post"]
    refusals = {"400", "401", "404", "408", "413", "415", "422", "429", "503"}
    assert set(operation["responses"]) == {"200"} | refusals
    assert set(operation["requestBody"]["content"]) == {"multipart/form-data", "application/json"}
    assert set(operation["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    for status in refusals:
        (schema,) = (each["schema"] for each in operation["responses"][status]["content"].values())
        assert schema == {"$ref": "#/components/schemas/OpenAIError"}
