"""What comes out: before and after, downloads, other styles, larger sizes, and erasing."""

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fakes import FakePipeline, fake_settings
from pages import TIMES, Studio, Visit, album, photo, saved, upload
from PIL import Image
from playwright.sync_api import expect


def painted(visit: Visit, studio: Studio, size: tuple[int, int] = (400, 300), name: str = "holiday.jpg") -> None:
    """A photograph that is painted, on the page."""
    studio.easel.open()
    visit.add(upload(saved(photo(*size)), name))
    expect(visit.card(name).get_by_role("link", name="Download")).to_be_visible()


def test_slider_is_moved_by_the_keyboard_and_says_where_it_is(visit: Visit, studio: Studio) -> None:
    painted(visit, studio)
    slider = visit.view("holiday.jpg").get_by_role("slider", name="Compare the photo and the painting")
    slider.focus()
    expect(slider).to_have_attribute("aria-valuetext", "50% photo, 50% painting")
    cut = "element => getComputedStyle(element.closest('.compare').querySelector('.photo')).clipPath"
    assert "50%" in slider.evaluate(cut)
    visit.page.keyboard.press("End")
    expect(slider).to_have_attribute("aria-valuetext", "100% photo, 0% painting")
    visit.page.keyboard.press("Home")
    visit.page.keyboard.press("ArrowRight")
    expect(slider).to_have_attribute("aria-valuetext", "1% photo, 99% painting")
    assert "99%" in slider.evaluate(cut)


def test_slider_follows_the_mouse(visit: Visit, studio: Studio) -> None:
    painted(visit, studio)
    slider = visit.view("holiday.jpg").get_by_role("slider")
    box = slider.bounding_box()
    assert box is not None
    visit.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 100)
    visit.page.mouse.down()
    visit.page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 100)
    visit.page.mouse.up()
    assert 85 < int(slider.input_value()) < 95


def test_sample_teaches_the_slider_and_paints_nothing(visit: Visit) -> None:
    slider = visit.page.get_by_role("slider", name="Compare the photo and the painting")
    slider.focus()
    visit.page.keyboard.press("PageUp")
    expect(slider).to_have_attribute("aria-valuetext", "60% photo, 40% painting")
    assert visit.sent == []


def test_a_painting_is_downloaded_from_its_card_by_the_second_click(
    visit: Visit, studio: Studio, tmp_path: Path
) -> None:
    """The first one opens the picker of the system."""
    original = photo(1600, 1200)
    studio.easel.open()
    visit.page.get_by_role("button", name="Choose photos").click()
    visit.choose(upload(saved(original)))
    with visit.page.expect_download() as download:
        visit.card("holiday.jpg").get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "holiday-toon.jpg"
    download.value.save_as(tmp_path / "painting")
    painting = np.asarray(Image.open(tmp_path / "painting").convert("RGB"))
    assert np.abs(painting - (255.0 - np.asarray(original.resize((1024, 768))))).mean() < 3


def test_all_paintings_are_downloaded_as_a_zip_under_names_that_differ(
    visit: Visit, studio: Studio, tmp_path: Path
) -> None:
    studio.easel.open()
    names = ["a.jpg", "a.png", "b.jpg"]
    visit.add(*[upload(file["buffer"], name) for file, name in zip(album(3), names, strict=True)])
    expect(visit.page.locator("#progress-text")).to_have_text("3 painted")
    with visit.page.expect_download() as download:
        visit.page.get_by_role("button", name="Download all").click()
    download.value.save_as(tmp_path / "zip")
    assert download.value.suggested_filename == "paintings.zip"
    with zipfile.ZipFile(tmp_path / "zip") as packed:
        assert packed.namelist() == ["a-toon.jpg", "a-toon (2).jpg", "b-toon.jpg"]
        sizes = [Image.open(io.BytesIO(packed.read(name))).size for name in packed.namelist()]
    assert sizes == [(160, 120), (161, 120), (162, 120)]


def test_receipt_says_in_words_what_was_done_and_why(visit: Visit, studio: Studio) -> None:
    painted(visit, studio, (1600, 1200))
    visit.expect_status("holiday.jpg", f"Adapted for you: 1024 {TIMES} 768")
    viewer = visit.view("holiday.jpg")
    expect(viewer.locator("#receipt")).to_have_text(
        f"Painted in the style Toon. Your photo was 1600 {TIMES} 1200; it was fitted to 1024 {TIMES} 768. "
        "This service paints at most 1,024 px on the longer side."
    )
    expect(viewer.get_by_role("button", name="Paint it larger")).to_be_hidden()


def test_receipt_of_a_photo_that_kept_its_size(visit: Visit, studio: Studio) -> None:
    painted(visit, studio)
    expect(visit.view("holiday.jpg").locator("#receipt")).to_have_text(
        f"Painted in the style Toon. It has the size of your photo, 400 {TIMES} 300."
    )


def test_a_photo_that_lost_some_pixels_at_its_edges_is_not_called_whole(visit: Visit, studio: Studio) -> None:
    visit.page.get_by_role("radio", name="Papaya").check()  # it paints multiples of 4
    painted(visit, studio, (403, 300))
    visit.expect_status("holiday.jpg", f"Painted at 400 {TIMES} 300")


class TestLargerSizes:
    @pytest.fixture
    def pipeline(self) -> FakePipeline:
        return FakePipeline(fake_settings(max_side=2000))

    def test_a_larger_size_is_offered_where_the_service_paints_it(self, visit: Visit, studio: Studio) -> None:
        painted(visit, studio, (1800, 1200))
        viewer = visit.view("holiday.jpg")
        expect(viewer.locator("#receipt")).to_contain_text("The size chosen was up to 1,024 px on the longer side.")
        viewer.get_by_role("button", name="Paint it larger, up to 2,000 px").click()
        larger = viewer.get_by_role("button", name="Toon up to 2,000 px")
        expect(larger).to_be_enabled()
        larger.click()
        expect(viewer.locator("#receipt")).to_contain_text(f"It has the size of your photo, 1800 {TIMES} 1200.")

    def test_the_chosen_size_is_remembered(self, visit: Visit, studio: Studio) -> None:
        visit.page.get_by_label("Size").select_option("Longer side up to 512 px")
        visit.page.reload()
        expect(visit.page.get_by_label("Size")).to_have_value("512")
        painted(visit, studio, (1600, 1200))
        visit.expect_status("holiday.jpg", f"Adapted for you: 512 {TIMES} 384")


def test_another_style_needs_no_new_upload_and_both_are_shown_side_by_side(visit: Visit, studio: Studio) -> None:
    painted(visit, studio)
    viewer = visit.view("holiday.jpg")
    viewer.get_by_role("button", name="Papaya (scenes)").click()
    made = viewer.get_by_role("button", name="Papaya (scenes) up to")
    expect(made).to_have_attribute("aria-pressed", "false")
    expect(made).to_be_enabled()
    assert ["source_job=" in url for url in visit.sent] == [False, True]
    viewer.get_by_role("button", name="Side by side").click()
    expect(viewer.locator("#beside").get_by_role("button")).to_have_count(2)
    viewer.locator("#beside").get_by_role("button", name="Papaya").click()
    expect(viewer.locator("#receipt")).to_contain_text("Painted in the style Papaya (scenes).")
    with visit.page.expect_download() as download:
        viewer.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "holiday-papaya.jpg"
    viewer.get_by_role("button", name="Erase the painting in Toon").click()
    expect(viewer.get_by_role("button", name="Side by side")).to_be_hidden()


def test_a_whole_album_is_painted_in_the_style_that_is_chosen_then(visit: Visit, studio: Studio) -> None:
    studio.easel.open()
    visit.add(*album(2))
    expect(visit.page.locator("#progress-text")).to_have_text("2 painted")
    expect(visit.page.get_by_role("button", name="Paint all in")).to_be_hidden()
    visit.page.get_by_role("radio", name="Papaya").check()
    visit.page.get_by_role("button", name="Paint all in Papaya (scenes)").click()
    expect(visit.page.get_by_role("button", name="Paint all in")).to_be_hidden()
    expect(visit.page.locator("#progress-text")).to_have_text("2 painted")
    assert ["source_job=" in url for url in visit.sent] == [False, False, True, True]


def test_a_painting_can_be_fetched_while_it_is_painted_in_another_style(visit: Visit, studio: Studio) -> None:
    visit.add(*album(2))
    studio.easel.paint(2)
    expect(visit.page.locator("#progress-text")).to_have_text("2 painted")
    visit.page.get_by_role("radio", name="Papaya").check()
    visit.page.get_by_role("button", name="Paint all in Papaya (scenes)").click()
    expect(visit.page.locator("#progress-text")).to_have_text("2 painted · 2 on their way")
    running = visit.page.locator(".card[data-phase=running]")
    expect(running.get_by_role("button", name="Cancel")).to_be_visible()
    with visit.page.expect_download() as download:
        running.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename.endswith("-toon.jpg")


def test_styles_are_chosen_by_cards_that_say_what_they_are(visit: Visit) -> None:
    expect(visit.page.get_by_role("radio")).to_have_count(2)
    expect(visit.page.get_by_role("radio", name="Toon Licence: MIT, by the fake studio")).to_be_checked()
    visit.page.get_by_role("radio", name="Papaya (scenes) Licence: non-commercial, by the fake orchard").check()
    visit.page.get_by_text("1 more style, for whoever runs this service").click()
    expect(visit.page.get_by_text("animegan styles pull mango")).to_be_visible()
    visit.page.reload()
    expect(visit.page.get_by_role("radio", name="Papaya")).to_be_checked()


def test_thumbnail_and_summary_of_a_style_are_shown_where_there_are_some(visit: Visit) -> None:
    def describe(route: object) -> None:
        answer = route.fetch()  # type: ignore[attr-defined]
        listed = answer.json()
        listed["styles"][0] |= {"summary": "Good for parrots.", "thumbnail": "/v1/styles/toon/thumbnail"}
        route.fulfill(json=listed)  # type: ignore[attr-defined]

    visit.page.route("**/v1/styles", describe)
    visit.page.route("**/v1/styles/toon/thumbnail", lambda route: route.fulfill(body=saved(photo(64, 64), "WEBP")))
    visit.page.reload()
    expect(visit.page.get_by_role("radio", name="Toon Good for parrots.")).to_be_checked()
    expect(visit.page.locator(".style img").first).not_to_have_js_property("naturalWidth", 0)


def test_pixels_are_shown_one_to_one_and_the_slider_still_works(visit: Visit, studio: Studio) -> None:
    painted(visit, studio, (1600, 1200))
    viewer = visit.view("holiday.jpg")
    viewer.get_by_role("button", name="Actual size").click()
    picture = viewer.get_by_alt_text("The painting of holiday.jpg")
    expect(picture).to_have_js_property("clientWidth", 1024)
    pane = viewer.locator("#pane")
    pane.focus()
    visit.page.keyboard.press("ArrowRight")
    viewer.get_by_role("slider").focus()
    visit.page.keyboard.press("End")
    expect(viewer.get_by_role("slider")).to_have_attribute("aria-valuetext", "100% photo, 0% painting")


def test_viewer_turns_to_the_other_photos(visit: Visit, studio: Studio) -> None:
    studio.easel.open()
    visit.add(*album(3))
    expect(visit.page.locator("#progress-text")).to_have_text("3 painted")
    visit.view("photo-1.jpg")
    expect(visit.page.get_by_text("1 of 3")).to_be_visible()
    visit.page.get_by_role("button", name="Next photo").click()
    expect(visit.page.get_by_role("dialog", name="photo-2.jpg")).to_be_visible()
    visit.page.keyboard.press("Escape")
    expect(visit.page.get_by_role("dialog")).to_be_hidden()
    expect(visit.card("photo-1.jpg").get_by_role("button", name="Compare")).to_be_focused()


def test_a_painting_is_copied_as_a_picture(visit: Visit, studio: Studio) -> None:
    visit.context.grant_permissions(["clipboard-read", "clipboard-write"])
    painted(visit, studio)
    viewer = visit.view("holiday.jpg")
    viewer.get_by_role("button", name="Copy").click()
    expect(viewer.get_by_text("Copied.")).to_be_visible()
    kinds = visit.page.evaluate("navigator.clipboard.read().then(items => items.flatMap(item => item.types))")
    assert kinds == ["image/png"]


def test_what_is_erased_is_gone_here_and_at_the_service(visit: Visit, studio: Studio) -> None:
    painted(visit, studio)
    visit.page.get_by_role("button", name="Erase holiday.jpg").click()
    question = visit.page.get_by_role("dialog", name="Erase this photo?")
    question.get_by_role("button", name="Keep").click()
    expect(visit.card("holiday.jpg")).to_be_visible()
    assert len(studio.bench.files()) == 2
    visit.page.get_by_role("button", name="Erase holiday.jpg").click()
    question.get_by_role("button", name="Erase").click()
    expect(visit.page.get_by_role("listitem")).to_have_count(0)
    studio.bench.pass_time(61)
    studio.bench.store.sweep()
    assert studio.bench.files() == set()
    visit.page.reload()
    expect(visit.page.get_by_role("button", name="Choose photos")).to_be_visible()
    expect(visit.page.get_by_role("listitem")).to_have_count(0)


def test_everything_is_erased_at_once(visit: Visit, studio: Studio) -> None:
    studio.easel.open()
    visit.add(*album(3))
    expect(visit.page.locator("#progress-text")).to_have_text("3 painted")
    visit.page.get_by_role("button", name="Erase all").click()
    visit.page.get_by_role("dialog").get_by_role("button", name="Erase all").click()
    expect(visit.page.get_by_role("listitem")).to_have_count(0)
    expect(visit.page.get_by_role("button", name="Choose photos")).to_be_focused()


def test_page_says_how_long_the_service_keeps_what(visit: Visit) -> None:
    expect(visit.page.locator("#kept")).to_have_text(
        re.compile("keeps paintings for 1 day and photos for 1 hour after")
    )
