"""An HTTP server as Serve's proxy is one: uvicorn with the guard in front of an application."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from service import free_port
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.jobs.news import News
from serve_app.settings import GuardSettings
from serve_app.web.connection import GuardedProtocol
from serve_app.web.draining import Draining
from serve_app.web.guard import Guard, GuardObserver, Site
from serve_app.web.request_log import GuardLog


@contextmanager
def guarded(
    app: ASGIApp,
    site: Site | None = None,
    observer: GuardObserver | None = None,
    news: News | None = None,
    port: int | None = None,
    draining: Draining | None = None,
    **settings: object,
) -> Iterator[str]:
    """Serves an application behind the guard; yields its address. By default on any free port."""
    known = site or Site()
    limits = GuardSettings.model_validate(settings)
    protocol = type("Protocol", (GuardedProtocol,), {"header_timeout_s": limits.header_timeout_s})
    config = uvicorn.Config(
        GuardLog(Guard(app, limits, site, observer, news, draining), known.trusted_proxies, known.log_clients),
        port=port or free_port(),
        http=protocol,
        lifespan="off",
        access_log=False,
        log_level="critical",
        forwarded_allow_ips="",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{config.port}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


class Echo:
    """An application that takes a body and tells what it got; it keeps every scope.

    Attributes:
        may_answer: it waits for this before it answers.
    """

    def __init__(self) -> None:
        self.scopes: list[Scope] = []
        self.bodies: list[bytes] = []
        self.inside = 0
        self.gone = 0
        self.may_answer = threading.Event()
        self.may_answer.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        import asyncio

        self.scopes.append(scope)
        self.inside += 1
        try:
            body, more = b"", True
            while more:
                message = await receive()
                body += message.get("body", b"")
                more = message.get("more_body", False)
            self.bodies.append(body)
            leaving = asyncio.ensure_future(receive())
            while not self.may_answer.is_set():
                await asyncio.wait({leaving}, timeout=0.02)
                if leaving.done():
                    self.gone += 1
                    return
            leaving.cancel()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
            await send({"type": "http.response.body", "body": b"ok"})
        finally:
            self.inside -= 1

    def headers(self) -> dict[bytes, bytes]:
        """The headers of the last request."""
        return dict(self.scopes[-1]["headers"])
