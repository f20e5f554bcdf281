"""The queries of the dashboard and of the alerts, and a Prometheus that answers them."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from service import free_port, wait_for
from shared import ROOT

ALERT_RULES = ROOT / "configs" / "prometheus" / "alerts.yaml"
DASHBOARD = ROOT / "configs" / "grafana" / "dashboards" / "animegan.json"
COMPARISON = re.compile(r"\s+(?:<|>|==|>=|<=|!=)\s+[-\d.e]+(?:\s+(?:and|or)\s+|$)")
START_S = 60


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERT_RULES.read_text())["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def compared(alert: dict[str, Any]) -> list[str]:
    """What an alert compares with numbers: the left-hand sides."""
    *sides, rest = COMPARISON.split(alert["expr"])
    assert sides, alert["expr"]
    assert rest == "", f"ends with no comparison: {alert['expr']}"
    return sides


def panel_queries() -> dict[str, str]:
    """The queries of the dashboard, by panel and line; Grafana puts in the interval."""
    panels = [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]
    return {
        f"{panel['title']}: {target['legendFormat']}": target["expr"].replace("$__rate_interval", "1m")
        for panel in panels
        for target in panel["targets"]
    }


class Prometheus:
    """A Prometheus that scrapes one address every second."""

    def __init__(self, address: str) -> None:
        self.address = address

    def values(self, query: str) -> list[float]:
        """What a query returns now."""
        answer = requests.get(f"{self.address}/api/v1/query", params={"query": query}, timeout=30).json()
        assert answer["status"] == "success", answer
        return [float(series["value"][1]) for series in answer["data"]["result"]]

    def rule_health(self) -> dict[str, str]:
        """What each rule says of its last evaluation."""
        groups = requests.get(f"{self.address}/api/v1/rules", timeout=30).json()["data"]["groups"]
        return {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    """Debian's Prometheus with the alert rules; skips the test where it is missing.

    Args:
        folder: for its files.
        target: host and port that it scrapes.
    """
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed")
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ALERT_RULES)],
        "scrape_configs": [{"job_name": "animegan", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [program, f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/tsdb"]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        wait_for(lambda: process.poll() is not None or is_ready(f"http://{address}"), START_S)
        assert process.poll() is None, (folder / "prometheus.log").read_text()
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        process.wait(30)


def is_ready(address: str) -> bool:
    try:
        return requests.get(f"{address}/-/ready", timeout=5).ok
    except requests.RequestException:
        return False
