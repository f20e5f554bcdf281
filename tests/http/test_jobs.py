"""Jobs over HTTP: a real store on SQLite, and a worker of the test in place of the runner."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes import FakePipeline, fake_settings
from httpx2 import Response
from jobstores import make_settings, painting
from pictures import opened, photo_bytes
from PIL import Image
from shop import ADDRESS, PHOTO, Shop, assert_problem
from starlette.testclient import TestClient
from workers import end, work_off, working

from serve_app.errors import BrokenImage
from serve_app.jobs.desk import JobDesk
from serve_app.jobs.store import JobStore
from serve_app.jobs.words import Job
from serve_app.settings import WebhookSettings
from serve_app.web.keys import KeyRing, parse_keys
from serve_app.web.routes import create_app

OFF = "This service paints while you wait, at /v1/stylize. Whoever runs it can switch jobs on."

MakeShop = Callable[..., Shop]


@pytest.fixture
def make_shop(tmp_path: Path) -> Iterator[MakeShop]:
    made: list[Shop] = []

    def make(**options: Any) -> Shop:
        made.append(Shop(tmp_path / "data", **options))
        return made[-1]

    yield make
    for shop in made:
        shop.close()


@pytest.fixture
def shop(make_shop: MakeShop) -> Shop:
    return make_shop()


class TestSubmitting:
    def test_a_photo_is_accepted_and_on_the_disk(self, shop: Shop) -> None:
        answer = shop.http.post("/v1/jobs?max_side=40&format=png", content=PHOTO)
        job = answer.json()
        address = f"/v1/jobs/{job['id']}"
        assert answer.status_code == 202
        assert (answer.headers["Location"], answer.headers["Cache-Control"]) == (address, "no-store")
        assert answer.headers["Retry-After"] == "2"  # nothing is known of the pace yet
        assert job["created_at"].endswith("Z")
        assert job == {
            "id": job["id"],
            "status": "queued",
            "position": 0,
            "eta_s": None,
            "created_at": job["created_at"],
            "started_at": None,
            "finished_at": None,
            "expires_at": None,
            "receipt": None,
            "error": None,
            "links": {
                "self": address,
                "image": f"{address}/image",
                "photo": f"{address}/photo",
                "events": f"/v1/jobs/events?id={job['id']}",
            },
        }
        stored = shop.bench.store.get(job["id"])
        assert stored.request is not None
        assert (stored.client, stored.request.max_side, stored.request.format) == (ADDRESS, 40, "png")
        assert shop.bench.store.photo(stored) == PHOTO
        shop.bench.check()

    def test_a_form_with_its_options_is_accepted(self, shop: Shop) -> None:
        fields = {"style": "papaya", "max_side": "64", "format": "PNG"}
        answer = shop.http.post("/v1/jobs", files={"image": PHOTO}, data=fields)
        assert answer.status_code == 202
        request = shop.bench.store.get(answer.json()["id"]).request
        assert request is not None
        assert (request.style, request.max_side, request.format) == ("papaya", 64, "png")

    def test_the_format_may_come_from_accept_and_the_address_may_end_in_a_slash(self, shop: Shop) -> None:
        answer = shop.http.post("/v1/jobs/", content=PHOTO, headers={"Accept": "image/webp"})
        request = shop.bench.store.get(answer.json()["id"]).request
        assert request is not None
        assert request.format == "webp"

    @pytest.mark.parametrize(
        ("query", "photo", "status", "code"),
        [
            ("", b"", 400, "no-image"),
            ("?max_sid=9", PHOTO, 400, "bad-option"),
            ("?max_side=2000", PHOTO, 400, "bad-option"),
            ("?style=shinkai", PHOTO, 404, "unknown-style"),
            ("", b"GIF87 is not a whole header", 415, "unsupported-format"),
            ("", PHOTO[:20], 422, "broken-image"),
            ("", photo_bytes(4, 80), 422, "too-small"),
            ("?max_side=16", photo_bytes(40, 200), 422, "too-small"),
        ],
    )
    def test_what_can_never_be_painted_is_refused_at_once_and_as_by_stylize(
        self, shop: Shop, query: str, photo: bytes, status: int, code: str
    ) -> None:
        answer = shop.http.post(f"/v1/jobs{query}", content=photo)
        assert_problem(answer, status, code)
        if code != "bad-option":
            assert answer.json() == shop.http.post(f"/v1/stylize{query}", content=photo).json()
        assert shop.bench.unfinished() == 0
        assert not shop.bench.files() - {"owner"}

    def test_limits_of_bytes_and_pixels_hold(self, make_shop: MakeShop) -> None:
        shop = make_shop(pipeline=FakePipeline(fake_settings(max_bytes=len(PHOTO)), max_pixels=60 * 80))
        shop.submit()
        assert_problem(shop.http.post("/v1/jobs", content=PHOTO + b"."), 413, "too-many-bytes")
        assert_problem(shop.http.post("/v1/jobs", content=photo_bytes(61, 80, "GIF")), 413, "too-many-pixels")

    def test_a_job_has_no_deadline_to_be_given(self, shop: Shop) -> None:
        known = "style, max_side, format, quality, source_job, callback_url"
        detail = f"timeout_s is not an option (known: {known})."
        assert_problem(shop.http.post("/v1/jobs?timeout_s=5", content=PHOTO), 400, "bad-option", detail)

    def test_a_full_store_and_a_full_queue_say_so(self, make_shop: MakeShop) -> None:
        assert_problem(make_shop(max_stored_bytes=100).http.post("/v1/jobs", content=PHOTO), 507, "store-full")
        busy = make_shop(max_queued=1)
        busy.submit()
        answer = busy.http.post("/v1/jobs", content=PHOTO)
        assert_problem(answer, 429, "too-busy")
        assert int(answer.headers["Retry-After"]) > 0

    def test_clients_are_known_by_their_keys(self, make_shop: MakeShop) -> None:
        from serve_app.web.keys import new_key

        key, line = new_key("alice")
        shop = make_shop(pipeline=FakePipeline(keys=KeyRing(parse_keys(line, "here"))))
        assert_problem(shop.http.post("/v1/jobs", content=PHOTO), 401, "unauthorized")
        job = shop.submit(authorization=f"Bearer {key}")
        assert shop.bench.store.get(job["id"]).client == "key:alice"
        assert shop.look(job)["status"] == "queued"  # the id is enough


class TestIdempotency:
    def test_a_repeated_submission_is_answered_with_its_job(self, shop: Shop) -> None:
        first = shop.submit(idempotency_key="album-1")
        assert shop.submit(idempotency_key="album-1")["id"] == first["id"]
        assert shop.submit(idempotency_key="album-2")["id"] != first["id"]
        assert shop.submit()["id"] != first["id"]
        work_off(shop.bench.store)
        again = shop.http.post("/v1/jobs", content=PHOTO, headers={"Idempotency-Key": "album-1"})
        assert (again.status_code, again.json()["status"]) == (202, "succeeded")
        assert again.headers["Retry-After"] == "0"

    def test_it_stays_the_same_when_the_settings_have_changed(self, shop: Shop) -> None:
        first = shop.submit(idempotency_key="one")
        shop.pipeline.settings = fake_settings(timeout_s=7)
        assert shop.submit(idempotency_key="one")["id"] == first["id"]

    @pytest.mark.parametrize(("query", "photo"), [("?max_side=64", PHOTO), ("", photo_bytes(60, 80, seed=1))])
    def test_the_key_of_another_photo_or_other_options_is_refused(self, shop: Shop, query: str, photo: bytes) -> None:
        shop.submit(idempotency_key="one")
        answer = shop.http.post(f"/v1/jobs{query}", content=photo, headers={"Idempotency-Key": "one"})
        assert_problem(answer, 422, "key-reused")

    def test_keys_of_different_clients_do_not_meet(self, shop: Shop) -> None:
        first = shop.submit(idempotency_key="one")
        other = TestClient(create_app(shop.pipeline), client=("192.0.2.2", 50000))
        second = other.post("/v1/jobs", content=PHOTO, headers={"Idempotency-Key": "one"})
        assert (second.status_code, second.json()["id"] != first["id"]) == (202, True)

    @pytest.mark.parametrize("lines", [[""], [" "], ["x" * 256], ["one", "two"]])
    def test_a_key_is_given_once_and_has_characters(self, shop: Shop, lines: list[str]) -> None:
        answer = shop.http.post("/v1/jobs", content=PHOTO, headers=[("Idempotency-Key", line) for line in lines])
        assert_problem(answer, 400, "bad-header")
        assert shop.bench.unfinished() == 0


class TestLooking:
    def test_a_job_is_seen_on_its_way(self, shop: Shop) -> None:
        first, second = shop.submit(), shop.submit()
        assert (second["position"], shop.look(second)["position"]) == (1, 1)
        lease = shop.bench.claim()
        running = shop.look(first)
        assert (running["status"], running["position"]) == ("running", 0)
        assert running["started_at"] is not None
        end(shop.bench.store, lease)
        done = shop.look(first)
        assert (done["status"], done["position"], done["eta_s"], done["error"]) == ("succeeded", None, None, None)
        assert done["receipt"] == {
            "style": "toon",
            "original": {"width": 80, "height": 60},
            "painted": {"width": 80, "height": 60},
            "resized": False,
            "reused": False,
            "timings_ms": {"decode": 1.0, "queue": 0.0, "paint": 0.0, "encode": 1.0},
        }
        assert done["finished_at"] < done["expires_at"]

    def test_an_unfinished_job_says_when_to_look_again(self, make_shop: MakeShop) -> None:
        shop = make_shop()
        shop.desk._rate = lambda: 60 * 80 / 7.2  # a painting of this size takes 7.2 s
        answers = [shop.http.post("/v1/jobs", content=PHOTO) for _ in range(6)]
        assert [answer.json()["eta_s"] for answer in answers[:3]] == [7.2, 14.4, 21.6]
        assert [answer.headers["Retry-After"] for answer in answers] == ["8", "15", "22", "29", "30", "30"]
        answer = shop.http.get(answers[1].json()["links"]["self"])
        assert (answer.json()["eta_s"], answer.headers["Retry-After"]) == (14.4, "15")
        assert answer.headers["Cache-Control"] == "no-store"
        work_off(shop.bench.store)
        assert "Retry-After" not in shop.http.get(answers[1].json()["links"]["self"]).headers

    def test_many_are_seen_at_once(self, shop: Shop) -> None:
        done, waiting, erased = shop.succeed(), shop.submit(), shop.submit()
        assert shop.http.delete(erased["links"]["self"]).json()["status"] == "cancelled"
        assert shop.http.delete(erased["links"]["self"]).json()["status"] == "expired"
        ids = [waiting["id"], "unknown", "%00", erased["id"], done["id"], waiting["id"]]
        answer = shop.http.get("/v1/jobs?" + "&".join(f"id={each}" for each in ids))
        assert answer.headers["Cache-Control"] == "no-store"
        seen = [(job["id"], job["status"]) for job in answer.json()["jobs"]]
        assert seen == [(waiting["id"], "queued"), (erased["id"], "expired"), (done["id"], "succeeded")]
        assert answer.json()["jobs"][0]["position"] == 0

    @pytest.mark.parametrize(
        ("query", "detail"),
        [
            ("", "id: Field required."),
            ("ids=1", "id: Field required; ids is not an option (known: id)."),
            ("&".join(["id=x"] * 101), "id: name 1 to 100 jobs, as id=…&id=…."),
        ],
    )
    def test_nobody_lists_jobs_without_their_ids(self, shop: Shop, query: str, detail: str) -> None:
        assert_problem(shop.http.get(f"/v1/jobs?{query}"), 400, "bad-option", detail)

    @pytest.mark.parametrize("path", ["", "/image", "/photo"])
    @pytest.mark.parametrize("job_id", ["0123456789abcdefABCDEF_-", "%00", "%ff", "x" * 65, "ä"])
    def test_an_unknown_id_is_none(self, shop: Shop, job_id: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        find = JobStore.find

        def find_text(self: JobStore, job_ids: Sequence[str]) -> dict[str, Job]:
            assert all(each.isascii() and "\0" not in each for each in job_ids)  # PostgreSQL takes no others
            return find(self, job_ids)

        monkeypatch.setattr(JobStore, "find", find_text)
        detail = "There is no job with this id."
        assert_problem(shop.http.get(f"/v1/jobs/{job_id}{path}"), 404, "unknown-job", detail)
        if not path:
            assert_problem(shop.http.delete(f"/v1/jobs/{job_id}"), 404, "unknown-job", detail)

    def test_why_a_job_failed_or_was_cancelled_is_told(self, shop: Shop) -> None:
        broken, cancelled = shop.submit(), shop.submit()
        assert shop.bench.store.queue.fail(shop.bench.claim(), BrokenImage("It ends in the middle."))
        assert shop.http.delete(cancelled["links"]["self"]).status_code == 200
        assert (shop.look(broken)["status"], shop.look(cancelled)["status"]) == ("failed", "cancelled")
        error = shop.look(broken)["error"]
        assert (error["status"], error["code"], error["detail"]) == (422, "broken-image", "It ends in the middle.")
        error = shop.look(cancelled)["error"]
        assert (error["status"], error["code"]) == (410, "cancelled")
        assert error["detail"] == "The job was cancelled before it was painted."

    def test_an_expired_job_is_gone(self, shop: Shop) -> None:
        job = shop.succeed()
        shop.bench.pass_time(shop.bench.settings.keep_for_s + 1)
        shop.bench.store.sweep()
        for path in ("", "/image", "/photo"):
            assert_problem(shop.http.get(job["links"]["self"] + path), 410, "gone")


class TestPictures:
    def test_the_painting_is_that_of_stylize(self, shop: Shop) -> None:
        query = "?max_side=40&format=png"
        job = shop.succeed(query=query)
        answer = shop.http.get(job["links"]["image"])
        painted = shop.http.post(f"/v1/stylize{query}", content=PHOTO)
        assert (answer.status_code, answer.content) == (200, painted.content)
        names = ("Content-Type", "X-Style", "X-Original-Size", "X-Painted-Size", "X-Resized", "Server-Timing")
        assert [answer.headers[name] for name in names] == [painted.headers[name] for name in names]
        assert answer.headers["Cache-Control"] == "private, no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"

    def test_head_says_of_it_what_get_says(self, shop: Shop) -> None:
        job = shop.succeed()
        for path in (job["links"]["self"], job["links"]["image"], job["links"]["photo"]):
            got, asked = shop.http.get(path), shop.http.head(path)
            assert (asked.status_code, asked.content, asked.headers) == (200, b"", got.headers), path
        assert shop.http.head("/v1/jobs/nothing").status_code == 404

    def test_there_is_none_before_it_is_painted_nor_of_a_failed_job(self, shop: Shop) -> None:
        job = shop.submit()
        assert_problem(shop.http.get(job["links"]["image"]), 409, "not-finished")
        lease = shop.bench.claim()
        assert_problem(shop.http.get(job["links"]["image"]), 409, "not-finished")
        assert shop.bench.store.queue.fail(lease, BrokenImage("It is."))
        assert_problem(shop.http.get(job["links"]["image"]), 410, "gone")

    @pytest.mark.parametrize("format", ["JPEG", "PNG"])
    def test_the_photo_is_upright_and_as_large_as_the_painting(self, shop: Shop, format: str) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6  # lies on its side
        job = shop.submit(photo_bytes(60, 100, format, exif=exif), "?max_side=50&format=png")
        answer = shop.http.get(job["links"]["photo"])
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/jpeg")
        assert opened(answer.content).size == (30, 50)
        assert answer.headers["Cache-Control"] == "private, no-store"
        assert not opened(answer.content).getexif()
        work_off(shop.bench.store)
        assert opened(shop.http.get(job["links"]["image"]).content).size == (30, 50)
        assert shop.http.get(job["links"]["photo"]).content == answer.content

    def test_a_photo_with_transparency_is_a_png(self, shop: Shop) -> None:
        import io

        buffer = io.BytesIO()
        picture = opened(PHOTO).convert("RGBA")
        picture.putalpha(100)
        picture.save(buffer, "PNG")
        job = shop.submit(buffer.getvalue())
        answer = shop.http.get(job["links"]["photo"])
        assert answer.headers["Content-Type"] == "image/png"
        assert opened(answer.content).getpixel((0, 0))[3] == 100  # type: ignore[index]

    def test_a_photo_that_has_expired_is_gone_and_the_painting_stays(self, shop: Shop) -> None:
        job = shop.succeed()
        shop.bench.pass_time(shop.bench.settings.keep_photos_for_s + 1)
        shop.bench.store.sweep()
        assert_problem(shop.http.get(job["links"]["photo"]), 410, "gone")
        assert shop.http.get(job["links"]["image"]).status_code == 200


class TestRemoving:
    def test_a_job_that_waits_or_runs_is_cancelled(self, shop: Shop) -> None:
        runs, waits = shop.submit(), shop.submit()
        lease = shop.bench.claim()
        for job in (runs, waits):
            answer = shop.http.delete(job["links"]["self"])
            assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
            assert answer.headers["Cache-Control"] == "no-store"
        assert not shop.bench.store.finish(lease, painting())
        assert not shop.bench.files() - {"owner"}
        shop.bench.check()

    def test_a_finished_job_is_erased_with_its_pictures(self, shop: Shop) -> None:
        job = shop.succeed()
        answer = shop.http.delete(job["links"]["self"])
        assert (answer.status_code, answer.json()["status"]) == (200, "expired")
        assert not shop.bench.files() - {"owner"}
        assert_problem(shop.http.get(job["links"]["self"]), 410, "gone")
        assert_problem(shop.http.delete(job["links"]["self"]), 410, "gone")


class TestPreferences:
    def test_respond_async_makes_a_job(self, shop: Shop) -> None:
        answer = shop.http.post("/v1/stylize?max_side=64", content=PHOTO, headers={"Prefer": "respond-async"})
        assert (answer.status_code, answer.headers["Preference-Applied"]) == (202, "respond-async")
        job = answer.json()
        assert (answer.headers["Location"], job["status"]) == (f"/v1/jobs/{job['id']}", "queued")
        assert not shop.pipeline.requests
        work_off(shop.bench.store)
        assert shop.look(job)["status"] == "succeeded"

    @pytest.mark.parametrize("prefer", ["respond-async, wait=50", "wait=50", 'RESPOND-ASYNC; x, Wait = "50"'])
    def test_the_painting_comes_within_the_time(self, shop: Shop, prefer: str) -> None:
        with working(shop.bench.store):
            answer = shop.http.post("/v1/stylize?format=png", content=PHOTO, headers={"Prefer": prefer})
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/png")
        assert answer.content == shop.http.post("/v1/stylize?format=png", content=PHOTO).content
        assert answer.headers["Preference-Applied"] == ("" if prefer == "wait=50" else "respond-async, ") + "wait=50"
        assert (answer.headers["X-Style"], answer.headers["Cache-Control"]) == ("toon", "private, no-store")
        assert shop.http.get(answer.headers["Content-Location"]).content == answer.content

    @pytest.mark.parametrize("wait_s", [0, 1])
    def test_else_comes_the_unfinished_job(self, shop: Shop, wait_s: int) -> None:
        began = time.monotonic()
        answer = shop.http.post("/v1/stylize", content=PHOTO, headers={"Prefer": f"respond-async, wait={wait_s}"})
        assert time.monotonic() - began >= wait_s
        assert (answer.status_code, answer.json()["status"]) == (202, "queued")

    def test_a_client_waits_no_longer_than_any_may(self, make_shop: MakeShop) -> None:
        shop = make_shop(pipeline=FakePipeline(fake_settings(timeout_s=0.2)))
        answer = shop.http.post("/v1/stylize", content=PHOTO, headers={"Prefer": "wait=999999999"})
        assert answer.status_code == 202

    def test_a_photo_that_turns_out_broken_is_refused_as_by_stylize(self, shop: Shop) -> None:
        broken = PHOTO[: len(PHOTO) // 2]
        with working(shop.bench.store):
            answer = shop.http.post("/v1/stylize", content=broken, headers={"Prefer": "respond-async, wait=50"})
        assert_problem(answer, 422, "broken-image")
        assert answer.json() == shop.http.post("/v1/stylize", content=broken).json()

    def test_a_preference_that_cannot_be_met_is_passed_over(self, shop: Shop) -> None:
        """RFC 7240: a job has no deadline, and a service without jobs has none to give."""
        for http, query in ((shop.http, "?timeout_s=20"), (TestClient(create_app(FakePipeline())), "")):
            answer = http.post(f"/v1/stylize{query}", content=PHOTO, headers={"Prefer": "respond-async"})
            assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/jpeg")
            assert "Preference-Applied" not in answer.headers

    @pytest.mark.parametrize("prefer", ["", "return=minimal", "wait", "wait=soon", "wait=-1", "respond-asynchronously"])
    def test_other_preferences_change_nothing(self, shop: Shop, prefer: str) -> None:
        answer = shop.http.post("/v1/stylize", content=PHOTO, headers={"Prefer": prefer})
        assert (answer.status_code, len(shop.pipeline.requests)) == (200, 1)

    def test_a_repeated_key_is_the_same_job_here_too(self, shop: Shop) -> None:
        headers = {"Prefer": "respond-async", "Idempotency-Key": "one"}
        first, second = (shop.http.post("/v1/stylize", content=PHOTO, headers=headers) for _ in range(2))
        assert first.json()["id"] == second.json()["id"]


ROUTES = [
    ("POST", "/v1/jobs"),
    ("GET", "/v1/jobs?id=x"),
    ("GET", "/v1/jobs/x"),
    ("GET", "/v1/jobs/x/image"),
    ("GET", "/v1/jobs/x/photo"),
    ("DELETE", "/v1/jobs/x"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_without_jobs_every_route_says_so(method: str, path: str) -> None:
    http = TestClient(create_app(FakePipeline()))
    assert_problem(http.request(method, path), 404, "jobs-off", OFF)
    assert http.get("/readyz").json() == {"status": "ok", "jobs": "off"}


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_without_their_store_routes_say_so_and_pictures_are_painted(tmp_path: Path, method: str, path: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    desk = JobDesk(make_settings(tmp_path / "file" / "data"))
    http = TestClient(create_app(FakePipeline(jobs=desk)))
    answer = http.request(method, path, content=PHOTO)
    assert_problem(answer, 503, "store-unavailable")
    assert answer.headers["Retry-After"] == "5"
    assert http.post("/v1/stylize", content=PHOTO).status_code == 200
    assert http.get("/readyz").json() == {"status": "ok", "jobs": "unavailable"}
    desk.close()


def test_readiness_tells_of_jobs(shop: Shop) -> None:
    assert shop.http.get("/readyz").json() == {"status": "ok", "jobs": "ready"}


class TestWebhooks:
    """The option callback_url."""

    HOOKS = WebhookSettings(secret="env:HOOKS")
    URL = "https://hooks.example.org/anime?token=t0ken"

    @pytest.fixture
    def shop(self, make_shop: MakeShop) -> Shop:
        return make_shop(webhooks=self.HOOKS)

    @pytest.mark.parametrize("place", ["query", "form"])
    def test_the_end_of_the_job_is_announced(self, shop: Shop, place: str) -> None:
        parameters = {"callback_url": self.URL} if place == "query" else {}
        fields = {"callback_url": self.URL} if place == "form" else {}
        answer = shop.http.post("/v1/jobs", params=parameters, data=fields, files={"image": PHOTO})
        assert answer.status_code == 202, answer.text
        assert "callback" not in answer.text
        assert shop.bench.messages() == []
        assert work_off(shop.bench.store) == 1
        (message,) = shop.bench.messages()
        assert (message.job, message.url) == (answer.json()["id"], self.URL)
        assert "t0ken" not in shop.http.get(answer.headers["Location"]).text

    def test_the_url_is_kept_as_it_is_called(self, shop: Shop) -> None:
        job = shop.submit(query="?callback_url=HTTPS://B%C3%BCcher.example")
        assert shop.bench.store.get(job["id"]).callback_url == "https://xn--bcher-kva.example/"

    @pytest.mark.parametrize(
        "url", ["", "example.org", "http://example.org/", "https://ann:t0ken@example.org/", "https://169.254.169.254/"]
    )
    def test_what_is_not_called_is_refused_before_the_photo_is_read(self, shop: Shop, url: str) -> None:
        answer = shop.http.post("/v1/jobs", params={"callback_url": url})
        assert_problem(answer, 400, "bad-option")
        assert answer.json()["detail"].startswith("callback_url: ")
        assert "t0ken" not in answer.text
        assert shop.bench.unfinished() == 0

    def test_it_is_checked_in_a_form_too(self, shop: Shop) -> None:
        answer = shop.http.post("/v1/jobs", data={"callback_url": "https://10.0.0.1/"}, files={"image": PHOTO})
        assert_problem(answer, 400, "bad-option")
        twice = shop.http.post(
            "/v1/jobs", params={"callback_url": self.URL}, data={"callback_url": self.URL}, files={"image": PHOTO}
        )
        assert_problem(twice, 400, "bad-option", "callback_url: given in the query and in the form.")
        assert shop.bench.unfinished() == 0

    def test_a_service_without_a_secret_sends_none(self, make_shop: MakeShop) -> None:
        answer = make_shop().http.post("/v1/jobs", params={"callback_url": self.URL}, content=PHOTO)
        assert_problem(answer, 400, "bad-option", "callback_url: this service sends no webhooks.")

    def test_it_is_no_option_of_stylize(self, shop: Shop) -> None:
        answer = shop.http.post(
            "/v1/stylize", params={"callback_url": self.URL}, content=PHOTO, headers={"Prefer": "respond-async"}
        )
        assert_problem(answer, 400, "bad-option")
        assert "callback_url is not an option" in answer.json()["detail"]

    def test_a_key_that_came_with_another_url_is_refused(self, shop: Shop) -> None:
        first = shop.submit(query=f"?callback_url={self.URL}", Idempotency_Key="k")
        again = shop.submit(query="?callback_url=https://HOOKS.example.org/anime?token=t0ken", Idempotency_Key="k")
        assert again["id"] == first["id"]
        answer = shop.http.post("/v1/jobs", content=PHOTO, headers={"Idempotency-Key": "k"})
        assert_problem(answer, 422, "key-reused")


def test_methods_of_all_routes_of_a_path_are_named() -> None:
    answer = TestClient(create_app(FakePipeline())).put("/v1/jobs")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD, POST")
    assert answer.json()["detail"] == "/v1/jobs does not take PUT; it takes GET, HEAD, POST."


def test_no_id_gets_into_the_log(shop: Shop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    job = shop.succeed()
    caplog.set_level(logging.DEBUG)
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # the client of the test

    def broken(*_: object) -> None:
        raise ValueError("ours")

    monkeypatch.setattr(shop.bench.store.__class__, "get", broken)
    for path in ("", "/", "/image", "/photo"):
        assert_problem(shop.http.get(job["links"]["self"] + path), 500, "internal-error")
    assert "unexpected error on GET /v1/jobs/{job_id}/photo" in caplog.text
    monkeypatch.undo()
    with shop.bench.database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE jobs RENAME TO lost")
    assert_problem(shop.http.get(job["links"]["self"]), 503, "store-unavailable")
    assert job["id"] not in caplog.text


def test_waiting_requests_hold_no_more_places_than_are_theirs(
    make_shop: MakeShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serve_app.jobs import desk as module

    monkeypatch.setattr(module, "MAX_WAITING", 1)
    shop = make_shop()
    headers = {"Prefer": "respond-async, wait=20"}
    with shop.http:  # one event loop for all requests
        first: list[Response] = []
        thread = threading.Thread(
            target=lambda: first.append(shop.http.post("/v1/stylize", content=PHOTO, headers=headers))
        )
        thread.start()
        while not shop.desk.news.watched:
            time.sleep(0.01)
        began = time.monotonic()
        assert shop.http.post("/v1/stylize", content=PHOTO, headers=headers).status_code == 202
        assert time.monotonic() - began < 10
        work_off(shop.bench.store)
        thread.join()
        assert first[0].status_code == 200
