"""Digests of works: what makes another painting makes another digest, and nothing else does."""

from dataclasses import fields, replace

import pytest
from jobstores import REQUEST

from serve_app.frames import Size, StylizeRequest
from serve_app.jobs import works
from serve_app.jobs.works import confirmed, painter_name, work_digest

PAINTER = painter_name("ab" * 32, "auto")
CHANGES = {"max_side": 511, "multiple": 1, "format": "webp", "quality": 80, "box": Size(80, 60)}


def test_every_option_that_is_seen_in_a_painting_counts() -> None:
    works_of = [work_digest("photo", PAINTER, replace(REQUEST, **{name: value})) for name, value in CHANGES.items()]  # type: ignore[arg-type]
    works_of += [work_digest("another", PAINTER, REQUEST), work_digest("photo", PAINTER, REQUEST)]
    assert len(set(works_of)) == len(works_of)
    assert {field.name for field in fields(StylizeRequest)} == CHANGES.keys() | works.UNSEEN


def test_a_field_that_came_later_leaves_the_digests_of_before() -> None:
    assert str(work_digest("photo", PAINTER, REQUEST)).startswith("2f71bc")


def test_the_styles_name_and_the_time_do_not_count() -> None:
    other = replace(REQUEST, style="toon-2", timeout_s=7)
    assert work_digest("photo", PAINTER, other) == work_digest("photo", PAINTER, REQUEST)


def test_painters_differ_by_style_precision_and_version(monkeypatch: pytest.MonkeyPatch) -> None:
    painters = [PAINTER, painter_name("cd" * 32, "auto"), painter_name("ab" * 32, "bf16")]
    monkeypatch.setattr(works, "PAINTER_VERSION", works.PAINTER_VERSION + 1)
    painters.append(painter_name("ab" * 32, "auto"))
    assert len({work_digest("photo", painter, REQUEST) for painter in painters}) == 4
    assert [confirmed(painter) for painter in painters] == ["", "", "", painters[3]]


def test_of_an_unknown_painter_there_is_no_digest() -> None:
    assert painter_name("", "auto") == ""
    assert work_digest("photo", "", REQUEST) is None
