"""The headers ETag and If-None-Match (RFC 9110): whether a client has the painting already."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

ENTITY_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')
LENGTH = 32  # hexadecimal digits


@dataclass(frozen=True)
class Condition:
    """What the header If-None-Match says.

    Attributes:
        tags: that the client has, without the mark of weak ones: it makes no difference here.
        is_any: it is `*`: any painting that exists will do.
    """

    tags: frozenset[str] = frozenset()
    is_any: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether there is no such header."""
        return not self.tags and not self.is_any

    def is_met_by(self, tag: str | None) -> bool:
        """Returns whether a painting that exists, with this tag, is one that the client has already."""
        return tag is not None and (self.is_any or tag in self.tags)

    def foresees(self, tag: str | None) -> bool:
        """Returns whether the client has the painting that would get this tag, whether or not it exists."""
        return tag in self.tags


def read_condition(lines: Sequence[str]) -> Condition:
    """Reads the If-None-Match lines of a request; what is malformed is passed over."""
    value = ",".join(lines).strip()
    return Condition(is_any=True) if value == "*" else Condition(frozenset(ENTITY_TAG.findall(value)))


def entity_tag(digest: str) -> str:
    """Returns the entity tag of what has a digest, in hexadecimal."""
    return f'"{digest[:LENGTH]}"'
