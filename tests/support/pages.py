"""The web page over a service with a fake pipeline: what serves it, paints its jobs, and opens it in a browser."""

import io
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from edge import guarded
from fakes import FakePipeline
from jobstores import Bench, make_settings
from PIL import Image, ImageDraw, ImageFilter
from playwright.sync_api import Browser, BrowserContext, FileChooser, FilePayload, Locator, Page, expect
from service import free_port
from workers import end

from serve_app.jobs.desk import JobDesk
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
expect.set_options(timeout=15_000)  # other tests use the processor, too


def photo(width: int = 400, height: int = 300, hue: int = 0) -> Image.Image:
    """A sky with a sun over a hill."""
    down = np.linspace(0, 1, height)[:, None, None]
    across = np.linspace(0, 40, width)[None, :, None]
    low = np.roll(np.array([240, 200, 160]), hue)
    sky = (1 - down) * np.roll(np.array([70, 120, 190]), hue) + down * low - across
    image = Image.fromarray(sky.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.ellipse([0.6 * width, 0.2 * height, 0.75 * width, 0.4 * height], fill=(250, 230, 120))
    draw.polygon([(0, height), (0.4 * width, 0.55 * height), (width, height)], fill=(50, 110, 70 + hue))
    return image.filter(ImageFilter.GaussianBlur(1))


def saved(image: Image.Image, format: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, quality=92)
    return buffer.getvalue()


def upload(data: bytes | None = None, name: str = "holiday.jpg") -> FilePayload:
    return {"name": name, "mimeType": "image/jpeg", "buffer": saved(photo()) if data is None else data}


def album(count: int, side: int = 160) -> list[FilePayload]:
    """Photographs that all differ, named photo-1.jpg and so on."""
    return [
        upload(saved(photo(side + number, side - 40, number)), f"photo-{number + 1}.jpg") for number in range(count)
    ]


class Easel:
    """Paints jobs one after another in a thread, each when it may."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._may = threading.Semaphore(0)
        self._is_over = threading.Event()
        self._is_open = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def open(self) -> None:
        """Lets all be painted from now on."""
        self._is_open = True
        self._may.release()

    def paint(self, count: int = 1) -> None:
        """Lets some more be painted."""
        self._may.release(count)

    def _work(self) -> None:
        while not self._is_over.wait(0.02):
            lease = self._bench.store.queue.claim()
            if lease is None:
                continue
            while not self._is_open and not self._may.acquire(timeout=0.05):
                if self._is_over.is_set():
                    self._bench.store.queue.release(lease)
                    return
            end(self._bench.store, lease)

    def close(self) -> None:
        self._is_over.set()
        self._thread.join()


class Studio:
    """A service with its page, which can be stopped and started again on the same port.

    Attributes:
        easel: paints its jobs.
        pipeline: what paints at /v1/stylize.
    """

    def __init__(self, folder: Path, pipeline: FakePipeline | None = None, has_jobs: bool = True, **jobs: Any) -> None:
        self.bench = Bench(make_settings(folder, **jobs))
        self.easel = Easel(self.bench)
        self.pipeline = pipeline or FakePipeline()
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self._has_jobs = has_jobs
        self._running = ExitStack()

    def start(self) -> None:
        desk = JobDesk(self.bench.settings)
        self._running.callback(desk.close)
        if self._has_jobs:
            self.pipeline.have(desk)
        app = create_app(self.pipeline)
        self._running.enter_context(guarded(app, port=self.port, news=desk.news if self._has_jobs else None))

    def stop(self) -> None:
        self._running.close()

    def close(self) -> None:
        self.stop()
        self.easel.close()
        self.bench.close()


class Visit:
    """A page in a browser of its own, which takes note of everything that it should not do.

    Attributes:
        expected: complaints on the console that this test provokes: a pattern.
    """

    def __init__(self, browser: Browser, address: str, **options: Any) -> None:
        defaults: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}, "locale": "en-GB"}
        self.address = address
        self.context: BrowserContext = browser.new_context(base_url=address, **defaults | options)
        self.context.set_default_timeout(15_000)
        self.expected = r"(?!)"
        self.asked: list[str] = []
        self.sent: list[str] = []
        self.complaints: list[str] = []
        self._choosers: list[FileChooser] = []
        self.page = self.open()

    def open(self, path: str = "/") -> Page:
        """Opens a tab."""
        page = self.context.new_page()
        page.on("request", self._note)
        # Early, since the browser takes a while to hand choosers over; a lambda, since playwright marks its listeners.
        page.on("filechooser", lambda chooser: self._choosers.append(chooser))
        page.on("console", lambda message: self._hear(message.type, message.text))
        page.on("pageerror", lambda error: self._hear("error", str(error)))
        page.goto(path)
        return page

    def _note(self, request: Any) -> None:
        self.asked.append(request.url)
        if request.method == "POST":
            self.sent.append(request.url)

    def _hear(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)

    def check(self) -> None:
        """Nothing went to another host, and nothing was logged that was not expected."""
        hosts = {urlsplit(url).netloc for url in self.asked if not url.startswith(("blob:", "data:"))}
        assert hosts <= {urlsplit(self.address).netloc}
        unexpected = [each for each in self.complaints if not re.search(self.expected, each)]
        assert unexpected == [], unexpected

    def add(self, *files: FilePayload) -> None:
        """Chooses photographs."""
        self.page.locator("#files").set_input_files(list(files))

    def choose(self, *files: FilePayload) -> None:
        """Chooses photographs in the dialog of the system that the page has opened."""
        for _ in range(100):
            if self._choosers:
                break
            self.page.wait_for_timeout(100)
        self._choosers.pop().set_files(list(files))

    def card(self, name: str) -> Locator:
        """The card of a photograph."""
        return self.page.get_by_role("listitem").filter(has=self.page.get_by_role("heading", name=name, exact=True))

    def expect_status(self, name: str, text: str | re.Pattern[str]) -> None:
        expect(self.card(name).locator(".status")).to_have_text(text)

    def view(self, name: str) -> Locator:
        """Opens the viewer, and returns it."""
        self.card(name).get_by_role("button", name=f"Compare {name}").click()
        viewer = self.page.get_by_role("dialog", name=name)
        expect(viewer).to_be_visible()
        return viewer


@contextmanager
def visiting(browser: Browser, address: str, **options: Any) -> Iterator[Visit]:
    """A visit that is checked at its end."""
    visit = Visit(browser, address, **options)
    try:
        yield visit
        visit.check()
    finally:
        visit.context.close()
