"""Albums, earlier photographs painted again, waiting for jobs, and events, over HTTP."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import fake_settings
from pictures import opened, photo_bytes
from shop import ADDRESS, PHOTO, Shop, assert_problem
from workers import work_off

from serve_app.errors import BrokenImage, StoreUnavailable
from serve_app.web import uploads


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    made = Shop(tmp_path / "data")
    yield made
    made.close()


def form(*photos: bytes) -> list[tuple[str, Any]]:
    return [("image", (f"{number}.jpg", photo)) for number, photo in enumerate(photos)]


PHOTOS = [photo_bytes(60, 80, seed=seed) for seed in range(4)]
SONG = b"la la la" * 100


class TestAlbums:
    def test_a_form_with_several_photographs_makes_as_many_jobs_in_its_order(self, shop: Shop) -> None:
        answer = shop.http.post("/v1/jobs?format=png", files=form(*PHOTOS), data={"max_side": "40"})
        assert answer.status_code == 202
        jobs = answer.json()["jobs"]
        assert [job["status"] for job in jobs] == ["queued"] * 4
        assert [job["position"] for job in jobs] == [0, 1, 2, 3]
        assert int(answer.headers["Retry-After"]) >= 1
        assert shop.http.get(answer.headers["Location"]).json() == {"jobs": jobs}
        assert work_off(shop.bench.store) == 4
        for job, photo in zip(jobs, PHOTOS, strict=True):
            painted = shop.http.get(job["links"]["image"])
            alone = shop.http.post("/v1/stylize?format=png&max_side=40", content=photo)
            assert painted.content == alone.content
        shop.bench.check()

    def test_one_photograph_in_a_form_is_one_job(self, shop: Shop) -> None:
        answer = shop.http.post("/v1/jobs", files=form(PHOTO))
        assert answer.json()["status"] == "queued"

    def test_what_can_never_be_painted_costs_the_others_nothing(self, shop: Shop) -> None:
        tiny = photo_bytes(4, 4)
        answer = shop.http.post("/v1/jobs", files=form(PHOTOS[0], SONG, PHOTOS[1], tiny, b""))
        jobs = answer.json()["jobs"]
        assert [job["status"] for job in jobs] == ["queued", "failed", "queued", "failed", "failed"]
        codes = [job["error"] and job["error"]["code"] for job in jobs]
        assert codes == [None, "unsupported-format", None, "too-small", "no-image"]
        assert [job["position"] for job in jobs] == [0, None, 1, None, None]
        shop.bench.check()
        assert work_off(shop.bench.store) == 2
        assert shop.http.delete(jobs[1]["links"]["self"]).json()["status"] == "expired"
        assert_problem(shop.http.get(jobs[3]["links"]["image"]), 410, "gone")

    def test_one_that_is_too_long_costs_the_others_nothing(self, shop: Shop) -> None:
        shop.pipeline.settings = fake_settings(max_bytes=len(PHOTOS[0]) + 10)
        jobs = shop.http.post("/v1/jobs", files=form(PHOTOS[0], PHOTOS[0] + bytes(100))).json()["jobs"]
        assert [job["error"] and job["error"]["code"] for job in jobs] == [None, "too-many-bytes"]

    def test_an_album_of_nothing_to_paint_is_refused(self, shop: Shop) -> None:
        assert_problem(shop.http.post("/v1/jobs", files=form(SONG, SONG)), 415, "unsupported-format")
        assert shop.bench.unfinished() == 0

    def test_a_photograph_in_a_field_of_another_name_is_not_dropped_silently(self, shop: Shop) -> None:
        files = [*form(PHOTOS[0]), ("images", ("2.jpg", PHOTOS[1]))]
        detail = "images is no field for a photograph; send each in a field `image`."
        assert_problem(shop.http.post("/v1/jobs", files=files), 400, "bad-option", detail)
        assert shop.bench.unfinished() == 0

    def test_paint_now_points_to_jobs(self, shop: Shop) -> None:
        detail = "The form has several photographs; /v1/jobs takes albums, and one comes here."
        assert_problem(shop.http.post("/v1/stylize", files=form(*PHOTOS)), 400, "no-image", detail)

    def test_a_failure_of_ours_takes_none_of_it(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[bytes] = []

        async def check(data: bytes, request: object) -> int:
            calls.append(data)
            if len(calls) == 2:
                raise StoreUnavailable("Not now.")
            return 100

        monkeypatch.setattr(shop.pipeline, "check", check)
        assert_problem(shop.http.post("/v1/jobs", files=form(*PHOTOS)), 503, "store-unavailable")
        assert shop.bench.unfinished() == 0

    def test_a_form_has_bounds(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(uploads, "MOST_PHOTOS", 3)
        assert_problem(shop.http.post("/v1/jobs", files=form(*PHOTOS)), 400, "bad-option")
        shop.pipeline.settings = fake_settings(max_form_bytes=sum(map(len, PHOTOS[:3])) // 2)
        assert_problem(shop.http.post("/v1/jobs", files=form(*PHOTOS[:3])), 413, "too-many-bytes")
        assert shop.bench.unfinished() == 0

    def test_a_queue_without_room_for_all_takes_none(self, tmp_path: Path) -> None:
        shop = Shop(tmp_path / "small", max_queued=3)
        assert_problem(shop.http.post("/v1/jobs", files=form(*PHOTOS)), 429, "too-busy")
        assert (shop.bench.unfinished(), shop.bench.files()) == (0, set())
        shop.close()

    def test_a_repeated_key_returns_the_same_album(self, shop: Shop) -> None:
        headers = {"Idempotency-Key": "holiday"}
        first, again = (
            shop.http.post("/v1/jobs", files=form(PHOTOS[0], SONG, PHOTOS[1]), headers=headers).json() for _ in range(2)
        )
        assert [job["id"] for job in first["jobs"]] == [job["id"] for job in again["jobs"]]
        other = shop.http.post("/v1/jobs", files=form(PHOTOS[1], SONG, PHOTOS[0]), headers=headers)
        assert_problem(other, 422, "key-reused")
        assert shop.bench.unfinished() == 2

    def test_albums_are_held_in_memory_one_at_a_time(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        inside = most = 0
        submit = shop.desk.submit

        async def slowly(*args: Any) -> Any:
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            reports = await submit(*args)
            inside -= 1
            return reports

        monkeypatch.setattr(shop.desk, "submit", slowly)
        with shop.http:
            threads = [
                threading.Thread(target=shop.http.post, args=("/v1/jobs",), kwargs={"files": form(*PHOTOS)})
                for _ in range(4)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert (most, shop.bench.unfinished()) == (1, 16)


class TestAgain:
    def test_an_earlier_photograph_is_painted_in_another_style_and_size(self, shop: Shop) -> None:
        first = shop.succeed(query="?format=png")
        answer = shop.http.post(f"/v1/jobs?source_job={first['id']}&style=papaya&max_side=40&format=png")
        assert answer.status_code == 202
        assert work_off(shop.bench.store) == 1
        again = shop.look(answer.json())
        assert (again["receipt"]["style"], again["receipt"]["painted"]) == ("papaya", {"width": 40, "height": 28})
        picture = shop.http.get(again["links"]["image"]).content
        assert opened(picture).size == (40, 28)
        shop.bench.check()

    @pytest.mark.parametrize("way", ["form", "urlencoded"])
    def test_the_source_may_come_as_a_field(self, shop: Shop, way: str) -> None:
        first = shop.submit()
        fields = {"source_job": first["id"], "style": "papaya"}
        if way == "form":
            answer = shop.http.post("/v1/jobs", files=[(name, (None, value)) for name, value in fields.items()])
        else:
            answer = shop.http.post("/v1/jobs", data=fields)
        assert answer.status_code == 202, answer.text
        assert shop.bench.unfinished() == 2

    def test_a_photograph_that_claims_to_be_a_form_is_one(self, shop: Shop) -> None:
        """As `curl --data-binary` sends it."""
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        photo = PHOTO + b"&source_job=1"
        assert shop.http.post("/v1/jobs", content=photo + bytes(100_000), headers=headers).status_code == 202

    def test_not_both(self, shop: Shop) -> None:
        first = shop.submit()
        answer = shop.http.post(f"/v1/jobs?source_job={first['id']}", content=PHOTO)
        assert_problem(answer, 400, "bad-option", "source_job is given in place of a photograph, not with one.")

    def test_a_source_that_is_gone_is_told(self, shop: Shop) -> None:
        assert_problem(shop.http.post("/v1/jobs?source_job=nothing"), 404, "unknown-job")
        assert_problem(shop.http.post("/v1/jobs?source_job=%00"), 400, "bad-option")
        first = shop.succeed()
        with shop.bench.database.write() as connection:
            connection.exec_driver_sql("UPDATE jobs SET photo_expires_at = 1")
        shop.bench.store.sweep()
        assert_problem(shop.http.post(f"/v1/jobs?source_job={first['id']}"), 410, "gone")
        shop.http.delete(first["links"]["self"])
        assert_problem(shop.http.post(f"/v1/jobs?source_job={first['id']}"), 410, "gone")

    def test_a_size_that_is_too_small_is_told_at_once(self, shop: Shop) -> None:
        first = shop.succeed(photo_bytes(16, 400))
        assert_problem(shop.http.post(f"/v1/jobs?source_job={first['id']}&max_side=40"), 422, "too-small")


class TestWaiting:
    def test_the_painting_is_the_answer_if_it_is_soon_enough(self, shop: Shop) -> None:
        with shop.http:
            answers = []
            thread = threading.Thread(
                target=lambda: answers.append(
                    shop.http.post("/v1/jobs?format=png", content=PHOTO, headers={"Prefer": "wait=20"})
                )
            )
            thread.start()
            while not work_off(shop.bench.store):
                time.sleep(0.02)
            thread.join()
        (answer,) = answers
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/png")
        assert answer.headers["Preference-Applied"] == "wait=20"
        assert shop.http.get(answer.headers["Content-Location"]).content == answer.content

    def test_else_the_job_is(self, shop: Shop) -> None:
        answer = shop.http.post("/v1/jobs", content=PHOTO, headers={"Prefer": "wait=1"})
        assert (answer.status_code, answer.json()["status"]) == (202, "queued")

    def test_a_job_that_fails_meanwhile_says_where_it_is(self, shop: Shop) -> None:
        with shop.http:
            answers = []
            headers = {"Prefer": "wait=99999999999999999999"}
            thread = threading.Thread(
                target=lambda: answers.append(shop.http.post("/v1/jobs", content=PHOTO, headers=headers))
            )
            thread.start()
            while (lease := shop.bench.store.queue.claim()) is None:
                time.sleep(0.02)
            assert shop.bench.store.queue.fail(lease, BrokenImage("It is a song."))
            thread.join()
        (answer,) = answers
        assert_problem(answer, 422, "broken-image", "It is a song.")
        assert shop.http.delete(answer.headers["Location"]).json()["status"] == "expired"

    def test_an_album_is_waited_for_as_a_whole(self, shop: Shop) -> None:
        with shop.http:
            answers = []
            thread = threading.Thread(
                target=lambda: answers.append(
                    shop.http.post("/v1/jobs", files=form(*PHOTOS), headers={"Prefer": "wait=20"})
                )
            )
            thread.start()
            done = 0
            while done < 4:
                done += work_off(shop.bench.store)
                time.sleep(0.02)
            thread.join()
        (answer,) = answers
        assert [job["status"] for job in answer.json()["jobs"]] == ["succeeded"] * 4
        assert answer.headers["Retry-After"] == "0"


class TestEvents:
    def test_the_stream_of_finished_jobs_has_their_ends(self, shop: Shop) -> None:
        first, second = shop.succeed(), shop.submit(PHOTOS[1])
        shop.http.delete(second["links"]["self"])
        answer = shop.http.get(f"/v1/jobs/events?id={first['id']}&id={second['id']}")
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["Cache-Control"] == "no-store"
        blocks = [block for block in answer.text.split("\n\n") if "event:" in block]
        lines = [dict(line.split(": ", 1) for line in block.splitlines()) for block in blocks]
        assert [line["event"] for line in lines] == ["done", "failed"]
        assert json.loads(lines[0]["data"]) == shop.look(first)
        headers = {"Last-Event-ID": lines[1]["id"]}
        again = shop.http.get(f"/v1/jobs/events?id={first['id']}&id={second['id']}", headers=headers)
        assert (again.status_code, again.content) == (204, b"")

    def test_its_address_is_in_the_job(self, shop: Shop) -> None:
        job = shop.succeed()
        assert "event: done" in shop.http.get(job["links"]["events"]).text

    def test_refusals(self, shop: Shop) -> None:
        assert_problem(shop.http.get("/v1/jobs/events"), 400, "bad-option")
        many = "&".join(f"id={number}" for number in range(101))
        assert_problem(shop.http.get(f"/v1/jobs?{many}"), 400, "bad-option", "id: name 1 to 100 jobs, as id=…&id=….")
        assert_problem(shop.http.get("/v1/jobs/events?id=nothing"), 404, "unknown-job")
        assert shop.pipeline.streams is not None
        shop.pipeline.streams.open["somebody"] = shop.pipeline.settings.max_streams
        answer = shop.http.get("/v1/jobs/events?id=nothing")
        assert_problem(answer, 503, "too-many-streams")
        assert int(answer.headers["Retry-After"]) > 0

    def test_addresses_of_clients_share_the_places(self, shop: Shop) -> None:
        assert shop.pipeline.streams is not None
        shop.pipeline.streams.open[ADDRESS] = shop.pipeline.settings.max_streams * 4 // 5
        assert_problem(shop.http.get("/v1/jobs/events?id=nothing"), 503, "too-many-streams")
