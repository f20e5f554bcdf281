"""Has photographs painted by a running service, a few at a time, and waits when it asks for that."""

import asyncio
import os
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import requests
from pydantic import ValidationError
from requests.adapters import HTTPAdapter
from urllib3 import BaseHTTPResponse, Retry
from urllib3.exceptions import HTTPError, NewConnectionError

from serve_app.cli.paint.photographs import PhotographError
from serve_app.errors import AnimeganError
from serve_app.frames import EncodedImage, ImageFormat, Receipt, Size
from serve_app.images.encode import MEDIA_TYPES
from serve_app.styles.text import printable
from serve_app.web.schemas import PROBLEM, Problem, StyleList

KEY_VARIABLE = "ANIMEGAN_API_KEY"
AT_ONCE = 4
CONNECT_S, ANSWER_S = 10, 180  # a service answers within its `timeout_s`, 55 by default
MAX_ANSWER_BYTES = 512 * 2**20
BUSY = (429, 502, 503, 504)  # the service, or a balancer before it, has no room now
TRIES_WHILE_BUSY, TRIES_TO_CONNECT, TRIES_AFTER_A_BREAK = 10, 5, 3  # after the first
LONGEST_WAIT_S = 600  # that a service may ask for
FORBIDDEN = (401, 403)


class TooLongToWait(HTTPError):
    """A service that asks to be left alone for longer than `LONGEST_WAIT_S`."""


class PatientRetry(Retry):
    """Tries again when the service is busy: after its `Retry-After`, else after pauses that double.

    Raises:
        TooLongToWait: if it asks for too much.
    """

    def parse_retry_after(self, retry_after: str) -> float:
        """Returns the seconds of a `Retry-After`."""
        seconds = super().parse_retry_after(retry_after)
        if seconds > LONGEST_WAIT_S:
            raise TooLongToWait(f"The service asks to be tried again in {seconds:.0f} seconds.")
        return seconds


class RemotePainter:
    """Paints by a running service; a context manager.

    Args:
        url: of the service, without `/v1`.
        key: an API key of it; None for none.
        style: None for the service's default.
        max_side: None for the service's default.
        quality: None for each format's default.
        tell: is called with a sentence, in any thread, when the service is gone and will be tried again.

    Attributes:
        max_bytes: of one photograph, as the service says.

    Raises:
        AnimeganError: if the service cannot be reached, or does not paint with these options.
    """

    at_once = AT_ONCE

    def __init__(
        self,
        url: str,
        key: str | None,
        style: str | None,
        max_side: int | None,
        quality: int | None,
        tell: Callable[[str], None],
    ) -> None:
        self._url = checked_url(url)
        self._tell = tell
        self._is_gone = False  # as far as it was told
        options = {"style": style, "max_side": max_side, "quality": quality}
        self._options = {name: value for name, value in options.items() if value is not None}
        self._session = open_session(key)
        retry = patient_retry(self._tell_once)
        self._session.mount(f"{self._url}/v1/stylize", HTTPAdapter(pool_maxsize=AT_ONCE, max_retries=retry))
        self.max_bytes = self._check_options(self._read_styles())

    async def __aenter__(self) -> "RemotePainter":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._session.close()

    def held_bytes(self, file_bytes: int) -> int:
        """Returns a bound on the memory of a photograph and its painting, which is seldom the larger one."""
        return 2 * file_bytes

    async def paint(self, data: bytes, format: ImageFormat) -> EncodedImage:
        """Sends the bytes of a photograph, and returns what the service answers.

        Raises:
            PhotographError: if it refuses this one, or is too busy for too long.
            AnimeganError: if it lets nobody without another key paint, or cannot be reached any more.
        """
        return await asyncio.wrap_future(in_thread(lambda: self._send(data, format)))

    def _send(self, data: bytes, format: ImageFormat) -> EncodedImage:
        try:
            with self._session.post(
                f"{self._url}/v1/stylize",
                params={**self._options, "format": format},
                data=data,
                headers={"Content-Type": "application/octet-stream", "Accept": MEDIA_TYPES[format]},
                timeout=(CONNECT_S, ANSWER_S),
                allow_redirects=False,
                stream=True,
            ) as answer:
                content = read_answer(answer)
                self._is_gone = False
        except TooLongToWait as error:
            raise PhotographError("too-busy", str(error)) from None
        except (requests.RequestException, HTTPError) as error:
            if is_unreachable(error):
                raise AnimeganError(f"{self._url} cannot be reached any more: {reason(error)}") from None
            raise PhotographError("no-answer", f"The service has not answered: {reason(error)}.") from None
        if answer.status_code != 200:
            raise refusal(answer.status_code, answer.headers, content)
        return painting(answer.headers, content, MEDIA_TYPES[format])

    def _tell_once(self) -> None:
        if not self._is_gone:
            self._is_gone = True
            self._tell(f"{self._url} does not answer; it is tried again for a while")

    def _read_styles(self) -> StyleList:
        try:
            answer = self._session.get(
                f"{self._url}/v1/styles", timeout=(CONNECT_S, CONNECT_S), allow_redirects=False, stream=True
            )
            with answer:
                return StyleList.model_validate_json(read_answer(answer))
        except ValidationError:
            raise AnimeganError(f"{self._url} does not answer as animegan-serve does") from None
        except (requests.RequestException, HTTPError) as error:
            raise AnimeganError(f"{self._url} cannot be reached: {reason(error)}") from None

    def _check_options(self, service: StyleList) -> int:
        """Checks options that every photograph shares, and returns the service's limit of bytes.

        Raises:
            AnimeganError: if the service refuses them.
        """
        installed = sorted(style.name for style in service.styles if style.installed)
        wanted, max_side = self._options.get("style"), self._options.get("max_side")
        if wanted is not None and wanted not in installed:
            names = printable(", ".join(installed))
            raise AnimeganError(f"{self._url} has no style {wanted!r}; installed there are: {names}")
        if isinstance(max_side, int) and max_side > service.max_side:
            raise AnimeganError(f"--max-side is {max_side}; {self._url} paints {service.max_side} pixels at most")
        return service.max_bytes


def in_thread(send: Callable[[], EncodedImage]) -> Future[EncodedImage]:
    """Starts to send a photograph in a thread of its own, which does not outlive the program.

    One of an executor would: a run that has ended would wait for a service's `Retry-After`.
    """
    future: Future[EncodedImage] = Future()

    def run() -> None:
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(send())
            except BaseException as error:
                future.set_exception(error)

    threading.Thread(target=run, name="send", daemon=True).start()
    return future


def checked_url(url: str) -> str:
    """Returns the address of a service without a slash at its end.

    Raises:
        AnimeganError: if it cannot be one.
    """
    try:
        parts = urlsplit(url)
        is_web = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_web = False
    if not is_web or parts.query or parts.fragment:
        raise AnimeganError("--url is the address of a service, for example http://127.0.0.1:8000")
    if parts.username is not None or parts.password is not None:
        raise AnimeganError(f"--url holds a secret, which other users can see; put the key into {KEY_VARIABLE}")
    return url.rstrip("/")


def read_key(environment: Mapping[str, str] = os.environ) -> str | None:
    """Returns the API key that the environment holds; None if there is none.

    Raises:
        AnimeganError: if it cannot be one.
    """
    key = environment.get(KEY_VARIABLE, "").strip()
    if not re.fullmatch(r"[!-~]*", key):
        raise AnimeganError(f"{KEY_VARIABLE} holds what cannot be a key: a space, or more than ASCII")
    return key or None


def open_session(key: str | None) -> requests.Session:
    """Returns a session that sends a key."""
    session = requests.Session()
    session.auth = without_netrc
    session.headers["User-Agent"] = "animegan"
    if key is not None:
        session.headers["X-API-Key"] = key
    return session


def patient_retry(tell: Callable[[], None]) -> PatientRetry:
    """Returns how a photograph is sent again. The answer to the last attempt is returned, whatever it is.

    Args:
        tell: is called before each pause after an attempt that nobody has answered.
    """

    class TellingRetry(PatientRetry):
        def sleep(self, response: BaseHTTPResponse | None = None) -> None:
            if response is None:
                tell()
            super().sleep(response)

    return TellingRetry(
        total=TRIES_WHILE_BUSY,
        connect=TRIES_TO_CONNECT,
        read=TRIES_AFTER_A_BREAK,
        other=TRIES_AFTER_A_BREAK,
        status_forcelist=BUSY,
        allowed_methods=None,  # all: painting has no side effects
        backoff_factor=1,
        backoff_jitter=1,
        backoff_max=60,
        raise_on_status=False,
    )


def without_netrc(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Leaves a request as it is: by default, requests would add a password of the file ~/.netrc."""
    return request


def read_answer(answer: requests.Response) -> bytes:
    """Returns the body of an answer.

    Raises:
        requests.RequestException: if it breaks off.
        HTTPError: if it is too long.
    """
    parts: list[bytes] = []
    count = 0
    for part in answer.iter_content(2**16):
        parts.append(part)
        count += len(part)
        if count > MAX_ANSWER_BYTES:
            raise HTTPError(f"its answer has more than {MAX_ANSWER_BYTES} bytes")
    return b"".join(parts)


def refusal(status: int, headers: Mapping[str, Any], content: bytes) -> AnimeganError:
    """Returns the error of an answer that is no painting; a `PhotographError` if others may be painted."""
    code, detail = f"http-{status}", f"The service answered {status}."
    if str(headers.get("Content-Type", "")).startswith(PROBLEM):
        try:
            problem = Problem.model_validate_json(content)
            code, detail = printable(problem.code), printable(problem.detail)
        except ValidationError:
            pass
    if status in FORBIDDEN:
        return AnimeganError(f"{detail} (the key is read from {KEY_VARIABLE})")
    return PhotographError(code, detail)


def painting(headers: Mapping[str, str], content: bytes, media_type: str) -> EncodedImage:
    """Returns the painting of an answer.

    Raises:
        PhotographError: if it is something else.
    """
    try:
        original, painted = (size_of(headers[name]) for name in ("X-Original-Size", "X-Painted-Size"))
        if headers["Content-Type"] != media_type:
            raise ValueError(headers["Content-Type"])
        return EncodedImage(content, media_type, Receipt(printable(headers["X-Style"]), original, painted))
    except (KeyError, ValueError):
        raise PhotographError("no-painting", "The service answered something else than a painting.") from None


def size_of(header: str) -> Size:
    """Returns a size that is written as width x height.

    Raises:
        ValueError: if it is not.
    """
    width, height = header.split("x")
    return Size(int(height), int(width))


def is_unreachable(error: Exception) -> bool:
    """Returns whether there was no connection at all; one that breaks off may be a photograph's fault."""
    reasons = [getattr(each, "reason", None) for each in error.args]
    return isinstance(error, requests.ConnectTimeout) or any(isinstance(each, NewConnectionError) for each in reasons)


def reason(error: Exception) -> str:
    """Returns why a request failed, in the words of the system; those of requests name objects of Python."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        nested = (getattr(cause, "reason", None), *cause.args, cause.__cause__, cause.__context__)
        cause = next((each for each in nested if isinstance(each, BaseException)), None)
    return "no answer in time" if isinstance(error, requests.Timeout) else printable(type(error).__name__)
