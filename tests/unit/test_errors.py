import inspect
import pickle
import re
from collections.abc import Iterator
from typing import TypeVar

import pytest

from serve_app import errors
from serve_app.errors import AnimeganError, RequestError, TooManyPixels

Kind = TypeVar("Kind", bound=AnimeganError)


def family(base: type[Kind]) -> Iterator[type[Kind]]:
    """The class and everything below it in its module."""
    yield base
    for child in base.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from family(child)


REQUEST_ERRORS = list(family(RequestError))
OTHER_ERRORS = [kind for kind in family(AnimeganError) if not issubclass(kind, RequestError)]


@pytest.mark.parametrize("kind", REQUEST_ERRORS)
def test_request_error_keeps_everything_across_processes(kind: type[RequestError]) -> None:
    error = pickle.loads(pickle.dumps(kind("what happened", 10, 20, "pixels", 30, 40)))  # noqa: S301 made here
    assert type(error) is kind
    numbers = error.limit, error.actual, error.unit, error.retry_after_s, error.position
    assert (error.detail, *numbers) == ("what happened", 10, 20, "pixels", 30, 40)
    assert str(error) == "what happened"


@pytest.mark.parametrize("kind", OTHER_ERRORS)
def test_start_up_error_keeps_its_sentence_across_processes(kind: type[AnimeganError]) -> None:
    error = pickle.loads(pickle.dumps(kind("what happened")))  # noqa: S301 made here
    assert type(error) is kind
    assert str(error) == "what happened"


def test_problem_names_the_refusal_and_its_numbers() -> None:
    assert TooManyPixels("Send it smaller.", 64, 65, "pixels", 2, 3).problem() == {
        "type": "urn:animegan-serve:too-many-pixels",
        "title": "The picture has too many pixels",
        "status": 413,
        "code": "too-many-pixels",
        "detail": "Send it smaller.",
        "limit": 64,
        "actual": 65,
        "unit": "pixels",
        "position": 3,
        "retry_after_s": 2,
    }


def test_problem_leaves_out_numbers_that_are_not_known_but_keeps_zero() -> None:
    members = TooManyPixels("Send it smaller.", actual=0).problem()
    assert members["actual"] == 0
    assert not {"limit", "unit", "retry_after_s", "position"} & members.keys()


def test_every_refusal_has_a_code_of_its_own_and_a_title() -> None:
    refusals = [kind for kind in REQUEST_ERRORS if kind is not RequestError]
    assert len({kind.code for kind in refusals}) == len({kind.title for kind in refusals}) == len(refusals)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", kind.code) for kind in refusals)


def test_drawn_tree_shows_exactly_the_classes_that_exist_and_their_status() -> None:
    drawn = {}
    parents = ["AnimeganError"]  # the class at each depth on the way down
    for line in (inspect.getdoc(errors) or "").splitlines():
        if match := re.match(r"(?P<indent>[ │]*)[├└]── (?P<name>\w+)(?: +(?P<status>\d{3})\b)?", line):
            depth = (len(match["indent"]) - 4) // 4
            parents[depth + 1 :] = [match["name"]]
            drawn[match["name"]] = (parents[depth], match["status"])
    exist = {
        kind.__name__: (
            kind.__bases__[0].__name__,
            str(kind.status) if issubclass(kind, RequestError) and kind is not RequestError else None,
        )
        for kind in family(AnimeganError)
        if kind is not AnimeganError
    }
    assert drawn == exist
