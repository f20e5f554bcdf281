"""Reads the photograph of an HTTP request in bounded memory: a raw body, or the multipart field `image`."""

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from serve_app.errors import NoImage, TooManyBytes

FIELD = "image"
FORM_OVERHEAD_BYTES = 64 * 1024  # boundaries, part headers and small fields around the photograph


async def read_upload(request: Request, max_bytes: int) -> bytes:
    """Returns the bytes of the photograph, whatever media type is claimed: its format is recognised by content later.

    Raises:
        NoImage: if the body is empty or the form has no file in its field `image`.
        TooManyBytes: as soon as more than `max_bytes` are announced or received.
    """
    is_form = request.headers.get("content-type", "").lower().startswith("multipart/form-data")
    body_limit = max_bytes + FORM_OVERHEAD_BYTES if is_form else max_bytes
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > body_limit:
        raise too_many_bytes(max_bytes, int(announced))
    bounded = Request(request.scope, BoundedReceive(request, body_limit, max_bytes).receive)
    data = await read_form(bounded) if is_form else await bounded.body()
    if not data:
        raise NoImage("The request has no picture: send it as the body, or as the file field `image` of a form.")
    if len(data) > max_bytes:
        raise too_many_bytes(max_bytes, len(data))
    return data


async def read_form(request: Request) -> bytes:
    """Returns the file in the field `image` of a form.

    Raises:
        NoImage: if there is none, or the form is malformed.
    """
    try:
        async with request.form(max_files=1, max_fields=20) as form:
            upload = form.get(FIELD)
            if not isinstance(upload, UploadFile):
                raise NoImage(f"The form has no file in its field `{FIELD}`.")
            return await upload.read()
    except HTTPException as error:  # the parser's verdict on a malformed form
        raise NoImage(f"The form cannot be read; send one file in its field `{FIELD}`.") from error


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


def too_many_bytes(limit: int, actual: int) -> TooManyBytes:
    """Returns the refusal of an upload of at least `actual` bytes."""
    detail = f"The upload has {actual} bytes or more; at most {limit} are taken here."
    return TooManyBytes(detail, limit, actual, "bytes")
