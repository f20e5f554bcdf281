"""What the package logs, in the files that Serve writes."""

import asyncio
import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import FakePipeline
from pictures import photo_bytes
from ray.serve._private.logging_utils import configure_component_logger
from ray.serve.schema import LoggingConfig
from starlette.testclient import TestClient

from serve_app.deployments.logs import JobLog, log_to_serve
from serve_app.errors import BrokenImage
from serve_app.frames import EncodedImage, Receipt, Size
from serve_app.web.routes import create_app

PHOTO = photo_bytes(60, 80)
MAX_BYTES = 20_000
WriteTo = Callable[..., Path]


@pytest.fixture
def write_to(tmp_path: Path) -> Iterator[WriteTo]:
    """Sets this process's log up as Serve does in a proxy: rotated at 20 kB, with one older part."""
    loggers = [logging.getLogger(name) for name in ("ray.serve", "serve_app")]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]

    def write(**config: Any) -> Path:
        configure_component_logger(
            component_name="test",
            component_id="1",
            logging_config=LoggingConfig(logs_dir=str(tmp_path), **config),
            max_bytes=MAX_BYTES,
            backup_count=1,
        )
        log_to_serve()
        return tmp_path

    yield write
    for logger, handlers, level, propagate in before:
        for handler in logger.handlers[:]:
            if handler not in handlers:
                handler.close()
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


def written(folder: Path) -> list[str]:
    return [line for path in sorted(folder.iterdir()) for line in path.read_text().splitlines()]


def paint(count: int = 1) -> None:
    http = TestClient(create_app(FakePipeline()))
    for _ in range(count):
        assert http.post("/v1/stylize?max_side=40", content=PHOTO).status_code == 200


def test_with_json_a_request_is_an_object_of_its_own_in_one_line(write_to: WriteTo) -> None:
    folder = write_to(encoding="JSON")
    paint()
    (line,) = written(folder)
    document = json.loads(line)
    assert (document["levelname"], document["filename"]) == ("INFO", "request_log.py")
    assert (document["request"]["route"], document["request"]["painting"]) == ("/v1/stylize", "40x30")


def test_with_text_a_request_is_a_sentence(write_to: WriteTo) -> None:
    folder = write_to(encoding="TEXT")
    paint()
    (line,) = written(folder)
    shape = r"INFO .* -- POST /v1/stylize 200 ok in \d+ ms, toon 80x60 to 40x30: decode 1, queue 0, paint 0, encode 1"
    assert re.fullmatch(shape, line)


def test_at_warning_requests_are_not_written_and_warnings_of_every_module_are(write_to: WriteTo) -> None:
    folder = write_to(encoding="JSON", log_level="WARNING")
    paint()
    logging.getLogger("serve_app.engine.stylist").warning("the style %s is left out", "mine")
    (line,) = written(folder)
    assert json.loads(line)["message"] == "the style mine is left out"


def test_the_level_may_change_while_a_process_runs(write_to: WriteTo) -> None:
    folder = write_to(encoding="JSON", log_level="WARNING")
    write_to(encoding="JSON", log_level="INFO")
    paint()
    assert len(written(folder)) == 1


def test_without_serves_own_access_log_requests_are_written(write_to: WriteTo) -> None:
    folder = write_to(encoding="JSON", enable_access_log=False)
    paint()
    assert len(written(folder)) == 1


def test_logs_are_bounded_on_the_disk(write_to: WriteTo) -> None:
    folder = write_to(encoding="JSON")
    paint(120)
    sizes = [path.stat().st_size for path in folder.iterdir()]
    assert len(sizes) == 2
    assert max(sizes) <= MAX_BYTES
    assert sum(len(line) for line in written(folder)) > MAX_BYTES  # so the first lines are gone


def job_lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [record.job for record in caplog.records if hasattr(record, "job")]
    for line in lines:
        assert line["timings_ms"].pop("total") >= 0
    return lines


def test_a_job_that_was_painted_has_a_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "serve_app.deployments.logs")
    receipt = Receipt("toon", Size(60, 80), Size(30, 40), {"decode": 1.26, "queue": 2.0})
    with JobLog("toon", 1234) as log:
        log.painting = EncodedImage(b"painting", "image/png", receipt)
    assert job_lines(caplog) == [
        {
            "outcome": "ok",
            "style": "toon",
            "photograph": "80x60",
            "painting": "40x30",
            "bytes_in": 1234,
            "bytes_out": 8,
            "timings_ms": {"decode": 1.3, "queue": 2.0},
        }
    ]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (BrokenImage("not a picture"), "broken-image"),
        (ValueError("secret"), "internal-error"),
        (asyncio.CancelledError(), "cancelled"),
    ],
)
def test_a_job_that_was_not_painted_has_a_line_with_the_reason(
    error: BaseException, outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "serve_app.deployments.logs")
    with pytest.raises(type(error)), JobLog("toon", 1234):
        raise error
    assert job_lines(caplog) == [{"outcome": outcome, "style": "toon", "bytes_in": 1234, "timings_ms": {}}]
    assert "secret" not in caplog.text
