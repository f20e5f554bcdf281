"""The upload page in real Chromium, over a fake pipeline behind a real server."""

import asyncio
import hashlib
import io
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import uvicorn
from fakes import FakePipeline
from PIL import Image, ImageDraw, ImageFilter
from playwright.sync_api import Browser, FileChooser, FilePayload, Page, Route, expect, sync_playwright

from serve_app.errors import TooBusy
from serve_app.frames import Client
from serve_app.settings import IngressSettings
from serve_app.web.keys import Key, KeyRing
from serve_app.web.routes import create_app

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

TIMES = "\N{MULTIPLICATION SIGN}"

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"the page's tests drive {CHROMIUM}, which is not here")


def photo(width: int = 1600, height: int = 1200) -> Image.Image:
    """A sky with a sun over a hill."""
    down = np.linspace(0, 1, height)[:, None, None]
    across = np.linspace(0, 40, width)[None, :, None]
    sky = (1 - down) * np.array([70, 120, 190]) + down * np.array([240, 200, 160]) - across
    image = Image.fromarray(sky.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.ellipse([0.6 * width, 0.2 * height, 0.75 * width, 0.4 * height], fill=(250, 230, 120))
    draw.polygon([(0, height), (0.4 * width, 0.55 * height), (width, height)], fill=(50, 110, 70))
    return image.filter(ImageFilter.GaussianBlur(1))


def jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def upload(data: bytes, name: str = "holiday.jpg") -> FilePayload:
    return {"name": name, "mimeType": "image/jpeg", "buffer": data}


@pytest.fixture
def pipeline() -> FakePipeline:
    return FakePipeline()


@pytest.fixture
def server(pipeline: FakePipeline) -> Iterator[str]:
    """The address of the service."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(pipeline), log_level="warning"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        if time.monotonic() > deadline:
            raise TimeoutError("the server did not start within 20 s")
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=20)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser, server: str) -> Iterator[Page]:
    """The page, opened on a desktop's screen."""
    page = chromium.new_page(base_url=server, viewport={"width": 1280, "height": 900})
    page.set_default_timeout(10_000)
    page.goto("/")
    yield page
    page.close()


def choose(page: Page, *files: FilePayload) -> None:
    page.get_by_label("photo").set_input_files(files)


def expect_shown(page: Page, alt: str) -> None:
    """The picture is visible and its bytes were really decoded."""
    picture = page.get_by_alt_text(alt, exact=True)
    expect(picture).to_be_visible()
    expect(picture).not_to_have_js_property("naturalWidth", 0)


def read_painting(page: Page, folder: Path) -> tuple[str, Image.Image]:
    """The suggested name of the painting, and the painting, through the download link."""
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the painting").click()
    path = folder / "painting"
    download.value.save_as(path)
    return download.value.suggested_filename, Image.open(path)


def test_page_paints_a_picked_photo_and_says_that_it_was_fitted(page: Page, tmp_path: Path) -> None:
    original = photo(1600, 1200)
    choose(page, upload(jpeg(original)))
    note = page.get_by_role("status")
    expect(note).to_have_text(f"Painted at 1024 {TIMES} 768; the photo was 1600 {TIMES} 1200 and was fitted.")
    expect_shown(page, "Your photo")
    expect_shown(page, "Your photo, painted in the style Toon")
    name, painting = read_painting(page, tmp_path)
    assert name == "holiday-toon.jpg"
    negative = 255.0 - np.asarray(original.resize((1024, 768)))
    assert np.abs(np.asarray(painting.convert("RGB")) - negative).mean() < 3


def test_page_shows_a_sample_and_paints_it(page: Page, tmp_path: Path) -> None:
    expect_shown(page, "A photograph of two parrots")
    expect_shown(page, "The same parrots, painted as anime")
    page.get_by_role("button", name="Paint this photo").click()
    expect_shown(page, "Your photo, painted in the style Toon")
    expect(page.get_by_role("button", name="Paint again")).to_be_focused()
    expect(page.get_by_alt_text("A photograph of two parrots")).to_be_hidden()
    assert read_painting(page, tmp_path)[0] == "parrots-toon.jpg"


def test_page_says_that_a_photo_was_painted_at_its_own_size(page: Page) -> None:
    choose(page, upload(jpeg(photo(400, 300))))
    expect(page.get_by_role("status")).to_have_text(f"Painted at its own size, 400 {TIMES} 300.")


def test_page_paints_a_dropped_photo(page: Page) -> None:
    page.evaluate(
        """(bytes) => {
            const carried = new DataTransfer();
            carried.items.add(new File([new Uint8Array(bytes)], "dropped.jpg", {type: "image/jpeg"}));
            const options = {dataTransfer: carried, bubbles: true, cancelable: true};
            document.body.dispatchEvent(new DragEvent("drop", options));
        }""",
        list(jpeg(photo(200, 160))),
    )
    expect_shown(page, "Your photo, painted in the style Toon")


def test_page_paints_a_pasted_photo(page: Page) -> None:
    page.evaluate(
        """(bytes) => {
            const carried = new DataTransfer();
            carried.items.add(new File([new Uint8Array(bytes)], "image.jpg", {type: "image/jpeg"}));
            document.body.dispatchEvent(new ClipboardEvent("paste", {clipboardData: carried, bubbles: true}));
        }""",
        list(jpeg(photo(200, 160))),
    )
    expect_shown(page, "Your photo, painted in the style Toon")


def test_page_shows_the_problem_of_a_broken_file_and_then_paints_a_good_one(page: Page) -> None:
    whole = jpeg(photo(400, 300))
    choose(page, upload(whole[: len(whole) // 2], "broken.jpg"))
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("The picture cannot be decoded")
    expect(alert).to_contain_text("The picture ends before it is complete; send the whole file.")
    choose(page, upload(whole))
    expect_shown(page, "Your photo, painted in the style Toon")
    expect(page.get_by_text("The picture cannot be decoded")).to_be_hidden()


def test_page_keeps_a_refused_photo_and_tries_it_again(page: Page, pipeline: FakePipeline) -> None:
    pipeline.fault = TooBusy("Nine pictures are waiting; try again in 2 seconds.", 8, 9, "pictures", 2)
    choose(page, upload(jpeg(photo(400, 300))))
    expect(page.get_by_role("alert")).to_contain_text("Nine pictures are waiting; try again in 2 seconds.")
    expect_shown(page, "Your photo")
    pipeline.fault = None
    page.get_by_role("button", name="Try again").click()
    expect_shown(page, "Your photo, painted in the style Toon")


def test_page_says_that_the_service_cannot_be_reached(page: Page) -> None:
    page.route("**/v1/stylize**", lambda route: route.abort("connectionrefused"))
    choose(page, upload(jpeg(photo(400, 300))))
    expect(page.get_by_role("alert")).to_contain_text("The service cannot be reached")


def test_page_gives_a_sentence_for_an_answer_that_is_no_problem_document(page: Page) -> None:
    page.route("**/v1/stylize**", lambda route: route.fulfill(status=502, body="<h1>Bad gateway</h1>"))
    choose(page, upload(jpeg(photo(400, 300))))
    expect(page.get_by_role("alert")).to_contain_text("The service answered with status 502 and no reason.")


def test_page_says_that_this_browser_cannot_show_a_heic_photo(page: Page) -> None:
    choose(page, upload(b"not shown by any browser", "IMG_0001.HEIC"))
    expect(page.get_by_text("This browser cannot show HEIC photos; yours can still be painted.")).to_be_visible()


class TestSmallUploads:
    @pytest.fixture
    def pipeline(self) -> FakePipeline:
        return FakePipeline(IngressSettings(max_bytes=2**20))

    def test_page_refuses_a_photo_above_the_byte_limit_without_sending_it(
        self, page: Page, pipeline: FakePipeline
    ) -> None:
        sent: list[str] = []
        page.on("request", lambda request: sent.append(request.method))
        choose(page, upload(bytes(3 * 2**19)))
        expect(page.get_by_role("alert")).to_contain_text("It has 1.5 MiB; at most 1 MiB are taken here.")
        assert "POST" not in sent


def test_page_counts_the_seconds_of_a_painting(page: Page, pipeline: FakePipeline) -> None:
    pipeline.may_paint.clear()
    choose(page, upload(jpeg(photo(400, 300))))
    expect(page.get_by_text("Painting… 1 s")).to_be_visible()
    pipeline.may_paint.set()
    expect_shown(page, "Your photo, painted in the style Toon")


def test_page_aborts_the_running_request_when_a_new_photo_is_chosen(page: Page, pipeline: FakePipeline) -> None:
    aborted: list[str | None] = []
    page.on("requestfailed", lambda request: aborted.append(request.failure))
    pipeline.may_paint.clear()
    with page.expect_request("**/v1/stylize**"):
        choose(page, upload(jpeg(photo(400, 300))))
    with page.expect_event("requestfailed"):
        choose(page, upload(jpeg(photo(320, 240))))
    pipeline.may_paint.set()
    expect(page.get_by_role("status")).to_have_text(f"Painted at its own size, 320 {TIMES} 240.")
    assert aborted == ["net::ERR_ABORTED"]
    expect(page.locator(".problem")).to_be_hidden()


def test_style_select_lists_only_installed_styles(page: Page) -> None:
    expect(page.get_by_label("Style").locator("option")).to_have_text(["Toon", "Papaya (scenes)"])


def test_chosen_style_shows_its_licence_and_paints(page: Page, pipeline: FakePipeline) -> None:
    page.get_by_label("Style").select_option("Papaya (scenes)")
    expect(page.get_by_text("Licence: non-commercial")).to_be_visible()
    choose(page, upload(jpeg(photo(401, 300))))
    expect(page.get_by_role("status")).to_have_text(
        f"Painted at 400 {TIMES} 300; the photo was 401 {TIMES} 300 and was fitted."
    )
    assert [request.style for request in pipeline.requests] == ["papaya"]


def test_page_asks_no_other_host_and_logs_no_error(chromium: Browser, server: str) -> None:
    page = chromium.new_page()
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(server)
    choose(page, upload(jpeg(photo(400, 300))))
    expect_shown(page, "Your photo, painted in the style Toon")
    page.close()
    hosts = {urlsplit(url).netloc for url in asked if not url.startswith(("blob:", "data:"))}
    assert hosts == {urlsplit(server).netloc}
    assert complaints == []


def test_page_works_under_a_route_prefix_without_its_closing_slash(chromium: Browser, server: str) -> None:
    def proxy(route: Route) -> None:
        address = route.request.url.removeprefix(server)
        if address.startswith("/anime"):
            route.continue_(url=server + "/" + address.removeprefix("/anime").lstrip("/"))
        else:
            route.fulfill(status=404)

    page = chromium.new_page()
    page.route(f"{server}/**", proxy)
    page.goto(f"{server}/anime")
    choose(page, upload(jpeg(photo(400, 300))))
    expect_shown(page, "Your photo, painted in the style Toon")
    page.close()


@pytest.mark.parametrize("size", [(1600, 1200), (600, 1600)], ids=["landscape", "portrait"])
def test_page_needs_no_horizontal_scroll_on_a_telephone(page: Page, size: tuple[int, int]) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(overflow) == 0
    choose(page, upload(jpeg(photo(*size)), "a-very-long-name-without-any-place-to-break-it-" * 3 + ".jpg"))
    expect_shown(page, "Your photo, painted in the style Toon")
    assert page.evaluate(overflow) == 0
    boxes = [
        page.get_by_alt_text(alt, exact=True).bounding_box()
        for alt in ("Your photo", "Your photo, painted in the style Toon")
    ]
    before, after = (box for box in boxes if box is not None)
    assert before["y"] + before["height"] <= after["y"]


def test_page_is_worked_by_keyboard_alone(page: Page) -> None:
    choosers: list[FileChooser] = []
    # Early, since the browser takes a while to hand choosers over; a lambda, since playwright marks its listeners.
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    expect(page.get_by_label("Style")).to_be_enabled()  # once the styles have come
    page.keyboard.press("Tab")
    expect(page.get_by_label("Style")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    for _ in range(50):
        if choosers:
            break
        page.wait_for_timeout(100)
    choosers[0].set_files([upload(jpeg(photo(400, 300)))])
    expect_shown(page, "Your photo, painted in the style Toon")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Paint again")).to_be_focused()
    page.keyboard.press("Enter")
    expect_shown(page, "Your photo, painted in the style Toon")
    expect(page.get_by_role("button", name="Paint again")).to_be_focused()


class TestKeys:
    KEY = "ag_the-key-of-alice"

    @pytest.fixture
    def pipeline(self) -> FakePipeline:
        return FakePipeline(keys=KeyRing([Key("alice", hashlib.sha256(self.KEY.encode()).digest())]))

    @staticmethod
    def enter(page: Page, key: str) -> None:
        page.get_by_label("API key", exact=True).fill(key)
        page.get_by_role("button", name="Paint", exact=True).click()

    def test_page_asks_for_a_key_and_paints_the_photo_that_was_refused(
        self, page: Page, pipeline: FakePipeline
    ) -> None:
        choose(page, upload(jpeg(photo(400, 300))))
        expect(page.get_by_role("dialog", name="An API key is needed")).to_be_visible()
        expect(page.get_by_label("API key", exact=True)).to_be_focused()
        page.keyboard.type(self.KEY)
        page.keyboard.press("Enter")
        expect_shown(page, "Your photo, painted in the style Toon")
        expect(page.get_by_role("dialog")).to_be_hidden()
        expect(page.locator(".problem")).to_be_hidden()
        assert pipeline.clients == [Client("key:alice")]

    def test_key_is_kept_for_the_session_and_no_longer(self, page: Page, chromium: Browser, server: str) -> None:
        choose(page, upload(jpeg(photo(400, 300))))
        self.enter(page, f"  {self.KEY} ")
        expect_shown(page, "Your photo, painted in the style Toon")
        page.reload()
        choose(page, upload(jpeg(photo(320, 240))))
        expect(page.get_by_role("status")).to_have_text(f"Painted at its own size, 320 {TIMES} 240.")
        assert page.evaluate("localStorage.length + document.cookie.length") == 0
        other = chromium.new_page()
        other.goto(server)
        choose(other, upload(jpeg(photo(320, 240))))
        expect(other.get_by_role("dialog")).to_be_visible()
        other.close()

    def test_wrong_key_may_be_followed_by_the_right_one(self, page: Page) -> None:
        choose(page, upload(jpeg(photo(400, 300))))
        expect(page.get_by_role("dialog").get_by_role("alert")).to_have_text("")
        self.enter(page, "ag_wrong")
        wrong = page.get_by_role("dialog").get_by_role("alert")
        expect(wrong).to_have_text("The service does not know this key.")
        assert page.evaluate("sessionStorage.length") == 0
        self.enter(page, "schlüssel €")
        expect(wrong).to_have_text("A key has letters, digits and signs, and no spaces.")
        self.enter(page, self.KEY)
        expect_shown(page, "Your photo, painted in the style Toon")

    @pytest.mark.parametrize("away", ["Escape", "Not now"])
    def test_key_may_be_given_later(self, page: Page, away: str) -> None:
        choose(page, upload(jpeg(photo(400, 300))))
        expect(page.get_by_role("dialog")).to_be_visible()
        if away == "Escape":
            page.keyboard.press("Escape")
        else:
            page.get_by_role("button", name=away).click()
        expect(page.get_by_role("dialog")).to_be_hidden()
        expect(page.get_by_role("alert")).to_contain_text("An API key is needed")
        expect(page.get_by_role("alert")).to_contain_text("Try again, and enter a key that this service knows.")
        page.get_by_role("button", name="Try again").click()
        self.enter(page, self.KEY)
        expect_shown(page, "Your photo, painted in the style Toon")

    def test_key_of_a_large_photo_is_asked_for_too(self, page: Page) -> None:
        """The refusal comes while most of the photo is still on its way."""
        noise = Image.fromarray(np.random.default_rng(1).integers(0, 255, (2000, 3000, 3), np.uint8))
        large = jpeg(noise)
        assert len(large) > 5 * 2**20
        choose(page, upload(large))
        self.enter(page, self.KEY)
        expect_shown(page, "Your photo, painted in the style Toon")
        expect(page.get_by_role("status")).to_contain_text("the photo was 3000")
