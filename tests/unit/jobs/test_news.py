"""Who watches jobs is told of what happens to them, by one look for everybody."""

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest
from jobstores import Bench, painting

from serve_app.errors import StoreUnavailable
from serve_app.jobs import news as module
from serve_app.jobs.news import News, Watcher
from serve_app.jobs.reader import Ask, JobReader, Seen
from serve_app.jobs.threads import StoreThreads
from serve_app.jobs.words import Status


class Office:
    """The news of a bench's store, whose looks are counted."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.asks: list[Ask] = []
        self.reader = JobReader(bench.database)
        self.fault: Exception | None = None

    def look(self, ask: Ask) -> Seen:
        self.asks.append(ask)
        if self.fault is not None:
            raise self.fault
        return self.reader.look(ask)

    def listen(self, heard: Callable[[], None], is_over: Callable[[], bool]) -> bool:
        return self.reader.listen(heard, is_over)

    def close(self) -> None:
        """The bench closes its database."""

    def run(self, scene: Callable[[News], Awaitable[None]]) -> None:
        async def work() -> None:
            threads: StoreThreads[Office] = StoreThreads(lambda: self)
            try:
                await asyncio.wait_for(scene(News(threads, lambda office: office)), 60)
            finally:
                threads.close()

        asyncio.run(work())


@pytest.fixture
def office(bench: Bench) -> Office:
    return Office(bench)


def statuses(watcher: Watcher) -> list[Status | None]:
    reports = map(watcher.report, watcher.jobs)
    return [None if report is None else report.job.status for report in reports]


async def until(watcher: Watcher, *wanted: Status | None) -> None:
    while statuses(watcher) != list(wanted):
        await watcher.news()


def test_every_change_of_every_kind_is_told(office: Office) -> None:
    bench = office.bench
    first, second, third = bench.submit(), bench.submit("bob"), bench.submit("cat")

    async def scene(news: News) -> None:
        with news.watching([first.id, second.id, third.id, "nothing"]) as watcher:
            await news.first_look(watcher)
            assert statuses(watcher) == [Status.QUEUED] * 3 + [None]
            lease = bench.claim()
            await until(watcher, Status.RUNNING, Status.QUEUED, Status.QUEUED, None)
            assert bench.store.queue.release(lease)  # its worker stops
            await until(watcher, Status.QUEUED, Status.QUEUED, Status.QUEUED, None)
            assert bench.store.finish(bench.claim(), painting())
            await until(watcher, Status.SUCCEEDED, Status.QUEUED, Status.QUEUED, None)
            bench.store.queue.fail(bench.claim(), StoreUnavailable("It fell off the table."))
            bench.store.remove(third.id)
            await until(watcher, Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, None)
            assert watcher.is_over
        assert news.watched == 0

    office.run(scene)


def test_a_job_that_was_erased_is_told_at_the_next_look_at_everything(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EVERYTHING_S", 0.1)
    monkeypatch.setattr(module, "TOLD_S", 0.2)
    job = office.bench.submit()

    async def scene(news: News) -> None:
        with news.watching([job.id]) as watcher:
            await news.first_look(watcher)
            with office.bench.database.write() as connection:  # between two looks: ended, erased and forgotten
                connection.exec_driver_sql("DELETE FROM jobs")
            await until(watcher, None)

    office.run(scene)


def test_positions_follow_the_queue(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUEUE_S", 0.0)
    monkeypatch.setattr("serve_app.jobs.positions.CACHED_S", 0.0)
    ids = [office.bench.submit().id for _ in range(3)]

    async def scene(news: News) -> None:
        with news.watching(ids) as watcher:
            await news.first_look(watcher)
            assert positions(watcher) == [0, 1, 2]
            office.bench.store.finish(office.bench.claim(), painting())
            while positions(watcher) != [None, 0, 1]:
                await asyncio.sleep(0.02)

    office.run(scene)


def test_a_job_that_came_after_the_last_look_at_the_queue_has_a_position_soon(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOLD_S", 60.0)
    monkeypatch.setattr(module, "QUEUE_S", 60.0)
    first = office.bench.submit()

    async def scene(news: News) -> None:
        with news.watching([first.id]) as one:
            await news.first_look(one)
            second = office.bench.submit("bob")
            with news.watching([second.id]) as other:
                await news.first_look(other)
                async with asyncio.timeout(20):
                    while positions(other) != [1]:
                        await asyncio.sleep(0.05)

    office.run(scene)


def positions(watcher: Watcher) -> list[int | None]:
    outlooks = [report and report.outlook for report in map(watcher.report, watcher.jobs)]
    return [outlook.position if outlook else None for outlook in outlooks]


def test_all_share_one_look_which_asks_for_each_job_once(office: Office) -> None:
    ids = [office.bench.submit(f"client {n}").id for n in range(5)]

    async def scene(news: News) -> None:
        with news.watching(ids[:4]) as one, news.watching(ids[1:]) as other:
            await asyncio.gather(news.first_look(one), news.first_look(other))
            assert sum(len(ask.unseen) for ask in office.asks) == 5
            looks = len(office.asks)
            await asyncio.sleep(2.5 * module.LOOK_S)
            assert len(office.asks) <= looks + 3
        await asyncio.sleep(0.2)
        looks = len(office.asks)
        await asyncio.sleep(2 * module.LOOK_S)
        assert len(office.asks) == looks  # nobody watches, nobody looks

    office.run(scene)


def test_a_store_that_is_gone_for_a_while_is_told_to_who_comes_and_survived_by_who_is_there(office: Office) -> None:
    job, other = office.bench.submit(), office.bench.submit("bob")

    async def scene(news: News) -> None:
        with news.watching([job.id]) as watcher:
            await news.first_look(watcher)
            office.fault = StoreUnavailable("Gone for a while.")
            with news.watching([other.id]) as late, pytest.raises(StoreUnavailable):
                await news.first_look(late)
            office.bench.store.finish(office.bench.claim(), painting())
            office.fault = None
            await until(watcher, Status.SUCCEEDED)

    office.run(scene)


def test_postgresql_says_when_to_look(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOLD_S", 30.0)
    monkeypatch.setattr(module, "LOOK_S", 30.0 if not office.bench.database.is_sqlite else module.LOOK_S)
    job = office.bench.submit()

    async def scene(news: News) -> None:
        with news.watching([job.id]) as watcher:
            await news.first_look(watcher)
            await asyncio.sleep(0.5)  # until it listens
            looks = len(office.asks)
            lease = office.bench.claim()
            await asyncio.wait_for(until(watcher, Status.RUNNING), 10)
            assert office.bench.store.queue.renew(lease)  # which is nobody's news
            if not office.bench.database.is_sqlite:
                await asyncio.sleep(0.5)
                assert len(office.asks) <= looks + 2
            office.bench.store.finish(lease, painting())
            await asyncio.wait_for(until(watcher, Status.SUCCEEDED), 10)

    office.run(scene)


def test_listening_ends_with_the_last_who_watches_and_survives_a_lost_connection(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    if office.bench.database.is_sqlite:
        pytest.skip("SQLite has no notifications")
    monkeypatch.setattr(module, "LISTEN_AGAIN_S", 0.1)
    monkeypatch.setattr(module, "TOLD_S", 1.0)
    job = office.bench.submit()

    def end_listeners() -> int:
        with office.bench.database.write() as connection:
            return len(
                connection.exec_driver_sql(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%%'"
                    " AND datname = current_database()"
                ).all()
            )

    async def scene(news: News) -> None:
        with news.watching([job.id]) as watcher:
            await news.first_look(watcher)
            while not await asyncio.to_thread(end_listeners):
                await asyncio.sleep(0.05)
            lease = office.bench.claim()
            await until(watcher, Status.RUNNING)
            while not await asyncio.to_thread(end_listeners):  # it listens again
                await asyncio.sleep(0.05)
            office.bench.store.finish(lease, painting())
            await until(watcher, Status.SUCCEEDED)
        while any(thread.name.startswith("jobs-news") for thread in threading.enumerate()):
            await asyncio.sleep(0.05)

    office.run(scene)
