"""The page with the real service behind it: Ray, the guard, and the shipped style."""

import re
from contextlib import ExitStack
from pathlib import Path

import yaml
from pages import TIMES, album, photo, saved, upload, visiting
from PIL import Image
from playwright.sync_api import Browser, expect
from service import ANIMEGAN, LOCAL_CONFIG, changed_config, running

RESTART = "ERR_CONNECTION_REFUSED|ERR_EMPTY_RESPONSE|ERR_CONNECTION_RESET|ERR_INCOMPLETE_CHUNKED|status of 5"
PATIENCE_MS = 120_000


def test_an_album_is_painted_across_a_restart_and_downloaded(chromium: Browser, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    address = changed_config(LOCAL_CONFIG, config)
    document = yaml.safe_load(config.read_text())
    document["applications"][0]["args"]["jobs"] |= {"data_dir": str(tmp_path / "data"), "min_free_bytes": 0}
    config.write_text(yaml.safe_dump(document))
    command = [*ANIMEGAN, "run", str(config)]
    first = ExitStack()
    first.enter_context(running(command, address, tmp_path / "first"))
    with first, visiting(chromium, address) as visit:
        page = visit.page
        visit.add(*album(4, 400), upload(saved(photo(1600, 1200)), "large.jpg"))
        expect(page.get_by_text("ahead of you").first).to_be_visible(timeout=PATIENCE_MS)
        expect(page.locator(".card:is([data-phase=waiting], [data-phase=uploading])")).to_have_count(0)
        page.locator(".card[data-phase=queued] button.act").first.click()
        expect(page.locator(".card[data-phase=cancelled]")).to_have_count(1)
        visit.expected = RESTART
        first.close()
        with running(command, address, tmp_path / "second"):
            expect(page.locator(".card[data-phase=done]")).to_have_count(4, timeout=PATIENCE_MS)
            card = page.locator(".card[data-phase=done]").last
            expect(card.locator(".status")).to_have_text(re.compile(f" {TIMES} "))
            with page.expect_download() as download:
                card.get_by_role("link", name="Download").click()
            download.value.save_as(tmp_path / "painting.jpg")
            assert max(Image.open(tmp_path / "painting.jpg").size) >= 360
            page.reload()
            page.locator(".card[data-phase=done] .open").first.click()
            expect(page.get_by_role("dialog").locator("#receipt")).to_contain_text("Painted in the style")
            assert len(visit.sent) == 5
