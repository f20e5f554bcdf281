"""If-None-Match: its forms, and what meets it."""

import pytest

from serve_app.web.conditions import Condition, entity_tag, read_condition


@pytest.mark.parametrize(
    ("lines", "tags"),
    [
        ([], set()),
        ([""], set()),
        (['"a"'], {'"a"'}),
        (['W/"a"'], {'"a"'}),
        (['"a", W/"b"', '"c"'], {'"a"', '"b"', '"c"'}),
        (['"a,b"'], {'"a,b"'}),
        (['""'], {'""'}),
        (["a"], set()),
        (['"a'], set()),
        (['*, "a"'], {'"a"'}),
    ],
)
def test_tags_are_read_and_what_is_malformed_is_passed_over(lines: list[str], tags: set[str]) -> None:
    assert read_condition(lines) == Condition(frozenset(tags))
    assert read_condition(lines).is_empty is not bool(tags)


def test_a_star_is_any_painting_that_exists() -> None:
    condition = read_condition([" * "])
    assert (condition.is_any, condition.is_empty) == (True, False)
    assert condition.is_met_by('"a"')
    assert not condition.is_met_by(None)
    assert not condition.foresees('"a"')


def test_a_tag_is_met_by_itself() -> None:
    condition = read_condition(['W/"a"'])
    assert condition.is_met_by('"a"')
    assert condition.foresees('"a"')
    assert not condition.is_met_by('"b"')
    assert not condition.is_met_by(None)


def test_an_entity_tag_is_a_strong_one() -> None:
    assert entity_tag("ab" * 32) == f'"{"ab" * 16}"'


def test_a_hostile_header_takes_no_time_to_speak_of() -> None:
    assert read_condition(['W/"' * 20_000]).is_empty is False
