"""A service for OpenAI's clients: the routes over a fake pipeline, behind the guard, on a port of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edge import guarded
from fakes import FakePipeline
from openai import OpenAI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.web.routes import create_app
from serve_app.web.traffic import Answered, Observer


class WithRequestId:
    """ASGI middleware that adds the id of a request to its answer, as Serve's proxy does behind the guard."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id)]}
            await send(message)

        request_id = dict(scope["headers"])[b"x-request-id"]
        await self._app(scope, receive, send_with_id)


class Heard:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.answers: list[Answered] = []

    def answered(self, answer: Answered) -> None:
        self.answers.append(answer)


class Door:
    """A running service and the official client of it.

    Attributes:
        address: without `/v1`.
        pipeline: behind it.
    """

    def __init__(self, address: str, pipeline: FakePipeline) -> None:
        self.address = address
        self.pipeline = pipeline
        self.openai = self.client()

    def client(self, **options: Any) -> OpenAI:
        """The official client; by default it sends nothing again."""
        return OpenAI(**{"base_url": f"{self.address}/v1", "api_key": "unused", "max_retries": 0, **options})


@contextmanager
def door(pipeline: FakePipeline | None = None, observer: Observer | None = None, **guard: object) -> Iterator[Door]:
    """Serves a pipeline."""
    pipeline = pipeline or FakePipeline()
    with guarded(WithRequestId(create_app(pipeline, observer)), **guard) as address:  # type: ignore[arg-type]
        served = Door(address, pipeline)
        try:
            yield served
        finally:
            served.openai.close()
