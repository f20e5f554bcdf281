"""Which deployments the graph has."""

from typing import Any

import pytest
from ray.serve._private.build_app import build_app

from serve_app.app import build


@pytest.mark.parametrize(
    ("args", "names"),
    [
        ({}, {"Ingress", "Codec", "Stylizer"}),
        ({"jobs": {"enabled": False}}, {"Ingress", "Codec", "Stylizer"}),
        ({"jobs": {"enabled": True}}, {"Ingress", "Codec", "Stylizer", "JobRunner"}),
    ],
)
def test_runner_of_jobs_is_there_only_where_jobs_are(args: dict[str, Any], names: set[str]) -> None:
    built = build_app(build(args), name="animegan")
    assert {deployment.name for deployment in built.deployments} == names
    assert built.ingress_deployment_name == "Ingress"
