"""Receivers of webhooks on this machine, and couriers that may reach them."""

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from jobstores import Bench

from serve_app.jobs.courier import Courier
from serve_app.jobs.words import Job
from serve_app.settings import WebhookSettings

SECRET = bytes(range(32))
LOCAL: dict[str, Any] = {"secret": "env:SECRET", "allow_http": True, "allow_networks": ("127.0.0.0/8",)}

Answer = int | Callable[[web.Request], Awaitable[web.StreamResponse]]


class Receiver:
    """An HTTP server that remembers what it was sent.

    Attributes:
        answers: statuses or handlers, one for each request; then 204.
        requests: headers and bodies, in order.
        most: requests at the same time, at most.
    """

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.now = self.most = 0
        self.port = 0

    def url(self, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}/hook?token=t0ken"

    @property
    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.requests]

    @asynccontextmanager
    async def listening(self, context: ssl.SSLContext | None = None, port: int = 0) -> AsyncIterator["Receiver"]:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context).start()
        self.port = runner.addresses[0][1]
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            body = await request.read()
            self.requests.append(({name.lower(): value for name, value in request.headers.items()}, body))
            answer = self.answers.pop(0) if self.answers else 204
            return web.Response(status=answer) if isinstance(answer, int) else await answer(request)
        finally:
            self.now -= 1


async def slow(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(3600)
    raise AssertionError


class Outcomes:
    def __init__(self) -> None:
        self.seen: list[str] = []

    def sent(self, outcome: str) -> None:
        self.seen.append(outcome)


class Names:
    """A name server whose answers change: one after another, the last again and again."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if not answer:
            raise OSError("Name or service not known")
        return answer


def describe(job: Job) -> dict[str, Any]:
    return {"id": job.id, "status": job.status}


@asynccontextmanager
async def delivering(bench: Bench, names: Names | None = None, **settings: Any) -> AsyncIterator[Outcomes]:
    outcomes = Outcomes()
    webhooks = WebhookSettings(**LOCAL | settings)
    courier = Courier(bench.store, webhooks, SECRET, describe, outcomes, names, jitter=lambda: 0.5)
    courier.start()
    try:
        yield outcomes
        assert courier.fault() is None
    finally:
        await courier.stop()


def certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, Path]:
    """A server's context for a name, and the file of the certificate, which signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = folder / f"{name}.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file)
    return context, file
