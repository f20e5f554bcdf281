"""OpenAI's door: its official client and curl, unchanged, against the routes behind the guard."""

import base64
import hashlib
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
from benchmarks.chaos.bad_clients import request_head
from edge import Echo, guarded
from fakes import FakePipeline, fake_settings
from openai.types import ImageEditCompletedEvent, ImagesResponse
from openai_door import Door, Heard, door
from pictures import opened, photo_bytes
from service import wait_for
from shared import ROOT
from shop import Shop

from serve_app.errors import (
    BrokenImage,
    DeadlineExceeded,
    DecodeTimeout,
    Lost,
    OutOfMemory,
    RequestError,
    TooBusy,
    TooLargeToPaint,
    TooSmall,
    UnsupportedFormat,
)
from serve_app.frames import Client, EncodedImage, Size, StylizeRequest
from serve_app.web import openai_edits, refusals
from serve_app.web.keys import Key, KeyRing
from serve_app.web.openai_schemas import MOST_PICTURES, EditedImages
from serve_app.web.openai_uploads import SLICE

PHOTO, TALL, SQUARE = photo_bytes(60, 80), photo_bytes(80, 60, seed=1), photo_bytes(40, 40, seed=2)
KEY = "ag_the-key-of-alice"
GUIDE = (ROOT / "docs" / "openai.md").read_text()
PATIENCE_S = 30


@pytest.fixture(scope="module")
def shared_door() -> Iterator[Door]:
    with door() as served:
        yield served


@pytest.fixture
def served(shared_door: Door) -> Door:
    """A service that nobody has asked for anything."""
    pipeline = shared_door.pipeline
    pipeline.requests.clear()
    pipeline.clients.clear()
    return shared_door


def pictures(answer: ImagesResponse) -> list[bytes]:
    assert answer.data is not None
    return [base64.b64decode(str(each.b64_json), validate=True) for each in answer.data]


def stylized(served: Door, photo: bytes, query: str) -> bytes:
    answer = requests.post(f"{served.address}/v1/stylize?{query}", data=photo, timeout=60)
    assert answer.status_code == 200
    return answer.content


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def post_json(served: Door, body: Any) -> requests.Response:
    return requests.post(f"{served.address}/v1/images/edits", json=body, timeout=60)


def in_json(*photos: bytes, **fields: Any) -> dict[str, Any]:
    return {"images": [{"image_url": data_url(photo)} for photo in photos], "prompt": "anime", **fields}


def assert_error(answer: requests.Response, status: int, code: str, parameter: str | None) -> str:
    """Checks an error in OpenAI's shape, and returns its message."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json"), answer.text
    assert answer.headers["x-request-id"]
    (error,) = answer.json().values()
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, parameter)
    return str(error["message"])


class TestEdits:
    def test_a_photograph_is_painted_as_stylize_does(self, served: Door) -> None:
        answer = served.openai.images.edit(image=PHOTO, prompt="make it anime")
        assert pictures(answer) == [stylized(served, PHOTO, "format=png")]
        ours, theirs = served.pipeline.requests
        assert replace(ours, timeout_s=0) == replace(theirs, timeout_s=0)
        assert 50 < ours.timeout_s <= 55  # what the guard has waited counts

    def test_the_answer_has_the_shape_that_the_client_knows(self, served: Door) -> None:
        raw = served.openai.images.with_raw_response.edit(image=PHOTO, prompt="anime")
        answer = raw.parse()
        EditedImages.model_validate_json(raw.content)
        assert int(raw.headers["content-length"]) == len(raw.content)
        assert (answer.output_format, answer.size, answer.created > 1_700_000_000) == ("png", "80x60", True)
        usage = answer.usage
        assert usage is not None
        assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (0, 0, 0)
        assert (usage.input_tokens_details.image_tokens, usage.input_tokens_details.text_tokens) == (0, 0)

    def test_receipts_are_in_the_headers_and_with_each_picture(self, served: Door) -> None:
        raw = served.openai.images.with_raw_response.edit(image=PHOTO, prompt="anime", model="papaya", size="40x40")
        names = ("x-style", "x-original-size", "x-painted-size", "x-resized", "x-reused")
        assert [raw.headers[name] for name in names] == ["papaya", "80x60", "40x28", "true", "false"]
        (picture,) = raw.parse().data or []
        receipt: Any = picture.to_dict()["receipt"]
        assert (receipt["style"], receipt["painted"]) == ("papaya", {"width": 40, "height": 28})

    def test_each_of_several_images_is_painted_in_its_place(self, served: Door) -> None:
        answer = served.openai.images.edit(image=[PHOTO, TALL, SQUARE], prompt="anime")
        assert pictures(answer) == [stylized(served, photo, "format=png") for photo in (PHOTO, TALL, SQUARE)]
        assert answer.size is None
        alike = served.openai.images.edit(image=[PHOTO, PHOTO], prompt="anime")
        assert alike.size == "80x60"

    def test_n_repeats_each_picture_and_paints_it_once(self, served: Door) -> None:
        answer = served.openai.images.edit(image=[PHOTO, TALL], prompt="anime", n=3)
        first, second = (stylized(served, photo, "format=png") for photo in (PHOTO, TALL))
        assert pictures(answer) == [first] * 3 + [second] * 3
        assert len(served.pipeline.requests) == 2 + 2

    @pytest.mark.parametrize("names", [["image"], ["image", "image"], ["image[]", "image[]"], ["image[0]", "image[1]"]])
    def test_images_go_by_the_names_that_clients_give_them(self, served: Door, names: list[str]) -> None:
        files = [(name, photo) for name, photo in zip(names, (PHOTO, TALL), strict=False)]
        answer = requests.post(f"{served.address}/v1/images/edits", files=files, timeout=60)
        sizes = [opened(base64.b64decode(each["b64_json"])).size for each in answer.json()["data"]]
        assert sizes == [(80, 60), (60, 80)][: len(names)]

    @pytest.mark.parametrize("name", ["image", "image[]"])
    def test_an_image_needs_no_file_name(self, served: Door, name: str) -> None:
        photo = photo_bytes(400, 400, "BMP")  # longer than any text field may be
        head = f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode()
        headers = {"content-type": "multipart/form-data; boundary=x"}
        body = head + photo + b"\r\n--x--\r\n"
        answer = requests.post(f"{served.address}/v1/images/edits", data=body, headers=headers, timeout=60)
        assert answer.json()["size"] == "400x400"

    @pytest.mark.parametrize(
        ("options", "kind", "quality"),
        [
            ({}, "PNG", None),
            ({"output_format": "png", "output_compression": 40}, "PNG", 40),
            ({"output_format": "jpeg"}, "JPEG", None),
            ({"output_format": "jpeg", "output_compression": 100}, "JPEG", 100),
            ({"output_format": "webp", "output_compression": 0}, "WEBP", 1),
        ],
    )
    def test_format_and_compression(self, served: Door, options: Any, kind: str, quality: int | None) -> None:
        answer = served.openai.images.edit(image=PHOTO, prompt="anime", **options)
        assert opened(pictures(answer)[0]).format == kind
        assert answer.output_format == kind.lower()
        assert served.pipeline.requests[0].quality == quality

    @pytest.mark.parametrize(
        ("size", "photo", "painted"),
        [
            ("auto", (60, 80), (60, 80)),
            ("1024x1024", (60, 80), (60, 80)),
            ("40x40", (60, 80), (30, 40)),
            ("40x60", (60, 80), (30, 40)),
            ("40x60", (80, 60), (53, 40)),
            ("60x40", (80, 60), (40, 30)),
            ("1536x1024", (1100, 900), (1024, 838)),
            ("99999x99999", (60, 80), (60, 80)),
        ],
    )
    def test_a_painting_fits_into_its_size_and_keeps_its_shape(
        self, served: Door, size: str, photo: tuple[int, int], painted: tuple[int, int]
    ) -> None:
        answer = served.openai.images.edit(image=photo_bytes(*photo), prompt="anime", size=size)
        assert opened(pictures(answer)[0]).size == painted[::-1]
        assert answer.size == f"{painted[1]}x{painted[0]}"

    def test_a_square_size_asks_for_what_max_side_asks_for(self, served: Door) -> None:
        served.openai.images.edit(image=PHOTO, prompt="anime", size="512x512", output_format="jpeg")
        stylized(served, PHOTO, "format=jpeg&max_side=512")
        assert [(each.max_side, each.box) for each in served.pipeline.requests] == [(512, None)] * 2

    def test_what_means_nothing_here_is_passed_over(self, served: Door) -> None:
        served.openai.images.edit(
            image=PHOTO,
            prompt="anime " * 5000,
            background="transparent",
            complexity="high",
            input_fidelity="high",
            quality="max",
            partial_images=2,
            user="somebody",
            safety_identifier="somebody",
            extra_body={"not_yet_known": {"deep": ["er"]}},
        )
        assert post_json(served, in_json(PHOTO, seed=7, model=None, n=None, mask=None, size="")).status_code == 200
        assert len(served.pipeline.requests) == 2

    def test_the_prompt_is_not_needed(self, served: Door) -> None:
        answer = requests.post(f"{served.address}/v1/images/edits", files={"image": PHOTO}, timeout=60)
        assert answer.status_code == 200


class TestJson:
    def test_images_in_data_urls_are_painted(self, served: Door) -> None:
        body = in_json(PHOTO, TALL, model="papaya", output_format="jpeg", n=2)
        answer = served.openai.post("/images/edits", cast_to=ImagesResponse, body=body)
        first, second = (stylized(served, photo, "format=jpeg&style=papaya") for photo in (PHOTO, TALL))
        assert pictures(answer) == [first, first, second, second]

    def test_an_image_longer_than_a_slice_arrives_whole(self, served: Door) -> None:
        photo = photo_bytes(1100, 1100, "BMP")
        assert len(base64.b64encode(photo)) > SLICE
        answer = served.openai.post("/images/edits", cast_to=ImagesResponse, body=in_json(photo))
        assert pictures(answer) == [stylized(served, photo, "format=png")]

    @pytest.mark.parametrize(
        "images",
        [
            [{"image_url": "https://example.org/photo.png"}],
            [{"image_url": "data:image/png,plain"}],
            [{"image_url": "data:image/png;base64,AA=="[:-1]}],
            [{"image_url": "data:image/png;base64,AA*="}],
            [{"image_url": "data:image/png;base64,AAAA\n"}],
            [{"image_url": "data:image/png;base64," + "AA==" + "A" * SLICE}],
            [{"image_url": "data:image/png;base64," + "A" * (SLICE - 4) + "AA==" + "AAAA"}],
            [{"image_url": "data:image/png;base64,ééééAAAA"}],
            [{"image_url": 5}],
            [{"file_id": "file-1"}],
            [{}],
            ["data:image/png;base64,AAAA"],
            {"image_url": "data:image/png;base64,AAAA"},
            [{"image_url": data_url(PHOTO)}] * (MOST_PICTURES + 1),
        ],
    )
    def test_images_that_are_given_otherwise_are_refused(self, served: Door, images: Any) -> None:
        message = assert_error(post_json(served, {"images": images}), 400, "bad-option", "images")
        assert len(message) < 200

    @pytest.mark.parametrize(
        "body",
        [b"", b"{", b"[]", b'"text"', b"{}", b'{"images": []}', b'{"images": null}', b'{"n": NaN}', b"[" * 5000],
    )
    def test_a_body_without_images_is_refused(self, served: Door, body: bytes) -> None:
        headers = {"Content-Type": "application/json"}
        answer = requests.post(f"{served.address}/v1/images/edits", data=body, headers=headers, timeout=60)
        assert_error(answer, 400, "no-image", "image")

    @pytest.mark.parametrize("as_json", [False, True])
    def test_images_count_together_by_their_decoded_size(self, as_json: bool) -> None:
        size = 3 * len(PHOTO)
        for max_bytes, status in ((size, 200), (size - 1, 413)):
            with door(FakePipeline(fake_settings(max_bytes=max_bytes))) as served:
                if as_json:
                    answer = post_json(served, in_json(PHOTO, PHOTO, PHOTO))
                else:
                    files = [("image[]", PHOTO)] * 3
                    answer = requests.post(f"{served.address}/v1/images/edits", files=files, timeout=60)
                assert answer.status_code == status
        assert_error(answer, 413, "too-many-bytes", "image")

    def test_an_image_of_the_largest_size_passes_the_guard_in_base64(self) -> None:
        photo = photo_bytes(700, 700, "BMP")
        assert len(photo) > 1_400_000
        for max_bytes, status in ((len(photo), 200), (900_000, 413)):
            with door(FakePipeline(fake_settings(max_bytes=len(photo))), max_bytes=max_bytes) as served:
                assert post_json(served, in_json(photo)).status_code == status


class TestStream:
    def test_each_picture_comes_as_an_event(self, served: Door) -> None:
        stream = served.openai.images.edit(
            image=[PHOTO, TALL], prompt="anime", stream=True, n=2, output_format="webp", partial_images=3
        )
        events = list(stream)
        assert all(isinstance(event, ImageEditCompletedEvent) for event in events)
        assert [event.size for event in events] == ["80x60", "80x60", "60x80", "60x80"]
        first = events[0]
        assert (first.type, first.output_format, first.background) == ("image_edit.completed", "webp", "auto")
        assert isinstance(first, ImageEditCompletedEvent)
        assert first.usage.total_tokens == 0
        paintings = [base64.b64decode(event.b64_json) for event in events]
        expected = [stylized(served, photo, "format=webp") for photo in (PHOTO, PHOTO, TALL, TALL)]
        assert paintings == expected

    def test_the_first_picture_comes_before_the_second_is_painted(self) -> None:
        pipeline = OneByOne(1)
        with door(pipeline) as served:
            stream = served.openai.images.edit(image=[PHOTO, TALL], prompt="anime", stream=True)
            assert next(stream).size == "80x60"
            pipeline.may_begin.release()
            assert [event.size for event in stream] == ["60x80"]

    def test_it_is_text_of_server_sent_events(self, served: Door) -> None:
        answer = post_json(served, in_json(PHOTO, stream=True))
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-store", "no")
        name, data, *rest = answer.text.split("\n")
        assert (name, rest) == ("event: image_edit.completed", ["", ""])
        assert json.loads(data.removeprefix("data: "))["receipt"]["style"] == "toon"

    def test_a_refusal_of_the_first_picture_is_an_ordinary_answer(self, served: Door) -> None:
        with pytest.raises(openai.UnprocessableEntityError):
            served.openai.images.edit(image=[PHOTO[:200], PHOTO], prompt="anime", stream=True)

    def test_a_refusal_of_a_later_picture_ends_the_stream_with_an_error(self, served: Door) -> None:
        stream = served.openai.images.edit(image=[PHOTO, PHOTO[:200], PHOTO], prompt="anime", stream=True)
        assert next(stream).size == "80x60"
        with pytest.raises(openai.APIError, match=r"Picture 2 of 3: The picture ends before") as caught:
            next(stream)
        assert (caught.value.code, caught.value.param) == ("broken-image", "image")
        assert len(served.pipeline.requests) == 2


class OneByOne(FakePipeline):
    """Begins a painting when it may.

    Attributes:
        may_begin: each of its permits is for one painting.
        inside: pictures that wait or are painted.
        most_inside: that were so at a time.
        refusals: are raised by the next paintings; None lets one through.
    """

    def __init__(self, permits: int = 0, **options: Any) -> None:
        super().__init__(**options)
        self.may_begin = threading.Semaphore(permits)
        self.inside = self.most_inside = 0
        self.refusals: list[RequestError | None] = []

    async def stylize(self, data: bytes, request: StylizeRequest, client: Client) -> EncodedImage:
        import asyncio

        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        try:
            while not self.may_begin.acquire(blocking=False):
                await asyncio.sleep(0.005)
            refusal = self.refusals.pop(0) if self.refusals else None
            if refusal is not None:
                self.requests.append(request)
                raise refusal
            return await super().stylize(data, request, client)
        finally:
            self.inside -= 1


class TestQueue:
    def test_pictures_of_one_request_hold_one_place(self) -> None:
        pipeline = OneByOne(10)
        with door(pipeline) as served:
            served.openai.images.edit(image=[PHOTO, TALL, SQUARE], prompt="anime")
        assert (len(pipeline.requests), pipeline.most_inside) == (3, 1)

    def test_a_later_picture_waits_where_the_first_is_refused(self) -> None:
        pipeline = OneByOne(10)
        full = TooBusy("9 pictures are waiting.", retry_after_s=1)
        with door(pipeline, queue_time_s=60) as served:
            pipeline.refusals = [None, full]
            answer = served.openai.images.edit(image=[PHOTO, TALL], prompt="anime")
            assert [opened(picture).size for picture in pictures(answer)] == [(80, 60), (60, 80)]
            pipeline.refusals = [full]
            with pytest.raises(openai.RateLimitError):
                served.openai.images.edit(image=[PHOTO, TALL], prompt="anime")
        assert len(pipeline.requests) == 4

    def test_a_later_picture_waits_no_longer_than_all_may_take(self) -> None:
        pipeline = OneByOne(10, settings=fake_settings(timeout_s=5))
        pipeline.refusals = [None, TooBusy("9 pictures are waiting.", retry_after_s=60)]
        with door(pipeline) as served, pytest.raises(openai.RateLimitError) as caught:
            served.openai.images.edit(image=[PHOTO, TALL], prompt="anime")
        assert caught.value.response.headers["retry-after"] == "60"

    def test_all_pictures_together_have_the_time_of_one_request(self) -> None:
        pipeline = OneByOne(10, settings=fake_settings(timeout_s=5))
        with door(pipeline) as served:
            served.openai.images.edit(image=[PHOTO, TALL, SQUARE], prompt="anime")
        times = [request.timeout_s for request in pipeline.requests]
        assert times == sorted(times, reverse=True)
        assert len(set(times)) == 3
        assert max(times) <= 5

    def test_answers_with_several_pictures_wait_for_room(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(openai_edits, "HELD_BYTES", 1)
        monkeypatch.setattr(refusals, "HELD_S", 0.0)
        pipeline = OneByOne(0, settings=fake_settings(queue_time_s=0.5))
        with door(pipeline) as served:
            first = threading.Thread(target=post_json, args=(served, in_json(PHOTO, TALL)))
            first.start()
            wait_for(lambda: pipeline.inside == 1, PATIENCE_S)
            message = assert_error(post_json(served, in_json(PHOTO, n=2)), 429, "rate_limit_exceeded", None)
            assert message.startswith("Too many requests with several pictures")
            pipeline.may_begin.release(8)
            first.join()
            assert post_json(served, in_json(PHOTO, n=2)).status_code == 200
            assert post_json(served, in_json(PHOTO)).status_code == 200

    @pytest.mark.parametrize("fields", [{}, {"n": 2}, {"stream": True}])
    def test_a_client_that_goes_away_frees_its_place(self, fields: dict[str, Any]) -> None:
        pipeline, heard = OneByOne(), Heard()
        with door(pipeline, heard) as served:
            body = json.dumps(in_json(PHOTO, TALL, **fields)).encode()
            kind, length = "Content-Type: application/json", f"Content-Length: {len(body)}"
            with socket.create_connection(("127.0.0.1", int(served.address.rsplit(":", 1)[1]))) as connection:
                connection.sendall(request_head("/v1/images/edits", kind, length) + body)
                wait_for(lambda: pipeline.inside == 1, PATIENCE_S)
            wait_for(lambda: bool(heard.answers), PATIENCE_S)
            assert (pipeline.inside, pipeline.requests) == (0, [])
            (answer,) = heard.answers
            assert (answer.route, answer.style, answer.outcome) == ("/v1/images/edits", "toon", "gone")
            pipeline.may_begin.release(5)
            assert post_json(served, in_json(PHOTO, TALL, **fields)).status_code == 200

    def test_a_client_that_goes_away_between_two_events_frees_its_place(self) -> None:
        pipeline = OneByOne(1)
        with door(pipeline) as served:
            stream = served.openai.images.edit(image=[PHOTO, TALL, TALL], prompt="anime", stream=True)
            next(stream)
            wait_for(lambda: pipeline.inside == 1, PATIENCE_S)
            stream.close()
            wait_for(lambda: pipeline.inside == 0, PATIENCE_S)
        assert len(pipeline.requests) == 1

    def test_paintings_are_used_again(self, tmp_path: Path) -> None:
        shop = Shop(tmp_path)
        shop.pipeline.paint_ms = 400
        try:
            with door(shop.pipeline) as served:
                files = [("image[]", PHOTO), ("image[]", TALL)]
                reused = []
                for _ in range(2):
                    answer = requests.post(f"{served.address}/v1/images/edits", files=files, timeout=60)
                    reused.append([each["receipt"]["reused"] for each in answer.json()["data"]])
                    wait_for(lambda: not shop.desk.paintings._keeping, PATIENCE_S)
                assert reused == [[False, False], [True, True]]
                raw = requests.post(f"{served.address}/v1/stylize?format=png", data=PHOTO, timeout=60)
                assert (raw.headers["x-reused"], len(shop.pipeline.requests)) == ("true", 2)
        finally:
            shop.close()


class TestErrors:
    @pytest.mark.parametrize(
        ("fault", "kind", "status", "code", "parameter"),
        [
            (UnsupportedFormat("A film."), openai.APIStatusError, 415, "unsupported-format", "image"),
            (BrokenImage("Broken."), openai.UnprocessableEntityError, 422, "broken-image", "image"),
            (TooSmall("Small."), openai.UnprocessableEntityError, 422, "too-small", "image"),
            (TooLargeToPaint("Large."), openai.APIStatusError, 413, "too-large-to-paint", "image"),
            (DeadlineExceeded("Late."), openai.APIStatusError, 408, "deadline-exceeded", None),
            (TooBusy("Full.", retry_after_s=7), openai.RateLimitError, 429, "rate_limit_exceeded", None),
            (OutOfMemory("None.", retry_after_s=7), openai.InternalServerError, 503, "out-of-memory", None),
            (Lost("Lost."), openai.InternalServerError, 503, "lost", None),
            (ValueError("secret path /etc"), openai.InternalServerError, 500, "server_error", None),
        ],
    )
    def test_a_refusal_becomes_the_clients_exception(
        self, fault: Exception, kind: type[openai.APIStatusError], status: int, code: str, parameter: str | None
    ) -> None:
        with door(FakePipeline(fault=fault)) as served, pytest.raises(openai.APIStatusError) as caught:
            served.openai.images.edit(image=PHOTO, prompt="anime", extra_headers={"X-Request-ID": "mine"})
        error = caught.value
        assert (type(error), error.status_code) == (kind, status)
        assert (error.code, error.param, error.request_id) == (code, parameter, "mine")
        assert isinstance(error.body, dict)
        said = "Something went wrong here; the fault has been logged." if status == 500 else str(fault)
        assert error.body["message"] == said
        assert error.response.headers.get("retry-after") == ("7" if "7" in repr(fault) else None)

    @pytest.mark.parametrize(
        ("fields", "parameter"),
        [
            ({"output_format": "svg"}, "output_format"),
            ({"output_format": "gif"}, "output_format"),
            ({"output_format": "avif"}, "output_format"),
            ({"mask": PHOTO}, "mask"),
            ({"markup": PHOTO}, "markup"),
            ({"response_format": "url"}, "response_format"),
            ({"n": 0}, "n"),
            ({"n": MOST_PICTURES + 1}, "n"),
            ({"extra_body": {"n": "many"}}, "n"),
            ({"size": "1024"}, "size"),
            ({"size": "0x1024"}, "size"),
            ({"size": "7x1024"}, "size"),
            ({"size": "1024x1024x3"}, "size"),
            ({"size": "-8x80"}, "size"),
            ({"size": "100000x80"}, "size"),
            ({"size": "\u0668\u0660x\u0668\u0660"}, "size"),
            ({"output_compression": 101}, "output_compression"),
            ({"output_compression": -1}, "output_compression"),
            ({"extra_body": {"stream": "perhaps"}}, "stream"),
            ({"model": "x" * 257}, "model"),
            ({"extra_body": {"mask": "data:image/png;base64,AAAA"}}, "mask"),
        ],
    )
    def test_a_wrong_parameter_is_named(self, served: Door, fields: Any, parameter: str) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            served.openai.images.edit(image=PHOTO, prompt="anime", **fields)
        assert (caught.value.param, caught.value.code) == (parameter, "bad-option")
        assert caught.value.request_id
        assert served.pipeline.requests == []

    def test_a_wrong_parameter_of_json_is_named(self, served: Door) -> None:
        for name, value in (("mask", {"image_url": data_url(PHOTO)}), ("n", 1.5), ("size", [8]), ("stream", {})):
            assert_error(post_json(served, in_json(PHOTO, **{name: value})), 400, "bad-option", name)

    def test_more_pictures_than_an_answer_holds_are_refused(self, served: Door) -> None:
        for photos, n, parameter in ((11, 1, "image"), (30, 1, "image"), (6, 2, "n"), (2, 6, "n")):
            with pytest.raises(openai.BadRequestError) as caught:
                served.openai.images.edit(image=[SQUARE] * photos, prompt="anime", n=n)
            assert caught.value.param == parameter
        assert served.pipeline.requests == []
        assert len(pictures(served.openai.images.edit(image=[SQUARE] * 5, prompt="anime", n=2))) == MOST_PICTURES

    def test_a_form_with_other_files_or_a_parameter_twice_is_refused(self, served: Door) -> None:
        address = f"{served.address}/v1/images/edits"
        for files, data, parameter in (
            ([("image", PHOTO), ("depth", PHOTO)], [], "depth"),
            ([("image", PHOTO)], [("n", "1"), ("n", "2")], "n"),
        ):
            answer = requests.post(address, files=files, data=data, timeout=60)
            assert_error(answer, 400, "bad-option", parameter)
        twice = [("tag", "a"), ("tag", "b"), ("svg[model]", "x")]
        assert requests.post(address, files={"image": PHOTO}, data=twice, timeout=60).status_code == 200

    @pytest.mark.parametrize(
        ("body", "kind"),
        [
            (b"", "multipart/form-data; boundary=x"),
            (b"--x\r\nno header", "multipart/form-data; boundary=x"),
            (b"--x--\r\n", "multipart/form-data; boundary=x"),
            (b"photo", "multipart/form-data"),
            (
                b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\n\r\n--x--\r\n',
                "multipart/form-data; boundary=x",
            ),
            (PHOTO, "image/png"),
            (b"image=1", "application/x-www-form-urlencoded"),
        ],
    )
    def test_a_request_without_an_image_is_refused(self, served: Door, body: bytes, kind: str) -> None:
        headers = {"Content-Type": kind}
        answer = requests.post(f"{served.address}/v1/images/edits", data=body, headers=headers, timeout=60)
        assert_error(answer, 400, "no-image", "image")

    def test_of_several_pictures_the_broken_one_is_named(self, served: Door) -> None:
        with pytest.raises(openai.UnprocessableEntityError, match=r"Picture 2 of 3: The picture ends before"):
            served.openai.images.edit(image=[PHOTO, PHOTO[:200], PHOTO], prompt="anime")

    def test_a_model_that_is_no_style_is_not_found(self, served: Door) -> None:
        with pytest.raises(openai.NotFoundError, match="installed are: papaya, toon") as caught:
            served.openai.images.edit(image=PHOTO, prompt="anime", model="gpt-image-1")
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")

    def test_what_else_openai_has_is_not_found(self, served: Door) -> None:
        with pytest.raises(openai.NotFoundError, match="There is nothing at /v1/images/generations") as caught:
            served.openai.images.generate(prompt="a cat")
        assert (caught.value.code, bool(caught.value.request_id)) == ("not-found", True)
        answer = requests.get(f"{served.address}/v1/images/edits", timeout=60)
        assert_error(answer, 405, "method-not-allowed", None)
        assert answer.headers["allow"] == "POST"
        problem = requests.post(f"{served.address}/v1/chat/completions", json={}, timeout=60)
        assert problem.headers["content-type"] == "application/problem+json"

    def test_a_refusal_of_the_guard_has_the_same_shape(self) -> None:
        with door(max_bytes=1000) as served, pytest.raises(openai.APIStatusError) as caught:
            served.openai.images.edit(image=bytes(600_000), prompt="anime")
        error = caught.value
        assert (error.status_code, error.code, error.param) == (413, "too-many-bytes", "image")
        assert error.request_id

    @pytest.mark.parametrize(
        ("path", "kind", "limit"),
        [
            ("/v1/images/edits", "multipart/form-data; boundary=x", 1_000_000 + 524_288),
            ("/prefix/v1/images/edits/", "application/json", 1_333_336 + 524_288),
        ],
    )
    def test_the_guard_bounds_a_body_by_the_decoded_size_of_its_images(self, path: str, kind: str, limit: int) -> None:
        app = Echo()
        with guarded(app, max_bytes=1_000_000, max_form_bytes=9_000_000) as address:
            headers = {"Content-Type": kind}
            assert requests.post(address + path, data=bytes(limit), headers=headers, timeout=60).status_code == 200
            answer = requests.post(address + path, data=bytes(limit + 1), headers=headers, timeout=60)
        assert_error(answer, 413, "too-many-bytes", "image")
        assert [len(body) for body in app.bodies] == [limit]

    def test_the_guard_repeats_a_refusal_without_asking(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(refusals, "HELD_S", 60.0)
        pipeline = FakePipeline(fault=TooBusy("9 pictures are waiting.", 9, 10, "pixels", 3, 9))
        with door(pipeline) as served:
            errors = []
            for _ in range(2):
                with pytest.raises(openai.RateLimitError) as caught:
                    served.openai.images.edit(image=PHOTO, prompt="anime")
                errors.append(caught.value)
        assert errors[0].body == errors[1].body
        assert [error.response.headers["retry-after"] for error in errors] == ["3", "3"]
        assert len(pipeline.requests) == 1


class TestRetries:
    @pytest.fixture
    def slept(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """The seconds that the client has slept; in fact it does not."""
        monkeypatch.setattr(refusals, "HELD_S", 0.0)
        slept: list[float] = []
        monkeypatch.setattr(openai.OpenAI, "_sleep_for_retry", no_sleep(slept))
        return slept

    def test_the_client_comes_back_when_it_was_told_to(self, slept: list[float]) -> None:
        pipeline = OneByOne(10)
        pipeline.refusals = [TooBusy("Full.", retry_after_s=7), Lost("Lost.", retry_after_s=5)]
        with door(pipeline) as served:
            answer = served.client(max_retries=2).images.edit(image=PHOTO, prompt="anime")
        assert len(pictures(answer)) == 1
        assert slept == [7, 5]

    @pytest.mark.parametrize("fault", [DecodeTimeout("Slow."), DeadlineExceeded("Late."), ValueError("ours")])
    def test_the_client_does_not_repeat_what_would_fail_again(self, slept: list[float], fault: Exception) -> None:
        pipeline = FakePipeline(fault=fault)
        with door(pipeline) as served, pytest.raises(openai.APIStatusError):
            served.client(max_retries=2).images.edit(image=PHOTO, prompt="anime")
        assert (slept, len(pipeline.requests)) == ([], 1)


def no_sleep(slept: list[float]) -> Any:
    """A substitute for the client's own way to wait before it tries again."""

    def wait(self: Any, *, retries_taken: int, max_retries: int, options: Any, response: Any) -> None:
        slept.append(self._calculate_retry_timeout(max_retries - retries_taken, options, response.headers))

    return wait


class TestKeys:
    def test_a_key_of_the_service_is_the_clients_api_key(self) -> None:
        ring = KeyRing([Key("alice", hashlib.sha256(KEY.encode()).digest(), 0.5)])
        pipeline = FakePipeline(keys=ring)
        with door(pipeline) as served:
            served.client(api_key=KEY).images.edit(image=PHOTO, prompt="anime")
            assert pipeline.clients == [Client("key:alice", 0.5)]
            with pytest.raises(openai.AuthenticationError) as caught:
                served.openai.images.edit(image=PHOTO, prompt="anime")
            assert (caught.value.code, caught.value.body["message"]) == (  # type: ignore[index]
                "invalid_api_key",
                "The API key is not known here.",
            )
            assert caught.value.response.headers["www-authenticate"] == 'Bearer realm="animegan-serve"'
            assert [model.id for model in served.openai.models.list()] == ["toon", "papaya"]


class TestModels:
    def test_styles_that_are_installed_are_models_the_default_first(self, served: Door) -> None:
        models = served.openai.models.list()
        rows = [(model.id, model.object, model.owned_by, model.created) for model in models]
        assert rows == [("toon", "model", "the fake studio", 0), ("papaya", "model", "the fake orchard", 0)]

    def test_one_model(self, served: Door) -> None:
        assert served.openai.models.retrieve("papaya").id == "papaya"
        with pytest.raises(openai.NotFoundError, match="animegan styles pull mango") as caught:
            served.openai.models.retrieve("mango")
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
        assert requests.head(f"{served.address}/v1/models", timeout=60).status_code == 200


class TestGuide:
    def test_its_python_and_shell_run(self, served: Door, tmp_path: Path) -> None:
        (tmp_path / "photo.jpg").write_bytes(photo_bytes(60, 80, "JPEG"))
        (tmp_path / "other.jpg").write_bytes(photo_bytes(80, 60, "JPEG"))
        blocks = re.findall(r"```(python|sh)\n(.*?)```", GUIDE, re.DOTALL)
        assert [language for language, _ in blocks] == ["sh", "python", "python", "sh", "sh"]
        for language, block in blocks:
            code = block.replace("http://127.0.0.1:8000", served.address)
            if language == "sh" and code.startswith("pip "):
                continue
            for each in tmp_path.glob("painted*"):
                each.unlink()
            command = [sys.executable, "-c", code] if language == "python" else ["bash", "-ec", code]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr + done.stdout
            painted = sorted(tmp_path.glob("painted*"))
            assert painted or "toon" in done.stdout
            for each in painted:
                assert opened(each.read_bytes()).size in ((80, 60), (60, 80))

    def test_curl_gets_the_error_in_words(self, served: Door, tmp_path: Path) -> None:
        (tmp_path / "photo.jpg").write_bytes(PHOTO)
        command = ["curl", "-s", "-F", "image=@photo.jpg", "-F", "size=big", f"{served.address}/v1/images/edits"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
        assert json.loads(done.stdout)["error"]["param"] == "size"


def test_a_box_reaches_the_pipeline_height_first(served: Door) -> None:
    served.openai.images.edit(image=PHOTO, prompt="anime", size="512x256")
    (request,) = served.pipeline.requests
    assert (request.max_side, request.box) == (512, Size(256, 512))
