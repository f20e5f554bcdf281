"""A rate per second of work that follows the latest measurements."""

import math


class DecayingRate:
    """An average rate in which older measurements weigh less: half as much after each half-life.

    Time is counted in seconds of work. Idle time is not reported, so it changes nothing: a request that arrives after a
    quiet hour meets the rate of the last busy minute.

    Args:
        half_life_s: in seconds of work, above 0.
    """

    def __init__(self, half_life_s: float) -> None:
        self._half_life_s = half_life_s
        self._amount = 0.0
        self._seconds = 0.0
        self._since_s = 0.0

    @property
    def since_s(self) -> float:
        """Seconds of work since something was last completed, or since the first work."""
        return self._since_s

    def advance(self, seconds: float) -> None:
        """Counts seconds of work in which nothing was completed yet."""
        self._since_s += seconds

    def add(self, amount: float) -> None:
        """Counts an amount, such as pixels, that was completed just now."""
        decay = math.exp2(-self._since_s / self._half_life_s)
        self._amount = self._amount * decay + amount
        self._seconds = self._seconds * decay + self._since_s
        self._since_s = 0.0

    def per_second(self) -> float:
        """Returns the amount completed per second of work; 0 before anything was completed.

        While nothing is completed, the rate stays as measured for one half-life and then halves with each further one.
        """
        if not self._seconds:
            return 0.0
        return self._amount / self._seconds * math.exp2(min(1 - self._since_s / self._half_life_s, 0))
