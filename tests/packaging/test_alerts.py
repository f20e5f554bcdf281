"""The alert rules, the dashboard and the runbook, as far as they can be checked without a service."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from promql import ALERT_RULES, DASHBOARD, alerts, compared, panel_queries, rules
from shared import ROOT
from validators import complaints, module, program

CASES = Path(__file__).parent / "alerts.yaml"
RUNBOOK = ROOT / "docs" / "runbook.md"
METRIC = re.compile(r"\banimegan_[a-z_]+\b")
DECLARED = re.compile(r"\b(counter|gauge|histogram)\(\s*\"([a-z_]+)\"")
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def declared() -> list[tuple[str, str]]:
    """The kind and the name of each metric in the code."""
    return DECLARED.findall((ROOT / "serve_app" / "deployments" / "metrics.py").read_text())


def series() -> set[str]:
    """The names of all series that the service publishes."""
    return {f"animegan_{name}{suffix}" for kind, name in declared() for suffix in SUFFIXES[kind]}


def test_promtool_takes_the_rules_and_the_config_of_prometheus() -> None:
    for kind, name in (("rules", "alerts.yaml"), ("config", "prometheus.yaml")):
        command = [program("promtool"), "check", kind, str(ALERT_RULES.parent / name)]
        assert complaints(command) == "", kind


def test_every_alert_fires_when_it_should_and_is_silent_when_it_should() -> None:
    done = subprocess.run(
        [program("promtool"), "test", "rules", CASES.name], cwd=CASES.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case_of_each_kind() -> None:
    tests = yaml.safe_load(CASES.read_text())["tests"]
    assert {test["name"] for test in tests} == {
        f"{name} {what}" for name in alerts() for what in ("fires", "is silent")
    }
    for test in tests:
        (case,) = test["alert_rule_test"]
        assert test["name"].startswith(f"{case['alertname']} ")
        assert bool(case["exp_alerts"]) == test["name"].endswith("fires")


def test_every_alert_says_what_happened_and_where_to_read_on() -> None:
    headings = re.findall(r"^### (\w+)$", RUNBOOK.read_text(), re.MULTILINE)
    assert headings == list(alerts())
    for name, alert in alerts().items():
        annotations = alert["annotations"]
        assert annotations.keys() == {"summary", "description", "runbook_url"}
        assert annotations["runbook_url"] == f"docs/runbook.md#{name.lower()}"
        assert alert["labels"]["severity"] in ("critical", "warning")


@pytest.mark.parametrize("name", alerts())
def test_the_runbook_says_what_each_alert_means_and_what_to_do(name: str) -> None:
    section = RUNBOOK.read_text().split(f"### {name}\n")[1].split("\n## ")[0].split("\n### ")[0]
    assert re.search(r"^\*\*Meaning\.\*\* ", section, re.MULTILINE)
    assert re.search(r"^\*\*What to do\.\*\*", section, re.MULTILINE)


def test_dashboard_is_what_its_script_makes() -> None:
    module("grafana_foundation_sdk")
    from monitoring.dashboard import made

    assert DASHBOARD.read_text() == made()


def test_dashboard_answers_the_five_questions_from_the_data_source_of_compose() -> None:
    board = json.loads(DASHBOARD.read_text())
    rows = [panel["title"] for panel in board["panels"] if panel["type"] == "row"]
    assert rows == [
        "Is it slow?",
        "Where?",
        "Is it full?",
        "Does it leak?",
        "Was anything accepted and never answered?",
    ]
    (source,) = yaml.safe_load((ROOT / "configs/grafana/datasources/prometheus.yaml").read_text())["datasources"]
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}
    assert all(panel["description"] for panel in panels)
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers)


def test_queries_name_series_that_the_service_publishes() -> None:
    asked = [*panel_queries().values(), *(rule["expr"] for rule in rules())]
    named = {name for query in asked for name in METRIC.findall(query)}
    assert named
    assert named <= series()


def test_every_metric_is_documented() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = {name for line in page.splitlines() if line.startswith("| `") for name in METRIC.findall(line.split("|")[1])}
    assert rows == {f"animegan_{name}{'_total' if kind == 'counter' else ''}" for kind, name in declared()}


def test_the_sides_of_every_comparison_are_found() -> None:
    assert compared({"expr": "max(a) > 0 and sum(b[30m]) == 0"}) == ["max(a)", "sum(b[30m])"]
    assert all(compared(alert) for alert in alerts().values())
