"""The page of a service that asks for an API key."""

import hashlib
import re

import numpy as np
import pytest
from fakes import FakePipeline
from pages import Studio, Visit, photo, saved, upload
from PIL import Image
from playwright.sync_api import Browser, expect

from serve_app.web.keys import Key, KeyRing

KEY = "ag_the-key-of-alice"


@pytest.fixture
def pipeline() -> FakePipeline:
    return FakePipeline(keys=KeyRing([Key("alice", hashlib.sha256(KEY.encode()).digest())]))


@pytest.fixture(autouse=True)
def refusals(visit: Visit, studio: Studio) -> None:
    visit.expected = "401"
    studio.easel.open()


def enter(visit: Visit, key: str) -> None:
    visit.page.get_by_label("API key", exact=True).fill(key)
    visit.page.get_by_role("button", name="Use this key").click()


def test_page_asks_for_a_key_and_paints_what_was_refused(visit: Visit) -> None:
    visit.add(upload(), upload(saved(photo(90, 80)), "other.jpg"))
    expect(visit.page.get_by_role("dialog", name="An API key is needed")).to_be_visible()
    expect(visit.page.get_by_label("API key", exact=True)).to_be_focused()
    visit.page.keyboard.type(KEY)
    visit.page.keyboard.press("Enter")
    expect(visit.page.locator("#progress-text")).to_have_text("2 painted")
    expect(visit.page.get_by_role("dialog")).to_be_hidden()


def test_key_is_kept_for_the_tab_and_no_longer(visit: Visit) -> None:
    visit.add(upload())
    enter(visit, f"  {KEY} ")
    visit.expect_status("holiday.jpg", re.compile("^Painted"))
    visit.page.reload()
    visit.add(upload(saved(photo(90, 80)), "second.jpg"))
    visit.expect_status("second.jpg", re.compile("^Painted"))
    kept = visit.page.evaluate("JSON.stringify(localStorage) + document.cookie")
    assert KEY not in kept
    visit.page = visit.open()
    visit.add(upload(saved(photo(80, 80)), "third.jpg"))
    expect(visit.page.get_by_role("dialog")).to_be_visible()


def test_wrong_key_may_be_followed_by_the_right_one(visit: Visit) -> None:
    visit.add(upload())
    expect(visit.page.get_by_role("dialog")).to_be_visible()
    wrong = visit.page.locator("#key-wrong")
    expect(wrong).to_have_text("")
    enter(visit, "ag_wrong")
    expect(wrong).to_have_text("The service does not know this key.")
    enter(visit, "schlüssel €")
    expect(wrong).to_have_text("A key has letters, digits and signs, and no spaces.")
    enter(visit, KEY)
    visit.expect_status("holiday.jpg", re.compile("^Painted"))


@pytest.mark.parametrize("away", ["Escape", "Not now"])
def test_key_may_be_given_later(visit: Visit, away: str) -> None:
    visit.add(upload())
    expect(visit.page.get_by_role("dialog")).to_be_visible()
    if away == "Escape":
        visit.page.keyboard.press("Escape")
    else:
        visit.page.get_by_role("button", name=away).click()
    visit.expect_status("holiday.jpg", "An API key is needed. Try again, and enter one.")
    visit.page.get_by_role("button", name="Try holiday.jpg again").click()
    enter(visit, KEY)
    visit.expect_status("holiday.jpg", re.compile("^Painted"))


def test_key_of_a_large_photo_is_asked_for_too(visit: Visit) -> None:
    """The refusal comes while most of the photo is still on its way."""
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 255, (2000, 3000, 3), np.uint8))
    large = saved(noise)
    assert len(large) > 5 * 2**20
    visit.add(upload(large))
    enter(visit, KEY)
    visit.expect_status("holiday.jpg", re.compile("^Adapted for you"))


def test_whoever_has_the_ids_needs_no_key_for_what_is_painted(visit: Visit, chromium: Browser) -> None:
    visit.add(upload())
    enter(visit, KEY)
    visit.expect_status("holiday.jpg", re.compile("^Painted"))
    visit.page = visit.open()
    viewer = visit.view("holiday.jpg")
    expect(viewer.get_by_alt_text("The painting of holiday.jpg")).to_have_js_property("naturalWidth", 400)
