"""Which photographs `animegan paint` takes of a command line, and where their paintings go."""

import os
from argparse import Namespace
from pathlib import Path

import pytest

from serve_app.cli.paint.photographs import Photograph, find_photographs
from serve_app.errors import AnimeganError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(name.encode())


def find(
    *photographs: str, output: str | None = "out", format: str | None = None, overwrite: bool = False
) -> list[Photograph]:
    return find_photographs(Namespace(photographs=list(photographs), output=output, format=format, overwrite=overwrite))


def targets(found: list[Photograph]) -> dict[str, str]:
    assert [each.problem for each in found] == [None] * len(found)
    return {each.name: str(each.target) for each in found}


def problems(found: list[Photograph]) -> dict[str, str]:
    return {each.name: f"{each.problem.code}: {each.problem}" for each in found if each.problem is not None}


def test_folder_is_walked_and_its_tree_is_kept_without_hidden_files_and_others() -> None:
    make("in/b.PNG", "in/a.jpg", "in/deep/er/c.heic", "in/notes.txt", "in/.trash/d.jpg", "in/._a.jpg", "in/e")
    assert targets(find("in")) == {
        "in/a.jpg": "out/a.jpg",
        "in/b.PNG": "out/b.PNG",
        "in/deep/er/c.heic": "out/deep/er/c.jpg",
    }
    assert [each.format for each in find("in")] == ["jpeg", "png", "jpeg"]


def test_named_file_is_a_photograph_whatever_its_name() -> None:
    make("scan", "IMG.1234", "a.JPEG")
    assert targets(find("scan", "IMG.1234", "a.JPEG")) == {
        "scan": "out/scan.jpg",
        "IMG.1234": "out/IMG.1234.jpg",
        "a.JPEG": "out/a.JPEG",
    }


def test_photographs_that_would_get_one_name_keep_their_suffixes_even_if_one_alone_is_named() -> None:
    make("in/a.jpg", "in/a.png", "in/b.heic", "in/b.jpg", "in/c.tif")
    apart = {"in/a.jpg": "out/a.jpg.webp", "in/a.png": "out/a.png.webp"}
    assert targets(find("in", format="webp")) | apart == targets(find("in", format="webp"))
    assert targets(find("in/a.png", "in/c.tif", format="webp")) == {
        "in/a.png": "out/a.png.webp",
        "in/c.tif": "out/c.webp",
    }
    assert targets(find("in"))["in/b.heic"] == "out/b.heic.jpg"
    assert targets(find("in"))["in/b.jpg"] == "out/b.jpg"


def test_photographs_of_one_name_from_two_folders_are_never_painted_over_each_other() -> None:
    make("x/a.jpg", "y/a.jpg")
    found = find("x", "y")
    assert problems(found) == {
        "y/a.jpg": "same-name: It would be painted over x/a.jpg, as out/a.jpg; give it a folder of its own."
    }
    assert found[0].problem is None


def test_photograph_that_is_named_twice_is_painted_once() -> None:
    make("in/a.jpg")
    assert [each.name for each in find("in", "in/a.jpg", "./in/a.jpg")] == ["in/a.jpg"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_no_photograph_is_painted_over(overwrite: bool) -> None:
    make("a.jpg", "in/b.jpg")
    os.link("in/b.jpg", "b.jpg")
    over = "is a photograph; name another folder with -o."
    assert problems(find("a.jpg", "in", output=".", overwrite=overwrite)) == {
        "a.jpg": f"over-photograph: a.jpg {over}",
        "in/b.jpg": f"over-photograph: b.jpg {over}",
    }
    assert problems(find("a.jpg", output="a.jpg", overwrite=overwrite)) == {"a.jpg": f"over-photograph: a.jpg {over}"}
    with pytest.raises(AnimeganError, match="holds the photographs; name another folder"):
        find("in", output="in/../in", overwrite=overwrite)


def test_output_folder_is_left_out_of_what_is_painted() -> None:
    make("a.jpg", "in/b.jpg", "in/out/c.jpg", "out/a.jpg")
    assert list(targets(find("a.jpg", "in", "out", output="out"))) == ["a.jpg", "in/b.jpg", "in/out/c.jpg"]
    assert list(targets(find("in", output="in/out"))) == ["in/b.jpg"]
    assert list(targets(find("*", output="in"))) == ["a.jpg", "out/a.jpg"]


def test_pattern_in_quotes_is_expanded_and_keeps_the_tree_below_its_fixed_part() -> None:
    make("in/2024/a.jpg", "in/2025/b/c.jpg", "in/2025/d.txt", "in/e[1].jpg")
    assert targets(find("in/**/*.jpg")) == {
        "in/2024/a.jpg": "out/2024/a.jpg",
        "in/2025/b/c.jpg": "out/2025/b/c.jpg",
        "in/e[1].jpg": "out/e[1].jpg",
    }
    assert targets(find("in/2025*", "in/e[1].jpg")) == {
        "in/2025/b/c.jpg": "out/2025/b/c.jpg",
        "in/e[1].jpg": "out/e[1].jpg",
    }
    assert problems(find("in/*.gif")) == {"in/*.gif": "no-file: Nothing matches this pattern."}


def test_missing_file_is_one_problem_and_not_the_end() -> None:
    make("a.jpg")
    os.symlink("nowhere", "dangling.jpg")
    said = "no-file: There is no such file."
    found = find("absent.jpg", "dangling.jpg", "a.jpg")
    assert problems(found) == {"absent.jpg": said, "dangling.jpg": said}
    assert problems(find("absent.jpg", output="painted.jpg")) == {"absent.jpg": said}


@pytest.mark.parametrize(
    ("output", "target", "format"),
    [
        ("p.jpg", "p.jpg", "jpeg"),
        ("new/p.WEBP", "new/p.WEBP", "webp"),
        ("there", "there", "jpeg"),
        ("folder.png", "folder.png/a.png", "png"),
        ("plain", "plain/a.png", "png"),
        ("p.jpg/", "p.jpg/a.png", "png"),
    ],
)
def test_output_of_one_photograph_is_a_file_if_it_looks_or_is_like_one(output: str, target: str, format: str) -> None:
    make("a.png", "there")
    Path("folder.png").mkdir()
    (found,) = find("a.png", output=output)
    assert (str(found.target), found.format, found.problem) == (target, format, None)


def test_finished_paintings_are_done_unless_they_are_to_be_overwritten() -> None:
    make("in/a.jpg", "in/b.jpg", "out/a.jpg")
    assert [each.is_done for each in find("in")] == [True, False]
    assert [each.is_done for each in find("in", overwrite=True)] == [False, False]
    Path("out/b.jpg").mkdir()
    assert problems(find("in")) == {"in/b.jpg": "file-error: out/b.jpg is a folder."}


def test_pipe_is_told_from_files() -> None:
    make("a.webp")
    assert find("-", output=None) == find("-", output="-") == [Photograph(None, None, "jpeg")]
    assert find("-", output="p.png") == [Photograph(None, Path("p.png"), "png")]
    assert find("a.webp", output="-") == [Photograph(Path("a.webp"), None, "webp")]
    assert find("a.webp", output="-", format="avif") == [Photograph(Path("a.webp"), None, "avif")]


@pytest.mark.parametrize(
    ("photographs", "output", "format", "said"),
    [
        (["a.jpg"], None, None, "-o is missing"),
        (["a.jpg", "b.jpg"], "-", None, "a pipe carries one photograph"),
        (["-", "a.jpg"], "out", None, "a pipe carries one photograph"),
        (["in"], "-", None, "a pipe carries one photograph; give -o a folder"),
        (["-"], "in", None, "in is a folder, and a photograph from a pipe has no name"),
        (["-"], "new/", None, "new/ is a folder"),
        (["a.jpg"], "p.png", "webp", "p.png is the name of a png, and --format is webp"),
        (["a.jpg"], "p.gif", None, "p.gif would be the name of a gif, which is not written; use .jpg, .png"),
        (["-"], "p.HEIC", "jpeg", "p.HEIC would be the name of a heic"),
        (["a.jpg", "b.jpg"], "p.png", None, "p.png is the name of a file; several photographs need a folder"),
        (["in"], "a.jpg", None, "a.jpg is the name of a file"),
    ],
)
def test_command_lines_that_cannot_be_meant_are_refused_in_words(
    photographs: list[str], output: str | None, format: str | None, said: str
) -> None:
    make("a.jpg", "b.jpg", "in/c.jpg")
    with pytest.raises(AnimeganError) as caught:
        find(*photographs, output=output, format=format)
    assert str(caught.value).startswith(said)
