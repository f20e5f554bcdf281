from pathlib import Path

import pytest

from serve_app.engine import allocator
from serve_app.engine.allocator import release_free_memory, running_allocator

LINE = "7f0000000000-7f0000001000 r-xp 00000000 08:01 123 {}\n"


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4.5.10", "tcmalloc"),
        ("/usr/lib/x86_64-linux-gnu/libjemalloc.so.2", "jemalloc"),
        ("/usr/lib/libmimalloc.so.2.0", "mimalloc"),
        ("/usr/lib/x86_64-linux-gnu/libc.so.6", "system"),
        ("/home/tcmalloc/libc.so.6", "system"),
    ],
)
def test_allocator_is_detected_from_the_loaded_libraries(tmp_path: Path, library: str, name: str) -> None:
    maps = tmp_path / "maps"
    maps.write_text(LINE.format("/usr/bin/python3") + LINE.format(library) + LINE.format("").rstrip() + "\n")
    assert running_allocator(maps) == name


def test_allocator_is_the_systems_where_the_libraries_are_unknown(tmp_path: Path) -> None:
    assert running_allocator(tmp_path / "absent") == "system"


def test_memory_is_released_by_the_first_function_that_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[object] = []
    functions = {"malloc_trim": lambda *arguments: called.append(arguments)}
    monkeypatch.setattr(allocator, "find_function", functions.get)
    release_free_memory()
    functions["MallocExtension_ReleaseFreeMemory"] = lambda *arguments: called.append(arguments)
    release_free_memory()
    assert called == [(0,), ()]


def test_releasing_works_on_this_machine_and_without_any_function(monkeypatch: pytest.MonkeyPatch) -> None:
    release_free_memory()
    monkeypatch.setattr(allocator, "find_function", lambda name: None)
    release_free_memory()
