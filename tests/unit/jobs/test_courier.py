"""Webhooks on their way: to receivers that are slow, down, elsewhere or hostile, and from couriers that die."""

import asyncio
import json
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from jobrunners import in_loop, until
from jobstores import Bench, painting
from receivers import LOCAL, SECRET, Names, Receiver, certificate, delivering, describe, slow
from standardwebhooks import Webhook, WebhookVerificationError

from serve_app.errors import BrokenImage, StoreUnavailable
from serve_app.jobs import courier as module
from serve_app.jobs.courier import Courier
from serve_app.jobs.outbox import PAUSES_S, Message, Outbox
from serve_app.jobs.signing import client_secret
from serve_app.jobs.words import Job
from serve_app.settings import WebhookSettings

MakeBench = Callable[..., Bench]
HOST = "hooks.example.org"


@pytest.fixture
def database_url(request: pytest.FixtureRequest) -> str | None:
    """SQLite, but for tests that name databases."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return None
    url: str = request.getfixturevalue("postgres").new_database()
    return url


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Couriers that look, and try again, without long pauses."""
    monkeypatch.setattr(module, "POLL_S", 0.02)
    monkeypatch.setattr(module, "PAUSE_S", 0.02)
    monkeypatch.setattr(module, "ENDING_S", 0.2)
    monkeypatch.setattr(module, "PAUSES_S", (0.05,) * len(PAUSES_S))


def cancelled(bench: Bench, url: str, client: str = "ann") -> Job:
    job = bench.submit(client, callback_url=url)
    ended = bench.store.cancel(job.id)
    assert ended is not None
    return ended


def is_empty(bench: Bench) -> Callable[[], bool]:
    return lambda: not bench.messages()


@pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled"])
def test_the_end_of_a_job_is_delivered_signed_for_its_client(bench: Bench, end: str) -> None:
    async def scene() -> None:
        async with Receiver().listening() as receiver, delivering(bench) as outcomes:
            job = bench.submit("key:ann", callback_url=receiver.url())
            if end == "succeeded":
                bench.store.finish(bench.claim(), painting())
            elif end == "failed":
                bench.store.queue.fail(bench.claim(), BrokenImage("Bröken."))
            else:
                bench.store.cancel(job.id)
            await until(is_empty(bench))
            ((headers, body),) = receiver.requests
            verified = Webhook(client_secret(SECRET, "key:ann")).verify(body, headers)
            done = bench.store.get(job.id)
            assert done.finished_at is not None
            assert verified == {
                "type": f"job.{end}",
                "timestamp": done.finished_at.isoformat().replace("+00:00", "Z"),
                "data": {"id": job.id, "status": end},
            }
            assert headers["content-type"] == "application/json"
            assert headers["webhook-id"].startswith("msg_")
            with pytest.raises(WebhookVerificationError):
                Webhook(client_secret(SECRET, "key:bob")).verify(body, headers)
            with pytest.raises(WebhookVerificationError):
                Webhook(SECRET).verify(body, headers)
            with pytest.raises(WebhookVerificationError):
                Webhook(client_secret(SECRET, "key:ann")).verify(body + b" ", headers)
            assert outcomes.seen == ["delivered"]

    in_loop(scene())


def test_a_receiver_that_is_down_gets_the_same_message_when_it_is_up(bench: Bench) -> None:
    async def scene() -> None:
        receiver = Receiver(500, 404, 429)
        async with receiver.listening():
            port = receiver.port
        async with delivering(bench) as outcomes:
            cancelled(bench, receiver.url())
            await until(lambda: outcomes.seen.count("postponed") >= 2)
            async with receiver.listening(port=port):
                await until(is_empty(bench))
        assert len(receiver.requests) == 4
        assert len(set(receiver.ids)) == 1
        bodies = [body for _, body in receiver.requests]
        assert set(bodies) == {bodies[0]}
        assert set(outcomes.seen[:-1]) == {"postponed"}
        assert outcomes.seen[-1] == "delivered"

    in_loop(scene())


def test_a_slow_receiver_is_tried_again_and_holds_nobody_else_up(bench: Bench) -> None:
    async def scene() -> None:
        bad, good = Receiver(*[slow] * 4), Receiver()
        async with bad.listening(), good.listening():
            for _ in range(6):
                cancelled(bench, bad.url("slow.example.org"))
            for _ in range(5):
                cancelled(bench, good.url())
            async with delivering(bench, Names(["127.0.0.1"]), timeout_s=1.5) as outcomes:
                await until(lambda: len(good.requests) == 5)
                assert len(bad.requests) <= 2  # nothing has timed out yet: its two places are all that it has
                assert "postponed" not in outcomes.seen
                await until(is_empty(bench))
        assert bad.most <= 2
        assert outcomes.seen.count("delivered") == 11
        assert outcomes.seen.count("postponed") == 4
        assert len(set(bad.ids)) == 6

    in_loop(scene())


def test_at_most_eight_messages_are_sent_at_a_time(bench: Bench) -> None:
    async def scene() -> None:
        receiver = Receiver(*[slow] * 30)
        async with receiver.listening():
            for number in range(15):
                cancelled(bench, receiver.url(f"host{number}.example.org"))
            async with delivering(bench, Names(["127.0.0.1"])):
                await until(lambda: receiver.now == 8)
                await asyncio.sleep(0.2)
        assert receiver.most == 8

    in_loop(scene())


def test_a_message_is_given_up_after_its_last_attempt_and_the_log_names_only_id_and_host(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    job_ids: list[str] = []

    async def scene() -> None:
        async with Receiver(*[503] * 20).listening() as receiver, delivering(bench) as outcomes:
            job_ids.append(cancelled(bench, receiver.url()).id)
            await until(is_empty(bench))
            assert len(receiver.requests) == len(PAUSES_S) + 1 == 9
            assert outcomes.seen == ["postponed"] * 8 + ["given-up"]
            assert receiver.ids[0] in caplog.text

    caplog.set_level(logging.DEBUG, "serve_app")
    in_loop(scene())
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "127.0.0.1" in warning.getMessage()
    assert not [secret for secret in ("t0ken", "/hook", job_ids[0]) if secret in caplog.text]


def test_pauses_grow_and_are_varied(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSES_S", PAUSES_S)
    pauses: list[float] = []

    class Box(Outbox):
        def postpone(self, message: Message, seconds: float) -> None:
            pauses.append(seconds)

    async def scene() -> None:
        courier = Courier(
            bench.store, WebhookSettings(**LOCAL), SECRET, describe, jitter=iter([0.0, 1.0] + [0.5] * 8).__next__
        )
        courier._outbox = Box(bench.database)
        for attempt in range(1, 10):
            await courier._settle(
                Message(1, "msg_1", "job", "https://a.example.org", "a.example.org", attempt), "failed"
            )
        await courier.stop()

    in_loop(scene())
    assert pauses == pytest.approx([4, 36, 120, 600, 1800, 3600, 10_800, 21_600])


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 300, 304])
def test_a_redirection_is_not_followed(bench: Bench, status: int) -> None:
    async def scene() -> None:
        target = Receiver()

        async def redirect(request: web.Request) -> web.StreamResponse:
            return web.Response(status=status, headers={"Location": target.url()})

        async with target.listening(), Receiver(redirect).listening() as receiver, delivering(bench) as outcomes:
            cancelled(bench, receiver.url())
            await until(is_empty(bench))
        assert (len(receiver.requests), target.requests, outcomes.seen) == (1, [], ["given-up"])

    in_loop(scene())


def test_a_receiver_that_is_gone_is_not_asked_again(bench: Bench) -> None:
    async def scene() -> None:
        async with Receiver(410).listening() as receiver, delivering(bench) as outcomes:
            cancelled(bench, receiver.url())
            await until(is_empty(bench))
        assert (len(receiver.requests), outcomes.seen) == (1, ["given-up"])

    in_loop(scene())


@pytest.mark.parametrize(
    ("host", "addresses"),
    [
        ("127.0.0.1", []),
        ("[::ffff:127.0.0.1]", []),
        ("[::ffff:7f00:1]", []),
        ("[::1]", []),
        ("0.0.0.0", []),
        ("2130706433", []),
        ("127.1", []),
        ("0x7f.0.0.1", ["127.0.0.1"]),
        ("localhost", ["127.0.0.1"]),
        (HOST, ["127.0.0.1"]),
        (HOST, ["::ffff:127.0.0.1"]),
        (HOST, ["64:ff9b::7f00:1"]),
        (HOST, ["93.184.216.34", "127.0.0.1"]),
        (HOST, ["127.0.0.1", "93.184.216.34"]),
        (HOST, ["2130706433"]),
        (HOST, ["fe80::1%lo"]),
    ],
)
def test_an_address_that_is_not_public_is_never_called(bench: Bench, host: str, addresses: list[str]) -> None:
    async def scene() -> None:
        names = Names(addresses)
        async with Receiver().listening() as receiver:
            cancelled(bench, receiver.url(host))
            async with delivering(bench, names, allow_networks=()) as outcomes:
                await until(lambda: bool(outcomes.seen))
                await asyncio.sleep(0.1)
        assert receiver.requests == []
        assert "delivered" not in outcomes.seen
        if host not in ("2130706433", "127.1"):  # which no job has: they are written as addresses at submission
            assert outcomes.seen == ["given-up"]

    in_loop(scene())


def test_a_name_is_resolved_once_and_a_second_answer_never_used(bench: Bench) -> None:
    async def scene() -> None:
        names = Names(["127.0.0.1"], ["10.0.0.1"])
        async with Receiver().listening() as receiver:
            cancelled(bench, receiver.url(HOST))
            async with delivering(bench, names, allow_networks=("127.0.0.1/32",)):
                await until(is_empty(bench))
        assert names.asked == [HOST]
        assert [headers["host"] for headers, _ in receiver.requests] == [f"{HOST}:{receiver.port}"]

    in_loop(scene())


def test_a_name_that_turns_to_this_network_is_given_up(bench: Bench) -> None:
    """The first attempt fails, and the second is checked again: no connection and no answer of a name is kept."""

    async def scene() -> None:
        names = Names(["127.0.0.1"], ["127.0.0.2"])
        async with Receiver(500).listening() as receiver:
            cancelled(bench, receiver.url(HOST))
            async with delivering(bench, names, allow_networks=("127.0.0.1/32",)) as outcomes:
                await until(is_empty(bench))
        assert (len(receiver.requests), outcomes.seen) == (1, ["postponed", "given-up"])

    in_loop(scene())


def test_a_name_that_does_not_resolve_is_tried_again(bench: Bench) -> None:
    async def scene() -> None:
        names = Names([], [], ["127.0.0.1"])
        async with Receiver().listening() as receiver:
            cancelled(bench, receiver.url(HOST))
            async with delivering(bench, names) as outcomes:
                await until(is_empty(bench))
        assert outcomes.seen == ["postponed", "postponed", "delivered"]

    in_loop(scene())


@pytest.mark.parametrize("host", ["no-such-name.invalid", "a" * 70 + ".example.org"])
def test_names_go_to_the_systems_resolver(bench: Bench, host: str) -> None:
    async def scene() -> None:
        cancelled(bench, f"http://{host}/")
        async with delivering(bench) as outcomes:
            await until(lambda: bool(outcomes.seen))
        assert outcomes.seen[0] == "postponed"

    in_loop(scene())


def test_http_is_not_called_where_only_https_may_be(bench: Bench) -> None:
    async def scene() -> None:
        async with Receiver().listening() as receiver:
            cancelled(bench, receiver.url())
            async with delivering(bench, allow_http=False) as outcomes:
                await until(is_empty(bench))
        assert (receiver.requests, outcomes.seen) == ([], ["given-up"])

    in_loop(scene())


@pytest.mark.parametrize("trusted", ["right", "other", "none"])
def test_certificates_are_verified_for_the_name_and_not_the_address(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: str
) -> None:
    async def scene() -> None:
        context, file = certificate(tmp_path, "other.example.org" if trusted == "other" else HOST)
        if trusted != "none":
            monkeypatch.setenv("SSL_CERT_FILE", str(file))
        async with Receiver().listening(context) as receiver:
            cancelled(bench, receiver.url(HOST, "https"))
            async with delivering(bench, Names(["127.0.0.1"]), allow_http=False) as outcomes:
                await until(lambda: bool(outcomes.seen))
        assert outcomes.seen[0] == ("delivered" if trusted == "right" else "postponed")
        assert len(receiver.requests) == (trusted == "right")

    in_loop(scene())


def test_no_proxy_of_the_environment_and_no_cookie_is_used(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def bake(request: web.Request) -> web.StreamResponse:
        return web.Response(status=500, headers={"Set-Cookie": "a=b"})

    async def scene() -> None:
        proxy = Receiver()
        async with proxy.listening(), Receiver(bake).listening() as receiver:
            monkeypatch.setenv("http_proxy", proxy.url())
            monkeypatch.setenv("HTTP_PROXY", proxy.url())
            cancelled(bench, receiver.url(HOST))
            async with delivering(bench, Names(["127.0.0.1"])):
                await until(is_empty(bench))
        assert proxy.requests == []
        assert [("cookie" in headers) for headers, _ in receiver.requests] == [False, False]

    in_loop(scene())


def test_an_endless_answer_is_not_read(bench: Bench) -> None:
    written = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal written
        answer = web.StreamResponse()
        await answer.prepare(request)
        while True:
            await answer.write(bytes(65536))
            written += 65536
            await asyncio.sleep(0)

    async def scene() -> None:
        async with Receiver(endless).listening() as receiver:
            cancelled(bench, receiver.url())
            async with delivering(bench) as outcomes:
                await until(is_empty(bench))
        assert outcomes.seen == ["delivered"]

    in_loop(scene())
    assert written < 32 * 2**20  # what lies in the sockets of both


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_several_couriers_deliver_each_message_once(make_bench: MakeBench) -> None:
    benches = [make_bench() for _ in range(3)]

    async def scene() -> None:
        async with Receiver(*[500] * 5).listening() as receiver, AsyncExitStack() as stack:
            for _ in range(20):
                cancelled(benches[0], receiver.url())
            outcomes = [await stack.enter_async_context(delivering(bench)) for bench in benches]
            await until(is_empty(benches[0]))
        seen = [outcome for each in outcomes for outcome in each.seen]
        assert (seen.count("delivered"), seen.count("postponed")) == (20, 5)
        assert len(receiver.requests) == 25
        assert len(set(receiver.ids)) == 20

    in_loop(scene())


def test_a_courier_that_dies_between_sending_and_removing_leaves_a_message_that_is_sent_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove, failures = Outbox.remove, [StoreUnavailable("The database is gone."), StoreUnavailable("Again.")]

    def dies(self: Outbox, message: Message) -> None:
        if failures:
            raise failures.pop()
        remove(self, message)

    monkeypatch.setattr(Outbox, "remove", dies)

    async def scene() -> None:
        async with Receiver().listening() as receiver, delivering(bench) as outcomes:
            cancelled(bench, receiver.url())
            for attempt in (1, 2):
                await until(lambda: len(outcomes.seen) == attempt)  # noqa: B023
                await asyncio.sleep(0.1)
                assert len(receiver.requests) == attempt  # its lease has not run out
                bench.pass_time(60)
            await until(is_empty(bench))
        assert len(receiver.requests) == 3
        assert len(set(receiver.ids)) == 1

    in_loop(scene())


def test_a_message_whose_couriers_always_die_is_given_up(bench: Bench) -> None:
    async def scene() -> None:
        async with Receiver().listening() as receiver:
            cancelled(bench, receiver.url())
            for _ in range(len(PAUSES_S) + 1):
                assert bench.store.outbox.claim(1) is not None
                bench.pass_time(2)
            async with delivering(bench) as outcomes:
                await until(is_empty(bench))
        assert (receiver.requests, outcomes.seen) == ([], ["given-up"])

    in_loop(scene())


def test_a_courier_that_stops_hands_back_what_it_has_begun(bench: Bench) -> None:
    async def scene() -> None:
        async with Receiver(slow).listening() as receiver:
            cancelled(bench, receiver.url())
            async with delivering(bench):
                await until(lambda: bool(receiver.requests))
            (message,) = bench.messages()
            assert message.attempt == 0
            async with delivering(bench) as outcomes:
                await until(is_empty(bench))
        assert outcomes.seen == ["delivered"]
        assert len(set(receiver.ids)) == 1

    in_loop(scene())


def test_a_courier_that_stops_lets_what_is_nearly_delivered_arrive(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ENDING_S", 10.0)

    async def late(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.3)
        return web.Response()

    async def scene() -> None:
        async with Receiver(late).listening() as receiver:
            cancelled(bench, receiver.url())
            async with delivering(bench) as outcomes:
                await until(lambda: bool(receiver.requests))
        assert outcomes.seen == ["delivered"]
        assert bench.messages() == []

    in_loop(scene())


def test_an_idle_courier_looks_when_it_is_nudged(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 1000.0)

    async def scene() -> None:
        async with Receiver().listening() as receiver:
            courier = Courier(bench.store, WebhookSettings(**LOCAL), SECRET, describe)
            courier.start()
            await asyncio.sleep(0.2)
            cancelled(bench, receiver.url())
            courier.nudge()
            await until(is_empty(bench))
            await courier.stop()
        assert len(receiver.requests) == 1

    in_loop(scene())


@pytest.mark.parametrize("way", ["erased", "waits again"])
def test_the_message_of_a_job_that_has_gone_or_waits_is_dropped(bench: Bench, way: str) -> None:
    async def scene() -> None:
        async with Receiver().listening() as receiver:
            job = bench.submit(callback_url=receiver.url())
            bench.store.queue.fail(bench.claim(), BrokenImage("It is broken."))
            left = bench.store.outbox.claim(0.0)  # as if it was claimed just before
            assert left is not None
            if way == "erased":
                bench.store.remove(job.id)
            else:
                bench.store.queue.requeue(job.id)
            assert bench.messages() == []
            courier = Courier(bench.store, WebhookSettings(**LOCAL), SECRET, describe)
            await courier._carry(left)
            await courier.stop()
        assert receiver.requests == []

    in_loop(scene())


def test_a_fault_in_one_message_holds_up_no_other(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        async with Receiver().listening() as receiver:
            poison, fine = cancelled(bench, receiver.url()), cancelled(bench, receiver.url())

            def choose(job: Job) -> dict[str, Any]:
                return {"bad": object()} if job.id == poison.id else {"id": job.id}

            courier = Courier(bench.store, WebhookSettings(**LOCAL), SECRET, choose)
            courier.start()
            await until(lambda: len(bench.messages()) == 1)
            assert courier.fault() is None
            await courier.stop()
        ((_, body),) = receiver.requests
        assert json.loads(body)["data"] == {"id": fine.id}

    in_loop(scene())
    assert "waits until its attempt counts as lost" in caplog.text


def test_a_database_that_is_gone_for_a_while_stops_no_courier(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    claim, failures = Outbox.claim, [StoreUnavailable("The database is gone.") for _ in range(3)]

    def fails(self: Outbox, *arguments: Any) -> Message | None:
        if failures:
            raise failures.pop()
        return claim(self, *arguments)

    monkeypatch.setattr(Outbox, "claim", fails)

    async def scene() -> None:
        async with Receiver().listening() as receiver, delivering(bench) as outcomes:
            cancelled(bench, receiver.url())
            await until(is_empty(bench))
        assert outcomes.seen == ["delivered"]

    in_loop(scene())
    assert failures == []
