"""A wheel built from the tree carries everything, and nothing that it must not."""

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import requests
from pictures import opened, photo_bytes
from service import port_answers, running
from shared import ROOT, SHIPPED_STYLES


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the tree in which a style was pulled."""
    source = tmp_path_factory.mktemp("source")
    for name in ("serve_app", "weights", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for suffix in ("safetensors", "webp"):
        (source / "weights" / f"pulled.{suffix}").write_bytes(b"someone else's licence")
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(target), str(source)]
    subprocess.run(command, check=True)
    (built,) = target.glob("*.whl")
    return built


def test_wheel_carries_the_style_the_page_and_the_configs_and_no_pulled_style(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    migrations = [f"jobs/migrations/{path.name}" for path in (ROOT / "serve_app" / "jobs" / "migrations").glob("*.py")]
    versions = [path.relative_to(ROOT / "serve_app").as_posix() for path in (ROOT / "serve_app").rglob("versions/*.py")]
    assert len(versions) >= 2
    wanted = (
        "weights/catalogue.toml",
        *(f"weights/{name}.{suffix}" for name in SHIPPED_STYLES for suffix in ("safetensors", "webp", "md")),
        "web/page/index.html",
        "web/page/app.webmanifest",
        "web/page/js/main.js",
        "web/page/vendor/client-zip.LICENSE.txt",
        "engine/photographs/cat.jpg",
        "engine/photographs/thumbnail/portrait.jpg",
        "configs/local.yaml",
        "configs/prod.yaml",
        *migrations,
        *versions,
    )
    assert {f"serve_app/{name}" for name in wanted} <= names
    for suffix in ("safetensors", "webp"):
        styles = [name for name in names if name.startswith("serve_app/weights/") and name.endswith(f".{suffix}")]
        assert sorted(styles) == [f"serve_app/weights/{name}.{suffix}" for name in SHIPPED_STYLES]


def test_installed_wheel_paints_with_no_tree_in_sight(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own; third parties, torch above all, are borrowed from the tests' environment."""
    if port_answers(8000):
        pytest.skip("port 8000, the default, is taken on this machine")
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    found = subprocess.run(
        [python, "-c", "import serve_app; print(serve_app.__file__)"], capture_output=True, text=True, cwd=tmp_path
    )
    assert found.stdout.startswith(str(site))
    command = [str(environment / "bin" / "animegan"), "run"]
    with running(command, "http://127.0.0.1:8000", tmp_path / "log", cwd=tmp_path) as service:
        answer = requests.post(f"{service.address}/v1/stylize", data=photo_bytes(48, 64), timeout=60)
        assert answer.headers["X-Style"] == "cel"
        assert opened(answer.content).size == (64, 48)
