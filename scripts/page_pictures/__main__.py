"""Pictures of the web page; `scripts/screenshots --help` lists the commands.

The page is the real one with the real service behind it. It paints an album of photographs, which `PHOTOGRAPHS` names;
their sources are in `docs/page.md`.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from benchmarks.paths import LOCAL_CONFIG, ROOT
from benchmarks.servers import ANIMEGAN, free_port, running
from PIL import Image
from playwright.sync_api import Browser, FilePayload, Page, sync_playwright

from serve_app import Painter

IMAGES = ROOT / "docs" / "images"
SAMPLES = ROOT / "serve_app" / "web" / "page" / "samples"
SAMPLE_WIDTHS = (480, 768)
CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
DESKTOP = (1280, 860)
STORY = (1000, 700)
PATIENCE_MS = 300_000
PHOTOGRAPHS = {  # in the folder of photographs, and as they are called on the page
    "budgie_kitten-on-lawn.jpg": "kitten.jpg",
    "kodim08.png": "old-town.png",
    "skimage_coffee.jpg": "coffee.jpg",
    "budgie_lake-sherburne.jpg": "lake.jpg",
    "kodim21.png": "lighthouse.png",
    "budgie_beacon-street-sunset.jpg": "sunset.jpg",
    "kodim07.png": "window.png",
    "kodim14.png": "rafting.png",
}
LOOKED_AT = "kitten.jpg"


def album(folder: Path) -> list[FilePayload]:
    """Returns the photographs as files for the page."""
    return [
        {"name": called, "mimeType": "image/jpeg", "buffer": (folder / name).read_bytes()}
        for name, called in PHOTOGRAPHS.items()
    ]


@contextmanager
def service() -> Iterator[str]:
    """Runs the service of configs/local.yaml with an empty store; yields its address."""
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        config = yaml.safe_load(LOCAL_CONFIG.read_text())
        config["http_options"]["port"] = port
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        with running([*ANIMEGAN, "run", str(folder / "config.yaml")], port, folder / "log"):
            yield f"http://127.0.0.1:{port}"


@contextmanager
def opened(browser: Browser, address: str, size: tuple[int, int], **options: object) -> Iterator[Page]:
    """Opens the page in a window of a size."""
    width, height = size
    context = browser.new_context(
        base_url=address,
        viewport={"width": width, "height": height},
        locale="en-GB",
        **options,  # type: ignore[arg-type]
    )
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto("/")
    page.locator(".style").first.wait_for()
    yield page
    context.close()


def wait_for_done(page: Page, count: int) -> None:
    """Waits until so many photographs are painted."""
    page.locator(".card[data-phase=done] .painting:not([hidden])").nth(count - 1).wait_for()


def show_album(page: Page) -> None:
    """Scrolls to the album."""
    page.evaluate("scrollTo(0, document.querySelector('#photos').offsetTop - 20)")


def screen(page: Page) -> Image.Image:
    """Returns what the window shows."""
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def keep(image: Image.Image, name: str) -> None:
    """Writes a picture for the documents."""
    path = IMAGES / f"{name}.webp"
    image.save(path, quality=82, method=6)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


def take_screenshots(browser: Browser, address: str, photographs: list[FilePayload]) -> None:
    """Takes the page when it is empty, when half of an album is painted, and with a painting compared in the dark."""
    with opened(browser, address, DESKTOP) as page:
        page.wait_for_timeout(500)
        keep(screen(page), "page-empty")
        page.locator("#files").set_input_files(photographs)
        wait_for_done(page, 3)
        show_album(page)
        page.wait_for_timeout(1000)
        keep(screen(page), "page-queue")
        wait_for_done(page, len(photographs))
        page.emulate_media(color_scheme="dark")
        page.get_by_role("button", name=f"Compare {LOOKED_AT}").click()
        page.wait_for_timeout(1500)
        keep(screen(page), "page-compare")


class Film:
    """Frames of an animation, each with the time that it is shown for."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._frames: list[Image.Image] = []
        self._shown_ms: list[int] = []

    def take(self, shown_ms: int) -> None:
        """Takes a frame of what the window shows now."""
        self._frames.append(screen(self._page))
        self._shown_ms.append(shown_ms)

    def slide(self, slider: str, values: range) -> None:
        """Takes frames of a slider that moves."""
        for value in values:
            self._page.locator(slider).evaluate(
                "(input, value) => { input.value = value; input.dispatchEvent(new Event('input')); }", value
            )
            self.take(90)

    def keep(self, name: str) -> None:
        """Writes the animation for the documents."""
        path = IMAGES / f"{name}.webp"
        first, *others = self._frames
        first.save(path, save_all=True, append_images=others, duration=self._shown_ms, loop=0, quality=60, method=4)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB, {len(self._frames)} frames")


def take_animation(browser: Browser, address: str, photographs: list[FilePayload]) -> None:
    """Films an album from the first look at the page to a painting that is compared with its photograph."""
    with opened(browser, address, STORY) as page:
        film = Film(page)
        page.wait_for_timeout(500)
        film.take(900)
        film.slide(".sample input", range(50, 80, 8))
        page.locator("#files").set_input_files(photographs[:6])
        page.wait_for_timeout(700)
        show_album(page)
        film.take(700)
        deadline = time.monotonic() + PATIENCE_MS / 1000
        while page.locator(".card[data-phase=done]").count() < 6 and time.monotonic() < deadline:
            page.wait_for_timeout(1500)
            film.take(350)
        page.wait_for_timeout(1000)
        film.take(1200)
        page.get_by_role("button", name=f"Compare {LOOKED_AT}").click()
        page.wait_for_timeout(1500)
        film.take(600)
        film.slide("#viewer-compare input", range(50, 90, 8))
        film.slide("#viewer-compare input", range(90, 10, -8))
        film.take(1500)
        film.keep("page")


def paint_samples() -> None:
    """Paints the page's sample photograph in the default style, and writes both in the sizes that the page loads."""
    with Painter() as painter:
        painting = painter.paint(SAMPLES / "photo.jpg")
    painting.save(SAMPLES / "painting.jpg", quality=90)
    for name in ("photo", "painting"):
        with Image.open(SAMPLES / f"{name}.jpg") as image:
            for width in SAMPLE_WIDTHS:
                sized = image.resize((width, width * image.height // image.width), Image.Resampling.LANCZOS)
                sized.save(SAMPLES / f"{name}-{width}.webp", quality=84, method=6)


def with_service(folder: Path, *works: Callable[[Browser, str, list[FilePayload]], None]) -> None:
    """Does some work with a browser and the service."""
    photographs = album(folder)
    with service() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for work in works:
            work(browser, address, photographs)
        browser.close()


def main() -> None:
    """Runs the command of the command line."""
    parser = argparse.ArgumentParser(prog="scripts/screenshots", description="Pictures of the web page.")
    commands = {
        "all": "the screenshots and the animation in docs/images",
        "screenshots": "three screenshots",
        "animation": "a short animation",
        "samples": "the sample painting that the page shows, after the default style has changed",
    }
    parser.add_argument(
        "command", choices=commands, help="; ".join(f"{name}: {what}" for name, what in commands.items())
    )
    parser.add_argument("--photos", type=Path, default=ROOT.parent / "shared" / "heldout", metavar="DIR")
    options = parser.parse_args()
    if options.command == "samples":
        paint_samples()
    elif options.command == "all":
        with_service(options.photos, take_screenshots, take_animation)
    else:
        with_service(options.photos, take_screenshots if options.command == "screenshots" else take_animation)


if __name__ == "__main__":
    main()
