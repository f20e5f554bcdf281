"""Pictures that are painted already, over HTTP: a real store on SQLite, and a pipeline that says who has painted."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import FakePipeline
from httpx2 import Response
from jobstores import Bench, make_settings
from pictures import photo_bytes
from starlette.testclient import TestClient
from workers import work_off, working

from serve_app.errors import StoreUnavailable, TooBusy
from serve_app.jobs import cache as module
from serve_app.jobs.desk import JobDesk
from serve_app.jobs.reuse import Paintings
from serve_app.jobs.works import painter_name
from serve_app.web.routes import create_app

PHOTO, OTHER = photo_bytes(60, 80), photo_bytes(60, 80, seed=1)
ADDRESS, NEIGHBOUR = "192.0.2.1", "192.0.2.2"
RETRAINED = painter_name("digest of the retrained toon", "auto")
PATIENCE_S = 20.0


class Shop:
    """A service with jobs whose paintings take long enough to be kept, and two clients."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.bench = Bench(make_settings(folder, **settings))
        self.desk = JobDesk(self.bench.settings)
        self.pipeline = FakePipeline()
        self.pipeline.have(self.desk)
        self.pipeline.paint_ms = 400
        app = create_app(self.pipeline)
        self.http = TestClient(app, raise_server_exceptions=False, client=(ADDRESS, 50000))
        self.neighbour = TestClient(app, raise_server_exceptions=False, client=(NEIGHBOUR, 50000))

    def stylize(self, photo: bytes = PHOTO, query: str = "", **headers: str) -> Response:
        """Paints a photograph, and waits until the painting is kept, if it is."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = self.http.post(f"/v1/stylize{query}", content=photo, headers=named)
        self.settle()
        return answer

    def settle(self) -> None:
        until = time.monotonic() + PATIENCE_S
        while self.desk.paintings._keeping and time.monotonic() < until:
            time.sleep(0.005)

    def submit(self, photo: bytes = PHOTO, query: str = "", http: TestClient | None = None) -> dict[str, Any]:
        answer = (http or self.http).post(f"/v1/jobs{query}", content=photo)
        assert answer.status_code == 202, answer.text
        job: dict[str, Any] = answer.json()
        return job

    def succeed(self, photo: bytes = PHOTO, query: str = "") -> dict[str, Any]:
        job = self.submit(photo, query)
        assert work_off(self.bench.store, self.pipeline.painter("toon")) == 1
        done: dict[str, Any] = self.http.get(job["links"]["self"]).json()
        return done

    @property
    def painted(self) -> int:
        return len(self.pipeline.requests)

    def close(self) -> None:
        self.desk.close()
        self.bench.close()


MakeShop = Callable[..., Shop]


@pytest.fixture
def make_shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeShop]:
    monkeypatch.setattr(module, "FIND_S", PATIENCE_S)  # a busy machine is no reason to paint again here
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


def reused(answer: Response) -> str:
    assert answer.status_code == 200, answer.text
    value: str = answer.headers["X-Reused"]
    return value


class TestJobs:
    def test_a_photo_that_is_painted_already_is_answered_at_once(self, shop: Shop) -> None:
        first = shop.succeed(query="?format=png")
        assert first["receipt"]["reused"] is False
        answer = shop.http.post("/v1/jobs?format=png", content=PHOTO)
        again = answer.json()
        assert (answer.status_code, again["status"], answer.headers["Retry-After"]) == (202, "succeeded", "0")
        assert again["id"] != first["id"]
        timings_ms = dict.fromkeys(first["receipt"]["timings_ms"], 0.0)
        assert again["receipt"] == first["receipt"] | {"reused": True, "timings_ms": timings_ms}
        assert (again["started_at"], again["position"], again["eta_s"]) == (None, None, None)
        images = [shop.http.get(job["links"]["image"]) for job in (first, again)]
        assert images[0].content == images[1].content
        assert [reused(image) for image in images] == ["false", "true"]
        assert images[0].headers["ETag"] == images[1].headers["ETag"]
        assert shop.http.get(again["links"]["photo"]).content == shop.http.get(first["links"]["photo"]).content
        shop.bench.check()

    def test_each_may_be_erased_without_the_other(self, shop: Shop) -> None:
        first = shop.succeed()
        again = shop.submit()
        content = shop.http.get(first["links"]["image"]).content
        assert shop.http.delete(first["links"]["self"]).status_code == 200
        assert shop.http.get(again["links"]["image"]).content == content
        assert shop.http.get(first["links"]["image"]).status_code == 410

    def test_a_client_that_waits_is_answered_with_it(self, shop: Shop) -> None:
        job = shop.succeed()
        began = time.monotonic()
        answer = shop.stylize(Prefer="respond-async, wait=30")
        assert (reused(answer), answer.headers["Preference-Applied"]) == ("true", "respond-async, wait=30")
        assert answer.content == shop.http.get(job["links"]["image"]).content
        assert time.monotonic() - began < 10
        assert shop.painted == 0

    def test_what_stylize_has_painted_is_a_job_at_once(self, shop: Shop) -> None:
        painting = shop.stylize()
        job = shop.submit()
        assert job["status"] == "succeeded"
        assert shop.http.get(job["links"]["image"]).content == painting.content
        shop.bench.check()

    def test_an_earlier_photograph_and_those_of_an_album_are_reused_too(self, shop: Shop) -> None:
        first = shop.succeed(query="?format=png")
        source = shop.http.post(f"/v1/jobs?format=png&source_job={first['id']}").json()
        assert (source["status"], source["receipt"]["reused"]) == ("succeeded", True)
        photos = [("image", photo) for photo in (PHOTO, OTHER, b"no photograph", PHOTO)]
        album = shop.http.post("/v1/jobs?format=png", files=photos)
        assert album.status_code == 202
        assert [job["status"] for job in album.json()["jobs"]] == ["succeeded", "queued", "failed", "succeeded"]
        shop.bench.check()

    def test_a_neighbour_learns_nothing(self, shop: Shop) -> None:
        shop.succeed()
        job = shop.submit(http=shop.neighbour)
        assert (job["status"], job["position"], job["receipt"]) == ("queued", 0, None)

    def test_the_same_idempotency_key_of_two_clients_makes_two_jobs(self, shop: Shop) -> None:
        headers = {"Idempotency-Key": "one"}
        first, again = (shop.http.post("/v1/jobs", content=PHOTO, headers=headers).json() for _ in range(2))
        other = shop.neighbour.post("/v1/jobs", content=PHOTO, headers=headers).json()
        another = shop.neighbour.post("/v1/jobs", content=PHOTO, headers={"Idempotency-Key": "two"}).json()
        assert first["id"] == again["id"]
        assert len({first["id"], other["id"], another["id"]}) == 3


class TestStylize:
    def test_a_photo_that_is_painted_already_is_answered_from_the_store(self, shop: Shop) -> None:
        first, again = shop.stylize(), shop.stylize()
        assert (reused(first), reused(again), shop.painted) == ("false", "true", 1)
        assert (again.content, again.headers["Content-Type"]) == (first.content, first.headers["Content-Type"])
        for name in ("X-Style", "X-Original-Size", "X-Painted-Size", "X-Resized", "ETag", "Vary"):
            assert again.headers[name] == first.headers[name]
        decode, queue, paint, encode = again.headers["Server-Timing"].split(", ")
        assert (decode, paint, encode) == ("decode;dur=0.0", "paint;dur=0.0", "encode;dur=0.0")
        assert queue.startswith("queue;dur=")
        shop.bench.check()

    def test_so_is_one_that_a_job_has_painted(self, shop: Shop) -> None:
        job = shop.succeed()
        answer = shop.stylize()
        assert (reused(answer), shop.painted) == ("true", 0)
        assert answer.content == shop.http.get(job["links"]["image"]).content

    @pytest.mark.parametrize(
        "query", ["?max_side=64", "?format=webp", "?quality=50", "?style=papaya", "?format=png&max_side=40"]
    )
    def test_other_options_are_painted(self, shop: Shop, query: str) -> None:
        shop.stylize()
        assert reused(shop.stylize(query=query)) == "false"
        assert reused(shop.stylize(query=query)) == "true"

    def test_another_photo_and_another_format_by_accept_are_painted(self, shop: Shop) -> None:
        tags = {shop.stylize().headers["ETag"]}
        for options in ({"photo": OTHER}, {"accept": "image/webp"}):
            answer = shop.stylize(**options)
            assert reused(answer) == "false"
            tags.add(answer.headers["ETag"])
        assert len(tags) == 3

    def test_the_time_that_a_request_has_makes_no_difference(self, shop: Shop) -> None:
        shop.stylize()
        assert reused(shop.stylize(query="?timeout_s=5")) == "true"

    def test_a_neighbour_learns_nothing(self, shop: Shop) -> None:
        shop.stylize()
        answer = shop.neighbour.post("/v1/stylize", content=PHOTO)
        assert (reused(answer), shop.painted) == ("false", 2)
        assert "paint;dur=400.0" in answer.headers["Server-Timing"]

    def test_it_is_answered_though_the_queue_is_full(self, shop: Shop) -> None:
        shop.stylize()
        shop.pipeline.fault = TooBusy("It is full.")
        assert shop.stylize(OTHER).status_code == 429
        assert reused(shop.stylize()) == "true"

    def test_what_took_little_time_is_not_kept(self, shop: Shop) -> None:
        shop.pipeline.paint_ms = 299
        assert [reused(shop.stylize()) for _ in range(2)] == ["false", "false"]
        assert not shop.bench.files()

    def test_nothing_is_kept_where_that_is_switched_off(self, make_shop: MakeShop) -> None:
        shop = make_shop(keep_stylized_for_s=0)
        assert [reused(shop.stylize()) for _ in range(2)] == ["false", "false"]
        assert not shop.bench.files()

    def test_nothing_is_kept_where_there_is_no_room(self, make_shop: MakeShop) -> None:
        shop = make_shop(max_stored_bytes=1000)
        assert [reused(shop.stylize()) for _ in range(2)] == ["false", "false"]
        assert not shop.bench.files()
        shop.bench.check()

    def test_it_is_kept_for_a_while(self, shop: Shop) -> None:
        shop.stylize()
        shop.bench.pass_time(shop.bench.settings.keep_stylized_for_s + 1)
        shop.bench.store.sweep()
        assert reused(shop.stylize()) == "false"

    def test_only_a_few_wait_to_be_kept(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        gate, kept = threading.Event(), []
        keep = Paintings.keep

        def slow(self: Paintings, *arguments: Any) -> bool:
            assert gate.wait(PATIENCE_S)
            kept.append(arguments)
            return keep(self, *arguments)

        monkeypatch.setattr(Paintings, "keep", slow)
        for number in range(module.MAX_KEEPING + 3):  # answered while nothing is kept
            answer = shop.http.post("/v1/stylize", content=photo_bytes(60, 80, seed=number))
            assert answer.status_code == 200
        gate.set()
        shop.settle()
        assert len(kept) == module.MAX_KEEPING
        assert reused(shop.stylize(photo_bytes(60, 80, seed=module.MAX_KEEPING))) == "false"

    def test_without_jobs_every_picture_is_painted_and_has_no_tag(self) -> None:
        pipeline = FakePipeline()
        http = TestClient(create_app(pipeline))
        answers = [http.post("/v1/stylize", content=PHOTO, headers={"If-None-Match": "*"}) for _ in range(2)]
        assert [reused(answer) for answer in answers] == ["false", "false"]
        assert not any("ETag" in answer.headers for answer in answers)


class TestStyles:
    def test_a_style_that_was_retrained_under_its_name_is_painted_anew(self, shop: Shop) -> None:
        job, first = shop.succeed(OTHER), shop.stylize()
        shop.pipeline.painters["toon"] = RETRAINED
        again = shop.stylize(if_none_match=first.headers["ETag"])
        assert (reused(again), again.headers["ETag"] != first.headers["ETag"]) == ("false", True)
        assert reused(shop.stylize()) == "true"
        assert shop.submit(OTHER)["status"] == "queued"
        assert shop.http.get(job["links"]["image"]).headers["ETag"] != first.headers["ETag"]

    def test_a_stylizer_that_has_the_old_one_never_fills_the_new_digest(self, shop: Shop) -> None:
        shop.pipeline.stylizer = shop.pipeline.painter("toon")
        shop.pipeline.painters["toon"] = RETRAINED  # the Ingress was started again, and the Stylizer not yet
        old = shop.stylize()
        assert reused(old) == "false"
        assert reused(shop.stylize()) == "false"
        assert shop.stylize(if_none_match=old.headers["ETag"]).status_code == 304  # it was painted to see
        assert shop.painted == 3
        shop.pipeline.stylizer = None
        new = shop.stylize(if_none_match=old.headers["ETag"])
        assert (reused(new), shop.painted) == ("false", 4)
        assert new.headers["ETag"] != old.headers["ETag"]
        assert reused(shop.stylize()) == "true"

    @pytest.mark.parametrize("stylizer", ["", None])
    def test_where_the_painter_is_not_known_nothing_is_reused(self, shop: Shop, stylizer: str | None) -> None:
        shop.stylize(OTHER)
        shop.pipeline.painters["toon"], shop.pipeline.stylizer = "", stylizer
        answers = [shop.stylize(OTHER), shop.stylize(OTHER)]
        assert [reused(answer) for answer in answers] == ["false", "false"]
        assert answers[0].headers["ETag"] == answers[1].headers["ETag"]  # of the content
        assert shop.submit(OTHER)["status"] == "queued"

    def test_another_precision_is_another_painter(self, shop: Shop) -> None:
        shop.stylize()
        shop.pipeline.painters["toon"] = painter_name("digest of toon", "fp32")
        assert reused(shop.stylize()) == "false"


class TestConditions:
    @pytest.mark.parametrize("form", ["{}", "W/{}", '"x", {}', '"a,b" , W/{} ,"c"', "{},", "junk, {}"])
    def test_who_has_the_painting_is_told_so_without_painting(self, shop: Shop, form: str) -> None:
        tag = shop.stylize().headers["ETag"]
        assert (tag[0], tag[-1]) == ('"', '"')
        shop.pipeline.fault = TooBusy("Nothing is painted now.")
        shop.bench.store.erase_finished()  # the tag alone is enough
        answer = shop.stylize(if_none_match=form.format(tag))
        assert (answer.status_code, answer.content) == (304, b"")
        assert (answer.headers["ETag"], answer.headers["Vary"]) == (tag, "Accept")
        assert "Content-Type" not in answer.headers

    @pytest.mark.parametrize("form", ['"x"', "", "W/", "'{}'", "{}x".replace("{}", "x"), '"'])
    def test_who_has_others_gets_the_painting(self, shop: Shop, form: str) -> None:
        first = shop.stylize()
        answer = shop.stylize(if_none_match=form)
        assert (answer.status_code, answer.content) == (200, first.content)

    def test_several_lines_count_together(self, shop: Shop) -> None:
        tag = shop.stylize().headers["ETag"]
        lines = [("If-None-Match", '"x"'), ("If-None-Match", tag)]
        assert shop.http.post("/v1/stylize", content=PHOTO, headers=lines).status_code == 304

    def test_any_painting_must_exist(self, shop: Shop) -> None:
        first = shop.stylize(if_none_match="*")
        assert reused(first) == "false"
        again = shop.stylize(if_none_match=" * ")
        assert (again.status_code, again.headers["ETag"]) == (304, first.headers["ETag"])
        assert shop.neighbour.post("/v1/stylize", content=PHOTO, headers={"If-None-Match": "*"}).status_code == 200

    def test_the_tag_of_another_photo_or_format_is_another(self, shop: Shop) -> None:
        tag = shop.stylize().headers["ETag"]
        assert shop.stylize(OTHER, if_none_match=tag).status_code == 200
        assert shop.stylize(query="?format=png", if_none_match=tag).status_code == 200

    @pytest.mark.parametrize("prefer", ["respond-async", "wait=30", "respond-async, wait=0"])
    def test_no_job_is_made_for_who_has_the_painting(self, shop: Shop, prefer: str) -> None:
        tag = shop.stylize().headers["ETag"]
        for condition in (tag, "*"):
            answer = shop.stylize(if_none_match=condition, prefer=prefer, idempotency_key="one")
            assert (answer.status_code, answer.headers["ETag"]) == (304, tag)
            assert answer.headers["Vary"] == "Accept"
        assert shop.bench.store.census().jobs == {}
        assert shop.stylize(prefer=prefer, if_none_match='"x"').status_code in (200, 202)

    def test_an_answer_in_time_has_the_tag_of_stylize(self, shop: Shop) -> None:
        with working(shop.bench.store, shop.pipeline.painter("toon")):
            answer = shop.stylize(prefer="wait=30")
        assert answer.status_code == 200
        assert shop.stylize().headers["ETag"] == answer.headers["ETag"]
        assert "Accept" in answer.headers["Vary"]

    def test_the_image_of_a_job_has_a_tag_too(self, shop: Shop) -> None:
        job = shop.succeed()
        address = job["links"]["image"]
        answer = shop.http.get(address)
        tag = answer.headers["ETag"]
        assert shop.stylize(if_none_match=tag).status_code == 304
        for condition in (tag, f"W/{tag}", f'"x", {tag}', "*"):
            again = shop.http.get(address, headers={"If-None-Match": condition})
            assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", tag)
            assert again.headers["Cache-Control"] == "private, no-store"
        assert shop.http.get(address, headers={"If-None-Match": '"x"'}).content == answer.content

    def test_the_image_of_an_unknown_painter_has_the_tag_of_its_content(self, shop: Shop) -> None:
        job = shop.submit()
        work_off(shop.bench.store)
        tag = shop.http.get(job["links"]["image"]).headers["ETag"]
        assert shop.http.get(job["links"]["image"], headers={"If-None-Match": tag}).status_code == 304

    def test_a_job_without_a_painting_meets_no_condition(self, shop: Shop) -> None:
        job = shop.submit()
        for condition in ("*", '"x"'):
            headers = {"If-None-Match": condition}
            assert shop.http.get(job["links"]["image"], headers=headers).status_code == 409
            assert shop.http.get("/v1/jobs/unknown/image", headers=headers).status_code == 404
        shop.http.delete(job["links"]["self"])
        assert shop.http.get(job["links"]["image"], headers={"If-None-Match": "*"}).status_code == 410


class TestOutages:
    def test_without_their_store_pictures_are_painted(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        desk = JobDesk(make_settings(tmp_path / "file" / "data"))
        pipeline = FakePipeline(jobs=desk)
        pipeline.paint_ms = 400
        http = TestClient(create_app(pipeline))
        answers = [http.post("/v1/stylize", content=PHOTO) for _ in range(2)]
        assert [reused(answer) for answer in answers] == ["false", "false"]
        tag = answers[0].headers["ETag"]
        assert http.post("/v1/stylize", content=PHOTO, headers={"If-None-Match": tag}).status_code == 304
        desk.close()

    @pytest.mark.parametrize("fault", [StoreUnavailable("It is."), sqlite3.ProgrammingError("ours")])
    def test_a_look_that_fails_is_as_if_there_was_nothing(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch, fault: Exception
    ) -> None:
        shop.stylize()

        def fails(*_: object) -> None:
            raise fault

        monkeypatch.setattr(Paintings, "find", fails)
        monkeypatch.setattr(Paintings, "keep", fails)
        assert reused(shop.stylize()) == "false"
        monkeypatch.undo()
        assert reused(shop.stylize()) == "true"

    def test_a_look_that_hangs_is_not_waited_for_and_not_tried_again_soon(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "FIND_S", 0.05)
        gate, looks = threading.Event(), []

        def hangs(*_: object) -> None:
            looks.append(1)
            gate.wait(PATIENCE_S)

        with monkeypatch.context() as patch:
            patch.setattr(Paintings, "find", hangs)
            with shop.http:
                began = time.monotonic()
                answers = [shop.stylize() for _ in range(3)]
                assert time.monotonic() - began < PATIENCE_S
            gate.set()
        assert [reused(answer) for answer in answers] == ["false", "false", "false"]
        assert len(looks) == 1
        shop.desk.paintings._find_after = 0.0
        assert reused(shop.stylize()) == "true"

    def test_a_painting_that_is_gone_from_the_disk_is_painted(self, shop: Shop) -> None:
        shop.stylize()
        for name in shop.bench.files() - {"owner"}:
            (shop.bench.folder / name).unlink()
        assert reused(shop.stylize()) == "false"


def test_a_photo_that_cannot_be_painted_is_refused_as_ever(shop: Shop) -> None:
    for content, status in ((b"", 400), (b"no photograph", 415), (PHOTO[: len(PHOTO) // 2], 422)):
        assert shop.stylize(content, if_none_match='*, "x"').status_code == status
    assert not shop.bench.files()


def test_a_large_photo_is_hashed_too(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    first = shop.stylize()
    monkeypatch.setattr("serve_app.web.reuse.HASHED_AT_ONCE", 10)
    assert (reused(shop.stylize()), shop.stylize().headers["ETag"]) == ("true", first.headers["ETag"])


def test_the_name_of_the_painter_is_told_to_nobody(shop: Shop) -> None:
    assert "painter" not in shop.succeed()["receipt"]
