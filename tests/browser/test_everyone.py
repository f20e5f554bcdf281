"""The page for everyone: both languages, light and dark, small screens, keyboards, screen readers, no JavaScript."""

import re
from typing import Any

import pytest
from fakes import FakePipeline, fake_settings
from pages import Studio, Visit, album, photo, saved, upload, visiting
from playwright.sync_api import Browser, Page, Route, expect

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")

OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
SMALL_TARGETS = """() => [...document.querySelectorAll("button, a[href], select, summary, input:not([hidden])")]
    .filter((each) => each.checkVisibility() && each.closest("dialog[open], body"))
    .map((each) => [each.id || each.className || each.textContent, each.getBoundingClientRect()])
    .filter(([, box]) => box.width && (box.width < 24 || box.height < 24))
    .map(([name, box]) => `${name}: ${box.width} x ${box.height}`)"""


def assert_accessible(page: Page, state: str) -> None:
    """axe-core finds nothing serious, no target is too small and nothing is cut off."""
    page.wait_for_timeout(900)  # a picture that fades in has no contrast yet
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    results = axe.Axe().run(page, options={"resultTypes": ["violations"], "runOnly": tags})
    serious = [
        f"{state}: {each['id']}: {[node['target'] for node in each['nodes']]}"
        for each in results.response["violations"]
        if each["impact"] in ("serious", "critical")
    ]
    assert serious == []
    assert page.evaluate(SMALL_TARGETS) == [], state
    assert page.evaluate(OVERFLOW) == 0, state


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("locale", ["en-GB", "zh-CN"])
def test_no_state_has_a_serious_fault_of_accessibility(
    chromium: Browser, studio: Studio, locale: str, scheme: str
) -> None:
    with visiting(chromium, studio.address, locale=locale, color_scheme=scheme) as visit:
        page = visit.page
        expect(page.get_by_role("radio")).to_have_count(2)
        assert_accessible(page, "empty")
        page.locator("summary").click()
        visit.add(*album(3), upload(b"no photo", "odd.jpg"))
        expect(page.locator(".card[data-phase=running]")).to_be_visible()
        page.locator(".card[data-phase=queued] button.act").last.click()
        expect(page.locator(".card[data-phase=cancelled]")).to_be_visible()
        assert_accessible(page, "waiting")
        studio.easel.open()
        expect(page.locator(".card[data-phase=done]")).to_have_count(2)
        assert_accessible(page, "done")
        page.locator(".open").first.click()
        page.locator(".version.other").click()
        expect(page.locator(".version.other")).to_have_count(0)
        assert_accessible(page, "viewer")
        page.locator("#view-pixels").click()
        assert_accessible(page, "pixels")
        page.locator("#view-beside").click()
        assert_accessible(page, "beside")
        page.locator("#viewer-erase").click()
        assert_accessible(page, "question")


@pytest.mark.parametrize("locale", ["en-GB", "zh-CN"])
def test_a_small_telephone_shows_everything(chromium: Browser, studio: Studio, locale: str) -> None:
    size = {"width": 360, "height": 740}
    with visiting(chromium, studio.address, locale=locale, viewport=size, has_touch=True, is_mobile=True) as visit:
        page = visit.page
        expect(page.get_by_role("radio")).to_have_count(2)
        assert_accessible(page, "empty")
        studio.easel.open()
        name = "a-very-long-name-without-any-place-to-break-it-" * 3 + ".jpg"
        visit.add(upload(saved(photo(600, 1600)), name), *album(2))
        expect(page.locator(".card[data-phase=done]")).to_have_count(3)
        assert_accessible(page, "done")
        page.locator(".open").first.click()
        assert_accessible(page, "viewer")
        page.locator("#viewer-erase").scroll_into_view_if_needed()
        expect(page.locator("#viewer-erase")).to_be_in_viewport()


def test_a_wide_screen_shows_the_whole_page(chromium: Browser, studio: Studio) -> None:
    with visiting(chromium, studio.address, viewport={"width": 2560, "height": 1300}) as visit:
        studio.easel.open()
        visit.add(*album(3))
        expect(visit.page.locator(".card[data-phase=done]")).to_have_count(3)
        assert_accessible(visit.page, "wide")


def test_language_is_the_browsers_until_another_is_chosen_and_remembered(chromium: Browser, studio: Studio) -> None:
    with visiting(chromium, studio.address, locale="zh-CN") as visit:
        page = visit.page
        expect(page.get_by_role("heading", level=1)).to_have_text("把照片画成动漫")
        assert page.evaluate("document.documentElement.lang") == "zh-Hans"
        studio.easel.paint()
        visit.add(*album(2))
        expect(page.get_by_text(re.compile("^按原尺寸绘制"))).to_be_visible()
        expect(page.get_by_role("heading", name="2 张照片")).to_be_visible()
        page.get_by_label("语言").select_option("English")
        expect(page.get_by_role("heading", level=1)).to_have_text("Your photos, painted as anime")
        expect(page.get_by_text(re.compile("^Painted at its full size"))).to_be_visible()
        page.reload()
        expect(page.get_by_role("heading", name="2 photos")).to_be_visible()


def test_our_own_styles_have_names_in_chinese_and_others_keep_theirs(
    chromium: Browser, studio: Studio, pipeline: FakePipeline
) -> None:
    for name, credit in (("toon", "the animegan-serve authors"), ("cel", "somebody else")):
        changes = {"name": name, "title": "A title", "summary": "A sentence.", "credit": credit}
        pipeline.styles[name] = pipeline.styles["toon"].model_copy(update=changes)
    with visiting(chromium, studio.address, locale="zh-CN") as visit:
        ours, other = (
            visit.page.locator(".style").filter(has=visit.page.locator(f"[value={name}]")) for name in ("toon", "cel")
        )
        expect(ours.locator(".name")).to_have_text("柔和卡通")
        expect(ours.locator(".good")).to_contain_text("忠于照片")
        expect(other.locator(".name")).to_have_text("A title")
        expect(other.locator(".good")).to_have_text("A sentence.")


def test_errors_are_said_in_chinese_by_their_codes(chromium: Browser, studio: Studio) -> None:
    with visiting(chromium, studio.address, locale="zh-CN") as visit:
        visit.expected = "422"
        whole = saved(photo())
        visit.add(upload(whole[: len(whole) // 2], "broken.jpg"))
        studio.easel.open()
        visit.expect_status("broken.jpg", "文件已损坏或不完整。")


def test_a_painting_is_made_seen_and_erased_by_keyboard_alone(visit: Visit, studio: Studio) -> None:
    page = visit.page
    expect(page.get_by_role("radio")).to_have_count(2)
    studio.easel.open()

    def tab_to(pattern: str) -> None:
        name = (
            """() => document.activeElement.getAttribute("aria-label") || document.activeElement.textContent.trim()"""
        )
        for _ in range(30):
            page.keyboard.press("Tab")
            if re.search(pattern, page.evaluate(name)):
                return
        raise AssertionError(f"no way to {pattern}")

    tab_to("^Choose photos")
    page.keyboard.press("Enter")
    visit.choose(upload())
    expect(visit.card("holiday.jpg").get_by_role("link", name="Download")).to_be_visible()
    tab_to("^Compare holiday.jpg")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="holiday.jpg", level=2)).to_be_focused()
    tab_to("^Compare the photo")
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("dialog").get_by_role("slider")).to_have_value("49")
    tab_to("^Erase$")
    page.keyboard.press("Enter")
    tab_to("^Erase$")
    page.keyboard.press("Enter")
    expect(page.get_by_role("listitem")).to_have_count(0)


def test_motion_stops_where_it_is_not_wished(chromium: Browser, studio: Studio) -> None:
    with visiting(chromium, studio.address, reduced_motion="reduce") as visit:
        visit.add(upload())
        expect(visit.page.locator(".card[data-phase=running]")).to_be_visible()
        assert visit.page.evaluate("document.getAnimations().length") == 0


def test_without_javascript_a_plain_form_paints(chromium: Browser, studio: Studio) -> None:
    with visiting(chromium, studio.address, java_script_enabled=False) as visit:
        page = visit.page
        expect(page.get_by_text("which is off in this browser")).to_be_visible()
        expect(page.get_by_role("button", name="Choose photos")).to_be_hidden()
        page.get_by_label("Photo", exact=True).set_input_files([upload()])
        with page.expect_response("**/v1/stylize") as answer:
            page.get_by_role("button", name="Paint it").click()
        assert (answer.value.status, answer.value.headers["content-type"]) == (200, "image/jpeg")


def test_page_works_under_a_route_prefix_without_its_closing_slash(chromium: Browser, studio: Studio) -> None:
    def proxy(route: Route) -> None:
        address = route.request.url.removeprefix(studio.address)
        if not address.startswith("/anime"):
            route.fulfill(status=404)
            return
        route.continue_(url=studio.address + "/" + address.removeprefix("/anime").lstrip("/"))

    studio.easel.open()
    with visiting(chromium, studio.address) as visit:
        visit.expected = "404"  # the browser looks ahead before the page has told it where it is
        visit.page.route(f"{studio.address}/**", proxy)
        visit.page.goto("/anime")
        visit.add(upload())
        visit.expect_status("holiday.jpg", re.compile("^Painted"))
        assert {url for url in visit.sent if "/anime/v1/jobs" not in url} == set()


def test_page_is_installable_as_far_as_it_goes_without_a_worker(visit: Visit) -> None:
    manifest = visit.page.evaluate("fetch(document.querySelector('link[rel=manifest]').href).then(r => r.json())")
    assert {icon["sizes"] for icon in manifest["icons"]} >= {"192x192", "512x512"}
    session: Any = visit.context.new_cdp_session(visit.page)
    assert session.send("Page.getInstallabilityErrors")["installabilityErrors"] in (
        [],
        [{"errorId": "in-incognito", "errorArguments": []}],
    )


def test_policy_is_in_force(visit: Visit) -> None:
    """What it forbids is refused and complained of, so the other tests would notice a page that needs it."""
    visit.expected = "Content Security Policy|TrustedHTML|Trusted Type"
    assert visit.page.evaluate("fetch('https://example.org/').then(() => 'sent', () => 'refused')") == "refused"
    visit.asked = [url for url in visit.asked if "example.org" not in url]
    refused = """() => {
        try { document.body.innerHTML = "<b>text</b>"; return "taken"; } catch (error) { return error.name; }
    }"""
    assert visit.page.evaluate(refused) == "TypeError"
    assert len(visit.complaints) >= 2


def test_first_load_is_below_100_kb_without_pictures(chromium: Browser, studio: Studio) -> None:
    with visiting(chromium, studio.address) as visit:
        expect(visit.page.get_by_role("radio")).to_have_count(2)
        loaded: int = visit.page.evaluate(
            """performance.getEntriesByType("resource").concat(performance.getEntriesByType("navigation"))
                .filter((each) => !/\\.webp$/.test(each.name)).reduce((sum, each) => sum + each.transferSize, 0)"""
        )
        assert 10_000 < loaded < 100_000


class TestSmallUploads:
    @pytest.fixture
    def pipeline(self) -> FakePipeline:
        return FakePipeline(fake_settings(max_bytes=2**20))

    def test_limits_are_said_in_both_languages(self, chromium: Browser, studio: Studio) -> None:
        for locale, words in (("en-GB", "up to 1 MB each"), ("zh-CN", "每张不超过 1 MB")):
            with visiting(chromium, studio.address, locale=locale) as visit:
                expect(visit.page.locator("#limits")).to_contain_text(words)
