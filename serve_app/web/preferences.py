"""The header Prefer (RFC 7240): whether a client would rather have a job than wait for its painting."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

WAIT = re.compile(r'wait\s*=\s*"?(\d{1,30})"?')


@dataclass(frozen=True)
class Preference:
    """What a client prefers.

    Attributes:
        is_async: it need not be answered with the painting.
        wait_s: seconds that it waits for the painting; None if it does not say.
    """

    is_async: bool = False
    wait_s: int | None = None

    @property
    def wants_job(self) -> bool:
        """Whether a job suits the client: it says so, or it says how long it waits."""
        return self.is_async or self.wait_s is not None

    def applied(self) -> str:
        """Returns the value of the header Preference-Applied."""
        waits = [] if self.wait_s is None else [f"wait={self.wait_s}"]
        return ", ".join((["respond-async"] if self.is_async else []) + waits)


def read_preference(lines: Sequence[str]) -> Preference:
    """Reads the Prefer lines of a request. What is unknown or malformed is passed over, as the RFC asks.

    Of a preference that is given twice the first counts.
    """
    is_async, wait_s = False, None
    for part in ",".join(lines).split(","):
        preference = part.partition(";")[0].strip().lower()
        is_async = is_async or preference == "respond-async"
        if wait_s is None and (found := WAIT.fullmatch(preference)):
            wait_s = int(found[1])
    return Preference(is_async, wait_s)
