"""Admission control of one Ingress replica: which images it accepts while others wait. No asyncio, no Ray.

An image is admitted while all admitted images, itself included, can be painted within `queue_time_s` at the measured
rate. However slow painting is, `least_pictures` are admitted; however fast it is, never more than `most_pictures` and
`most_pixels`. No client can take all of that with a burst: it may hold at most four times what it leaves free. So one
client alone fills four fifths of the limit, two fill four ninths each, and a client's first image is admitted as long
as it fits. An image that arrives while no other is admitted is always admitted.

A client with a share holds at most that part of each limit, but may always hold one image. The clients of a group hold
its share together, one image at least, and inside it they divide the share as all clients divide the whole.

Sharing in proportion to the free space is the dynamic threshold of Choudhury and Hahne, "Dynamic queue length
thresholds for shared-memory packet switches" (1998). Equal parts of the whole would leave nothing for a client that
arrives later.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType

from serve_app.frames import Client
from serve_app.queueing.rate import DecayingRate

RESERVE = 1 / 5  # of a limit, left free when one client alone holds all that it may
SHARE_OF_FREE = (1 - RESERVE) / RESERVE  # what a client may hold, as a multiple of what is free

HALF_LIFE_S = 30.0  # of the measured rate, in seconds during which any image was admitted
MOST_RETRY_AFTER_S = 3600
NEWCOMER = Client("one that holds nothing")  # no address or key has such a name


@dataclass(frozen=True)
class Limits:
    """Limits of what may be admitted at a time.

    Attributes:
        queue_time_s: all admitted images should be painted within it. `least_pictures` may exceed it.
        least_pictures: images that are admitted however long they take, at least 1.
        most_pictures: never exceeded, at least 1.
        most_pixels: exceeded only by an image that is admitted alone.
    """

    queue_time_s: float
    least_pictures: int
    most_pictures: int
    most_pixels: int


class QueueFull(Exception):
    """There is no room for an image now.

    Args:
        limit_pixels: total pixels, this image included, at which it would have been admitted. A limit on the number of
            images is converted with the mean size of those that are admitted.
        actual_pixels: total pixels that there would have been with this image.
        position: images admitted before it.
        retry_after_s: seconds until enough of them should be painted, 1 to 3600.
        own: images among them that belong to the same client.
        is_share: whether only the client's own share is used up; another client's image would have been admitted.
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
class Occupancy:
    """Number of admitted images and their pixels, of one client or of all."""

    images: int = 0
    pixels: int = 0


class Ticket:
    """Permission for one admitted image, to be released when it is done.

    As a context manager it is released at the end of the block; without an exception the image counts as painted.
    """

    def __init__(self, release: Callable[[bool], None]) -> None:
        self._release: Callable[[bool], None] | None = release

    def release(self, is_painted: bool) -> None:
        """Makes room for other images; only the first call counts."""
        if self._release is not None:
            release, self._release = self._release, None
            release(is_painted)

    def __enter__(self) -> "Ticket":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.release(is_painted=kind is None)


class AdmissionController:
    """Admits images or refuses them. Not thread-safe: for one event loop.

    Args:
        limits: may be changed at any time; images that are admitted already stay so.
        clock: seconds, monotonic.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._clock = clock
        self._total = Occupancy()
        self._clients: dict[str, Occupancy] = {}  # only clients with admitted images
        self._groups: dict[str, Occupancy] = {}  # likewise
        self._rate = DecayingRate(HALF_LIFE_S)
        self._measured_until_s = clock()

    @property
    def occupancy(self) -> Occupancy:
        """A copy of the number of all admitted images and their pixels."""
        return replace(self._total)

    @property
    def pixels_per_second(self) -> float:
        """Rate of painting lately, over the time in which any image was admitted; 0 before anything was painted."""
        self._measure_time()
        return self._rate.per_second()

    def admit(self, client: Client, pixels: int) -> Ticket:
        """Admits one image of a client.

        Args:
            client: that sent the image.
            pixels: of the image at the size at which it will be painted, at least 1.

        Raises:
            QueueFull: if there is no room for it.
        """
        self._measure_time()
        if self._total.images:
            fraction = self._admissible_fraction(client, pixels)
            if fraction < 1:
                raise self._queue_full(client, pixels, max(fraction, 0.0))
        self._clients.setdefault(client.name, Occupancy())
        if client.group is not None:
            self._groups.setdefault(client.group, Occupancy())
        self._add(client, 1, pixels)
        return Ticket(lambda is_painted: self._release(client, pixels, is_painted))

    def _release(self, client: Client, pixels: int, is_painted: bool) -> None:
        self._measure_time()
        self._add(client, -1, -pixels)
        if not self._clients[client.name].images:
            del self._clients[client.name]
        if client.group is not None and not self._groups[client.group].images:
            del self._groups[client.group]
        if is_painted:
            self._rate.add(pixels)

    def _add(self, client: Client, images: int, pixels: int) -> None:
        counted = [self._total, self._clients[client.name]]
        if client.group is not None:
            counted.append(self._groups[client.group])
        for occupancy in counted:
            occupancy.images += images
            occupancy.pixels += pixels

    def _own(self, client: Client) -> Occupancy:
        return self._clients.get(client.name, Occupancy())

    def _sharing(self, client: Client) -> Occupancy:
        """Returns the occupancy of all clients that hold this one's share: of its group, else of itself."""
        return self._own(client) if client.group is None else self._groups.get(client.group, Occupancy())

    def _measure_time(self) -> None:
        now = self._clock()
        if self._total.images:
            self._rate.advance(now - self._measured_until_s)
        self._measured_until_s = now

    def _admissible_fraction(self, client: Client, pixels: int) -> float:
        """Returns the fraction of the present occupancy at which an image meets all limits; from 1 on it is admitted.

        Args:
            client: that sends the image.
            pixels: of the image.
        """
        limits, total, sharing, own = self.limits, self._total, self._sharing(client), self._own(client)

        def by_images(limit: float) -> float:
            return client_fraction(client, limit, total.images, sharing.images, own.images, 1)

        def by_pixels(limit: float) -> float:
            return client_fraction(client, limit, total.pixels, sharing.pixels, own.pixels, pixels)

        # An unknown rate counts as 0, so that no more than `least_pictures` are admitted before it is measured.
        pixels_in_time = self._rate.per_second() * limits.queue_time_s
        return min(
            by_images(limits.most_pictures),
            by_pixels(limits.most_pixels),
            max(by_images(limits.least_pictures), by_pixels(pixels_in_time)),
        )

    def _queue_full(self, client: Client, pixels: int, fraction: float) -> QueueFull:
        total, rate = self._total, self._rate.per_second()
        # Images leave whole, so on average one more than the exact number of pixels has to.
        excess_pixels = (1 - fraction) * total.pixels + total.pixels / total.images
        # Before anything was painted, the only known duration is how long the first image has taken already.
        seconds = excess_pixels / rate if rate else self._rate.since_s
        return QueueFull(
            math.floor(fraction * total.pixels) + pixels,
            total.pixels + pixels,
            total.images,
            math.ceil(min(max(seconds, 1), MOST_RETRY_AFTER_S)),
            self._own(client).images,
            self._admissible_fraction(NEWCOMER, pixels) >= 1,
        )


def client_fraction(client: Client, limit: float, total: int, sharing: int, own: int, size: int) -> float:
    """Returns the fraction of the present occupancy at which one more image meets a limit and the client's share of it.

    Args:
        client: that sends the image.
        limit: of the total, in images or pixels, as all that follows.
        total: present occupancy by all clients, more than 0.
        sharing: part of it that belongs to the clients that hold this client's share.
        own: part of it that belongs to this client.
        size: of the new image.
    """
    fraction = admissible_fraction(limit, total, own, size)
    if not sharing:
        return fraction
    own_in_group = 0 if client.group is None else own  # alone with a share, a client need not leave any of it free
    return min(fraction, admissible_fraction(client.share * limit, sharing, own_in_group, size))


def admissible_fraction(limit: float, total: int, own: int, size: int) -> float:
    """Returns the fraction of the present occupancy at which one more image meets one limit.

    All arguments are in the same unit, images or pixels. The client's part shrinks in proportion to the whole. A result
    of 1 or more means that the image meets the limit now; a negative one, that it never does beside others.

    Args:
        limit: of the total.
        total: present occupancy by all clients, more than 0.
        own: part of it that belongs to the client of the new image.
        size: of the new image.
    """
    if not own:
        return (limit - size) / total
    # Solves fraction * own + size = SHARE_OF_FREE * (limit - fraction * total - size).
    return (SHARE_OF_FREE * (limit - size) - size) / (own + SHARE_OF_FREE * total)
