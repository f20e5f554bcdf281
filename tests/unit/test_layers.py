"""The house's floors: who may import whom, who may import Ray, who may import torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from shared import ROOT

PACKAGE = ROOT / "serve_app"
FLOORS = {
    1: {
        "settings",
        "errors",
        "frames",
        "deployments.metrics",
        "engine.generator",
        "engine.convolution",
        "engine.streaming",
    },
    2: {
        "queueing.admission",
        "deployments.autoscaling",
        "web.clients",
        "web.negotiation",
        "web.pipeline",
        "web.schemas",
        "images.budget",
        "images.decode",
        "images.resize",
        "images.encode",
        "queueing.batching",
        "queueing.rate",
        "engine.memory",
        "engine.slots",
        "engine.allocator",
        "styles.catalogue",
        "engine.checkpoints",
        "styles.downloads",
        "web.uploads",
    },
    3: {"web.routes", "web.problems", "engine.stylist", "engine.onnx"},
    4: {"deployments.ingress", "deployments.codec", "deployments.stylizer"},
    5: {"app", "cli.main", "cli.config_lint", "cli.supervisor", "cli.local_cluster.service"},
}
TORCH_ROOMS = {
    "engine.generator",
    "engine.convolution",
    "engine.streaming",
    "engine.checkpoints",
    "engine.stylist",
    "engine.onnx",
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def modules() -> dict[str, Path]:
    return {module_name(path): path for path in PACKAGE.rglob("*.py") if not path.name.startswith("__")}


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}


def floor_of(module: str) -> int:
    return next(floor for floor, rooms in FLOORS.items() if module in rooms)


def test_every_module_has_a_floor() -> None:
    assert set(modules()) == set().union(*FLOORS.values())


@pytest.mark.parametrize("module", sorted(modules()))
def test_module_imports_no_floor_above_its_own(module: str) -> None:
    own = {name.removeprefix("serve_app.") for name in imports(modules()[module]) if name.startswith("serve_app.")}
    own.discard("deployments")  # the package itself, of which a module is taken
    assert {name for name in own if floor_of(name) > floor_of(module)} == set()


@pytest.mark.parametrize("module", sorted(modules()))
def test_only_the_two_top_floors_import_ray(module: str) -> None:
    uses_ray = any(name.split(".")[0] == "ray" for name in imports(modules()[module]))
    assert not uses_ray or floor_of(module) >= 4


@pytest.mark.parametrize("module", sorted(modules()))
def test_only_the_models_rooms_import_torch(module: str) -> None:
    uses_torch = "torch" in {name.split(".")[0] for name in imports(modules()[module])}
    assert not uses_torch or module in TORCH_ROOMS


@pytest.mark.parametrize("module", sorted(set(modules()) - TORCH_ROOMS))
def test_importing_a_module_brings_no_torch(module: str) -> None:
    """The walls hold at run time too, through whatever third parties import."""
    allowed = "ray" if floor_of(module) >= 4 else None
    code = (
        f"import sys, serve_app.{module}\n"
        f"found = {{'torch', 'ray'}} & set(sys.modules) - {{{allowed!r}}}\n"
        "sys.exit(f'imports {found}' if found else 0)"
    )
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
