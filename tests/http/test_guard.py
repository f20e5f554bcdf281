"""The guard before an application, in the HTTP server that Serve's proxy uses, spoken to over sockets."""

import asyncio
import json
import re
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import requests
from benchmarks.chaos.bad_clients import Outcome, chunked, converse, drip, nothing, request_head
from edge import Echo, guarded
from fakes import FakePipeline
from jobstores import Bench, make_settings, painting
from pictures import photo_bytes
from service import wait_for
from starlette.types import Receive, Scope, Send

from serve_app.errors import TooBusy
from serve_app.jobs.news import News
from serve_app.jobs.reader import JobReader
from serve_app.jobs.threads import StoreThreads
from serve_app.web import guard, refusals
from serve_app.web.draining import Draining
from serve_app.web.guard import Guard, Site
from serve_app.web.request_log import PROBES
from serve_app.web.routes import create_app

PHOTO = photo_bytes(60, 80)
LOOPBACK = Site(is_loopback=True)


def post(address: str, data: Any = b"photo", path: str = "/v1/stylize", **headers: str) -> requests.Response:
    return requests.post(address + path, data=data, headers=headers, timeout=60)


def say(address: str, first: bytes, more: Callable[[], AsyncIterator[bytes]] = nothing) -> Outcome:
    return asyncio.run(converse(address, first, more, 30))


def code(answer: requests.Response) -> str:
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"]
    return str(answer.json()["code"])


class TestBodies:
    def test_a_photo_is_painted_raw_in_pieces_and_from_a_form(self) -> None:
        with guarded(create_app(FakePipeline())) as address:
            assert post(address, PHOTO).status_code == 200
            assert post(address, iter([PHOTO[:100], PHOTO[100:]])).status_code == 200
            form = requests.post(f"{address}/v1/stylize", files={"image": PHOTO}, timeout=60)
            assert form.status_code == 200

    def test_the_application_gets_a_body_only_when_it_is_complete(self) -> None:
        app = Echo()
        seen: list[int] = []

        def pieces() -> Any:
            for _ in range(5):
                yield b"x" * 300_000
                seen.append(len(app.scopes))
                time.sleep(0.05)

        with guarded(app) as address:
            assert post(address, pieces()).status_code == 200
        assert set(seen) == {0}
        assert app.bodies == [b"x" * 1_500_000]
        assert app.headers()[b"content-length"] == b"1500000"
        assert b"transfer-encoding" not in app.headers()

    @pytest.mark.parametrize(
        ("path", "kind", "limit"),
        [
            ("/v1/stylize", "image/jpeg", 1_000_000),
            ("/v1/stylize/", "image/jpeg", 1_000_000),
            ("/prefix/v1/stylize", "image/jpeg", 1_000_000),
            ("/v1/stylize", "multipart/form-data; boundary=x", 1_065_536),
            ("/v1/jobs", "multipart/form-data; boundary=x", 2_000_000),
            ("/livez", "text/plain", 1_048_576),
        ],
    )
    def test_a_body_over_the_limit_of_its_route_is_refused_and_the_connection_closed(
        self, path: str, kind: str, limit: int
    ) -> None:
        app = Echo()
        with guarded(app, max_bytes=1_000_000, max_form_bytes=2_000_000) as address:
            assert post(address, bytes(limit), path, **{"Content-Type": kind}).status_code == 200
            for data in (bytes(limit + 1), iter([bytes(limit), b"x"])):
                refusal = post(address, data, path, **{"Content-Type": kind})
                assert (refusal.status_code, code(refusal)) == (413, "too-many-bytes")
                assert refusal.json()["limit"] == limit
                assert refusal.headers["connection"] == "close"
        assert len(app.scopes) == 1

    def test_an_announced_body_is_refused_before_it_is_sent(self) -> None:
        with guarded(Echo(), max_bytes=1000) as address:
            outcome = say(address, request_head("/v1/stylize", "Content-Length: 5000", "Expect: 100-continue"))
        assert outcome.status == 413
        assert b"100 Continue" not in outcome.answer

    def test_a_body_without_end_is_cut_off(self) -> None:
        with guarded(Echo(), max_bytes=100_000) as address:
            outcome = say(address, request_head("/v1/stylize", "Transfer-Encoding: chunked"), chunked(1_500_000_000))
        assert outcome.status == 413

    def test_stalled_and_dripping_bodies_are_refused_and_their_connections_closed(self) -> None:
        app = Echo()
        with guarded(app, rate_window_s=0.5) as address:
            for more in (nothing, drip):
                for header in ("Content-Length: 1000", "Transfer-Encoding: chunked"):
                    outcome = say(address, request_head("/v1/stylize", header), more)
                    assert (outcome.status, outcome.seconds < 10) == (408, True)
                    assert b"slow-upload" in outcome.answer
        assert app.scopes == []

    def test_what_others_upload_takes_no_place_of_a_request_without_a_body(self) -> None:
        with guarded(Echo(), max_uploads=4, rate_window_s=3) as address:

            async def scene() -> list[Outcome]:
                stalled = [
                    asyncio.create_task(converse(address, request_head("/v1/stylize", "Content-Length: 9"), drip))
                    for _ in range(3)
                ]
                await asyncio.sleep(0.3)
                refusal = await asyncio.to_thread(post, address)
                assert (refusal.status_code, code(refusal)) == (429, "too-busy")
                assert int(refusal.headers["retry-after"]) >= 1
                assert (await asyncio.to_thread(requests.get, f"{address}/livez")).status_code == 200
                return await asyncio.gather(*stalled)

            assert [outcome.status for outcome in asyncio.run(scene())] == [408] * 3


class TestTurns:
    def test_requests_wait_for_their_turn_and_are_told_how_long(self) -> None:
        app = Echo()
        app.may_answer.clear()
        with guarded(app, max_forwarded=1) as address:
            threads = [threading.Thread(target=post, args=(address,)) for _ in range(2)]
            for thread in threads:
                thread.start()
            time.sleep(0.5)
            assert (len(app.scopes), app.inside) == (1, 1)
            app.may_answer.set()
            for thread in threads:
                thread.join()
        assert len(app.scopes) == 2
        assert float(app.headers()[b"x-animegan-waited-seconds"]) > 0.2

    def test_one_that_waits_too_long_is_refused(self) -> None:
        app = Echo()
        app.may_answer.clear()
        with guarded(app, max_forwarded=1, queue_time_s=0.3) as address:
            first = threading.Thread(target=post, args=(address,))
            first.start()
            time.sleep(0.2)
            assert code(post(address)) == "too-busy"
            app.may_answer.set()
            first.join()
            assert post(address).status_code == 200

    def test_one_that_leaves_while_it_waits_or_is_painted_is_forgotten(self) -> None:
        app = Echo()
        app.may_answer.clear()
        with guarded(app, max_forwarded=1) as address:
            for _ in range(3):
                with pytest.raises(requests.Timeout):
                    requests.post(f"{address}/v1/stylize", data=b"x", timeout=0.3)
            while app.inside:
                time.sleep(0.01)
            app.may_answer.set()
            assert post(address).status_code == 200
        assert app.gone == 3
        assert len(app.bodies) == 4

    def test_the_time_that_a_photo_may_take_includes_its_waiting(self) -> None:
        pipeline = FakePipeline()
        with guarded(create_app(pipeline)) as address:
            post(address, PHOTO, "/v1/stylize?timeout_s=9")
            assert 8 < pipeline.requests[-1].timeout_s <= 9
            post(address, PHOTO, "/v1/stylize?timeout_s=9", **{"X-Animegan-Waited-Seconds": "8.999"})
            assert 8 < pipeline.requests[-1].timeout_s <= 9  # only the guard is believed


class TestHeldRefusals:
    def test_a_client_that_was_refused_is_refused_for_a_moment_without_asking_the_service(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(refusals, "HELD_S", 60.0)
        pipeline = FakePipeline()
        pipeline.fault = TooBusy("9 pictures are waiting", 9, 10, "pixels", 3, 9)
        with guarded(create_app(pipeline)) as address:
            first = post(address, PHOTO)
            pipeline.fault = None
            again = post(address, PHOTO)
            assert [answer.status_code for answer in (first, again)] == [429, 429]
            assert again.json() == first.json()
            assert again.headers["retry-after"] == first.headers["retry-after"] == "3"
            assert code(again) == "too-busy"
            assert len(pipeline.requests) == 1
            assert post(address, PHOTO, **{"X-API-Key": "another client"}).status_code == 200
            assert requests.get(f"{address}/v1/styles", timeout=60).status_code == 200

    def test_it_holds_where_the_application_waits_for_the_client_to_go_as_serve_does(self) -> None:
        app = Refusing()
        with guarded(app) as address:
            assert [post(address).status_code for _ in range(3)] == [429] * 3
        assert app.calls == 1

    def test_a_refusal_of_another_kind_is_asked_for_again(self) -> None:
        app = Refusing(b'{"code": "store-full", "detail": "no room"}')
        with guarded(app) as address:
            assert [post(address).status_code for _ in range(3)] == [429] * 3
        assert app.calls == 3


class Refusing:
    """Answers 429 with a problem document, and returns when the client has its answer."""

    def __init__(self, document: bytes = b'{"code": "too-busy", "detail": "full", "retry_after_s": 3}') -> None:
        self.calls = 0
        self._document = document

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls += 1
        headers = [(b"content-type", b"application/problem+json"), (b"retry-after", b"3")]
        await send({"type": "http.response.start", "status": 429, "headers": headers})
        await send({"type": "http.response.body", "body": self._document})
        while (await receive())["type"] != "http.disconnect":
            pass


class TestHeaders:
    def test_headers_end_at_64_kib(self) -> None:
        with guarded(Echo()) as address:
            for size in (66_000, 200_000):  # in one piece, or more than one read
                answer = say(address, request_head("/", f"X: {'a' * size}", method="GET"))
                assert (answer.status, b"headers-too-large" in answer.answer) == (431, True)
                assert b"connection: close" in answer.answer
            assert requests.get(address, headers={"X": "a" * 60_000}, timeout=9).status_code == 200

    def test_a_header_without_end_is_cut_off(self) -> None:
        sent = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal sent
            while True:
                yield bytes(65536).replace(b"\0", b"a")
                sent += 65536

        with guarded(Echo()) as address:
            outcome = say(address, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", endless)
        assert outcome.seconds < 10
        assert sent < 32 * 2**20  # what the buffers of the two sockets hold

    @pytest.mark.parametrize("first", [b"", b"G", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a"])
    def test_headers_must_arrive_in_time(self, first: bytes) -> None:
        with guarded(Echo(), header_timeout_s=0.5) as address:
            for more in (nothing, drip if first else nothing):
                outcome = say(address, first, more)
                assert 0.3 < outcome.seconds < 8
                assert outcome.status == (408 if first else 0)

    def test_a_connection_may_rest_between_requests_but_not_within_the_next_header(self) -> None:
        async def scene(address: str) -> tuple[bytes, bytes]:
            reader, writer = await asyncio.open_connection(*address.removeprefix("http://").split(":"))
            writer.write(request_head("/", method="GET"))
            await reader.readuntil(b"ok")
            await asyncio.sleep(1)
            writer.write(request_head("/", method="GET") + b"GET / HT")
            answer = await reader.readuntil(b"ok")
            return answer, await asyncio.wait_for(reader.read(), 8)

        with guarded(Echo(), header_timeout_s=0.5) as address:
            second, third = asyncio.run(scene(address))
        assert second.startswith(b"HTTP/1.1 200")
        assert third.startswith(b"HTTP/1.1 408")

    @pytest.mark.parametrize(
        "name",
        [
            "X-Request-Timeout-Seconds",
            "x_request_timeout_seconds",
            "X-Request-Disconnect-Disabled",
            "serve_multiplexed_model_id",
            "Serve-Multiplexed-Model-Id",
            "X-Session-Id",
            "x_session_id",
            "X-Serve-Router-Anything",
            "X-Animegan-Waited-Seconds",
        ],
    )
    def test_headers_that_serve_obeys_are_dropped(self, name: str) -> None:
        app = Echo()
        with guarded(app) as address:
            requests.get(address, headers={name: "0", "X-Other": "stays"}, timeout=9)
        assert name.lower().encode() not in app.headers()
        assert app.headers()[b"x-other"] == b"stays"

    def test_the_name_of_the_session_header_is_a_setting_of_serve(self) -> None:
        app = Echo()
        with guarded(app, Site(session_header="X-My-Session")) as address:
            requests.get(address, headers={"x_my_session": "0"}, timeout=9)
        assert b"x_my_session" not in app.headers()

    @pytest.mark.parametrize("name", ["X-Request-ID", "X-Anything", "Cookie"])
    @pytest.mark.parametrize("value", [b"a\xff", b"\xc3\x28", b"a\xc2\x85b"])
    def test_bytes_that_are_no_text_are_refused(self, name: str, value: bytes) -> None:
        with guarded(Echo()) as address:
            outcome = say(
                address,
                request_head("/", "Connection: close", method="GET")[:-2] + name.encode() + b": " + value + b"\r\n\r\n",
            )
        assert (outcome.status, b"bad-header" in outcome.answer) == (400, True)

    def test_text_in_other_alphabets_passes(self) -> None:
        with guarded(Echo()) as address:
            assert requests.get(address, headers={"X-Who": "José".encode()}, timeout=9).status_code == 200

    @pytest.mark.parametrize(
        ("given", "kept"),
        [("a" * 129, False), ("a b\tc", False), ("ünï-1".encode(), False), ("a" * 128, True), ("plain-1", True)],
    )
    def test_a_well_formed_request_id_is_kept_and_another_is_replaced(self, given: str | bytes, kept: bool) -> None:
        app = Echo()
        with guarded(app) as address:
            requests.get(address, headers={"X-Request-ID": given}, timeout=9)
            refusal = post(address, b"", "/v1/stylize", **{"X-Request-ID": given, "Content-Length": "99999999999"})  # type: ignore[arg-type]
        for answered in (app.headers()[b"x-request-id"].decode(), refusal.headers["x-request-id"]):
            assert (answered == given) is kept
            assert kept or re.fullmatch(r"[0-9a-f-]{36}", answered)

    @pytest.mark.parametrize(
        "first", [b"\x16\x03\x01\x02\0\x01\0", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n"]
    )
    def test_what_is_not_http_is_refused_in_words(self, first: bytes) -> None:
        with guarded(Echo()) as address:
            outcome = say(address, first + b"\r\n\r\n")
        assert (outcome.status, b"bad-header" in outcome.answer) == (400, True)

    def test_a_malformed_chunk_ends_the_upload(self) -> None:
        with guarded(Echo()) as address:
            outcome = say(address, request_head("/v1/stylize", "Transfer-Encoding: chunked") + b"zz\r\nx")
            assert outcome.status == 400
            assert post(address).status_code == 200

    def test_websockets_are_not_spoken(self) -> None:
        upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: eA==")
        with guarded(create_app(FakePipeline())) as address:
            outcome = say(address, request_head("/v1/stylize", *upgrade, "Connection: close", method="GET"))
        assert outcome.status in (400, 405)


class TestHosts:
    @pytest.mark.parametrize(
        ("site", "allowed", "host", "status"),
        [
            (LOOPBACK, None, "localhost:8000", 200),
            (LOOPBACK, None, "127.0.0.1", 200),
            (LOOPBACK, None, "[::1]:8000", 200),
            (LOOPBACK, None, "evil.example", 400),
            (LOOPBACK, None, "localhost.evil.example", 400),
            (LOOPBACK, ["anime.example.org", "localhost"], "Anime.Example.org.:443", 200),
            (LOOPBACK, ["anime.example.org"], "localhost", 400),
            (LOOPBACK, ["*.example.org"], "a.b.example.org", 200),
            (LOOPBACK, ["*.example.org"], "notexample.org", 400),
            (LOOPBACK, ["*"], "evil.example", 200),
            (Site(), None, "evil.example", 200),
            (Site(), ["anime.example.org"], "10.0.0.7", 400),
        ],
    )
    def test_only_names_of_the_service_are_answered(
        self, site: Site, allowed: list[str] | None, host: str, status: int
    ) -> None:
        with guarded(Echo(), site, allowed_hosts=allowed) as address:
            answer = requests.get(address, headers={"Host": host}, timeout=9)
            assert answer.status_code == status
            if status == 400:
                assert code(answer) == "unknown-host"
            for path in ("/livez", "/readyz", "/-/healthz"):  # asked by address
                assert requests.get(address + path, headers={"Host": host}, timeout=9).status_code == 200


class TestAnswers:
    @staticmethod
    def bare(status: int, *headers: tuple[bytes, bytes], text: bytes = b"Serve's own words") -> Any:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if status == 500:  # as Serve does when the replica has died
                return
            kept = [(b"content-type", b"text/plain"), *headers]
            await send({"type": "http.response.start", "status": status, "headers": kept})
            await send({"type": "http.response.body", "body": text})

        return app

    @pytest.mark.parametrize(
        ("status", "answered", "expected"),
        [(500, 503, "lost"), (408, 408, "deadline-exceeded"), (429, 429, "too-busy"), (503, 503, "not-ready")],
    )
    def test_what_serve_says_in_bare_text_becomes_a_problem_document(
        self, status: int, answered: int, expected: str
    ) -> None:
        with guarded(self.bare(status)) as address:
            for answer in (post(address), requests.get(address, timeout=9)):
                assert (answer.status_code, code(answer)) == (answered, expected)
                assert ("retry-after" in answer.headers) == (answered != 408)

    @pytest.mark.parametrize("swallowed", [(), (asyncio.CancelledError,)])  # Serve ends a cancelled request quietly
    def test_a_health_check_is_told_in_time_that_there_is_no_ingress(
        self, swallowed: tuple[type[BaseException], ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def hangs(scope: Scope, receive: Receive, send: Send) -> None:
            with suppress(*swallowed):
                await asyncio.sleep(60)

        monkeypatch.setattr(guard, "PROBE_S", 0.2)
        with guarded(hangs) as address:
            for path in ("/livez", "/readyz"):
                answer = requests.get(address + path, timeout=9)
                assert (answer.status_code, code(answer)) == (503, "not-ready")

    def test_retry_after_of_serve_is_kept(self) -> None:
        with guarded(self.bare(429, (b"retry-after", b"17"))) as address:
            assert post(address).headers["retry-after"] == "17"

    @pytest.mark.parametrize("path", ["/v1/jobs/1", "/it's not found. "])
    def test_no_job_is_called_unknown_while_the_service_starts(self, path: str) -> None:
        text = f"Path '{path}' not found. Ping http://.../-/routes for available routes."
        with guarded(self.bare(404, text=text.encode())) as address:
            answer = requests.get(address + path, timeout=9)
            assert (answer.status_code, code(answer), answer.headers["retry-after"]) == (503, "not-ready", "5")

    def test_other_texts_and_serves_own_routes_pass(self) -> None:
        with guarded(self.bare(404)) as address:
            assert requests.get(address, timeout=9).text == "Serve's own words"
        with guarded(self.bare(503)) as address:
            assert requests.get(f"{address}/-/healthz", timeout=9).text == "Serve's own words"


class Notes:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.codes: Counter[str] = Counter()
        self.most = 0
        self.last = -1

    def refused(self, code: str) -> None:
        self.codes[code] += 1

    def holds(self, guard: Guard) -> None:
        self.last = guard.intake.uploads.total()
        self.most = max(self.most, self.last)


def test_an_observer_is_told_of_refusals_and_of_what_is_held() -> None:
    notes = Notes()
    with guarded(Echo(), observer=notes, max_bytes=100) as address:
        post(address)
        post(address, bytes(200))
        post(address, iter([bytes(200)]))
    assert notes.codes == {"too-many-bytes": 2}
    assert (notes.most, notes.last) == (1, 0)


def test_clients_behind_a_trusted_proxy_have_shares_of_their_own() -> None:
    site = Site(trusted_proxies=[ip_network("127.0.0.0/8")])
    app = Echo()
    with guarded(app, site, max_uploads=5, rate_window_s=3) as address:

        async def scene() -> None:
            head = request_head("/v1/stylize", "Content-Length: 9", "X-Forwarded-For: 1.1.1.1")
            stalled = [asyncio.create_task(converse(address, head, drip)) for _ in range(4)]
            await asyncio.sleep(0.3)
            for client, status in (("1.1.1.1", 429), ("2.2.2.2", 200)):
                answer = await asyncio.to_thread(post, address, **{"X-Forwarded-For": client})
                assert answer.status_code == status
            await asyncio.gather(*stalled)

        asyncio.run(scene())


class TestEvents:
    @pytest.fixture
    def bench(self, tmp_path: Path) -> Iterator[Bench]:
        bench = Bench(make_settings(tmp_path))
        yield bench
        bench.close()

    @staticmethod
    def news(bench: Bench) -> News:
        return News(StoreThreads(lambda: JobReader(bench.database)), lambda reader: reader)

    def test_streams_are_served_here_and_the_application_hears_nothing_of_them(self, bench: Bench) -> None:
        job, echo = bench.submit(), Echo()
        with guarded(echo, news=self.news(bench)) as address:
            url = f"{address}/anime/v1/jobs/events?id={job.id}"
            with requests.get(url, headers={"X-Request-ID": "mine"}, stream=True, timeout=10) as answer:
                assert (answer.status_code, answer.headers["X-Request-ID"]) == (200, "mine")
                lines = answer.iter_lines(chunk_size=1, decode_unicode=True)
                assert "event: position" in lines
                bench.store.finish(bench.claim(), painting())
                assert "event: done" in lines
                data = json.loads(next(lines).removeprefix("data: "))
                assert data["links"]["self"] == f"/anime/v1/jobs/{job.id}"
                assert list(lines)[-2:] == ["retry: 100", ""]
        assert echo.scopes == []

    def test_refusals_are_problem_documents(self, bench: Bench) -> None:
        with guarded(Echo(), news=self.news(bench), max_streams=1) as address:
            assert code(requests.get(f"{address}/v1/jobs/events", timeout=10)) == "bad-option"
            assert code(requests.get(f"{address}/v1/jobs/events?id=x", timeout=10)) == "unknown-job"
            job = bench.submit()
            url = f"{address}/v1/jobs/events?id={job.id}"
            with requests.get(url, stream=True, timeout=10):
                answer = requests.get(url, timeout=10)
                assert (code(answer), answer.headers["Retry-After"]) == ("too-many-streams", "10")

    def test_a_client_that_goes_away_frees_its_place(self, bench: Bench) -> None:
        job, news = bench.submit(), self.news(bench)
        with guarded(Echo(), news=news, max_streams=1) as address:
            url = f"{address}/v1/jobs/events?id={job.id}"
            for _ in range(3):
                with requests.get(url, stream=True, timeout=10) as answer:
                    assert answer.status_code == 200
                wait_for(lambda: not news.watched, 10)

    def test_without_jobs_the_application_answers(self) -> None:
        echo = Echo()
        with guarded(echo) as address:
            requests.get(f"{address}/v1/jobs/events?id=x", timeout=10)
        assert len(echo.scopes) == 1


class TestDraining:
    def test_new_bodies_are_refused_and_what_is_in_hand_is_answered(self) -> None:
        app, draining = Echo(), Draining()
        app.may_answer.clear()
        answers: list[requests.Response] = []
        with guarded(app, draining=draining) as address:
            senders = [
                threading.Thread(target=lambda: answers.append(post(address))),
                threading.Thread(target=lambda: answers.append(requests.get(f"{address}/v1/jobs/1", timeout=60))),
            ]
            for sender in senders:
                sender.start()
            wait_for(lambda: app.inside == 2, 9)
            assert draining.in_hand == 2
            draining.is_on = True
            refusal = post(address)
            assert (refusal.status_code, code(refusal), refusal.headers["retry-after"]) == (503, "stopping", "5")
            assert refusal.headers["connection"] == "close"
            assert app.inside == draining.in_hand == 2
            app.may_answer.set()
            for sender in senders:
                sender.join()
            assert [answer.status_code for answer in answers] == [200, 200]
            wait_for(lambda: draining.in_hand == 0, 9)

    def test_load_balancers_are_told_and_the_process_is_not_called_dead(self) -> None:
        draining = Draining()
        with guarded(Echo(), draining=draining) as address:
            for is_on in (True, False):
                draining.is_on = is_on
                answers = {path: requests.get(address + path, timeout=9) for path in PROBES}
                statuses = {path: answer.status_code for path, answer in answers.items()}
                ready = 503 if is_on else 200
                assert statuses == {"/livez": 200, "/readyz": ready, "/-/healthz": ready}
                assert requests.get(f"{address}/v1/styles", timeout=9).status_code == 200

    @pytest.mark.parametrize("way", ["refused", "broken off", "lost"])
    def test_nothing_stays_in_hand_whatever_becomes_of_a_request(self, way: str) -> None:
        draining = Draining()
        with guarded(TestAnswers.bare(500), draining=draining, max_bytes=1000) as address:
            if way == "broken off":
                say(address, request_head("/v1/stylize", "Content-Length: 900") + b"x")
            else:
                assert post(address, b"x" * (5000 if way == "refused" else 5)).status_code in (413, 503)
            wait_for(lambda: draining.in_hand == 0, 9)
