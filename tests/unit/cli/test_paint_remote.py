"""`animegan paint --url`: the service's refusals, its wishes to be left alone, keys, and what no service answers."""

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakePipeline, fake_settings
from pictures import opened, photo_bytes
from served import served
from service import free_port
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from serve_app import Painter
from serve_app.cli.paint.remote import PatientRetry, RemotePainter, TooLongToWait, checked_url
from serve_app.errors import AnimeganError, BrokenImage, TooBusy, Unauthorized
from serve_app.frames import Client, EncodedImage, Receipt, StylizeRequest
from serve_app.images.decode import decode
from serve_app.images.encode import MEDIA_TYPES, encode
from serve_app.styles.catalogue import installed_styles
from serve_app.web.keys import KeyRing, new_key, parse_keys
from serve_app.web.routes import create_app

RunCommand = Callable[..., int]


class Shop(FakePipeline):
    """A pipeline that raises each of some faults once, and counts how many it paints at a time."""

    def __init__(self, *faults: Exception, **options: Any) -> None:
        super().__init__(**options)
        self.faults = list(faults)
        self.now = self.most = 0

    async def stylize(self, data: bytes, request: StylizeRequest, client: Client) -> EncodedImage:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            self.fault = self.faults.pop(0) if self.faults else None
            return await super().stylize(data, request, client)
        finally:
            self.now -= 1


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ANIMEGAN_API_KEY", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    Path("in").mkdir()
    for number in range(6):
        Path("in", f"{number}.png").write_bytes(photo_bytes(24, 32, seed=number))


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that are waited for before another attempt, which are over at once."""
    lengths: list[float] = []
    sleep = time.sleep

    def pause(seconds: float) -> None:
        if threading.current_thread().name.startswith("send"):
            lengths.append(seconds)
        else:
            sleep(seconds)

    monkeypatch.setattr(time, "sleep", pause)
    return lengths


def lines_of(out: str) -> dict[str, dict[str, Any]]:
    return {line["photo"]: line for line in map(json.loads, out.splitlines())}


def test_service_paints_with_these_options_and_the_same_files_come_out(
    animegan: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = Shop()
    Path("in/broken.jpg").write_bytes(photo_bytes(24, 32, "JPEG")[:80])
    with served(create_app(shop)) as url:
        options = ["--style", "papaya", "--max-side", "16", "--format", "webp", "--quality", "70", "--json"]
        assert animegan("paint", "in", "-o", "out", "--url", f"{url}/", *options) == 1
    lines = lines_of(capsys.readouterr().out)
    assert lines["in/broken.jpg"]["error"] == {
        "code": "broken-image",
        "detail": "The picture ends before it is complete; send the whole file.",
    }
    assert lines["in/3.png"] == {
        "photo": "in/3.png",
        "status": "painted",
        "painting": "out/3.webp",
        "style": "papaya",
        "original": {"width": 32, "height": 24},
        "painted": {"width": 16, "height": 12},
        "resized": True,
    }
    assert sorted(path.name for path in Path("out").iterdir()) == [f"{number}.webp" for number in range(6)]
    assert set(shop.requests) == {StylizeRequest("papaya", 16, 4, "webp", 70, shop.settings.timeout_s)}


def test_busy_service_is_left_alone_for_as_long_as_it_says_and_a_few_are_sent_at_a_time(
    animegan: RunCommand, pauses: list[float]
) -> None:
    shop = Shop(*[TooBusy("Too many wait.", retry_after_s=seconds) for seconds in (7, 11, 13)])
    with served(create_app(shop)) as url:
        assert animegan("paint", "in", "-o", "out", "--url", url) == 0
    assert sorted(pauses) == [7, 11, 13]
    assert len(shop.requests) == 9
    assert 1 < shop.most <= 4
    photo, painting = (np.asarray(opened(Path(folder, "2.png").read_bytes())) for folder in ("in", "out"))
    assert np.array_equal(painting, 255 - photo)


def test_service_that_stays_busy_is_given_up_after_a_number_of_attempts(
    animegan: RunCommand, pauses: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    shop = Shop(*[TooBusy("Too many wait.", retry_after_s=2)] * 100)
    with served(create_app(shop)) as url:
        assert animegan("paint", "in/0.png", "-o", "out/", "--url", url) == 1
    assert (len(shop.requests), pauses) == (11, [2.0] * 10)
    assert "animegan: in/0.png: Too many wait.\n" in capsys.readouterr().err


def test_service_that_asks_for_an_hour_is_given_up_at_once(
    animegan: RunCommand, pauses: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with served(create_app(Shop(TooBusy("Too many wait.", retry_after_s=3600)))) as url:
        assert animegan("paint", "in/0.png", "-o", "out/", "--url", url) == 1
    assert pauses == []
    assert "in/0.png: The service asks to be tried again in 3600 seconds.\n" in capsys.readouterr().err


def test_retry_after_may_be_a_date() -> None:
    retry = PatientRetry()
    assert retry.parse_retry_after("Thu, 01 Jan 1970 00:00:00 GMT") == 0
    with pytest.raises(TooLongToWait):
        retry.parse_retry_after("Fri, 31 Dec 2099 23:59:59 GMT")


def test_key_comes_from_the_environment_and_a_wrong_one_ends_the_run(
    animegan: RunCommand, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key, line = new_key("alice", None)
    shop = Shop(keys=KeyRing(parse_keys(line, "here"), 0))
    Path(".netrc").write_text("machine 127.0.0.1 login someone password else\n")
    Path(".netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(Path(".netrc").resolve()))
    with served(create_app(shop)) as url:
        assert animegan("paint", "in", "-o", "out", "--url", url) == 1
        assert capsys.readouterr().err.endswith("(the key is read from ANIMEGAN_API_KEY)\n")
        assert shop.requests == []
        monkeypatch.setenv("ANIMEGAN_API_KEY", f" {key}\n")
        assert animegan("paint", "in", "-o", "out", "--url", url) == 0
        monkeypatch.setenv("ANIMEGAN_API_KEY", "ag two words")
        assert animegan("paint", "in", "-o", "again", "--url", url) == 1
    assert {client.name for client in shop.clients} == {"key:alice"}
    said = capsys.readouterr().err
    assert "cannot be a key" in said
    assert "two words" not in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--style", "absent"], " has no style 'absent'; installed there are: papaya, toon\n"),
        (["--max-side", "1025"], " paints 1024 pixels at most\n"),
    ],
)
def test_options_that_every_photograph_would_be_refused_for_are_refused_before_any_is_sent(
    animegan: RunCommand, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    shop = Shop()
    with served(create_app(shop)) as url:
        assert animegan("paint", "in", "-o", "out", "--url", url, *options) == 1
    assert capsys.readouterr().err.endswith(said)
    assert shop.requests == []


def test_file_over_the_services_limit_is_not_sent(animegan: RunCommand, capsys: pytest.CaptureFixture[str]) -> None:
    shop = Shop(settings=fake_settings(max_bytes=2000))
    Path("in/large.png").write_bytes(bytes(2001))
    Path("in/0.png").write_bytes(photo_bytes(8, 8))
    with served(create_app(shop)) as url:
        assert animegan("paint", "in/large.png", "in/0.png", "-o", "out", "--url", url) == 1
    assert len(shop.requests) == 1
    assert "in/large.png: The file has more than the 2000 bytes that are read here.\n" in capsys.readouterr().err


def answering(answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """A service whose styles are right, and whose paintings are `answer`'s."""
    app = create_app(FakePipeline())

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/v1/stylize":
            request = Request(scope, receive)
            await request.body()
            await (await answer(request))(scope, receive, send)
        else:
            await app(scope, receive, send)

    return application


def test_run_that_has_ended_does_not_stay_for_what_a_service_asks_to_wait(animegan: RunCommand) -> None:
    asked = 0

    async def answer(request: Request) -> Response:
        nonlocal asked
        asked += 1
        return Response(status_code=401) if asked == 4 else Response(status_code=429, headers={"Retry-After": "60"})

    with served(answering(answer)) as url:
        assert animegan("paint", "in", "-o", "out", "--url", url) == 1
    waiting = [thread for thread in threading.enumerate() if thread.name.startswith("send")]
    assert waiting
    assert all(thread.daemon for thread in waiting)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Response("<p>hello", media_type="text/html"), "The service answered something else than a painting."),
        (Response(b"no painting", media_type="image/png"), "The service answered something else than a painting."),
        (Response("gone \x1b[2J", status_code=404), "The service answered 404."),
        (Response(status_code=302, headers={"location": "http://127.0.0.1:1/"}), "The service answered 302."),
        (
            JSONResponse(BrokenImage("Odd \x1b[2J.").problem(), status_code=422, media_type="application/problem+json"),
            "Odd \\x1b[2J.",
        ),
    ],
)
def test_answer_that_is_no_painting_is_a_failure_in_words_and_writes_nothing(
    animegan: RunCommand, capsys: pytest.CaptureFixture[str], answer: Response, said: str
) -> None:
    async def respond(request: Request) -> Response:
        return answer

    with served(answering(respond)) as url:
        assert animegan("paint", "in/0.png", "-o", "out/", "--url", url) == 1
    assert f"animegan: in/0.png: {said}\n" in capsys.readouterr().err
    assert not Path("out").exists()


def test_what_a_service_says_of_a_key_cannot_write_to_the_terminal(
    animegan: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    async def refuse(request: Request) -> Response:
        problem = Unauthorized("Odd \x1b[2J.").problem()
        return JSONResponse(problem, status_code=401, media_type="application/problem+json")

    with served(answering(refuse)) as url:
        assert animegan("paint", "in", "-o", "out", "--url", url) == 1
    said = "\nanimegan: Odd \\x1b[2J. (the key is read from ANIMEGAN_API_KEY)\n"
    assert capsys.readouterr().err.endswith(said)


def test_server_of_something_else_and_no_server_are_told_at_once(
    animegan: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(JSONResponse({"hello": "world"})) as url:
        assert animegan("paint", "in", "-o", "out", "--url", url) == 1
    assert capsys.readouterr().err == f"animegan: {url} does not answer as animegan-serve does\n"
    url = f"http://127.0.0.1:{free_port()}"
    assert animegan("paint", "in", "-o", "out", "--url", url) == 1
    assert capsys.readouterr().err == f"animegan: {url} cannot be reached: Connection refused\n"


def test_service_that_goes_while_it_paints_is_tried_again_and_that_is_said_once(pauses: list[float]) -> None:
    said: list[str] = []
    with served(create_app(FakePipeline())) as url:
        painter = RemotePainter(url, None, None, None, None, said.append)
    with pytest.raises(AnimeganError, match=f"{url} cannot be reached any more: Connection refused"):
        asyncio.run(painter.paint(photo_bytes(24, 32), "png"))
    assert len(pauses) == 4  # the first attempt after the break is at once
    assert said == [f"{url} does not answer; it is tried again for a while"]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("127.0.0.1:8000", "--url is the address of a service"),
        ("ftp://example.org", "--url is the address of a service"),
        ("http://example.org:99999", "--url is the address of a service"),
        ("http://example.org/?key=1", "--url is the address of a service"),
        ("http://me:secret@example.org", "--url holds a secret"),
    ],
)
def test_address_that_cannot_be_one_is_refused(url: str, said: str) -> None:
    with pytest.raises(AnimeganError) as caught:
        checked_url(url)
    assert str(caught.value).startswith(said)
    assert "me:" not in str(caught.value)


class RealPipeline(FakePipeline):
    """A pipeline whose paintings are real: decoded and encoded as by the Codec, painted by a `Stylist`."""

    def __init__(self, painter: Painter) -> None:
        super().__init__()
        self.styles = dict(installed_styles())
        self.painter_ = painter

    async def stylize(self, data: bytes, request: StylizeRequest, client: Client) -> EncodedImage:
        image = decode(data, request, self.max_pixels)
        stylist = self.painter_.stylist
        slot = stylist.reserve(request.style, image.size, 1, 1, 1)
        assert slot is not None
        (frame,) = stylist.start(slot, request.style, [image.frame]).result()
        assert not isinstance(frame, Exception)
        data = encode(frame, image.alpha, request.format, request.quality)
        return EncodedImage(data, MEDIA_TYPES[request.format], Receipt(request.style, image.original, image.size))


@pytest.fixture
def real_pipeline() -> Iterator[RealPipeline]:
    with Painter("ink", "fp32") as painter:
        yield RealPipeline(painter)


@pytest.mark.slow
def test_service_and_this_process_paint_the_same_picture(animegan: RunCommand, real_pipeline: RealPipeline) -> None:
    Path("in/large.jpg").write_bytes(photo_bytes(200, 160, "JPEG"))
    options = ["in", "--style", "ink", "--max-side", "96", "--format", "png"]
    with served(create_app(real_pipeline)) as url:
        assert animegan("paint", *options, "-o", "there", "--url", url) == 0
    assert animegan("paint", *options, "-o", "here", "--precision", "fp32") == 0
    names = sorted(path.name for path in Path("there").iterdir())
    assert len(names) == 7
    for name in names:
        here, there = (np.asarray(opened(Path(folder, name).read_bytes()), np.int16) for folder in ("here", "there"))
        assert here.shape == there.shape
        assert np.abs(here - there).max() <= 1
