"""One attempt to deliver a webhook. It reaches only addresses that may be called, whatever a name resolves to.

The name is resolved once, all of its addresses are checked, and the connection goes to one of these. So a name server
that answers differently the next time gains nothing.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from ipaddress import ip_address
from typing import Literal

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from serve_app.jobs.callbacks import Network, is_allowed, literal_address
from serve_app.settings import WebhookSettings

logger = logging.getLogger(__name__)

READ_BYTES = 4096  # of an answer, whose body nobody looks at
RESOLVING = 32  # names at a time: an attempt may end long before the system's resolver gives up
AGENT = "animegan-serve"

Outcome = Literal["delivered", "failed", "refused"]  # "failed" may pass, "refused" never will
LookUp = Callable[[str], Awaitable[Sequence[str]]]


class NotAllowed(Exception):
    """An address that may not be called."""


class Delivery:
    """Sends messages to their URLs. For one event loop.

    Args:
        settings: what may be called.
        look_up: returns the addresses of a name, or raises OSError; by default the system's.
    """

    def __init__(self, settings: WebhookSettings, look_up: LookUp | None = None) -> None:
        self._settings = settings
        self._threads = ThreadPoolExecutor(RESOLVING, "names")
        self._resolver = CheckedResolver(settings.allow_networks, look_up or self._system_look_up)
        self._session: aiohttp.ClientSession | None = None

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Outcome:
        """Posts a message, and returns what came of it. A redirection is not followed."""
        target = URL(url, encoded=True)
        address = literal_address(target.host or "")
        if target.scheme != "https" and not self._settings.allow_http:
            return "refused"
        if address is not None and not is_allowed(address, self._settings.allow_networks):
            return "refused"
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                async with self._opened().post(target, data=body, headers=headers, allow_redirects=False) as answer:
                    return outcome_of(answer.status)
        except NotAllowed:
            return "refused"
        except (aiohttp.ClientError, OSError) as error:  # a TimeoutError is an OSError
            logger.info("a webhook to %s was not delivered: %s", target.host, type(error).__name__)
            return "failed"

    async def close(self) -> None:
        """Closes all connections."""
        if self._session is not None:
            await self._session.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:  # aiohttp wants a running loop
            connector = aiohttp.TCPConnector(
                resolver=self._resolver,
                use_dns_cache=False,
                force_close=True,  # a connection that is used again would not be checked again
                socket_factory=self._checked_socket,
                ssl=ssl.create_default_context(),  # with the system's authorities, or those of SSL_CERT_FILE
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                headers={"User-Agent": AGENT},
                skip_auto_headers=("Accept-Encoding",),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=self._settings.timeout_s),
                auto_decompress=False,
                read_bufsize=READ_BYTES,
                trust_env=False,
            )
        return self._session

    def _checked_socket(self, info: aiohttp.AddrInfoType) -> socket.socket:
        """Returns a socket for an address, whichever way aiohttp came by that."""
        family, kind, protocol, _, place = info
        check([str(place[0])], self._settings.allow_networks)
        return socket.socket(family=family, type=kind, proto=protocol)

    async def _system_look_up(self, host: str) -> Sequence[str]:
        def resolve() -> list[str]:
            try:
                found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            except UnicodeError:  # a name that cannot be in a question to a name server
                raise OSError("not a name") from None
            return list(dict.fromkeys(str(place[0]) for *_, place in found))

        return await asyncio.get_running_loop().run_in_executor(self._threads, resolve)


class CheckedResolver(AbstractResolver):
    """Resolves names to addresses that may be called.

    Args:
        networks: that may be called though they are not public.
        look_up: returns the addresses of a name, or raises OSError.
    """

    def __init__(self, networks: Sequence[Network], look_up: LookUp) -> None:
        self._networks = networks
        self._look_up = look_up

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Returns all addresses of a name.

        Raises:
            NotAllowed: if any of them may not be called.
            OSError: if there is none.
        """
        addresses = await self._look_up(host)
        check(addresses, self._networks)
        if not addresses:
            raise OSError("the name has no address")
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        """Closes nothing."""


def check(addresses: Sequence[str], networks: Sequence[Network]) -> None:
    """Checks addresses before they are called.

    Raises:
        NotAllowed: if any of them may not be called, or is written in an unusual way.
    """
    try:
        if all(is_allowed(ip_address(address), networks) for address in addresses):
            return
    except ValueError:
        pass
    raise NotAllowed


def outcome_of(status: int) -> Outcome:
    """Returns what the status of an answer says of a message."""
    if 200 <= status < 300:
        return "delivered"
    return "refused" if 300 <= status < 400 or status == HTTPStatus.GONE else "failed"
