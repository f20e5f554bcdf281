"""Refusals that hold for a moment: a client that was told to come back later is told so again without asking anybody.

Who is refused often tries again at once, and a refusal by the Ingress costs many times the CPU time of one here. The
queue moves meanwhile, so a refusal is not repeated for as long as its Retry-After says.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serve_app.errors import TooBusy
from serve_app.web.openai_errors import CODES

HELD_S = 1.0  # no Retry-After is shorter, so nobody who minds it meets a refusal of before
MOST_CLIENTS = 4096
BUSY = CODES[TooBusy.code]  # in OpenAI's errors


@dataclass(frozen=True)
class Held:
    """A refusal, and until when it holds."""

    refusal: TooBusy
    until_s: float


class HeldRefusals:
    """The latest refusals, by client and route.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held: dict[bytes, Held] = {}  # in order of their ends

    def check(self, key: bytes) -> None:
        """Raises the refusal that holds for a client, if there is one.

        Raises:
            TooBusy: with what the service said.
        """
        held = self._held.get(key)
        if held is None:
            return
        if held.until_s > self._clock():
            raise TooBusy(*held.refusal.args)  # a new one: an error that is raised again grows by its traceback
        del self._held[key]

    def hold(self, key: bytes, document: bytes, retry_after_s: int | None = None) -> None:
        """Takes note of a document that the service has answered with 429.

        Args:
            key: of the client and what it wants.
            document: as the clients of the route read it.
            retry_after_s: what the header Retry-After says.
        """
        self._forget()
        self._held.pop(key, None)
        if len(self._held) < MOST_CLIENTS and (refusal := too_busy(document, retry_after_s)) is not None:
            self._held[key] = Held(refusal, self._clock() + HELD_S)

    def _forget(self) -> None:
        now = self._clock()
        while self._held and (first := next(iter(self._held))) and self._held[first].until_s <= now:
            del self._held[first]


def key_of(path: str, client: str, headers: Sequence[bytes]) -> bytes:
    """Returns what tells a client and what it wants apart from others; its credentials cannot be read from it.

    Args:
        path: of the request.
        client: its address.
        headers: the values of those that decide whether it is let in, and to which queue.
    """
    parts = [path.encode(), client.encode(), *headers]
    return hashlib.blake2b(b"\0".join(parts), digest_size=16).digest()


def too_busy(document: bytes, retry_after_s: int | None) -> TooBusy | None:
    """Returns the refusal that a document states, if it is this one: a problem document, or one of OpenAI's errors."""
    said = json.loads(document)
    if "error" in said:
        error = said["error"]
        return TooBusy(error["message"], retry_after_s=retry_after_s) if error["code"] == BUSY else None
    if said["code"] != TooBusy.code:
        return None
    names = ("limit", "actual", "unit", "retry_after_s", "position")
    return TooBusy(said["detail"], *(said.get(name) for name in names))
