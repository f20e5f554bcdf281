"""The page where jobs are switched off: it paints one photograph after another, and keeps them itself."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import FakePipeline
from pages import Studio, Visit, album, upload
from playwright.sync_api import expect

from serve_app.errors import TooBusy


@pytest.fixture
def studio(tmp_path: Path, pipeline: FakePipeline) -> Iterator[Studio]:
    studio = Studio(tmp_path / "data", pipeline, has_jobs=False)
    studio.start()
    yield studio
    studio.close()


def test_photos_are_painted_one_after_another(visit: Visit, pipeline: FakePipeline) -> None:
    pipeline.may_paint.clear()
    visit.add(*album(3))
    visit.expect_status("photo-1.jpg", "Painting")
    visit.expect_status("photo-2.jpg", "Waiting for its upload")
    assert len(pipeline.requests) == 1
    pipeline.may_paint.set()
    expect(visit.page.locator("#progress-text")).to_have_text("3 painted")
    assert all("/v1/stylize" in url for url in visit.sent)
    assert not [url for url in visit.asked if "/v1/jobs" in url]


def test_paintings_are_kept_by_the_browser(visit: Visit, tmp_path: Path) -> None:
    expect(visit.page.locator("#kept")).to_contain_text("The service keeps nothing")
    visit.add(upload())
    visit.expect_status("holiday.jpg", re.compile("^Painted"))
    visit.page.reload()
    viewer = visit.view("holiday.jpg")
    for alt in ("Your photo holiday.jpg", "The painting of holiday.jpg"):
        expect(viewer.get_by_alt_text(alt)).to_have_js_property("naturalWidth", 400)
    with visit.page.expect_download() as download:
        viewer.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "holiday-toon.jpg"
    viewer.get_by_role("button", name="Papaya (scenes)").click()
    expect(viewer.get_by_role("button", name="Papaya (scenes) up to")).to_be_enabled()


def test_the_request_under_way_is_aborted_when_its_photo_is_cancelled(visit: Visit, pipeline: FakePipeline) -> None:
    pipeline.may_paint.clear()
    visit.add(upload())
    visit.expect_status("holiday.jpg", "Painting")
    with visit.page.expect_event("requestfailed"):
        visit.page.get_by_role("button", name="Cancel holiday.jpg").click()
    visit.expect_status("holiday.jpg", "Cancelled")
    pipeline.may_paint.set()


def test_a_full_queue_is_waited_for(visit: Visit, pipeline: FakePipeline) -> None:
    visit.expected = "429"
    pipeline.fault = TooBusy("Nine pictures are waiting; try again in 1 second.", 8, 9, "pictures", 1)
    visit.add(upload())
    visit.expect_status("holiday.jpg", re.compile("^The queue is full"))
    pipeline.fault = None
    visit.expect_status("holiday.jpg", re.compile("^Painted"))


def test_a_service_that_switches_jobs_off_meanwhile_is_served_all_the_same(visit: Visit) -> None:
    def with_jobs(route: object) -> None:
        listed = route.fetch().json()  # type: ignore[attr-defined]
        route.fulfill(json=listed | {"jobs": {"keep_for_s": 60, "keep_photos_for_s": 60}})  # type: ignore[attr-defined]

    visit.expected = "404"
    visit.page.route("**/v1/styles", with_jobs)
    visit.page.reload()
    visit.add(upload())
    visit.expect_status("holiday.jpg", re.compile("^Painted"))
