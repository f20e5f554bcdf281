"""Admission control: which images it admits, what a refusal says, and how a queue behind it behaves."""

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.frames import Client
from serve_app.queueing.admission import AdmissionController, Limits, Occupancy, QueueFull, Ticket

MP = 1_000_000
ROOMY = Limits(queue_time_s=60, least_pictures=1, most_pictures=10_000, most_pixels=10_000 * MP)


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def as_client(client: str | Client) -> Client:
    return client if isinstance(client, Client) else Client(client)


class Setup:
    """An admission controller with a clock that the test controls."""

    def __init__(self, limits: Limits = ROOMY) -> None:
        self.clock = Clock()
        self.controller = AdmissionController(limits, self.clock)

    def paint(self, pixels: int, seconds: float, times: int = 1) -> None:
        """Admits and paints images one after another, with no other image admitted."""
        for _ in range(times):
            with self.controller.admit(Client("earlier"), pixels):
                self.clock.now += seconds

    def fail(self, client: str, seconds: float) -> None:
        with self.controller.admit(Client(client), MP):
            self.clock.now += seconds
            raise ValueError("broken")

    def admit(self, client: str | Client, pixels: int = MP, most: int = 100_000) -> list[Ticket]:
        """Admits images one after another until one is refused."""
        tickets: list[Ticket] = []
        try:
            while len(tickets) < most:
                tickets.append(self.controller.admit(as_client(client), pixels))
        except QueueFull:
            pass
        return tickets

    @property
    def occupancy(self) -> Occupancy:
        return self.controller.occupancy

    def refusal(self, client: str | Client, pixels: int = MP) -> QueueFull:
        with pytest.raises(QueueFull) as refusal:
            self.controller.admit(as_client(client), pixels)
        return refusal.value


def limited(queue_time_s: float = 60, least: int = 1, pictures: int = 10_000, pixels: int = 10_000 * MP) -> Limits:
    return Limits(queue_time_s, least, pictures, pixels)


def test_one_client_fills_four_fifths_of_the_queue_time_and_the_next_the_rest() -> None:
    setup = Setup(limited(queue_time_s=100.5))
    setup.paint(MP, seconds=1, times=5)
    assert len(setup.admit("a")) == 80
    assert len(setup.admit("b", most=1)) == 1


def test_before_anything_was_painted_only_the_least_images_are_admitted() -> None:
    setup = Setup(limited(least=10))
    assert setup.controller.pixels_per_second == 0
    assert len(setup.admit("a")) == 8


@pytest.mark.parametrize(
    ("least", "own", "newcomers"), [(1, 1, 0), (2, 1, 1), (3, 2, 1), (4, 3, 1), (5, 4, 1), (8, 6, 2), (10, 8, 2)]
)
def test_small_limits_admit_their_least_images_and_leave_room_for_newcomers(
    least: int, own: int, newcomers: int
) -> None:
    setup = Setup(limited(least=least))
    assert len(setup.admit("a", 9 * MP)) == own
    came = [len(setup.admit(f"newcomer {number}", most=1)) for number in range(4)]
    assert came == [1] * newcomers + [0] * (4 - newcomers)
    assert setup.occupancy.images == least


def test_least_images_are_admitted_however_slow_painting_is() -> None:
    setup = Setup(limited(queue_time_s=1, least=5))
    setup.paint(MP, seconds=500, times=3)
    assert len(setup.admit("a")) == 4
    assert len(setup.admit("b", most=1)) == 1
    setup.refusal("c")


@pytest.mark.parametrize("limits", [limited(pictures=20), limited(pixels=20 * MP)])
def test_caps_hold_however_fast_painting_is(limits: Limits) -> None:
    setup = Setup(limits)
    setup.paint(MP, seconds=1e-6, times=5)
    assert len(setup.admit("a")) == 16
    assert sum(len(setup.admit(f"client {number}", most=1)) for number in range(10)) == 4


def test_caps_hold_even_below_the_least_images() -> None:
    setup = Setup(limited(least=100, pictures=5))
    assert len(setup.admit("a")) == 4
    setup = Setup(limited(least=100, pixels=5 * MP))
    assert len(setup.admit("a")) == 4


def test_image_is_admitted_whatever_its_size_if_no_other_is() -> None:
    setup = Setup(limited(queue_time_s=1, pixels=MP))
    setup.paint(MP, seconds=100)
    with setup.controller.admit(Client("a"), 50 * MP):
        setup.refusal("b", 1)
    assert setup.occupancy.images == 0


def test_limits_may_change_while_images_are_admitted() -> None:
    setup = Setup(limited(least=10))
    admitted = setup.admit("a")
    setup.controller.limits = limited(least=5)
    setup.refusal("b")
    setup.controller.limits = limited(least=20)
    assert len(admitted) + len(setup.admit("a")) == 16


@pytest.mark.parametrize("greedy", range(1, 7))
def test_greedy_clients_share_equally_and_leave_room_for_another(greedy: int) -> None:
    limit = 200
    setup = Setup(limited(queue_time_s=limit))
    setup.paint(MP, seconds=1, times=5)
    held: Counter[str] = Counter()
    for _ in range(limit):
        for number in range(greedy):
            held[f"client {number}"] += len(setup.admit(f"client {number}", most=1))
    assert max(held.values()) - min(held.values()) <= 1
    assert held.total() == pytest.approx(limit * 4 * greedy / (4 * greedy + 1), abs=greedy)
    assert len(setup.admit("newcomer", most=1)) == 1


def test_clients_with_one_image_each_fill_the_whole_queue_time() -> None:
    setup = Setup(limited(queue_time_s=50.5))
    setup.paint(MP, seconds=1, times=5)
    assert [len(setup.admit(f"client {number}", most=1)) for number in range(52)] == [1] * 50 + [0] * 2


def test_client_without_admitted_images_counts_as_a_newcomer_again() -> None:
    setup = Setup(limited(least=5))
    first, *_ = setup.admit("a", most=1)
    others = setup.admit("b")
    assert len(others) == 3
    setup.refusal("a")
    first.release(is_painted=False)
    assert len(setup.admit("a", most=1)) == 1


def test_refusal_states_the_limit_the_position_and_when_to_try_again() -> None:
    setup = Setup(limited(queue_time_s=50))
    setup.paint(MP, seconds=2, times=5)
    assert len(setup.admit("a")) == 20
    full = setup.refusal("a", 3 * MP)
    assert (full.limit_pixels, full.actual_pixels) == (20 * MP, 23 * MP)
    assert full.position == 20
    assert full.retry_after_s == 8  # three pictures of 2 s, and one
    full = setup.refusal("b", 6 * MP)
    assert (full.limit_pixels, full.actual_pixels) == (25 * MP, 26 * MP)
    assert full.retry_after_s == 4


def test_refusal_states_whether_only_the_share_of_the_client_is_used_up() -> None:
    setup = Setup(limited(queue_time_s=100.5))
    setup.paint(MP, seconds=1, times=5)
    setup.admit("a")
    own = setup.refusal("a")
    assert (own.is_share, own.own, own.position) == (True, 80, 80)
    others = [setup.admit(f"newcomer {number}", most=1) for number in range(20)]
    assert all(others)
    full = setup.refusal("another")
    assert (full.is_share, full.own, full.position) == (False, 0, 100)
    assert not setup.refusal("a").is_share


def test_image_larger_than_the_whole_queue_is_admitted_once_no_other_is() -> None:
    setup = Setup(limited(queue_time_s=50, pixels=20 * MP))
    setup.paint(MP, seconds=2, times=5)
    admitted = setup.admit("a", most=3)
    full = setup.refusal("b", 30 * MP)
    assert (full.limit_pixels, full.actual_pixels) == (30 * MP, 33 * MP)
    assert full.retry_after_s == 8  # three pictures of 2 s, and one
    for ticket in admitted:
        ticket.release(is_painted=True)
    setup.controller.admit(Client("b"), 30 * MP)


def test_refusal_by_number_of_images_is_converted_with_their_mean_size() -> None:
    setup = Setup(limited(queue_time_s=1, least=5))
    setup.paint(MP, seconds=3, times=5)
    setup.admit("a", 2 * MP)
    setup.admit("b", 2 * MP, most=1)
    full = setup.refusal("c", MP)
    assert (full.limit_pixels, full.actual_pixels, full.position) == (9 * MP, 11 * MP, 5)
    assert full.retry_after_s == 12  # two pictures of 6 s


def test_refusal_before_anything_was_painted_asks_for_the_time_that_the_first_has_taken() -> None:
    setup = Setup()
    setup.admit("a")
    assert setup.refusal("b").retry_after_s == 1
    setup.clock.now += 17.5
    assert setup.refusal("b").retry_after_s == 18


def test_retry_after_is_at_most_an_hour() -> None:
    setup = Setup()
    setup.paint(100, seconds=1000)
    setup.admit("a")
    assert setup.refusal("b").retry_after_s == 3600


def test_rate_is_the_pixels_painted_per_second_of_work() -> None:
    setup = Setup()
    setup.paint(3 * MP, seconds=2, times=4)
    assert setup.controller.pixels_per_second == pytest.approx(1.5 * MP)


def test_idle_hours_do_not_change_the_rate_and_neither_does_one_small_image_after_them() -> None:
    setup = Setup()
    setup.paint(MP, seconds=1, times=60)
    setup.clock.now += 36_000
    assert setup.controller.pixels_per_second == pytest.approx(MP)
    setup.paint(4096, seconds=0.3)
    assert setup.controller.pixels_per_second == pytest.approx(MP, rel=0.01)


def test_slow_first_image_is_forgotten_within_minutes_of_work() -> None:
    setup = Setup()
    setup.paint(MP, seconds=20)
    assert setup.controller.pixels_per_second == pytest.approx(MP / 20)
    setup.paint(MP, seconds=1, times=90)
    assert setup.controller.pixels_per_second == pytest.approx(MP, rel=0.06)


def test_rate_covers_half_the_distance_to_a_faster_one_in_each_half_life() -> None:
    setup = Setup()
    setup.paint(MP, seconds=1, times=300)
    setup.paint(3 * MP, seconds=1, times=30)
    assert setup.controller.pixels_per_second == pytest.approx(2 * MP, rel=0.01)


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_rate_stays_where_it_is_while_a_batch_is_painted(batch: int) -> None:
    setup = Setup(limited(least=100))
    for _ in range(20):
        admitted = setup.admit("a", most=batch)
        setup.clock.now += 8
        for ticket in admitted:
            ticket.release(is_painted=True)
    true = batch * MP / 8
    assert setup.controller.pixels_per_second == pytest.approx(true)
    setup.admit("a", most=1)
    setup.clock.now += 7
    assert setup.controller.pixels_per_second == pytest.approx(true)


def test_rate_fades_when_nothing_has_been_painted_for_long() -> None:
    setup = Setup()
    setup.paint(MP, seconds=1, times=60)
    setup.admit("a", most=1)
    setup.clock.now += 30
    assert setup.controller.pixels_per_second == pytest.approx(MP)
    setup.clock.now += 60
    assert setup.controller.pixels_per_second == pytest.approx(MP / 4)


def test_image_that_is_not_painted_adds_time_but_no_pixels_to_the_rate() -> None:
    setup = Setup()
    setup.paint(MP, seconds=1)
    setup.controller.admit(Client("a"), MP).release(is_painted=False)
    with pytest.raises(ValueError, match="broken"):
        setup.fail("a", seconds=1)
    setup.paint(MP, seconds=1)
    assert setup.controller.pixels_per_second == pytest.approx(2 / 3 * MP, rel=0.05)
    assert setup.occupancy.images == 0


def test_releasing_a_ticket_twice_counts_once() -> None:
    setup = Setup(limited(least=10))
    first, _ = setup.admit("a", most=2)
    setup.clock.now += 1
    first.release(is_painted=True)
    first.release(is_painted=True)
    with first:
        pass
    assert (setup.occupancy.images, setup.occupancy.pixels) == (1, MP)
    assert setup.controller.pixels_per_second == pytest.approx(MP)


sizes = st.integers(64, 16 * MP)
some_limits = st.builds(
    Limits, st.floats(1, 600), st.integers(1, 12), st.integers(1, 40), st.integers(MP, 200 * MP)
)  # fmt: skip


CLIENTS = [
    Client("client 1"),
    Client("client 2"),
    Client("key 3", share=0.5),
    Client("key 4", share=0.125),
    Client("stranger 5", share=0.25, group="strangers"),
    Client("stranger 6", share=0.25, group="strangers"),
    Client("stranger 7", share=0.25, group="strangers"),
]


@given(limits=some_limits, steps=st.lists(st.tuples(st.floats(0, 20), st.integers(0, 7), sizes, st.booleans())))
def test_any_sequence_of_requests_follows_the_rule_and_leaves_nothing_behind(
    limits: Limits, steps: list[tuple[float, int, int, bool]]
) -> None:
    setup = Setup(limits)
    admitted: list[tuple[Client, int, Ticket]] = []
    for seconds, number, pixels, is_painted in steps:
        setup.clock.now += seconds
        client = CLIENTS[number - 1]
        if number == 0 and admitted:
            admitted.pop(pixels % len(admitted))[2].release(is_painted)
        else:
            expected = rule(
                limits, setup.controller.pixels_per_second, [(c, p) for c, p, _ in admitted], client, pixels
            )
            if expected:
                admitted.append((client, pixels, setup.controller.admit(client, pixels)))
            else:
                full = setup.refusal(client, pixels)
                assert full.limit_pixels < full.actual_pixels
                assert full.position == len(admitted)
                assert 1 <= full.retry_after_s <= 3600
        assert len(admitted) <= limits.most_pictures
        assert len(admitted) == 1 or setup.occupancy.pixels <= limits.most_pixels
        assert setup.occupancy == Occupancy(len(admitted), sum(pixels for _, pixels, _ in admitted))
    for _, _, ticket in admitted:
        ticket.release(is_painted=True)
    assert setup.occupancy == Occupancy(0, 0)
    assert not setup.controller._clients  # none is remembered, or memory would grow with every address
    assert not setup.controller._groups


def rule(limits: Limits, rate: float, admitted: list[tuple[Client, int]], client: Client, size: int) -> bool:
    """The documented rule, word for word."""

    def fits(limit: float, measure: Callable[[int], int]) -> bool:
        free = limit - sum(measure(pixels) for _, pixels in admitted) - measure(size)
        own = sum(measure(pixels) for other, pixels in admitted if other == client)
        return free >= 0 and (own == 0 or own + measure(size) <= 4 * free) and fits_share(limit, measure, own)

    def fits_share(limit: float, measure: Callable[[int], int], own: int) -> bool:
        sharing = [other for other in CLIENTS if other == client or (client.group and other.group == client.group)]
        held = sum(measure(pixels) for other, pixels in admitted if other in sharing)
        free = client.share * limit - held - measure(size)
        return held == 0 or (free >= 0 and (own == 0 or client.group is None or own + measure(size) <= 4 * free))

    def one(_: int) -> int:
        return 1

    def area(pixels: int) -> int:
        return pixels

    return not admitted or (
        fits(limits.most_pictures, one)
        and fits(limits.most_pixels, area)
        and (fits(limits.least_pictures, one) or fits(rate * limits.queue_time_s, area))
    )


@pytest.mark.parametrize(("share", "images"), [(0.5, 50), (0.25, 25), (0.01, 1), (0.001, 1), (0.9, 79), (1, 79)])
def test_client_with_a_share_holds_that_part_of_the_queue_and_at_least_one_image(share: float, images: int) -> None:
    """Beside one other image, 79 are what any client may hold."""
    setup = Setup(limited(queue_time_s=100.5))
    setup.paint(MP, seconds=1, times=5)
    setup.admit("another", most=1)
    assert len(setup.admit(Client("key", share))) == images


@pytest.mark.parametrize("limits", [limited(pictures=20), limited(pixels=20 * MP), limited(least=20, queue_time_s=1)])
def test_share_is_a_part_of_every_limit(limits: Limits) -> None:
    setup = Setup(limits)
    setup.paint(MP, seconds=1e-6 if limits.queue_time_s > 1 else 500, times=5)
    setup.admit("another", most=1)
    assert len(setup.admit(Client("key", share=0.25))) == 5
    assert len(setup.admit(Client("other key", share=0.25))) == 5


def stranger(number: int) -> Client:
    return Client(f"stranger {number}", share=0.25, group="strangers")


def test_clients_of_a_group_hold_its_share_together_and_leave_room_for_each_other() -> None:
    setup = Setup(limited(queue_time_s=200.5))
    setup.paint(MP, seconds=1, times=5)
    setup.admit("a", most=1)
    assert len(setup.admit(stranger(1))) == 40  # four fifths of 50
    came = [len(setup.admit(stranger(number), most=1)) for number in range(2, 20)]
    assert came == [1] * 10 + [0] * 8
    full = setup.refusal(stranger(30))
    assert (full.is_share, full.own, full.position) == (True, 0, 51)
    assert len(setup.admit(Client("key", share=0.1))) == 20  # a group that is full takes nothing from others
    assert len(setup.admit("b", most=1)) == 1


def test_group_may_always_hold_one_image() -> None:
    setup = Setup(limited(least=4))
    setup.admit("a", most=2)
    tiny = [Client(name, share=0.001, group="strangers") for name in ("stranger 1", "stranger 2")]
    (ticket,) = setup.admit(tiny[0])
    assert setup.refusal(tiny[1]).is_share
    ticket.release(is_painted=True)
    assert len(setup.admit(tiny[1])) == 1


@given(
    share=st.floats(0.001, 1),
    pictures=st.lists(st.tuples(st.integers(1, 9), sizes), max_size=60),
    most=st.integers(1, 40),
    seconds=st.floats(0.01, 10),
)
def test_group_never_holds_more_than_its_share_or_one_image(
    share: float, pictures: list[tuple[int, int]], most: int, seconds: float
) -> None:
    setup = Setup(limited(queue_time_s=30, pictures=most, pixels=100 * MP))
    setup.paint(MP, seconds, times=3)
    setup.admit("a", most=1)
    held: list[int] = []
    for number, pixels in pictures:
        held += [pixels] * len(setup.admit(Client(f"{number}", share, "strangers"), pixels, most=1))
    most_pixels = share * min(100 * MP, 30 * setup.controller.pixels_per_second)
    assert len(held) <= 1 or (len(held) <= share * most + 1e-9 and sum(held) <= most_pixels + 1)


@given(pictures=st.lists(sizes, max_size=40), seconds=st.floats(0.01, 10), queue_time_s=st.floats(5, 100))
def test_burst_of_one_client_that_takes_four_fifths_of_the_queue_time_is_never_refused(
    pictures: list[int], seconds: float, queue_time_s: float
) -> None:
    setup = Setup(limited(queue_time_s))
    setup.paint(MP, seconds, times=3)
    limit = 0.8 * queue_time_s / seconds * MP * (1 - 1e-9)
    for pixels in pictures:
        if setup.occupancy.pixels + pixels <= limit:
            setup.controller.admit(Client("a"), pixels)


# A simulated service behind the admission controller: first come, first served.


@dataclass
class Visit:
    client: str
    pixels: int
    came_s: float
    left_s: float | None = None
    refusal: QueueFull | None = None

    @property
    def took_s(self) -> float:
        assert self.left_s is not None
        return self.left_s - self.came_s


@dataclass
class Service:
    """Paints `rate` pixels a second in batches, on some devices; the time of a batch is proportional to its pixels.

    Args:
        retrying: the client that tries again after the time that a refusal states; each try is a visit of its own.
    """

    limits: Limits
    rate: float
    batch: int = 1
    devices: int = 1
    retrying: str | None = None

    def run(self, arrivals: Iterable[tuple[float, str, int]]) -> list[Visit]:
        setup = Setup(self.limits)
        began = setup.clock.now
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
            setup.clock.now = began + now
            if isinstance(event, list):
                free += 1
                for visit, ticket in event:
                    visit.left_s = now
                    ticket.release(is_painted=True)
            else:
                visits.append(event)
                try:
                    queue.append((event, setup.controller.admit(Client(event.client), event.pixels)))
                except QueueFull as full:
                    event.refusal = full
                    if event.client == self.retrying:
                        again = Visit(event.client, event.pixels, now + full.retry_after_s)
                        heapq.heappush(events, (again.came_s, next(order), again))
            while free and queue:
                batch = [queue.popleft() for _ in range(min(self.batch, len(queue)))]
                seconds = sum(visit.pixels for visit, _ in batch) / (self.rate / self.devices)
                heapq.heappush(events, (now + seconds, next(order), batch))
                free -= 1
        assert setup.occupancy == Occupancy(0, 0)
        return visits


def overload(
    rate: float, until_s: float, side: Callable[[random.Random], int], clients: int, times: float = 5
) -> list[tuple[float, str, int]]:
    """Returns visits at random times, with `times` the pixels that can be painted."""
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


def test_newcomers_are_admitted_at_once_while_greedy_clients_fill_the_queue() -> None:
    crowd = overload(MP, 400, one_size, clients=4, times=20)
    newcomers = [(20 + 7.0 * number, f"newcomer {number}", MP) for number in range(50)]
    visits = Service(limited(60, least=8), MP, batch=2).run(crowd + newcomers)
    admitted = Counter(visit.refusal is None for visit in visits if visit.client.startswith("newcomer"))
    assert admitted == {True: 50}


def test_clients_get_equal_service_however_often_each_asks() -> None:
    chance = random.Random(3)
    often = [(chance.uniform(0, 600), "often", MP) for _ in range(12_000)]
    seldom = [(chance.uniform(0, 600), "seldom", MP) for _ in range(600)]
    visits = Service(limited(60, least=8), MP).run(often + seldom)
    served = Counter(visit.client for visit in visits if visit.refusal is None and visit.came_s > 120)
    assert served["seldom"] >= 0.85 * served["often"]


@pytest.mark.slow
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
def test_client_that_tries_again_after_retry_after_is_usually_admitted(
    rate: float, batch: int, side: Callable[[random.Random], int], wanted: int
) -> None:
    chance = random.Random(5)
    second_try = Counter[bool]()
    for _ in range(40):
        earlier = [(2.0 * number, "earlier", side(chance) ** 2) for number in range(30)]
        burst = [(100.0, f"client {number % 2}", side(chance) ** 2) for number in range(round(150 * rate / MP))]
        late = (chance.uniform(101, 105), "late", wanted * MP)
        visits = Service(limited(60, least=8), rate, batch, retrying="late").run([*earlier, *burst, late])
        first, *others = [visit for visit in visits if visit.client == "late"]
        if first.refusal:
            second_try[others[0].refusal is None] += 1
    assert second_try.total() > 10
    assert second_try[True] >= 0.85 * second_try.total()


def test_client_that_tries_again_much_earlier_than_retry_after_is_refused() -> None:
    setup = Setup(limited(queue_time_s=50))
    setup.paint(MP, seconds=2, times=10)
    admitted = setup.admit("a")
    told_s = setup.refusal("a", 5 * MP).retry_after_s
    assert 10 <= told_s <= 12
    for ticket in admitted[:4]:
        setup.clock.now += 2
        ticket.release(is_painted=True)
        setup.refusal("a", 5 * MP)
    setup.clock.now += 2
    admitted[4].release(is_painted=True)
    setup.controller.admit(Client("a"), 5 * MP)
