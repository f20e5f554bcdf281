"""Layers of the package: which folder may import which, and which may import Ray and torch."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from shared import ROOT

PACKAGE = ROOT / "serve_app"
BASE = {"errors", "frames", "settings"}
PURE = {"images", "styles", "queueing"}
MAY_IMPORT = {  # a folder, or a module that lies in none; each may also import itself
    "errors": set(),
    "frames": set(),
    "settings": {"errors", "frames"},
    "images": BASE,
    "styles": BASE,
    "queueing": BASE,
    "jobs": BASE,
    "engine": BASE | {"styles"},
    "web": BASE | {"images", "jobs", "queueing", "styles"},
    "painter": BASE | {"engine", "images", "styles"},
    "deployments": BASE | PURE | {"engine", "jobs", "web"},
    "app": BASE | PURE | {"engine", "jobs", "web", "deployments"},
    "cli": BASE | PURE | {"engine", "jobs", "painter", "web", "deployments", "app"},
    "": {"painter"},  # serve_app/__init__.py, lazily
}
WITH_RAY = {"app", "deployments", "cli"}
WITHOUT_TORCH = {
    "engine",
    "engine.memory",
    "engine.slots",
    "engine.allocator",
    "engine.host_memory",
}  # in the one folder that may import it


def modules() -> dict[str, Path]:
    """Every module of the package by its name within it; a package goes by the name of its folder."""
    names = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


MODULES = modules()


def imported(path: Path) -> Iterator[str]:
    """Full names of modules that a file imports, at its top or later."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner.removeprefix("serve_app.") in MODULES else node.module


def own_imports(module: str) -> set[str]:
    """The package's own modules that a module imports."""
    names = {name for name in imported(MODULES[module]) if name.split(".")[0] == "serve_app"}
    return {name.removeprefix("serve_app").removeprefix(".") for name in names}


def folder(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_module_imports_only_what_its_folder_may(module: str) -> None:
    folders = {folder(name) for name in own_imports(module)} - {folder(module)}
    assert folders <= MAY_IMPORT[folder(module)]


def test_no_imports_run_in_a_circle() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for name in own_imports(module) & set(MODULES):
                visit(name, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize("module", sorted(MODULES))
def test_ray_is_imported_at_the_top_only_and_torch_in_the_engine_only(module: str) -> None:
    tops = {name.split(".")[0] for name in imported(MODULES[module])}
    assert "ray" not in tops or folder(module) in WITH_RAY
    assert "torch" not in tops or (folder(module) == "engine" and module not in WITHOUT_TORCH)


AT_WORK = ("__main__", "migrations.env")  # do their work, the service's or Alembic's, when they are imported
IMPORT_ALL = """
import importlib, sys
banned, *modules = sys.argv[1:]
for module in modules:
    importlib.import_module(module)
    if found := set(banned.split()) & set(sys.modules):
        sys.exit(f"{module} imports {found}")
"""


@pytest.mark.slow
@pytest.mark.parametrize("with_ray", [False, True])
def test_importing_a_module_loads_no_torch(with_ray: bool) -> None:
    """The limits hold at run time too, through the imports of third parties."""
    modules = [
        f"serve_app.{name}".rstrip(".")
        for name in sorted(MODULES)
        if name != "painter" and (folder(name) != "engine" or name in WITHOUT_TORCH)
        if (folder(name) in WITH_RAY) is with_ray and not name.endswith(AT_WORK)
    ]
    assert len(modules) > 5
    banned = "torch" if with_ray else "torch ray"
    outcome = subprocess.run([sys.executable, "-c", IMPORT_ALL, banned, *modules], capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr


def drawn(name: str) -> str:
    """A box of the drawing: the three modules that everything imports share one."""
    return "base" if name in BASE else name


def test_drawing_in_the_docs_shows_the_imports_as_they_are() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    (drawing,) = re.findall(r"```mermaid\n(.*?)```", text, re.DOTALL)
    arrows = set(re.findall(r"^ *(\w+) --> (\w+)$", drawing, re.MULTILINE))
    real = {(drawn(folder(module)), drawn(folder(name))) for module in MODULES for name in own_imports(module)}
    assert arrows == {(one, other) for one, other in real if one != other and one and other}


def test_every_folder_has_a_line_in_the_docs() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert {name for name in folders if f"| `{name}/` |" not in text} == set()
