"""Requests whose client has gone: Ray raises errors for them in many places, and none of them is a fault."""

import logging

from ray.exceptions import RayError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import RequestCancelledError
from starlette.types import ASGIApp, Message, Receive, Scope, Send


def is_cancellation(error: BaseException | None) -> bool:
    """Returns whether an error only says that a task was cancelled."""
    if isinstance(error, RayTaskError):
        return isinstance(error, TaskCancelledError) or is_cancellation(error.cause)
    return isinstance(error, TaskCancelledError | RequestCancelledError)


class DisconnectOnCancel:
    """ASGI middleware that says what is so when the proxy cancels its part of a request: the client has gone."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""

        async def receive_or_disconnect() -> Message:
            try:
                return await receive()
            except RayError:
                return {"type": "http.disconnect"}

        await self._app(scope, receive_or_disconnect, send)


def log_no_cancellations() -> None:
    """Keeps asyncio from logging cancelled calls whose answer nobody waits for any more."""

    def is_worth_a_line(record: logging.LogRecord) -> bool:
        return not (record.exc_info and is_cancellation(record.exc_info[1]))

    logging.getLogger("asyncio").addFilter(is_worth_a_line)
