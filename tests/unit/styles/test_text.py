import os

import pytest
from helpers import make_style
from pydantic import ValidationError

from serve_app.styles.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Añejo 雨", "Añejo 雨"),
        (os.fsdecode(b"caf\xe9.pt"), r"caf\xe9.pt"),
        ("two\nlines\x1b[2J", r"two\nlines\x1b[2J"),
        ("\ud800", r"\ud800"),
        (7, "7"),
    ],
)
def test_what_cannot_be_printed_is_escaped(text: object, shown: str) -> None:
    assert printable(text) == shown
    printable(text).encode()


@pytest.mark.parametrize("field", ["title", "licence", "source", "credit"])
def test_description_that_is_not_utf_8_is_refused(field: str) -> None:
    with pytest.raises(ValidationError, match="is not UTF-8 text"):
        make_style(**{field: "caf\udce9"})
