"""How photographs come in: picked, dropped, pasted, in folders; and which are refused before they are sent."""

import re
from pathlib import Path
from typing import Any

import pytest
from fakes import FakePipeline, fake_settings
from pages import Studio, Visit, album, photo, saved, upload
from playwright.sync_api import Page, expect
from shared import ROOT

DROP = """(files) => {
    const carried = new DataTransfer();
    for (const {name, bytes} of files) carried.items.add(new File([new Uint8Array(bytes)], name, {type: "image/jpeg"}));
    const options = {dataTransfer: carried, bubbles: true, cancelable: true};
    document.body.dispatchEvent(new DragEvent("%s", options));
}"""
PASTE = """(files) => {
    const carried = new DataTransfer();
    for (const {name, bytes} of files) carried.items.add(new File([new Uint8Array(bytes)], name, {type: "image/jpeg"}));
    document.body.dispatchEvent(new ClipboardEvent("paste", {clipboardData: carried, bubbles: true}));
}"""


def in_page(*files: Any) -> list[dict[str, Any]]:
    """Files as a script of the page takes them."""
    return [{"name": file["name"], "bytes": list(file["buffer"])} for file in files]


def expect_shown(page: Page, alt: str) -> None:
    """The picture is visible and its bytes were really decoded."""
    picture = page.get_by_alt_text(alt, exact=True)
    expect(picture).to_be_visible()
    expect(picture).not_to_have_js_property("naturalWidth", 0)


def test_each_photo_becomes_a_card_with_its_own_preview_and_is_painted(visit: Visit, studio: Studio) -> None:
    visit.add(*album(3))
    for number in (1, 2, 3):
        expect_shown(visit.page, f"Your photo photo-{number}.jpg")
    studio.easel.open()
    for number in (1, 2, 3):
        expect_shown(visit.page, f"The painting of photo-{number}.jpg")
    assert len(visit.sent) == 3


def test_photos_are_dropped_anywhere_on_the_page(visit: Visit) -> None:
    files = in_page(*album(2))
    visit.page.evaluate(DROP % "dragover", files)
    expect(visit.page.get_by_text("Let go to paint them")).to_be_visible()
    visit.page.evaluate(DROP % "drop", files)
    expect(visit.page.get_by_text("Let go to paint them")).to_be_hidden()
    expect(visit.page.get_by_role("heading", name="2 photos")).to_be_visible()


def test_a_photo_is_pasted(visit: Visit) -> None:
    visit.page.evaluate(PASTE, in_page(upload(name="image.png")))
    expect_shown(visit.page, "Your photo image.png")


def test_of_a_folder_only_the_photos_are_taken(visit: Visit, tmp_path: Path) -> None:
    folder = tmp_path / "trip"
    (folder / "day two").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(saved(photo()))
    (folder / "day two" / "b.png").write_bytes(saved(photo(90, 80), "PNG"))
    (folder / "notes.txt").write_text("not a photograph")
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    visit.page.locator("#folder").set_input_files(folder)
    expect(visit.page.get_by_role("heading", name="2 photos")).to_be_visible()
    expect(visit.page.locator("#said")).to_have_text("2 photos added. 1 file was left out: it is no photo.")


def test_a_dropped_folder_is_looked_through(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "trip" / "later").mkdir(parents=True)
    for number in range(3):
        (tmp_path / "trip" / f"{number}.jpg").write_bytes(saved(photo(80 + number, 60)))
    (tmp_path / "trip" / "later" / "3.jpg").write_bytes(saved(photo(90, 70)))
    session: Any = visit.context.new_cdp_session(visit.page)
    carried = {"items": [], "files": [str(tmp_path / "trip")], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 300, "data": carried})
    expect(visit.page.get_by_role("heading", name="4 photos")).to_be_visible()
    expect(visit.card("3.jpg")).to_be_visible()


def test_new_cards_are_in_sight_on_a_telephone(visit: Visit) -> None:
    visit.page.set_viewport_size({"width": 360, "height": 640})
    visit.add(*album(6))
    expect(visit.card("photo-1.jpg")).to_be_in_viewport()
    visit.page.evaluate("scrollTo(0, document.body.scrollHeight)")
    visit.add(upload(name="later.jpg"))
    expect(visit.card("later.jpg")).to_be_in_viewport()


class TestSmallUploads:
    @pytest.fixture
    def pipeline(self) -> FakePipeline:
        return FakePipeline(fake_settings(max_bytes=2**20))

    def test_a_photo_above_the_limit_is_refused_in_words_and_not_sent(self, visit: Visit) -> None:
        expect(visit.page.locator("#limits")).to_contain_text("up to 1 MB each")
        visit.add(upload(bytes(3 * 2**19), "huge.jpg"))
        visit.expect_status("huge.jpg", "The file has 1.6 MB; at most 1 MB are taken here. Save it smaller.")
        assert visit.sent == []


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"%PDF-1.7 no photograph", "This file is not a photo that can be read here: JPEG, PNG"),
        (b"", "The file is empty."),
        (b"II*\0\x10\0\0\0CR\x02\0 a camera's raw file", "This file is not a photo"),
    ],
)
def test_what_is_no_photo_is_refused_and_not_sent(visit: Visit, data: bytes, reason: str) -> None:
    visit.add(upload(data, "odd.jpg"))
    visit.expect_status("odd.jpg", re.compile(reason))
    assert visit.sent == []
    visit.page.get_by_role("button", name="Remove odd.jpg").click()
    expect(visit.page.get_by_role("listitem")).to_have_count(0)


def test_photos_that_failed_are_removed_together_and_others_stay(visit: Visit, studio: Studio) -> None:
    studio.easel.open()
    visit.add(*album(1), *(upload(b"no photo", f"{number}.jpg") for number in range(3)))
    expect(visit.page.locator("#progress-text")).to_have_text("1 painted · 3 failed")
    visit.page.get_by_role("button", name="Remove failed ones").click()
    expect(visit.page.locator("#progress-text")).to_have_text("1 painted")
    expect(visit.page.get_by_role("button", name="Remove failed ones")).to_be_hidden()


def test_a_broken_photo_fails_with_the_reason_of_the_service_and_others_do_not(visit: Visit, studio: Studio) -> None:
    visit.expected = "422"
    whole = saved(photo())
    visit.add(upload(whole[: len(whole) // 2], "broken.jpg"), upload(whole, "whole.jpg"))
    studio.easel.open()
    visit.expect_status("broken.jpg", "The file is damaged or incomplete.")
    expect(visit.card("broken.jpg").get_by_role("button")).to_have_count(1)  # to remove it: there is no other hope
    expect_shown(visit.page, "The painting of whole.jpg")


def test_a_photo_that_the_browser_cannot_draw_gets_its_preview_from_the_service(visit: Visit) -> None:
    heic = (ROOT / "tests" / "data" / "heic_nclx_p3.heic").read_bytes()
    visit.add(upload(saved(photo(120, 90), "TIFF"), "scan.tif"), upload(heic, "IMG_0001.HEIC"))
    expect_shown(visit.page, "Your photo scan.tif")
    expect_shown(visit.page, "Your photo IMG_0001.HEIC")


def test_photos_that_come_before_the_service_answers_are_painted_when_it_does(visit: Visit, studio: Studio) -> None:
    studio.stop()
    visit.expected = "ERR_CONNECTION_REFUSED|ERR_EMPTY_RESPONSE|ERR_CONNECTION_RESET"
    visit.page.route("**/v1/styles", lambda route: route.abort("connectionrefused"))
    studio.start()
    studio.easel.open()
    visit.page.reload()
    expect(visit.page.locator("#trouble")).to_contain_text("The service cannot be reached.")
    visit.add(upload())
    visit.page.unroute("**/v1/styles")
    expect_shown(visit.page, "The painting of holiday.jpg")
    expect(visit.page.locator("#trouble")).to_be_hidden()
