from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import FakePipeline
from pages import CHROMIUM, FLAGS, Studio, Visit, visiting
from playwright.sync_api import Browser, sync_playwright


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = f"the page's tests drive {CHROMIUM}, which is not here"
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skipif(not CHROMIUM.exists(), reason=reason))


# Of a file, not of the session: Playwright runs an event loop in this thread until it ends, and no other file could run
# its own.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def pipeline() -> FakePipeline:
    return FakePipeline()


@pytest.fixture
def studio(tmp_path: Path, pipeline: FakePipeline) -> Iterator[Studio]:
    """A service with jobs, which paints none until it may."""
    studio = Studio(tmp_path / "data", pipeline)
    studio.start()
    yield studio
    studio.close()


@pytest.fixture
def visit(chromium: Browser, studio: Studio) -> Iterator[Visit]:
    """The page, opened on a desktop's screen."""
    with visiting(chromium, studio.address) as visit:
        yield visit
