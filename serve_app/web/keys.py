"""API keys: who may paint, and which share of the queue is theirs.

A key is 32 random bytes, so nobody finds it from its hash, however fast the hash is: SHA-256 without a salt is enough.
Slow hashes such as bcrypt are for passwords that people choose, and would cost every request a tenth of a second.

The hashes lie in a file or in an environment variable, one a line: `name:sha256:HEX`, or `name:sha256:HEX:SHARE`.
"""

import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Protocol

from serve_app.errors import SettingsError, Unauthorized
from serve_app.frames import Client
from serve_app.settings import IngressSettings

logger = logging.getLogger(__name__)

KEY_PREFIX = "ag_"  # by which people and secret scanners know a key
KEY_BYTES = 32
LINE = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]{0,63}):sha256:(?P<hex>[0-9A-Fa-f]{64})(:(?P<share>\d*\.?\d+))?", re.ASCII
)
BEARER = re.compile(r"bearer +(?P<key>[^\s,]+)", re.IGNORECASE)
ANONYMOUS = "anonymous"  # the group of all clients without a key
OPEN_TO_OTHERS = 0o026  # bits of a file's mode: the group may write, others may read or write
RECHECK_S = 1.0  # between two looks at the key file

NO_KEY = "This service asks for an API key: send it as `Authorization: Bearer KEY` or as `X-API-Key: KEY`."
UNKNOWN_KEY = "The API key is not known here."
TWO_KEYS = "The request has several API keys; send one."
MALFORMED = "The header Authorization must read `Bearer KEY`; other schemes are not taken here."
EMPTY_KEY = "The header X-API-Key must hold one API key."
NOT_SAID = (
    "not given, and the service listens on more than this machine: set file:/ABSOLUTE/PATH or env:VARIABLE for API "
    "keys, or off to let anybody paint"
)


@dataclass(frozen=True)
class Key:
    """One API key, known by its SHA-256.

    Attributes:
        name: whose key it is. One name may have several keys, the old and the new one for example.
        digest: 32 bytes.
        share: the part of the queue that the name may hold.
    """

    name: str
    digest: bytes
    share: float = 1.0


class Keys(Protocol):
    """Decides who may paint."""

    def identify(self, authorization: Sequence[str], api_key: Sequence[str], address: str) -> Client:
        """Returns whose request it is.

        Args:
            authorization: the request's Authorization lines.
            api_key: its X-API-Key lines.
            address: of the client, as far as it can be known.

        Raises:
            Unauthorized: if this client may not paint.
        """


class KeysOff:
    """`keys: off`. Anybody may paint, and keys that a client sends all the same are not looked at."""

    def identify(self, authorization: Sequence[str], api_key: Sequence[str], address: str) -> Client:
        """Returns the client of an address."""
        return Client(address)


class KeyRing:
    """Keys, and perhaps a share for clients without one. Without either it lets nobody in.

    Args:
        keys: the known ones.
        anonymous_share: the part of the queue that all clients without a key may hold together; 0 refuses them.
    """

    def __init__(self, keys: Sequence[Key] = (), anonymous_share: float = 0.0) -> None:
        self._keys = tuple(keys)
        self._anonymous_share = anonymous_share

    def identify(self, authorization: Sequence[str], api_key: Sequence[str], address: str) -> Client:
        """Returns the client of the key that was sent; a wrong key is refused even where none is needed."""
        sent = sent_key(authorization, api_key)
        if sent is not None:
            key = self.find(sent)
            return Client(f"key:{key.name}", key.share)
        if not self._anonymous_share:
            raise Unauthorized(NO_KEY)
        return Client(address, self._anonymous_share, ANONYMOUS)

    def find(self, sent: str) -> Key:
        """Returns the entry of a key.

        Raises:
            Unauthorized: if there is none.
        """
        digest = hashlib.sha256(sent.encode("latin-1")).digest()  # the bytes as they came: headers are decoded so
        found = None
        for key in self._keys:  # all of them, so that the time says nothing about the one that was found
            if hmac.compare_digest(key.digest, digest):
                found = key
        if found is None:
            raise Unauthorized(UNKNOWN_KEY)
        return found


class KeyFile:
    """A key ring that follows its file: a changed file counts within a second, if it can be read.

    Args:
        path: of the file.
        anonymous_share: as of `KeyRing`.
        clock: seconds, monotonic.

    Raises:
        SettingsError: if the file cannot be read, is malformed or holds no key.
    """

    def __init__(self, path: Path, anonymous_share: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._anonymous_share = anonymous_share
        self._clock = clock
        self._checked_s = clock()
        self._version = file_version(path)
        keys = read_key_file(path)
        if not keys:
            raise SettingsError(f"the key file {path} holds no key; `animegan keys new NAME` makes one")
        self._ring = KeyRing(keys, anonymous_share)

    def identify(self, authorization: Sequence[str], api_key: Sequence[str], address: str) -> Client:
        """Identifies a client by the file as it is now."""
        self._follow()
        return self._ring.identify(authorization, api_key, address)

    def _follow(self) -> None:
        now = self._clock()
        if now - self._checked_s < RECHECK_S:
            return
        self._checked_s = now
        version = file_version(self._path)
        if version == self._version:
            return
        self._version = version
        try:
            keys = read_key_file(self._path)
        except SettingsError as error:
            logger.error("%s; the keys that were read before stay valid", error)
            return
        self._ring = KeyRing(keys, self._anonymous_share)
        logger.warning("the key file %s has changed; it holds %d keys now", self._path, len(keys))


def load_keys(settings: IngressSettings, host: str | None) -> Keys:
    """Returns the keys that the settings name.

    Args:
        settings: `keys` and `anonymous_share` count here.
        host: the address that the service listens on, None if it does not.

    Raises:
        SettingsError: if keys are neither given nor off on a service that other machines may reach, or cannot be read.
    """
    if settings.keys is None and not is_private(host):
        raise SettingsError(f"Ingress.user_config.keys: {NOT_SAID}")
    kind, _, source = (settings.keys or "off").partition(":")
    try:
        if kind == "file":
            return KeyFile(Path(source), settings.anonymous_share)
        if kind == "env":
            return KeyRing(read_key_variable(source), settings.anonymous_share)
    except SettingsError as error:
        raise SettingsError(f"Ingress.user_config.keys: {error}") from None
    if not is_private(host):
        logger.warning("keys: off, and the service listens on %s: anybody who reaches it may paint", host)
    return KeysOff()


def is_private(host: str | None) -> bool:
    """Returns whether only this machine reaches what listens on a host; None listens nowhere."""
    if host is None or host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def sent_key(authorization: Sequence[str], api_key: Sequence[str]) -> str | None:
    """Returns the key of a request's Authorization and X-API-Key lines; None if there are no such lines.

    Raises:
        Unauthorized: if a line holds no key, or if they hold different ones.
    """
    sent = set()
    for line in authorization:
        match = BEARER.fullmatch(line.strip())
        if match is None:
            raise Unauthorized(MALFORMED)
        sent.add(match["key"])
    for line in api_key:
        if not line.strip():
            raise Unauthorized(EMPTY_KEY)
        sent.add(line.strip())
    if len(sent) > 1:
        raise Unauthorized(TWO_KEYS)
    return next(iter(sent), None)


def file_version(path: Path) -> tuple[int, int, int] | None:
    """Returns what differs when a file, its owner or its mode has been changed; None if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ctime_ns, status.st_size, status.st_ino  # a file may be unreadable until its owner or mode changes


def read_key_file(path: Path) -> tuple[Key, ...]:
    """Reads a key file, and warns if other users may change or read it.

    Raises:
        SettingsError: if it cannot be read or is malformed.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        mode = path.stat().st_mode & 0o777
    except OSError as error:
        raise SettingsError(f"the key file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"the key file {path} cannot be read: it is not text") from None
    if mode & OPEN_TO_OTHERS:
        logger.warning("the key file %s is open to other users (mode %04o); chmod 600 closes it", path, mode)
    return parse_keys(text, f"the key file {path}")


def read_key_variable(name: str) -> tuple[Key, ...]:
    """Reads keys from an environment variable, where `;` may end a line too.

    Raises:
        SettingsError: if it is malformed or holds no key.
    """
    keys = parse_keys(os.environ.get(name, "").replace(";", "\n"), f"the variable {name}")
    if not keys:
        raise SettingsError(f"the variable {name} holds no key; `animegan keys new NAME` makes one")
    return keys


def parse_keys(text: str, where: str) -> tuple[Key, ...]:
    """Parses lines `name:sha256:HEX` or `name:sha256:HEX:SHARE`; `#` begins a comment.

    Raises:
        SettingsError: naming the first wrong line by its number. Its content may be a key, and is not shown.
    """
    keys: dict[bytes, Key] = {}
    shares: dict[str, float] = {}
    for number, line in enumerate(text.split("\n"), 1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        try:
            key = parse_key(entry)
        except ValueError as error:
            raise SettingsError(f"{where}, line {number}: {error}") from None
        if key.digest in keys:
            raise SettingsError(f"{where}, line {number}: the same key is in an earlier line")
        if shares.setdefault(key.name, key.share) != key.share:
            raise SettingsError(f"{where}, line {number}: an earlier line gives the same name another share")
        keys[key.digest] = key
    return tuple(keys.values())


def parse_key(entry: str) -> Key:
    """Parses one line.

    Raises:
        ValueError: saying what is wrong without showing it.
    """
    match = LINE.fullmatch(entry)
    if match is None:
        raise ValueError("not name:sha256:HEX or name:sha256:HEX:SHARE, as `animegan keys new NAME` prints it")
    share = float(match["share"] or 1)
    if not 0 < share <= 1:
        raise ValueError("the share must be above 0 and at most 1")
    return Key(match["name"], bytes.fromhex(match["hex"]), share)


def new_key(name: str, share: float | None = None) -> tuple[str, str]:
    """Returns a new key, and its line for a key file.

    Raises:
        SettingsError: if the name or the share cannot be in such a line.
    """
    key = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    line = f"{name}:sha256:{hashlib.sha256(key.encode()).hexdigest()}" + ("" if share is None else f":{share:g}")
    try:
        parse_key(line)
    except ValueError:
        raise SettingsError(
            "a key's name has 1 to 64 letters, digits, `.`, `_` and `-`, a letter or a digit first; its share is above "
            "0 and at most 1"
        ) from None
    return key, line
