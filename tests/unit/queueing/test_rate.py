"""The decaying rate: how it averages, how it forgets, and how it fades while nothing is completed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.queueing.rate import DecayingRate


def complete(rate: DecayingRate, amount: float, seconds: float, times: int = 1) -> None:
    """Completes an amount after some seconds of work, again and again."""
    for _ in range(times):
        rate.advance(seconds)
        rate.add(amount)


def test_rate_is_zero_before_anything_is_completed() -> None:
    rate = DecayingRate(30)
    rate.advance(5)
    assert (rate.per_second(), rate.since_s) == (0, 5)


def test_rate_is_the_amount_per_second_of_work() -> None:
    rate = DecayingRate(30)
    complete(rate, 3, seconds=2, times=4)
    assert rate.per_second() == pytest.approx(1.5)


def test_time_since_the_last_completion_adds_up_and_starts_anew() -> None:
    rate = DecayingRate(30)
    rate.advance(2)
    rate.advance(3)
    assert rate.since_s == 5
    rate.add(1)
    assert rate.since_s == 0


def test_amounts_completed_together_share_their_time() -> None:
    rate = DecayingRate(30)
    complete(rate, 1, seconds=4)
    rate.add(3)
    assert rate.per_second() == pytest.approx(1)


@pytest.mark.parametrize("half_life_s", [10, 30])
def test_rate_covers_half_the_distance_to_a_new_one_in_each_half_life(half_life_s: int) -> None:
    rate = DecayingRate(half_life_s)
    complete(rate, 1, seconds=1, times=20 * half_life_s)
    complete(rate, 3, seconds=1, times=half_life_s)
    assert rate.per_second() == pytest.approx(2)
    complete(rate, 3, seconds=1, times=half_life_s)
    assert rate.per_second() == pytest.approx(2.5)


def test_rate_stays_for_one_half_life_without_a_completion_and_then_halves_with_each() -> None:
    rate = DecayingRate(30)
    complete(rate, 8, seconds=1)
    assert rate.per_second() == 8
    rate.advance(30)
    assert rate.per_second() == 8
    rate.advance(30)
    assert rate.per_second() == pytest.approx(4)
    rate.advance(60)
    assert rate.per_second() == pytest.approx(1)


@given(st.lists(st.tuples(st.floats(0.01, 100), st.floats(0.01, 1e7)), min_size=1))
def test_rate_lies_between_the_slowest_and_the_fastest_completion(completions: list[tuple[float, float]]) -> None:
    rate = DecayingRate(30)
    for seconds, amount in completions:
        complete(rate, amount, seconds)
    rates = [amount / seconds for seconds, amount in completions]
    assert min(rates) * (1 - 1e-9) <= rate.per_second() <= max(rates) * (1 + 1e-9)
