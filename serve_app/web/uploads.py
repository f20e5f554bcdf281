"""One photograph out of an HTTP request, in bounded memory: a raw body, or the multipart field `image`."""

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from serve_app.errors import NoImage, TooManyBytes

FIELD = "image"
FORM_OVERHEAD_BYTES = 64 * 1024  # boundaries, part headers and small fields around the photograph


async def read_upload(request: Request, max_bytes: int) -> bytes:
    """The photograph's bytes, whatever content type a raw body claims: its content tells the format later.

    Raises:
        NoImage: if the body is empty or the form has no file in its field `image`.
        TooManyBytes: as soon as more than `max_bytes` are announced or have arrived.
    """
    is_form = request.headers.get("content-type", "").lower().startswith("multipart/form-data")
    body_limit = max_bytes + FORM_OVERHEAD_BYTES if is_form else max_bytes
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > body_limit:
        raise too_many_bytes(max_bytes, int(announced))
    bounded = Request(request.scope, Counter(request, body_limit, max_bytes).receive)
    data = await read_form(bounded) if is_form else await bounded.body()
    if not data:
        raise NoImage("The request has no picture: send it as the body, or as the file field `image` of a form.")
    if len(data) > max_bytes:
        raise too_many_bytes(max_bytes, len(data))
    return data


async def read_form(request: Request) -> bytes:
    try:
        async with request.form(max_files=1, max_fields=20) as form:
            upload = form.get(FIELD)
            if not isinstance(upload, UploadFile):
                raise NoImage(f"The form has no file in its field `{FIELD}`.")
            return await upload.read()
    except HTTPException as error:  # the parser's verdict on a malformed form
        raise NoImage(f"The form cannot be read; send one file in its field `{FIELD}`.") from error


class Counter:
    """Counts what arrives, so that an upload without an honest length is cut off too."""

    def __init__(self, request: Request, body_limit: int, max_bytes: int) -> None:
        self._receive = request.receive
        self._body_limit = body_limit
        self._max_bytes = max_bytes
        self._received = 0

    async def receive(self) -> Message:
        message = await self._receive()
        self._received += len(message.get("body", b""))
        if self._received > self._body_limit:
            raise too_many_bytes(self._max_bytes, self._received)
        return message


def too_many_bytes(limit: int, actual: int) -> TooManyBytes:
    return TooManyBytes(f"The upload has {actual} bytes or more; at most {limit} are taken here.", limit, actual)
