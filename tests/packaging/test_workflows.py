"""The workflows of a public forge, as far as that can be told without one."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from shared import ROOT
from validators import complaints, program

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def read(path: Path) -> dict[str, Any]:
    """A workflow; YAML 1.1 reads its key `on` as true."""
    workflow: dict[Any, Any] = yaml.safe_load(path.read_text())
    return {"on" if key is True else key: value for key, value in workflow.items()}


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in read(path)["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_is_what_the_schema_of_workflows_allows(path: Path) -> None:
    command = [program("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", str(path)]
    assert complaints(command) == ""


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_has_no_rights_but_those_that_a_job_names_and_runs_pinned_actions(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"] == {}
    assert all(job["permissions"].get("contents") == "read" for job in workflow["jobs"].values())
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())
    actions = [step["uses"] for step in steps(path) if "uses" in step]
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action) for action in actions)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_no_script_is_put_together_from_what_strangers_write(path: Path) -> None:
    assert all("${{" not in step.get("run", "") for step in steps(path))


def test_tests_run_on_every_python_from_the_oldest() -> None:
    tests = read(ROOT / ".github" / "workflows" / "tests.yml")
    matrix = tests["jobs"]["quick"]["strategy"]["matrix"]["python"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={matrix[0]}"
    assert matrix == ["3.11", "3.12", "3.13"]


def test_files_that_workflows_name_are_there() -> None:
    said = "\n".join(step.get("run", "") for path in WORKFLOWS for step in steps(path))
    named = set(re.findall(r"scripts/[\w/.]+|[\w-]+\.txt", said))
    assert named >= {"scripts/test", "scripts/containers/notices.py", "constraints.txt"}
    assert all((ROOT / name).exists() for name in named)


def test_both_images_are_built_with_a_list_of_what_is_in_them() -> None:
    job = read(ROOT / ".github" / "workflows" / "build.yml")["jobs"]["images"]
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert all(f" AS {target}\n" in dockerfile for target in job["strategy"]["matrix"]["target"])
    build = job["steps"][-1]["with"]
    assert build["sbom"] is True
    assert build["build-args"].split("=")[0] in dockerfile
