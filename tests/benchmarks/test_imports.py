"""The modules of the benchmarks import each other in one direction only."""

import ast
from graphlib import CycleError, TopologicalSorter

import pytest
from shared import ROOT

PACKAGE = "benchmarks"
FILES = sorted((ROOT / "scripts" / PACKAGE).glob("*.py"))
MODULES = {path.stem for path in FILES}


def imported_modules(source: str) -> set[str]:
    """Returns the modules of the package that a source imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not read here"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    found = {name.split(".")[1] for name in names if name.startswith(f"{PACKAGE}.")}
    return found & MODULES


def sorted_by_imports(graph: dict[str, set[str]]) -> list[str]:
    return list(TopologicalSorter(graph).static_order())


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {path.stem: imported_modules(path.read_text()) for path in FILES}
    assert {"__main__", "load", "rivals", "servers"} <= MODULES
    assert set(sorted_by_imports(graph)) == MODULES


@pytest.mark.parametrize(
    "line", ["from benchmarks.load import run_load", "from benchmarks import load", "import benchmarks.load"]
)
def test_every_form_of_import_is_seen_even_in_a_function(line: str) -> None:
    assert imported_modules(f"def run():\n    {line}\n") == {"load"}


def test_circle_of_three_modules_is_found() -> None:
    with pytest.raises(CycleError):
        sorted_by_imports({"rivals": {"soak"}, "soak": {"servers"}, "servers": {"rivals"}})
