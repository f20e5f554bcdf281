"""Reads photographs of an HTTP request in bounded memory: a raw body, or fields `image` of a multipart form."""

import io
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import ClassVar
from urllib.parse import parse_qsl

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.types import Message

from serve_app.errors import BadOption, NoImage, TooManyBytes

FIELD = "image"
MAX_FIELDS = 20
MOST_PHOTOS = 100  # in one form
FORM_OVERHEAD_BYTES = 64 * 1024  # boundaries, part headers and small fields around the photograph


@dataclass(frozen=True)
class Upload:
    """A photograph's bytes, and the options that came with it as fields of a form."""

    data: bytes
    fields: dict[str, str] = field(default_factory=dict)


async def read_upload(request: Request, max_bytes: int) -> Upload:
    """Reads a photograph, whatever media type is claimed: its format is recognised by content later.

    Raises:
        NoImage: if the body is empty, or the form has no photograph in its field `image`.
        BadOption: if the form gives an option twice.
        TooManyBytes: as soon as more than `max_bytes` are announced or received.
    """
    is_form = has_form(request)
    bounded = bound(request, max_bytes + FORM_OVERHEAD_BYTES if is_form else max_bytes, max_bytes)
    upload = await read_form(bounded) if is_form else Upload(await read_body(bounded))
    if not upload.data:
        raise no_image()
    if len(upload.data) > max_bytes:
        raise too_many_bytes(max_bytes, len(upload.data))
    return upload


@asynccontextmanager
async def album(request: Request, max_bytes: int, max_form_bytes: int) -> AsyncIterator["Album"]:
    """Reads a body that may hold several photographs, or none: a form, or a photograph as it is.

    Args:
        request: whose body is read.
        max_bytes: of a photograph.
        max_form_bytes: of a form.

    Raises:
        NoImage: if a form is malformed.
        BadOption: if a form gives an option twice, has too many photographs, or one in a field of another name.
        TooManyBytes: as soon as too many are announced or received.
    """
    if not has_form(request):
        data = await read_body(bound(request, max_bytes, max_bytes))
        fields = source_fields(request, data)
        yield Album([] if fields or not data else [data], fields)
        return
    bounded = bound(request, max_form_bytes, max_form_bytes)
    parser = PhotoFormParser(bounded.headers, bounded.stream(), max_files=MOST_PHOTOS, max_fields=MAX_FIELDS)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise BadOption(f"A form holds {MOST_PHOTOS} photographs at most.", MOST_PHOTOS) from None
        raise NoImage(f"The form cannot be read; send photographs in its fields `{FIELD}`.") from error
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile) and name != FIELD:
                raise BadOption(f"{name[:64]} is no field for a photograph; send each in a field `{FIELD}`.")
        yield Album([each for each in form.getlist(FIELD) if isinstance(each, UploadFile)], text_fields(form))
    finally:
        await form.close()


@dataclass(frozen=True)
class Album:
    """Photographs, and the options that came with them as fields of a form.

    Attributes:
        photos: bytes, or files on the disk.
        fields: options.
    """

    photos: Sequence[bytes | UploadFile]
    fields: dict[str, str] = field(default_factory=dict)

    async def read(self, at: int) -> bytes:
        """Returns the bytes of a photograph."""
        photo = self.photos[at]
        return photo if isinstance(photo, bytes) else await photo.read()


def source_fields(request: Request, data: bytes) -> dict[str, str]:
    """Returns the options of a body that is a form without files; none if it is a photograph.

    Many programs call any body `application/x-www-form-urlencoded`, so only one that names a source job counts.
    """
    is_named = request.headers.get("content-type", "").lower().startswith("application/x-www-form-urlencoded")
    if not is_named or len(data) > FORM_OVERHEAD_BYTES or b"source_job=" not in data:
        return {}
    fields: dict[str, str] = {}
    for name, value in parse_qsl(data.decode("utf-8", "replace")):
        if name in fields:
            raise BadOption(f"{name[:64]} is given twice in the form.")
        fields[name] = value
    return fields


def has_form(request: Request) -> bool:
    """Returns whether the body of a request is a form that may hold files."""
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


def bound(request: Request, body_limit: int, max_bytes: int) -> Request:
    """Returns a request whose body ends with a refusal if it is too long.

    Args:
        request: with nothing of its body read.
        body_limit: bytes of the body.
        max_bytes: that the refusal names.

    Raises:
        TooManyBytes: if more are announced.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > body_limit:
        raise too_many_bytes(max_bytes, int(announced))
    return Request(request.scope, BoundedReceive(request, body_limit, max_bytes).receive)


async def read_body(request: Request) -> bytes:
    """Reads a raw body; in a buffer that grows, because to join a list of its pieces takes as much memory again."""
    body = io.BytesIO()
    async for piece in request.stream():
        body.write(piece)
    return body.getvalue()


async def read_form(request: Request) -> Upload:
    """Reads the field `image` of a form, and its other fields as options; empty ones count as not given.

    Raises:
        NoImage: if there is no photograph, or the form is malformed.
        BadOption: if an option is given twice.
    """
    try:
        form = await PhotoFormParser(request.headers, request.stream(), max_files=1, max_fields=MAX_FIELDS).parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise NoImage("The form has several photographs; /v1/jobs takes albums, and one comes here.") from None
        raise NoImage(f"The form cannot be read; send one photograph in its field `{FIELD}`.") from error
    try:
        photo = form.get(FIELD)
        if not isinstance(photo, UploadFile):
            raise NoImage(f"The form has no photograph in its field `{FIELD}`.")
        return Upload(await photo.read(), text_fields(form))
    finally:
        await form.close()


def text_fields(form: FormData) -> dict[str, str]:
    """Returns the fields of a form that hold text, without empty ones.

    Raises:
        BadOption: if one of them is given twice.
    """
    fields: dict[str, str] = {}
    for name, value in form.multi_items():
        if isinstance(value, str) and value:
            if name in fields:
                raise BadOption(f"{name[:64]} is given twice in the form.")
            fields[name] = value
    return fields


class PhotoFormParser(MultiPartParser):
    """Starlette's parser, but the field `image` is a file also where its part names none, as some clients send it.

    Attributes:
        photo_fields: names of the fields that are files.
    """

    photo_fields: ClassVar[re.Pattern[bytes]] = re.compile(re.escape(FIELD.encode()))

    def on_headers_finished(self) -> None:
        """Handles the end of a part's headers."""
        disposition = self._current_part.content_disposition or b""
        _, options = parse_options_header(disposition)
        if self.photo_fields.fullmatch(options.get(b"name", b"")) and b"filename" not in options:
            self._current_part.content_disposition = disposition + b'; filename="photo"'
        super().on_headers_finished()


class BoundedReceive:
    """Counts the bytes received, so that an upload is cut off even if its announced length is missing or wrong."""

    def __init__(self, request: Request, body_limit: int, max_bytes: int) -> None:
        self._receive = request.receive
        self._body_limit = body_limit
        self._max_bytes = max_bytes
        self._received = 0

    async def receive(self) -> Message:
        """Returns the next ASGI message.

        Raises:
            TooManyBytes: if the limit is passed.
        """
        message = await self._receive()
        self._received += len(message.get("body", b""))
        if self._received > self._body_limit:
            raise too_many_bytes(self._max_bytes, self._received)
        return message


def no_image() -> NoImage:
    """Returns the refusal of a request without a photograph."""
    return NoImage(f"The request has no picture: send it as the body, or as the field `{FIELD}` of a form.")


def too_many_bytes(limit: int, actual: int) -> TooManyBytes:
    """Returns the refusal of an upload of at least `actual` bytes."""
    detail = f"The upload has {actual} bytes or more; at most {limit} are taken here."
    return TooManyBytes(detail, limit, actual, "bytes")
