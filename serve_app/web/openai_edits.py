"""Answers edits of OpenAI's clients: paints their photographs one after another, and sends the paintings in base64.

Each photograph is admitted by itself, as one of /v1/stylize. So however many a request has, its client holds one place
of the queue for it, and other clients' photographs are painted between them.
"""

import asyncio
import base64
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from serve_app.errors import DeadlineExceeded, RequestError, TooBusy
from serve_app.frames import Client, EncodedImage, Size, StylizeRequest
from serve_app.queueing.gate import FairGate
from serve_app.settings import MIB
from serve_app.web import events
from serve_app.web.openai_errors import OF_A_PICTURE, openai_error
from serve_app.web.openai_schemas import MOST_PICTURES, EditCompleted, EditFields, Usage
from serve_app.web.openai_uploads import Edit, base64_bytes, read_edit
from serve_app.web.options import stylize_request, without_waited
from serve_app.web.pipeline import Pipeline
from serve_app.web.receipts import receipt_headers, receipt_info
from serve_app.web.request_log import WAITED, note
from serve_app.web.reuse import paint_or_reuse
from serve_app.web.schemas import Options
from serve_app.web.turns import Turns

HELD_BYTES = 32 * MIB  # of answers with several pictures: they are held until the last one is painted
MAX_HOLDING = 16  # such answers
PNG_BYTES = 4  # per pixel of a painting's file, at most
LOSSY_BYTES = 2


@dataclass(frozen=True)
class Order:
    """What is to be done for a request.

    Attributes:
        edit: as it was sent.
        wanted: how each photograph is painted.
        ends_s: when all have to be painted, by the clock of the event loop.
        client: whose request it is.
    """

    edit: Edit
    wanted: StylizeRequest
    ends_s: float
    client: Client

    @property
    def count(self) -> int:
        """Number of photographs."""
        return len(self.edit.album.photos)

    @property
    def answer_bytes(self) -> int:
        """The most that all pictures of the answer take."""
        box = self.wanted.box or Size(self.wanted.max_side, self.wanted.max_side)
        each = box.pixels * (PNG_BYTES if self.wanted.format == "png" else LOSSY_BYTES)
        return self.count * self.edit.fields.n * base64_bytes(each)

    def left_s(self) -> float:
        """Returns the seconds that are left."""
        return self.ends_s - asyncio.get_running_loop().time()


class Edits:
    """The edits of one process. For one event loop.

    Args:
        pipeline: that paints.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.gate = FairGate(MAX_HOLDING, HELD_BYTES)
        self._turns = Turns(1, 32, "Too many pictures arrive in JSON; try again shortly.")

    @asynccontextmanager
    async def order(self, request: Request, client: Client) -> AsyncIterator[Order]:
        """Reads a request; its photographs are there inside the block.

        Raises:
            RequestError: if it cannot be obeyed.
        """
        async with read_edit(request, self.pipeline.settings.max_bytes, self._turns) as edit:
            wanted = without_waited(painting_request(edit.fields, self.pipeline), request.headers.get(WAITED, ""))
            yield Order(edit, wanted, asyncio.get_running_loop().time() + wanted.timeout_s, client)

    async def paintings(self, order: Order) -> AsyncGenerator[EncodedImage]:
        """Yields the paintings of all photographs in their order, each when it is painted.

        Raises:
            RequestError: if one of them cannot be painted; the sentence says which one.
        """
        for at in range(order.count):
            data = await order.edit.album.read(at)
            try:
                yield await self._painting(data, order, at)
            except RequestError as refusal:
                raise refusal if order.count == 1 else of_one(refusal, at, order.count) from None

    async def _painting(self, data: bytes, order: Order, at: int) -> EncodedImage:
        """Paints one photograph. The first one is refused if there is no room for it, and further ones wait for it."""
        while (left_s := order.left_s()) > 0:
            try:
                return await paint_or_reuse(self.pipeline, data, replace(order.wanted, timeout_s=left_s), order.client)
            except TooBusy as full:
                after_s = full.retry_after_s or 1
                if at == 0 or after_s > order.left_s():
                    raise
                await asyncio.sleep(after_s)
        raise DeadlineExceeded(f"It was not begun within the {order.wanted.timeout_s:g} seconds that all may take.")

    @asynccontextmanager
    async def room(self, order: Order) -> AsyncIterator[None]:
        """Holds room for an answer with several pictures inside the block; clients that wait for it take turns.

        Raises:
            TooBusy: if there is none in time.
        """
        size = order.answer_bytes
        try:
            async with asyncio.timeout(min(order.left_s(), self.pipeline.settings.queue_time_s)):
                await self.gate.acquire(order.client.name, size)
        except TimeoutError:
            after_s = self.gate.retry_after_s
            detail = f"Too many requests with several pictures are being painted; try again in {after_s} s."
            raise TooBusy(detail, retry_after_s=after_s) from None
        entered = time.monotonic()
        try:
            yield
        finally:
            self.gate.release(size, time.monotonic() - entered)


class EditResponse(Response):
    """Paints and answers. Whatever it has begun ends when the client goes away.

    Args:
        edits: does the work.
        request: with nothing of its body read.
        client: whose request it is.
    """

    background = None

    def __init__(self, edits: Edits, request: Request, client: Client) -> None:
        self._edits = edits
        self._request = request
        self._client = client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers.

        Raises:
            RequestError: before anything is sent, if it cannot be obeyed.
            ClientDisconnect: if the client goes away before anything is sent.
        """
        has_begun = False

        async def noted_send(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        async with self._edits.order(self._request, self._client) as order:
            is_done = await unless_gone(receive, self._answer(order, noted_send))
        if not is_done and not has_begun:
            raise ClientDisconnect

    async def _answer(self, order: Order, send: Send) -> None:
        if order.edit.fields.stream:
            await self._stream(order, send)
        elif order.count * order.edit.fields.n == 1:
            await self._collect(order, send)
        else:
            async with self._edits.room(order):
                await self._collect(order, send)

    async def _collect(self, order: Order, send: Send) -> None:
        """Answers with all paintings together, whose pieces are sent as they are: to join them takes as much again."""
        fields, parts, paintings = order.edit.fields, [], []
        async with aclosing(self._edits.paintings(order)) as painted:
            async for painting in painted:
                parts += [image_members(painting)] * fields.n
                paintings.append(replace(painting, data=b""))
        sizes = {size_text(painting.receipt.painted) for painting in paintings}
        members = {
            "output_format": fields.output_format,
            "size": sizes.pop() if len(sizes) == 1 else None,
            "usage": Usage().model_dump(),
        }
        head = b'{"created": %d, "data": [{' % time.time()
        tail = b"}], " + members_of(members) + b"}"
        pieces = [head, *(piece for part in parts for piece in (part, b"}, {"))]
        pieces[-1] = tail
        headers = {"content-type": "application/json", "content-length": str(sum(map(len, pieces)))}
        if order.count == 1:
            note(receipt=paintings[0].receipt)
            headers |= receipt_headers(paintings[0].receipt)
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _stream(self, order: Order, send: Send) -> None:
        """Answers with an event for each painting; a refusal of the first one is an ordinary answer."""
        has_begun = False
        try:
            async with aclosing(self._edits.paintings(order)) as painted:
                async for painting in painted:
                    if not has_begun:
                        await send({"type": "http.response.start", "status": 200, "headers": list(events.HEADERS)})
                        has_begun = True
                    event = completed(painting, order.edit.fields)
                    for _ in range(order.edit.fields.n):
                        await send({"type": "http.response.body", "body": event, "more_body": True})
        except RequestError as refusal:
            if not has_begun:
                raise
            note(outcome=refusal.code)
            event = b"event: error\ndata: " + json.dumps({"type": "error", **openai_error(refusal)}).encode() + b"\n\n"
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def most_held_bytes(max_side: int) -> int:
    """Returns the most that answers with several pictures take together; a larger one is held alone."""
    return max(HELD_BYTES, MOST_PICTURES * base64_bytes(PNG_BYTES * max_side**2))


def painting_request(fields: EditFields, pipeline: Pipeline) -> StylizeRequest:
    """Returns how each photograph of an edit is painted.

    Raises:
        UnknownStyle: if the model is no installed style.
    """
    quality = None if fields.output_compression is None else max(fields.output_compression, 1)
    options = Options.model_construct(
        style=fields.model, max_side=None, format=fields.output_format, quality=quality, timeout_s=None
    )
    wanted = stylize_request(options, None, pipeline)
    if fields.box is None:
        return wanted
    box = Size(*(min(side, wanted.max_side) for side in fields.box))
    # As /v1/stylize has it if it can, so that paintings of either are used again for the other.
    return replace(wanted, max_side=box.longer_side, box=None if box.height == box.width else box)


def of_one(refusal: RequestError, at: int, count: int) -> RequestError:
    """Returns a refusal that says which of several photographs it is about."""
    if refusal.code not in OF_A_PICTURE | {DeadlineExceeded.code}:
        return refusal
    return type(refusal)(f"Picture {at + 1} of {count}: {refusal.detail}", *refusal.args[1:])


def image_members(painting: EncodedImage) -> bytes:
    """Returns the members of a painting in JSON, without braces."""
    more = members_of({"receipt": receipt_info(painting.receipt).model_dump()})
    return b'"b64_json": "' + base64.b64encode(painting.data) + b'", ' + more


def completed(painting: EncodedImage, fields: EditFields) -> bytes:
    """Returns the event of a painting."""
    data = EditCompleted(
        created_at=int(time.time()),
        output_format=fields.output_format,
        size=size_text(painting.receipt.painted),
        receipt=receipt_info(painting.receipt),
    )
    rest = members_of(data.model_dump())
    return (
        b'event: image_edit.completed\ndata: {"b64_json": "'
        + base64.b64encode(painting.data)
        + b'", '
        + rest
        + b"}\n\n"
    )


def members_of(members: dict[str, Any]) -> bytes:
    """Returns members in JSON, without the braces around them."""
    return json.dumps(members).encode()[1:-1]


def size_text(size: Size) -> str:
    """Returns a size as OpenAI writes it."""
    return f"{size.width}x{size.height}"


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> bool:
    """Does work for a client, and gives it up if the client closes the connection; returns whether it was done.

    Args:
        receive: of its request, whose body has been read.
        work: to be done.
    """
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(events.disconnect(receive))
    try:
        await asyncio.wait({working, gone}, return_when="FIRST_COMPLETED")
        if working.done():
            await working
            return True
        return False
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)
