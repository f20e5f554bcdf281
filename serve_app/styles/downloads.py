"""Downloads checkpoints of the catalogue, with bounds on size and time, and verifies their digests before use."""

import hashlib
import os

import requests
from tqdm import tqdm

from serve_app.errors import StyleError
from serve_app.styles.catalogue import CatalogueEntry
from serve_app.styles.formats import GIT_LFS, WEB_PAGE, identify

MIRROR_VARIABLE = "ANIMEGAN_WEIGHTS_MIRROR"
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10, 30
MAX_BYTES = 64 * 2**20  # of a checkpoint whose size is not in the catalogue; a generator has 8 MB


def download(entry: CatalogueEntry, show_progress: bool = True) -> bytes:
    """Downloads a checkpoint and checks it against the size and digests in the catalogue.

    Raises:
        StyleError: if the file cannot be fetched, or is not the one that the catalogue names.
    """
    if not (entry.sha256 or entry.git_blob):
        raise StyleError(f"The catalogue knows no digest of {entry.file}, so it is not pulled.")
    data = fetch(address_of(entry), entry.bytes, show_progress)
    verify(data, entry)
    return data


def address_of(entry: CatalogueEntry) -> str:
    """Returns the download address: at the mirror if ANIMEGAN_WEIGHTS_MIRROR names one, else the entry's source."""
    mirror = os.environ.get(MIRROR_VARIABLE)
    return f"{mirror.rstrip('/')}/{entry.file}" if mirror else entry.source


def fetch(address: str, size: int | None, show_progress: bool) -> bytes:
    """Downloads a file of at most `size` bytes.

    Raises:
        StyleError: if it cannot be fetched or is larger.
    """
    limit = size or MAX_BYTES
    chunks: list[bytes] = []
    received = 0
    try:
        with (
            requests.get(address, stream=True, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S)) as response,
            tqdm(
                desc=address.rsplit("/", 1)[-1],
                total=size,
                unit="B",
                unit_scale=True,
                disable=None if show_progress else True,
            ) as bar,
        ):
            response.raise_for_status()
            for chunk in response.iter_content(64 * 1024):
                received += len(chunk)
                if received > limit:
                    raise StyleError(f"{address} sends more than the {limit} bytes expected; nothing was kept.")
                chunks.append(chunk)
                bar.update(len(chunk))
    except requests.HTTPError as error:
        raise StyleError(
            f"{address} answered {error.response.status_code}; set {MIRROR_VARIABLE} to a mirror."
        ) from error
    except requests.Timeout as error:
        raise StyleError(f"{address} did not answer in time; set {MIRROR_VARIABLE} to a mirror.") from error
    except requests.RequestException as error:
        raise StyleError(f"{address} cannot be reached or broke off; set {MIRROR_VARIABLE} to a mirror.") from error
    return b"".join(chunks)


def verify(data: bytes, entry: CatalogueEntry) -> None:
    """Checks a file against the size and every digest that the catalogue has of it.

    Raises:
        StyleError: if one differs. A web page in place of the file is called that.
    """
    if (what := identify(data)) in (GIT_LFS, WEB_PAGE):
        raise StyleError(f"{entry.file} came as {what}; nothing was kept.")
    if entry.bytes is not None and len(data) != entry.bytes:
        raise StyleError(f"{entry.file} came with {len(data)} bytes instead of {entry.bytes}; nothing was kept.")
    known = {"sha256": entry.sha256, "git blob id": entry.git_blob}
    actual = {"sha256": hashlib.sha256(data).hexdigest(), "git blob id": git_blob_id(data)}
    for digest, expected in known.items():
        if expected is not None and actual[digest] != expected:
            raise StyleError(
                f"{entry.file} has {digest} {actual[digest]}, not {expected} as in the catalogue; nothing was kept."
            )


def git_blob_id(data: bytes) -> str:
    """Returns the id that git gives to a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
