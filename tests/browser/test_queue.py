"""What a card says while its photo waits, and what it survives."""

import re
import time
from typing import Any

from pages import Studio, Visit, album, photo, saved, upload
from playwright.sync_api import Page, Route, expect

GONE = "ERR_CONNECTION_REFUSED|ERR_EMPTY_RESPONSE|ERR_CONNECTION_RESET|ERR_INCOMPLETE_CHUNKED|ERR_INTERNET_DISCONNECTED"


def places(page: Page) -> list[str]:
    """What the cards say, without the times."""
    return sorted(text.split(",")[0] for text in page.locator(".status").all_text_contents())


def expect_places(page: Page, *expected: str) -> None:
    deadline = time.monotonic() + 15
    while (found := places(page)) != sorted(expected):
        assert time.monotonic() < deadline, found
        page.wait_for_timeout(50)


def test_places_fall_as_others_are_painted_and_one_is_cancelled(visit: Visit, studio: Studio) -> None:
    visit.add(*album(5))
    ahead = [f"{count} ahead of you" for count in (1, 2, 3, 4)]
    expect_places(visit.page, "Painting", *ahead)
    studio.easel.paint()
    expect_places(visit.page, "Painted at its full size", "Painting", *ahead[:3])
    last = visit.page.get_by_role("listitem").filter(has_text="3 ahead of you")
    last.get_by_role("button", name="Cancel photo").click()
    expect_places(visit.page, "Painted at its full size", "Painting", "Cancelled", *ahead[:2])
    studio.easel.open()
    expect_places(visit.page, *["Painted at its full size"] * 4, "Cancelled")
    expect(visit.page.locator("#progress-text")).to_have_text("4 painted · 1 cancelled")
    assert studio.bench.unfinished() == 0


def test_the_time_is_said_once_the_pace_is_known(visit: Visit, studio: Studio) -> None:
    visit.add(*album(4))
    studio.easel.paint(2)
    expect(visit.page.get_by_text(re.compile(r"^1 ahead of you, (about \d+ secs?|any moment now)$"))).to_be_visible(
        timeout=20_000
    )


def test_one_stream_serves_all_cards(visit: Visit, studio: Studio) -> None:
    visit.add(*album(6))
    expect(visit.page.get_by_text("5 ahead of you")).to_be_visible()
    visit.page.wait_for_timeout(1000)  # the last jobs have joined the stream
    before = len([url for url in visit.asked if "/events?" in url])
    studio.easel.open()
    expect(visit.page.locator("#progress-text")).to_have_text("6 painted")
    assert len([url for url in visit.asked if "/events?" in url]) == before


def test_tabs_leave_each_other_connections(visit: Visit, studio: Studio) -> None:
    """A browser has six of them to a service, and each stream of events keeps one."""
    visit.add(*album(1))
    expect(visit.page.locator(".card[data-phase=running]")).to_have_count(1)
    tabs = [visit.page, *(visit.open() for _ in range(7))]
    for tab in tabs:
        expect(tab.locator(".card[data-phase=running]")).to_have_count(1)
    assert len([url for url in visit.asked if "/events?" in url]) <= 3
    studio.easel.open()
    for tab in tabs:
        expect(tab.locator("#progress-text")).to_have_text("1 painted")


def test_where_there_is_no_stream_the_page_asks(visit: Visit, studio: Studio) -> None:
    visit.expected = "503"
    refusal = {"status": 503, "content_type": "application/problem+json", "body": '{"code": "too-many-streams"}'}
    visit.page.route("**/v1/jobs/events**", lambda route: route.fulfill(**refusal))
    visit.add(*album(2))
    studio.easel.open()
    expect(visit.page.locator("#progress-text")).to_have_text("2 painted")
    assert [url for url in visit.asked if re.search(r"/v1/jobs\?id=", url)]


def test_cards_are_there_after_a_reload_and_go_on(visit: Visit, studio: Studio) -> None:
    visit.add(*album(3))
    studio.easel.paint()
    expect_places(visit.page, "Painted at its full size", "Painting", "1 ahead of you")
    visit.page.reload()
    expect_places(visit.page, "Painted at its full size", "Painting", "1 ahead of you")
    studio.easel.open()
    expect_places(visit.page, *["Painted at its full size"] * 3)
    assert len(visit.sent) == 3


def test_finished_cards_open_with_before_and_after_in_a_new_tab(visit: Visit, studio: Studio) -> None:
    studio.easel.open()
    visit.add(upload())
    visit.expect_status("holiday.jpg", re.compile("^Painted"))
    visit.page.close()
    visit.page = visit.open()
    viewer = visit.view("holiday.jpg")
    for alt in ("Your photo holiday.jpg", "The painting of holiday.jpg"):
        expect(viewer.get_by_alt_text(alt)).to_have_js_property("naturalWidth", 400)


def test_queue_survives_a_restart_of_the_service_meanwhile(visit: Visit, studio: Studio) -> None:
    visit.expected = GONE
    visit.add(*album(3))
    expect_places(visit.page, "Painting", "1 ahead of you", "2 ahead of you")
    studio.stop()
    studio.start()
    studio.easel.open()
    expect_places(visit.page, *["Painted at its full size"] * 3)
    assert len(visit.sent) == 3


def test_photos_added_offline_are_sent_when_the_network_is_back(visit: Visit, studio: Studio) -> None:
    visit.expected = GONE
    studio.easel.open()
    expect(visit.page.get_by_role("radio")).to_have_count(2)  # the service is known
    visit.context.set_offline(True)
    visit.add(*album(2))
    visit.expect_status("photo-1.jpg", "No connection. Goes on by itself.")
    visit.context.set_offline(False)
    expect(visit.page.locator("#progress-text")).to_have_text("2 painted")


def test_photos_that_wait_for_their_upload_survive_a_reload(visit: Visit, studio: Studio) -> None:
    visit.expected = GONE
    visit.page.route("**/v1/jobs?**", lambda route: route.abort("connectionrefused"))
    visit.add(*album(2))
    visit.expect_status("photo-2.jpg", "No connection. Goes on by itself.")
    visit.page.wait_for_timeout(500)  # the browser writes the files down
    visit.page.unroute("**/v1/jobs?**")
    visit.page.reload()
    studio.easel.open()
    expect(visit.page.locator("#progress-text")).to_have_text("2 painted")


def test_an_answer_that_is_lost_makes_no_second_job(visit: Visit, studio: Studio) -> None:
    visit.expected = GONE
    lost: list[str] = []

    def lose(route: Route) -> None:
        if route.request.method != "POST" or lost:
            route.continue_()
            return
        lost.append(route.request.url)
        route.fetch()
        route.abort("connectionreset")

    visit.page.route("**/v1/jobs?**", lose)
    visit.add(upload())
    visit.expect_status("holiday.jpg", re.compile("^Painting"))
    assert lost
    assert studio.bench.unfinished() == 1


def test_a_full_queue_is_obeyed_without_the_person_doing_anything(visit: Visit, studio: Studio) -> None:
    visit.expected = "429"
    refused: list[float] = []

    def refuse_twice(route: Route) -> None:
        if route.request.method != "POST" or len(refused) >= 2:
            route.continue_()
            return
        refused.append(time.monotonic())
        answer: dict[str, Any] = {"status": 429, "headers": {"Retry-After": "2"}}
        route.fulfill(**answer, content_type="application/problem+json", body='{"code": "too-busy"}')

    studio.easel.open()
    visit.page.route("**/v1/jobs?**", refuse_twice)
    visit.add(upload())
    visit.expect_status("holiday.jpg", re.compile(r"^The queue is full. Tries again in \d secs?\.$"))
    visit.expect_status("holiday.jpg", re.compile("^Painted"))
    assert refused[1] - refused[0] >= 1.9


def test_uploads_run_a_few_at_a_time_and_show_how_far_they_are(visit: Visit) -> None:
    held: list[Route] = []
    visit.page.route("**/v1/jobs?**", lambda route: held.append(route))
    visit.add(*album(6))
    expect(visit.page.get_by_text("Waiting for its upload")).to_have_count(3)
    assert len(held) == 3
    visit.page.get_by_role("button", name="Cancel photo-1.jpg").click()
    visit.expect_status("photo-1.jpg", "Cancelled")
    visit.page.get_by_role("button", name="Cancel the rest").click()
    expect(visit.page.get_by_text("Cancelled", exact=True)).to_have_count(6)
    visit.page.unroute("**/v1/jobs?**")


def test_a_cancelled_photo_is_painted_after_all(visit: Visit, studio: Studio) -> None:
    visit.add(upload())
    visit.expect_status("holiday.jpg", re.compile("^Painting"))
    visit.page.get_by_role("button", name="Cancel holiday.jpg").click()
    visit.expect_status("holiday.jpg", "Cancelled")
    studio.easel.open()
    visit.page.get_by_role("button", name="Try holiday.jpg again").click()
    visit.expect_status("holiday.jpg", re.compile("^Painted"))


def test_a_photo_that_has_failed_is_tried_again(visit: Visit, studio: Studio) -> None:
    visit.expected = "507"
    answer = {"status": 507, "content_type": "application/problem+json", "body": '{"code": "store-full"}'}
    visit.page.route("**/v1/jobs?**", lambda route: route.fulfill(**answer))
    visit.add(*album(2))
    visit.expect_status("photo-1.jpg", "The service has no room for another photo. Try again later.")
    visit.expect_status("photo-2.jpg", "The service has no room for another photo. Try again later.")
    visit.page.unroute("**/v1/jobs?**")
    studio.easel.open()
    visit.page.get_by_role("button", name="Try all again").click()
    expect(visit.page.locator("#progress-text")).to_have_text("2 painted")


def test_jobs_that_the_service_has_forgotten_are_said_to_be_gone(visit: Visit, studio: Studio) -> None:
    studio.easel.open()
    visit.add(upload())
    visit.expect_status("holiday.jpg", re.compile("^Painted"))
    (job_id,) = {url.split("/")[-2] for url in visit.asked if url.endswith("/image")}
    studio.bench.store.remove(job_id)
    visit.expected = "410"
    viewer = visit.view("holiday.jpg")
    expect(viewer.get_by_text("It has expired or was erased.")).to_be_visible()
    visit.page.keyboard.press("Escape")
    visit.expect_status("holiday.jpg", "No longer kept by the service")


def test_tabs_know_of_each_others_photos(visit: Visit, studio: Studio) -> None:
    first, second = visit.page, visit.open()
    expect(second.get_by_role("radio")).to_have_count(2)
    visit.add(upload())
    expect(second.get_by_role("heading", name="holiday.jpg")).to_be_visible()
    studio.easel.open()
    expect(second.get_by_role("link", name="Download")).to_be_visible()
    visit.page = second
    visit.page.get_by_role("button", name="Erase holiday.jpg").click()
    visit.page.get_by_role("dialog").get_by_role("button", name="Erase").click()
    expect(first.get_by_role("listitem")).to_have_count(0)
    assert len(visit.sent) == 1


def test_fifty_photos_are_taken_in_and_painted(visit: Visit, studio: Studio) -> None:
    studio.easel.open()
    visit.add(*[upload(saved(photo(80 + n, 60, n)), f"{n}.jpg") for n in range(50)])
    expect(visit.page.get_by_role("heading", name="50 photos")).to_be_visible()
    expect(visit.page.locator("#progress-text")).to_have_text("50 painted", timeout=60_000)
    assert len(visit.sent) == 50


def test_what_has_changed_is_said_to_those_who_do_not_see_it(visit: Visit, studio: Studio) -> None:
    visit.add(*album(2))
    said = visit.page.locator("#said")
    expect(said).to_have_text("2 photos added.")
    studio.easel.open()
    expect(said).to_have_text(re.compile(r"^Painted: photo-\d\.jpg( and photo-\d\.jpg)?\.$"))
