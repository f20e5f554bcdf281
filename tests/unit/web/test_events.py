"""Streams of events, without HTTP: what a client is sent, in which order, and what it takes while it waits."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jobstores import Bench, make_settings, painting
from starlette.types import Message

from serve_app.errors import BadOption, BrokenImage, StoreUnavailable, TooManyStreams, UnknownJob
from serve_app.jobs import news as news_module
from serve_app.jobs.news import News
from serve_app.jobs.reader import JobReader
from serve_app.jobs.threads import StoreThreads
from serve_app.web import events as module
from serve_app.web.events import Streams
from serve_app.web.intake import ClientGone


class Listener:
    """A client of a stream, and what it has been sent."""

    def __init__(self, streams: Streams, ids: list[str], last_event_id: str = "", client: str = "ann") -> None:
        self.sent: list[Message] = []
        self._gone = asyncio.Event()
        self._may_send = asyncio.Event()
        self._may_send.set()
        query = "&".join(f"id={each}" for each in ids)
        headers = [(b"last-event-id", last_event_id.encode())] if last_event_id else []
        scope = {
            "type": "http",
            "method": "GET",
            "path": "/anime/v1/jobs/events",
            "query_string": query.encode(),
            "headers": headers,
        }
        self.task = asyncio.ensure_future(streams.respond(scope, self._receive, self._send, client, "/anime"))

    async def _receive(self) -> Message:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        await self._may_send.wait()
        self.sent.append(message)

    def leave(self) -> None:
        self._gone.set()

    def stop_reading(self) -> None:
        self._may_send.clear()

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status

    @property
    def events(self) -> list[tuple[str, str, Any]]:
        """Name, id and data of each event."""
        found = []
        for block in self.text.split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
            if "event" in fields:
                found.append((fields["event"], fields["id"], json.loads(fields["data"])))
        return found

    @property
    def told(self) -> list[tuple[str, str]]:
        """Name and job of each event."""
        return [(name, data["id"]) for name, _, data in self.events]

    async def until(self, *wanted: tuple[str, str]) -> None:
        """Waits for these events among others, and fails if the stream ends without them."""
        while not set(wanted) <= set(self.told):
            assert not self.task.done(), self.text
            await asyncio.sleep(0.01)


Scene = Callable[[Streams], Awaitable[None]]


class Hall:
    """Streams over a store on SQLite."""

    def __init__(self, folder: Path) -> None:
        self.bench = Bench(make_settings(folder))
        self.most = 100
        self.length_s = 60.0

    def run(self, scene: Scene) -> None:
        async def work() -> None:
            threads = StoreThreads(lambda: JobReader(self.bench.database))
            news = News(threads, lambda reader: reader)
            streams = Streams(news, lambda: self.most, self.length_s)
            await asyncio.wait_for(scene(streams), 60)
            assert not streams.open
            assert news.watched == 0

        asyncio.run(work())


@pytest.fixture
def hall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hall]:
    monkeypatch.setattr(news_module, "LOOK_S", 0.02)
    monkeypatch.setattr(news_module, "QUEUE_S", 0.0)
    monkeypatch.setattr("serve_app.jobs.positions.CACHED_S", 0.0)
    monkeypatch.setattr(module, "POSITION_S", 0.02)
    made = Hall(tmp_path)
    yield made
    made.bench.close()


def test_a_client_is_told_of_all_its_jobs_until_the_last_is_finished(hall: Hall) -> None:
    bench = hall.bench
    ids = [bench.submit().id for _ in range(3)]

    async def scene(streams: Streams) -> None:
        listener = Listener(streams, ids)
        await listener.until(*(("position", each) for each in ids))
        assert [data["position"] for _, _, data in listener.events] == [0, 1, 2]
        lease = bench.claim()
        await listener.until(("running", ids[0]))
        bench.store.finish(lease, painting())
        await listener.until(("done", ids[0]))
        while [data["position"] for name, _, data in listener.events if name == "position"][-2:] != [0, 1]:
            await asyncio.sleep(0.01)
        bench.store.queue.fail(bench.claim(), BrokenImage("It is a song."))
        await listener.until(("failed", ids[1]))
        bench.store.remove(ids[2])
        await asyncio.wait_for(listener.task, 10)
        assert listener.told[-1] == ("failed", ids[2])
        assert listener.sent[-1].get("more_body", False) is False
        assert listener.status == 200
        ends = {data["id"]: data for name, _, data in listener.events if name in ("done", "failed")}
        assert [ends[each]["status"] for each in ids] == ["succeeded", "failed", "cancelled"]
        assert ends[ids[1]]["error"]["detail"] == "It is a song."
        assert ends[ids[0]]["links"]["image"] == f"/anime/v1/jobs/{ids[0]}/image"
        assert dict(listener.sent[0]["headers"])[b"content-type"].startswith(b"text/event-stream")
        assert listener.text.startswith("retry: 3000\n\n")

    hall.run(scene)


def test_a_stream_goes_on_after_any_event_and_misses_and_doubles_nothing(hall: Hall) -> None:
    """As if the connection had been lost after each event in turn."""
    bench = hall.bench
    ids = [bench.submit(f"client {n}").id for n in range(3)]

    async def scene(streams: Streams) -> None:
        listener = Listener(streams, ids)
        await listener.until(*(("position", each) for each in ids))
        bench.store.finish(bench.claim(), painting())
        await listener.until(("done", ids[0]))
        before = listener.events
        listener.leave()
        with pytest.raises(ClientGone):
            await listener.task
        bench.store.finish(bench.claim(), painting())
        bench.store.finish(bench.claim(), painting())
        for at in range(len(before)):
            again = Listener(streams, ids, last_event_id=before[at][1])
            await asyncio.wait_for(again.task, 10)
            knows_first = ("done", ids[0]) in [(name, data["id"]) for name, _, data in before[: at + 1]]
            assert again.told == [("done", each) for each in ids[knows_first:]]
        everything = again.events[-1][1]
        last = Listener(streams, ids, last_event_id=everything)
        await asyncio.wait_for(last.task, 10)
        assert (last.status, last.text) == (204, "")  # EventSource does not come back
        others = Listener(streams, ids[:2], last_event_id=everything)  # an id of other jobs says nothing
        await asyncio.wait_for(others.task, 10)
        assert others.told == [("done", ids[0]), ("done", ids[1])]

    hall.run(scene)


@pytest.mark.parametrize("text", ["x", ":", "00000000:q1.r", "q1", ":q1.r", "\x00", "{0}:", "{0}:q.r.s", "{0}:Z.r"])
def test_an_id_that_is_none_is_passed_over(hall: Hall, text: str) -> None:
    ids = [hall.bench.succeed().id, hall.bench.succeed("bob").id]

    async def scene(streams: Streams) -> None:
        listener = Listener(streams, ids, last_event_id=text.format(module.digest(ids)))
        await asyncio.wait_for(listener.task, 10)
        assert listener.told == [("done", each) for each in ids]

    hall.run(scene)


def test_expired_and_unknown_jobs_have_failed_but_unknown_ones_alone_are_refused(hall: Hall) -> None:
    erased, kept = hall.bench.succeed().id, hall.bench.succeed("bob").id
    hall.bench.store.remove(erased)

    async def scene(streams: Streams) -> None:
        listener = Listener(streams, [erased, "nothing", kept, "%00"])
        await asyncio.wait_for(listener.task, 10)
        assert [name for name, _ in listener.told] == ["failed", "failed", "done", "failed"]
        codes = [data["error"]["code"] for name, _, data in listener.events if name == "failed"]
        assert codes == ["gone", "unknown-job", "unknown-job"]
        with pytest.raises(UnknownJob):
            await Listener(streams, ["nothing", "neither"]).task

    hall.run(scene)


@pytest.mark.parametrize("query", [[], ["x&ids=y"], [f"{n}" for n in range(101)]])
def test_a_wrong_query_is_refused(hall: Hall, query: list[str]) -> None:
    async def scene(streams: Streams) -> None:
        with pytest.raises(BadOption):
            await Listener(streams, query).task

    hall.run(scene)


def test_a_store_that_cannot_be_read_refuses_the_stream(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise StoreUnavailable("Gone.")

    monkeypatch.setattr(JobReader, "look", broken)

    async def scene(streams: Streams) -> None:
        with pytest.raises(StoreUnavailable):
            await Listener(streams, ["x"]).task

    hall.run(scene)


def test_streams_end_in_time_and_say_when_to_come_back(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    hall.length_s = 0.3
    job = hall.bench.submit()

    async def scene(streams: Streams) -> None:
        listener = Listener(streams, [job.id])
        await asyncio.wait_for(listener.task, 10)
        assert listener.told == [("position", job.id)]
        assert listener.text.endswith("retry: 100\n\n")

    hall.run(scene)


def test_silence_is_broken_by_comments(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMMENT_S", 0.1)
    hall.length_s = 0.55
    job = hall.bench.submit()

    async def scene(streams: Streams) -> None:
        listener = Listener(streams, [job.id])
        await asyncio.wait_for(listener.task, 10)
        assert 2 <= listener.text.count("\n:\n\n") <= 6

    hall.run(scene)


def test_who_does_not_read_is_let_go(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    hall.length_s = 0.1
    job = hall.bench.submit()

    async def scene(streams: Streams) -> None:
        listener = Listener(streams, [job.id])
        while not listener.sent:
            await asyncio.sleep(0)
        listener.stop_reading()
        with pytest.raises(ClientGone):
            await asyncio.wait_for(listener.task, 10)

    hall.run(scene)


def test_there_is_a_bound_and_one_client_leaves_room_for_others(hall: Hall) -> None:
    hall.most = 10
    job = hall.bench.submit()

    async def scene(streams: Streams) -> None:
        mine = [Listener(streams, [job.id]) for _ in range(8)]
        await asyncio.sleep(0.1)
        with pytest.raises(TooManyStreams):
            await Listener(streams, [job.id]).task
        other = [Listener(streams, [job.id], client=f"bob {n}") for n in range(2)]
        await other[1].until(("position", job.id))
        with pytest.raises(TooManyStreams):
            await Listener(streams, [job.id], client="cat").task
        for each in mine:
            each.leave()
        await asyncio.gather(*(each.task for each in mine), return_exceptions=True)
        assert streams.open.total() == 2
        for each in other:
            each.leave()
        await asyncio.gather(*(each.task for each in other), return_exceptions=True)

    hall.run(scene)


def test_the_more_there_are_the_rarer_are_words_on_positions_but_not_on_ends(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POSITIONS_A_SECOND", 0.01)
    ids = [hall.bench.submit(f"client {n}").id for n in range(3)]

    async def scene(streams: Streams) -> None:
        listener = Listener(streams, [ids[0], ids[2]])
        await listener.until(("position", ids[2]))
        hall.bench.store.finish(hall.bench.claim(), painting())
        await listener.until(("done", ids[0]))
        hall.bench.store.finish(hall.bench.claim(), painting())
        hall.bench.store.finish(hall.bench.claim(), painting())
        await asyncio.wait_for(listener.task, 10)
        assert [name for name, _ in listener.told if name == "position"] == ["position"] * 2

    hall.run(scene)
