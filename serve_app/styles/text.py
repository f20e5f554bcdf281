"""Text that can be shown and sent anywhere, though names of files and arguments of commands need not be UTF-8."""

from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError


def printable(text: object) -> str:
    """Returns text that every terminal, log and JSON document takes: what cannot be printed is escaped.

    Names of files may hold bytes that are not UTF-8; Python keeps them as lone surrogates, which cannot be encoded.
    """
    return "".join(char if char.isprintable() else escaped(char) for char in str(text))


def escaped(char: str) -> str:
    """Returns the escape sequence of a character; a byte that Python could not decode is written as that byte."""
    byte = ord(char) - 0xDC00
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else char.encode("unicode_escape").decode()


def require_utf8(text: str) -> str:
    """Returns the text if it can be encoded in UTF-8.

    Raises:
        PydanticCustomError: if it cannot.
    """
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise PydanticCustomError("not_utf8", "is not UTF-8 text")
    return text


Text = Annotated[str, AfterValidator(require_utf8)]
