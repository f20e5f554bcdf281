"""The door: what it lets in, what it tells those it does not, and how a queue behind it fares."""

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.queueing.admission import Door, Full, Limits, Ticket

MP = 1_000_000
ROOMY = Limits(queue_time_s=60, least_pictures=1, most_pictures=10_000, most_pixels=10_000 * MP)


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class House:
    """A door and its clock, both in a test's hand."""

    def __init__(self, limits: Limits = ROOMY) -> None:
        self.clock = Clock()
        self.door = Door(limits, self.clock)

    def paint(self, pixels: int, seconds: float, times: int = 1) -> None:
        """Pictures one after another, nobody else inside."""
        for _ in range(times):
            with self.door.enter("earlier", pixels):
                self.clock.now += seconds

    def fail(self, client: str, seconds: float) -> None:
        with self.door.enter(client, MP):
            self.clock.now += seconds
            raise ValueError("broken")

    def enter(self, client: str, pixels: int = MP, most: int = 100_000) -> list[Ticket]:
        """One picture after another, until one is refused."""
        tickets: list[Ticket] = []
        try:
            while len(tickets) < most:
                tickets.append(self.door.enter(client, pixels))
        except Full:
            pass
        return tickets

    def refusal(self, client: str, pixels: int = MP) -> Full:
        with pytest.raises(Full) as refusal:
            self.door.enter(client, pixels)
        return refusal.value


def limited(queue_time_s: float = 60, least: int = 1, pictures: int = 10_000, pixels: int = 10_000 * MP) -> Limits:
    return Limits(queue_time_s, least, pictures, pixels)


def test_one_client_fills_four_fifths_of_the_queue_time_and_the_next_the_rest() -> None:
    house = House(limited(queue_time_s=100.5))
    house.paint(MP, seconds=1, times=5)
    assert len(house.enter("a")) == 80
    assert len(house.enter("b", most=1)) == 1


def test_before_anything_was_painted_only_the_least_pictures_have_room() -> None:
    house = House(limited(least=10))
    assert house.door.pixels_per_second == 0
    assert len(house.enter("a")) == 8


@pytest.mark.parametrize(
    ("least", "own", "newcomers"), [(1, 1, 0), (2, 1, 1), (3, 2, 1), (4, 3, 1), (5, 4, 1), (8, 6, 2), (10, 8, 2)]
)
def test_small_rooms_hold_their_least_pictures_and_keep_places_for_newcomers(
    least: int, own: int, newcomers: int
) -> None:
    house = House(limited(least=least))
    assert len(house.enter("a", 9 * MP)) == own
    came = [len(house.enter(f"newcomer {number}", most=1)) for number in range(4)]
    assert came == [1] * newcomers + [0] * (4 - newcomers)
    assert house.door.waiting_pictures == least


def test_least_pictures_have_room_however_slow_painting_is() -> None:
    house = House(limited(queue_time_s=1, least=5))
    house.paint(MP, seconds=500, times=3)
    assert len(house.enter("a")) == 4
    assert len(house.enter("b", most=1)) == 1
    house.refusal("c")


@pytest.mark.parametrize("limits", [limited(pictures=20), limited(pixels=20 * MP)])
def test_caps_hold_however_fast_painting_is(limits: Limits) -> None:
    house = House(limits)
    house.paint(MP, seconds=1e-6, times=5)
    assert len(house.enter("a")) == 16
    assert sum(len(house.enter(f"client {number}", most=1)) for number in range(10)) == 4


def test_caps_hold_where_the_least_pictures_would_have_room() -> None:
    house = House(limited(least=100, pictures=5))
    assert len(house.enter("a")) == 4
    house = House(limited(least=100, pixels=5 * MP))
    assert len(house.enter("a")) == 4


def test_picture_that_finds_nobody_inside_is_let_in_whatever_its_size() -> None:
    house = House(limited(queue_time_s=1, pixels=MP))
    house.paint(MP, seconds=100)
    with house.door.enter("a", 50 * MP):
        house.refusal("b", 1)
    assert house.door.waiting_pictures == 0


def test_limits_may_change_while_pictures_are_inside() -> None:
    house = House(limited(least=10))
    inside = house.enter("a")
    house.door.limits = limited(least=5)
    house.refusal("b")
    house.door.limits = limited(least=20)
    assert len(inside) + len(house.enter("a")) == 16


@pytest.mark.parametrize("greedy", range(1, 7))
def test_clients_that_all_want_everything_share_alike_and_leave_room_for_another(greedy: int) -> None:
    limit = 200
    house = House(limited(queue_time_s=limit))
    house.paint(MP, seconds=1, times=5)
    held: Counter[str] = Counter()
    for _ in range(limit):
        for number in range(greedy):
            held[f"client {number}"] += len(house.enter(f"client {number}", most=1))
    assert max(held.values()) - min(held.values()) <= 1
    assert held.total() == pytest.approx(limit * 4 * greedy / (4 * greedy + 1), abs=greedy)
    assert len(house.enter("newcomer", most=1)) == 1


def test_pictures_of_clients_with_one_each_fill_everything() -> None:
    house = House(limited(queue_time_s=50.5))
    house.paint(MP, seconds=1, times=5)
    assert [len(house.enter(f"client {number}", most=1)) for number in range(52)] == [1] * 50 + [0] * 2


def test_client_that_has_left_is_a_newcomer_again() -> None:
    house = House(limited(least=5))
    first, *_ = house.enter("a", most=1)
    others = house.enter("b")
    assert len(others) == 3
    house.refusal("a")
    first.leave(painted=False)
    assert len(house.enter("a", most=1)) == 1


def test_refusal_tells_the_limit_the_place_and_when_to_come_back() -> None:
    house = House(limited(queue_time_s=50))
    house.paint(MP, seconds=2, times=5)
    assert len(house.enter("a")) == 20
    full = house.refusal("a", 3 * MP)
    assert (full.limit_pixels, full.actual_pixels) == (20 * MP, 23 * MP)
    assert full.position == 20
    assert full.retry_after_s == 8  # three pictures of 2 s, and one
    full = house.refusal("b", 6 * MP)
    assert (full.limit_pixels, full.actual_pixels) == (25 * MP, 26 * MP)
    assert full.retry_after_s == 4


def test_refusal_tells_whether_only_this_client_has_its_share() -> None:
    house = House(limited(queue_time_s=100.5))
    house.paint(MP, seconds=1, times=5)
    house.enter("a")
    own = house.refusal("a")
    assert (own.is_share, own.own, own.position) == (True, 80, 80)
    others = [house.enter(f"newcomer {number}", most=1) for number in range(20)]
    assert all(others)
    full = house.refusal("another")
    assert (full.is_share, full.own, full.position) == (False, 0, 100)
    assert not house.refusal("a").is_share


def test_picture_larger_than_the_whole_queue_waits_until_nobody_is_inside() -> None:
    house = House(limited(queue_time_s=50, pixels=20 * MP))
    house.paint(MP, seconds=2, times=5)
    inside = house.enter("a", most=3)
    full = house.refusal("b", 30 * MP)
    assert (full.limit_pixels, full.actual_pixels) == (30 * MP, 33 * MP)
    assert full.retry_after_s == 8  # three pictures of 2 s, and one
    for ticket in inside:
        ticket.leave(painted=True)
    house.door.enter("b", 30 * MP)


def test_refusal_for_want_of_places_counts_pictures_of_the_mean_size() -> None:
    house = House(limited(queue_time_s=1, least=5))
    house.paint(MP, seconds=3, times=5)
    house.enter("a", 2 * MP)
    house.enter("b", 2 * MP, most=1)
    full = house.refusal("c", MP)
    assert (full.limit_pixels, full.actual_pixels, full.position) == (9 * MP, 11 * MP, 5)
    assert full.retry_after_s == 12  # two pictures of 6 s


def test_refusal_before_anything_was_painted_asks_for_as_long_as_it_has_taken() -> None:
    house = House()
    house.enter("a")
    assert house.refusal("b").retry_after_s == 1
    house.clock.now += 17.5
    assert house.refusal("b").retry_after_s == 18


def test_retry_after_is_at_most_an_hour() -> None:
    house = House()
    house.paint(100, seconds=1000)
    house.enter("a")
    assert house.refusal("b").retry_after_s == 3600


def test_rate_is_what_was_painted_per_second_of_work() -> None:
    house = House()
    house.paint(3 * MP, seconds=2, times=4)
    assert house.door.pixels_per_second == pytest.approx(1.5 * MP)


def test_idle_hours_change_no_rate_and_neither_does_one_small_picture_after_them() -> None:
    house = House()
    house.paint(MP, seconds=1, times=60)
    house.clock.now += 36_000
    assert house.door.pixels_per_second == pytest.approx(MP)
    house.paint(4096, seconds=0.3)
    assert house.door.pixels_per_second == pytest.approx(MP, rel=0.01)


def test_slow_first_picture_is_forgotten_within_minutes_of_work() -> None:
    house = House()
    house.paint(MP, seconds=20)
    assert house.door.pixels_per_second == pytest.approx(MP / 20)
    house.paint(MP, seconds=1, times=90)
    assert house.door.pixels_per_second == pytest.approx(MP, rel=0.06)


def test_rate_follows_painting_that_becomes_faster_by_half_each_half_life() -> None:
    house = House()
    house.paint(MP, seconds=1, times=300)
    house.paint(3 * MP, seconds=1, times=30)
    assert house.door.pixels_per_second == pytest.approx(2 * MP, rel=0.01)


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_rate_stays_where_it_is_while_a_batch_is_painted(batch: int) -> None:
    house = House(limited(least=100))
    for _ in range(20):
        inside = house.enter("a", most=batch)
        house.clock.now += 8
        for ticket in inside:
            ticket.leave(painted=True)
    true = batch * MP / 8
    assert house.door.pixels_per_second == pytest.approx(true)
    house.enter("a", most=1)
    house.clock.now += 7
    assert house.door.pixels_per_second == pytest.approx(true)


def test_rate_is_doubted_when_nothing_has_been_painted_for_long() -> None:
    house = House()
    house.paint(MP, seconds=1, times=60)
    house.enter("a", most=1)
    house.clock.now += 30
    assert house.door.pixels_per_second == pytest.approx(MP)
    house.clock.now += 60
    assert house.door.pixels_per_second == pytest.approx(MP / 4)


def test_what_leaves_unpainted_has_taken_time_only() -> None:
    house = House()
    house.paint(MP, seconds=1)
    house.door.enter("a", MP).leave(painted=False)
    with pytest.raises(ValueError, match="broken"):
        house.fail("a", seconds=1)
    house.paint(MP, seconds=1)
    assert house.door.pixels_per_second == pytest.approx(2 / 3 * MP, rel=0.05)
    assert house.door.waiting_pictures == 0


def test_leaving_twice_counts_once() -> None:
    house = House(limited(least=10))
    first, _ = house.enter("a", most=2)
    house.clock.now += 1
    first.leave(painted=True)
    first.leave(painted=True)
    with first:
        pass
    assert (house.door.waiting_pictures, house.door.backlog_pixels) == (1, MP)
    assert house.door.pixels_per_second == pytest.approx(MP)


sizes = st.integers(64, 16 * MP)
some_limits = st.builds(
    Limits, st.floats(1, 600), st.integers(1, 12), st.integers(1, 40), st.integers(MP, 200 * MP)
)  # fmt: skip


@given(limits=some_limits, moves=st.lists(st.tuples(st.floats(0, 20), st.integers(0, 5), sizes, st.booleans())))
def test_any_visits_keep_the_rule_and_leave_nothing_behind(
    limits: Limits, moves: list[tuple[float, int, int, bool]]
) -> None:
    house = House(limits)
    door = house.door
    inside: list[tuple[str, int, Ticket]] = []
    for seconds, who, pixels, painted in moves:
        house.clock.now += seconds
        client = f"client {who}"
        if who == 0 and inside:
            inside.pop(pixels % len(inside))[2].leave(painted)
        else:
            expected = rule(limits, door.pixels_per_second, [(c, p) for c, p, _ in inside], client, pixels)
            if expected:
                inside.append((client, pixels, door.enter(client, pixels)))
            else:
                full = house.refusal(client, pixels)
                assert full.limit_pixels < full.actual_pixels
                assert full.position == len(inside)
                assert 1 <= full.retry_after_s <= 3600
        assert len(inside) <= limits.most_pictures
        assert len(inside) == 1 or door.backlog_pixels <= limits.most_pixels
        assert door.backlog_pixels == sum(pixels for _, pixels, _ in inside)
        assert (door.waiting_pictures, door.waiting_clients) == (len(inside), len({client for client, _, _ in inside}))
    for _, _, ticket in inside:
        ticket.leave(painted=True)
    assert (door.waiting_pictures, door.backlog_pixels, door.waiting_clients) == (0, 0, 0)


def rule(limits: Limits, rate: float, inside: list[tuple[str, int]], client: str, size: int) -> bool:
    """The documented rule, word for word."""

    def fits(limit: float, measure: Callable[[int], int]) -> bool:
        free = limit - sum(measure(pixels) for _, pixels in inside) - measure(size)
        own = sum(measure(pixels) for name, pixels in inside if name == client)
        return free >= 0 and (own == 0 or own + measure(size) <= 4 * free)

    def places(_: int) -> int:
        return 1

    def area(pixels: int) -> int:
        return pixels

    return not inside or (
        fits(limits.most_pictures, places)
        and fits(limits.most_pixels, area)
        and (fits(limits.least_pictures, places) or fits(rate * limits.queue_time_s, area))
    )


@given(pictures=st.lists(sizes, max_size=40), seconds=st.floats(0.01, 10), queue_time_s=st.floats(5, 100))
def test_burst_of_one_client_that_takes_four_fifths_of_the_queue_time_is_never_refused(
    pictures: list[int], seconds: float, queue_time_s: float
) -> None:
    house = House(limited(queue_time_s))
    house.paint(MP, seconds, times=3)
    room = 0.8 * queue_time_s / seconds * MP * (1 - 1e-9)
    for pixels in pictures:
        if house.door.backlog_pixels + pixels <= room:
            house.door.enter("a", pixels)


# A simulated service behind the door: first come, first served.


@dataclass
class Visit:
    client: str
    pixels: int
    came_s: float
    left_s: float | None = None
    refusal: Full | None = None

    @property
    def took_s(self) -> float:
        assert self.left_s is not None
        return self.left_s - self.came_s


@dataclass
class Service:
    """Paints `rate` pixels a second in batches on some devices, each batch for as long as its pixels take.

    Args:
        comes_back: the client that returns when a refusal tells it to; each return is a visit of its own.
    """

    limits: Limits
    rate: float
    batch: int = 1
    devices: int = 1
    comes_back: str | None = None

    def run(self, arrivals: Iterable[tuple[float, str, int]]) -> list[Visit]:
        house = House(self.limits)
        began = house.clock.now
        order = count()
        events: list[tuple[float, int, Visit | list[tuple[Visit, Ticket]]]] = [
            (came_s, next(order), Visit(client, pixels, came_s)) for came_s, client, pixels in arrivals
        ]
        heapq.heapify(events)
        queue: deque[tuple[Visit, Ticket]] = deque()
        visits: list[Visit] = []
        free = self.devices
        while events:
            now, _, event = heapq.heappop(events)
            house.clock.now = began + now
            if isinstance(event, list):
                free += 1
                for visit, ticket in event:
                    visit.left_s = now
                    ticket.leave(painted=True)
            else:
                visits.append(event)
                try:
                    queue.append((event, house.door.enter(event.client, event.pixels)))
                except Full as full:
                    event.refusal = full
                    if event.client == self.comes_back:
                        again = Visit(event.client, event.pixels, now + full.retry_after_s)
                        heapq.heappush(events, (again.came_s, next(order), again))
            while free and queue:
                batch = [queue.popleft() for _ in range(min(self.batch, len(queue)))]
                seconds = sum(visit.pixels for visit, _ in batch) / (self.rate / self.devices)
                heapq.heappush(events, (now + seconds, next(order), batch))
                free -= 1
        assert house.door.waiting_clients == 0
        return visits


def overload(
    rate: float, until_s: float, side: Callable[[random.Random], int], clients: int, times: float = 5
) -> list[tuple[float, str, int]]:
    """Visits at random moments with `times` the pixels that can be painted."""
    chance = random.Random(7)
    mean = sum(side(chance) ** 2 for _ in range(1000)) / 1000
    arrivals = []
    now = 0.0
    while now < until_s:
        now += chance.expovariate(times * rate / mean)
        arrivals.append((now, f"client {chance.randrange(clients)}", side(chance) ** 2))
    return arrivals


def one_size(_: random.Random) -> int:
    return 1000


def many_sizes(chance: random.Random) -> int:
    return chance.randint(300, 2000)


@pytest.mark.parametrize(
    ("rate", "queue_time_s", "batch", "devices", "side", "clients"),
    [
        (0.125 * MP, 120, 1, 1, one_size, 1),  # a laptop
        (0.125 * MP, 120, 1, 1, many_sizes, 8),
        (MP, 30, 1, 1, many_sizes, 1),
        (MP, 60, 4, 1, one_size, 3),
        (10 * MP, 30, 4, 1, many_sizes, 20),  # a GPU
        (10 * MP, 10, 16, 1, many_sizes, 1000),
        (4 * MP, 30, 2, 8, many_sizes, 5),  # eight replicas
    ],
)
def test_under_fivefold_load_the_queue_time_holds_and_no_device_is_idle(
    rate: float, queue_time_s: float, batch: int, devices: int, side: Callable[[random.Random], int], clients: int
) -> None:
    warm_s, end_s = 5 * queue_time_s, 15 * queue_time_s
    service = Service(limited(queue_time_s, least=4), rate, batch, devices)
    visits = service.run(overload(rate, end_s, side, clients))
    painted = [visit for visit in visits if visit.left_s is not None]
    last_batch_s = batch * max(visit.pixels for visit in visits) / rate * devices
    worst_s = max(visit.took_s for visit in painted if visit.came_s > warm_s)
    assert 0.7 * queue_time_s < worst_s
    assert worst_s <= queue_time_s + last_batch_s
    pixels = sum(visit.pixels for visit in painted if visit.left_s is not None and warm_s < visit.left_s <= end_s)
    assert pixels >= 0.95 * rate * (end_s - warm_s)


def test_newcomers_are_let_in_at_once_while_others_want_everything() -> None:
    crowd = overload(MP, 400, one_size, clients=4, times=20)
    newcomers = [(20 + 7.0 * number, f"newcomer {number}", MP) for number in range(50)]
    visits = Service(limited(60, least=8), MP, batch=2).run(crowd + newcomers)
    let_in = Counter(visit.refusal is None for visit in visits if visit.client.startswith("newcomer"))
    assert let_in == {True: 50}


def test_crowd_is_served_alike_however_often_each_asks() -> None:
    chance = random.Random(3)
    often = [(chance.uniform(0, 600), "often", MP) for _ in range(12_000)]
    seldom = [(chance.uniform(0, 600), "seldom", MP) for _ in range(600)]
    visits = Service(limited(60, least=8), MP).run(often + seldom)
    served = Counter(visit.client for visit in visits if visit.refusal is None and visit.came_s > 120)
    assert served["seldom"] >= 0.85 * served["often"]


@pytest.mark.parametrize(
    ("rate", "batch", "side", "wanted"),
    [
        (MP, 1, one_size, 9),
        (MP, 1, one_size, 30),
        (MP, 1, many_sizes, 9),
        (MP, 1, many_sizes, 30),
        (10 * MP, 4, one_size, 200),
        (10 * MP, 4, many_sizes, 200),
    ],
)
def test_who_comes_back_when_told_usually_gets_in(
    rate: float, batch: int, side: Callable[[random.Random], int], wanted: int
) -> None:
    chance = random.Random(5)
    second_try = Counter[bool]()
    for _ in range(40):
        earlier = [(2.0 * number, "earlier", side(chance) ** 2) for number in range(30)]
        burst = [(100.0, f"client {number % 2}", side(chance) ** 2) for number in range(round(150 * rate / MP))]
        late = (chance.uniform(101, 105), "late", wanted * MP)
        visits = Service(limited(60, least=8), rate, batch, comes_back="late").run([*earlier, *burst, late])
        first, *others = [visit for visit in visits if visit.client == "late"]
        if first.refusal:
            second_try[others[0].refusal is None] += 1
    assert second_try.total() > 10
    assert second_try[True] >= 0.85 * second_try.total()


def test_who_comes_back_much_earlier_than_told_finds_it_full() -> None:
    house = House(limited(queue_time_s=50))
    house.paint(MP, seconds=2, times=10)
    inside = house.enter("a")
    told_s = house.refusal("a", 5 * MP).retry_after_s
    assert 10 <= told_s <= 12
    for ticket in inside[:4]:
        house.clock.now += 2
        ticket.leave(painted=True)
        house.refusal("a", 5 * MP)
    house.clock.now += 2
    inside[4].leave(painted=True)
    house.door.enter("a", 5 * MP)
