"""The secret that webhooks are signed with: its place, and what each client gets of it.

The service's secret signs nothing itself. Each client has one that is derived from it, so that no client can sign
messages to another.
"""

import base64
import binascii
import hashlib
import hmac
import logging
import os
import secrets
from pathlib import Path

from serve_app.errors import SettingsError

logger = logging.getLogger(__name__)

PREFIX = "whsec_"  # as Standard Webhooks writes secrets
LEAST_BYTES = 24
NEW_BYTES = 32
OPEN_TO_OTHERS = 0o077  # bits of a file's mode
HOW_TO = "`animegan jobs new-webhook-secret` makes one"


def read_secret(source: str) -> bytes | None:
    """Reads the service's secret from the place that the setting `secret` names; None if that is `off`.

    Raises:
        SettingsError: if it is not there, or is none. What is there may be a secret, and is not shown.
    """
    kind, _, place = source.partition(":")
    if kind == "off":
        return None
    try:
        text = read_secret_file(Path(place)) if kind == "file" else os.environ[place]
        return parse_secret(text)
    except KeyError:
        raise SettingsError(f"jobs.webhooks.secret: the variable {place} is not set; {HOW_TO}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"jobs.webhooks.secret: {place} is not text; {HOW_TO}") from None
    except OSError as error:
        raise SettingsError(f"jobs.webhooks.secret: {place} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise SettingsError(f"jobs.webhooks.secret: what {place} holds {error}; {HOW_TO}") from None


def read_secret_file(path: Path) -> str:
    """Returns the text of a file, and warns if other users may read or change it."""
    mode = path.stat().st_mode & 0o777
    if mode & OPEN_TO_OTHERS:
        logger.warning(
            "the secret of webhooks in %s is open to other users (mode %04o); chmod 600 closes it", path, mode
        )
    return path.read_text(encoding="utf-8-sig")


def parse_secret(text: str) -> bytes:
    """Returns the bytes of a secret.

    Raises:
        ValueError: saying what is wrong without showing it.
    """
    encoded = text.strip()
    if not encoded.startswith(PREFIX):
        raise ValueError(f"does not begin with {PREFIX}")
    try:
        secret = base64.b64decode(encoded.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        raise ValueError("is not in base64") from None
    if len(secret) < LEAST_BYTES:
        raise ValueError(f"has {len(secret)} bytes, which is under {LEAST_BYTES}")
    return secret


def client_secret(secret: bytes, client: str) -> str:
    """Returns the secret of one client, by which it verifies messages.

    Args:
        secret: of the service.
        client: its name as the jobs have it: `key:NAME`, or an address.
    """
    return as_text(hmac.digest(secret, client.encode(), hashlib.sha256))


def new_secret() -> str:
    """Returns a new secret for a service."""
    return as_text(secrets.token_bytes(NEW_BYTES))


def as_text(secret: bytes) -> str:
    """Returns a secret as it is written."""
    return PREFIX + base64.b64encode(secret).decode()
