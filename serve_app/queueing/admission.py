"""Who is let in while pictures wait: the door of one Ingress replica. No asyncio, no Ray.

A picture is let in while all that is inside, itself included, can be painted within `queue_time_s` at the rate that
was measured here; however slow that is, there is room for `least_pictures`, and however fast, never for more than
`most_pictures` and `most_pixels`. Nobody's burst takes all of that: a client may hold at most four times what it leaves
free. One client alone thus fills four fifths, two fill four ninths each, and a client's first picture is let in as
long as it fits. A picture that finds nobody inside is always let in.

Sharing by what is free is the dynamic threshold of Choudhury and Hahne, "Dynamic queue length thresholds for
shared-memory packet switches" (1998). Equal parts of the whole would leave nothing for a client yet to come.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

RESERVE = 1 / 5  # of the room, which one client alone leaves free
SHARE_OF_FREE = (1 - RESERVE) / RESERVE

HALF_LIFE_S = 30.0  # of what was measured, in seconds of work
MOST_RETRY_AFTER_S = 3600


@dataclass(frozen=True)
class Limits:
    """What may be inside.

    Attributes:
        queue_time_s: within which all of it should be painted. Where one picture takes longer, `least_pictures` decide.
        least_pictures: let in however long they take, at least 1.
        most_pictures: never exceeded, at least 1.
        most_pixels: exceeded only by a picture that is alone.
    """

    queue_time_s: float
    least_pictures: int
    most_pictures: int
    most_pixels: int


class Full(Exception):
    """There is no room for a picture now.

    Args:
        limit_pixels: inside, with this picture, at which it would have been let in; where pictures are counted, as many
            times the mean of those inside.
        actual_pixels: that there would have been.
        position: pictures before it.
        retry_after_s: until enough of them are painted, 1 to 3600.
        own: pictures of the same client's before it.
        is_share: only for what the client holds already; another one's picture would have been let in.
    """

    def __init__(
        self, limit_pixels: int, actual_pixels: int, position: int, retry_after_s: int, own: int, is_share: bool
    ) -> None:
        super().__init__(limit_pixels, actual_pixels, position, retry_after_s, own, is_share)
        self.limit_pixels = limit_pixels
        self.actual_pixels = actual_pixels
        self.position = position
        self.retry_after_s = retry_after_s
        self.own = own
        self.is_share = is_share


@dataclass
class Load:
    """What is inside, of everyone or of one client."""

    pictures: int = 0
    pixels: int = 0


class Rate:
    """Pixels painted per second of work, the older the less they count.

    Idle time is no work and changes nothing, so that a picture after a quiet hour meets the rate of the last busy one.
    """

    def __init__(self) -> None:
        self.since_s = 0.0  # seconds of work since a picture was last painted
        self._pixels = 0.0
        self._seconds = 0.0

    def work(self, seconds: float) -> None:
        self.since_s += seconds

    def paint(self, pixels: int) -> None:
        kept = math.exp2(-self.since_s / HALF_LIFE_S)
        self._pixels = self._pixels * kept + pixels
        self._seconds = self._seconds * kept + self.since_s
        self.since_s = 0.0

    def per_second(self) -> float:
        """0 before anything was painted; halved again and again while, past a half-life, nothing more is."""
        measured = self._pixels / self._seconds if self._seconds else 0.0
        return measured * math.exp2(min(1 - self.since_s / HALF_LIFE_S, 0))


class Ticket:
    """A picture's place inside; as a context manager, painted is what leaves without an exception."""

    def __init__(self, leave: Callable[[bool], None]) -> None:
        self._leave: Callable[[bool], None] | None = leave

    def leave(self, painted: bool) -> None:
        """Gives the place back; only the first call counts."""
        if self._leave is not None:
            leave, self._leave = self._leave, None
            leave(painted)

    def __enter__(self) -> "Ticket":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.leave(painted=kind is None)


class Door:
    """Lets pictures in or refuses them, from one event loop.

    Args:
        limits: may be changed at any time; who is inside stays inside.
        clock: seconds, monotonic.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._clock = clock
        self._inside = Load()
        self._clients: dict[str, Load] = {}  # those with pictures inside
        self._rate = Rate()
        self._seen_s = clock()

    @property
    def waiting_pictures(self) -> int:
        return self._inside.pictures

    @property
    def waiting_clients(self) -> int:
        return len(self._clients)

    @property
    def backlog_pixels(self) -> int:
        return self._inside.pixels

    @property
    def pixels_per_second(self) -> float:
        """Painted while anything was inside, lately; 0 before anything was painted."""
        self._look_at_clock()
        return self._rate.per_second()

    def enter(self, client: str, pixels: int) -> Ticket:
        """Lets a picture in.

        Args:
            client: whose it is.
            pixels: of the size that it will be painted at, at least 1.

        Raises:
            Full: if there is no room for it.
        """
        self._look_at_clock()
        if self._inside.pictures:
            own = self._clients.get(client, Load())
            may_stay = self._may_stay(own, pixels)
            if may_stay < 1:
                raise self._full(own, pixels, max(may_stay, 0.0))
        own = self._clients.setdefault(client, Load())
        for load in (own, self._inside):
            load.pictures += 1
            load.pixels += pixels
        return Ticket(lambda painted: self._leave(client, pixels, painted))

    def _leave(self, client: str, pixels: int, painted: bool) -> None:
        self._look_at_clock()
        own = self._clients[client]
        for load in (own, self._inside):
            load.pictures -= 1
            load.pixels -= pixels
        if not own.pictures:
            del self._clients[client]
        if painted:
            self._rate.paint(pixels)

    def _look_at_clock(self) -> None:
        now = self._clock()
        if self._inside.pictures:
            self._rate.work(now - self._seen_s)
        self._seen_s = now

    def _may_stay(self, own: Load, pixels: int) -> float:
        """The part of what is inside that leaves room for this picture; 1 or more if it can come in now."""
        limits, inside = self.limits, self._inside
        in_time = self._rate.per_second() * limits.queue_time_s  # 0 before it is known: promise no more than the least
        return min(
            part_that_may_stay(limits.most_pictures, inside.pictures, own.pictures, 1),
            part_that_may_stay(limits.most_pixels, inside.pixels, own.pixels, pixels),
            max(
                part_that_may_stay(limits.least_pictures, inside.pictures, own.pictures, 1),
                part_that_may_stay(in_time, inside.pixels, own.pixels, pixels),
            ),
        )

    def _full(self, own: Load, pixels: int, may_stay: float) -> Full:
        inside, rate = self._inside, self._rate.per_second()
        must_leave = (1 - may_stay) * inside.pixels + inside.pixels / inside.pictures  # one more: they leave whole
        # Before anything was painted, all that is known is how long the first has taken already.
        seconds = must_leave / rate if rate else self._rate.since_s
        return Full(
            math.floor(may_stay * inside.pixels) + pixels,
            inside.pixels + pixels,
            inside.pictures,
            math.ceil(min(max(seconds, 1), MOST_RETRY_AFTER_S)),
            own.pictures,
            self._may_stay(Load(), pixels) >= 1,
        )


def part_that_may_stay(limit: float, inside: int, own: int, size: int) -> float:
    """How much of what is inside, as a part of it, leaves room for one more under a limit; all in one unit.

    Args:
        limit: of all that is inside.
        inside: now, more than 0.
        own: of that, the same client's.
        size: of the one that asks.
    """
    if not own:
        return (limit - size) / inside
    # Solves: part * own + size = SHARE_OF_FREE * (limit - part * inside - size)
    return (SHARE_OF_FREE * (limit - size) - size) / (own + SHARE_OF_FREE * inside)
