"""A gate that lets so many requests of so many bytes through at a time; clients take turns. Asyncio, no Ray."""

import asyncio
import math
from collections import OrderedDict, deque
from dataclasses import dataclass

SMOOTHING = 0.8  # part of the mean time inside that stays when another request leaves
FIRST_GUESS_S = 5.0  # of that time, before any request has left
MOST_RETRY_AFTER_S = 300


@dataclass
class Waiter:
    """A request before the gate."""

    size: int
    turn: "asyncio.Future[None]"


class FairGate:
    """A weighted semaphore for one event loop, with one queue for each client.

    The clients that wait take turns, so one that waits with many requests cannot keep another's first one back. The
    request whose turn it is holds up all others until it fits, or small ones would overtake a large one for ever.

    Args:
        max_requests: inside at a time.
        max_bytes: of all of them together. A larger request enters when nobody else is inside.
    """

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self.max_requests = max_requests
        self.max_bytes = max_bytes
        self._inside = 0
        self._bytes = 0
        self._queues: OrderedDict[str, deque[Waiter]] = OrderedDict()  # the client whose turn it is comes first
        self._mean_s = FIRST_GUESS_S

    @property
    def inside(self) -> int:
        """Number of requests that have entered and not left."""
        return self._inside

    @property
    def bytes_inside(self) -> int:
        """Their size in bytes."""
        return self._bytes

    @property
    def waiting(self) -> int:
        """Number of requests before the gate."""
        return sum(not waiter.turn.cancelled() for queue in self._queues.values() for waiter in queue)

    @property
    def retry_after_s(self) -> int:
        """Seconds in which those that wait should have entered, judged by how long others were inside."""
        seconds = self._mean_s * (self.waiting + 1) / max(self._inside, 1)
        return math.ceil(min(max(seconds, 1), MOST_RETRY_AFTER_S))

    async def acquire(self, client: str, size: int) -> None:
        """Waits until a request of `size` bytes may enter; the caller must `release` it."""
        if not self._queues and self._fits(size):
            self._take(size)
            return
        waiter = Waiter(size, asyncio.get_running_loop().create_future())
        self._queues.setdefault(client, deque()).append(waiter)
        try:
            await waiter.turn
        except asyncio.CancelledError:
            if waiter.turn.cancelled():
                self._let_in()  # it may have been the one that held up the others
            else:  # let in and cancelled at the same moment
                self._leave(size)
            raise

    def release(self, size: int, seconds: float) -> None:
        """Lets a request of `size` bytes out that has been inside for `seconds`."""
        self._mean_s = SMOOTHING * self._mean_s + (1 - SMOOTHING) * seconds
        self._leave(size)

    def _fits(self, size: int) -> bool:
        return not self._inside or (self._inside < self.max_requests and self._bytes + size <= self.max_bytes)

    def _take(self, size: int) -> None:
        self._inside += 1
        self._bytes += size

    def _leave(self, size: int) -> None:
        self._inside -= 1
        self._bytes -= size
        self._let_in()

    def _let_in(self) -> None:
        while self._queues:
            client, queue = next(iter(self._queues.items()))
            while queue and queue[0].turn.cancelled():
                queue.popleft()
            if queue and not self._fits(queue[0].size):
                return
            if queue:
                waiter = queue.popleft()
                self._take(waiter.size)
                waiter.turn.set_result(None)
            self._queues.move_to_end(client)
            if not queue:
                del self._queues[client]
