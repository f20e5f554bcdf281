"""The web page: the files of the folder `page`, and the headers under which a browser runs them.

The files are few and small, so they are held in memory, packed by gzip where that helps. Nothing else is served here.
"""

import base64
import gzip
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from serve_app.web.conditions import entity_tag, read_condition

FOLDER = Path(__file__).parent / "page"
INDEX = "index.html"
VERSION = b"page/v/"  # what stands in index.html before the name of each file
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
    ".webp": "image/webp",
}
PACKED_BEFORE = {".jpg", ".png", ".webp"}
INLINE_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)
ACCEPTS_GZIP = re.compile(r"(?:^|,)\s*(?:gzip|\*)\s*(?:;\s*q=(?!0(?:\.0*)?\s*(?:,|$))[\d.]+\s*)?(?:,|$)", re.IGNORECASE)

COMMON = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Vary": "Accept-Encoding",
}
LOOK_AGAIN = "no-cache"
FOR_GOOD = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class PageFile:
    """A file of the page.

    Attributes:
        data: as it is.
        packed: the same, packed by gzip; empty if that is no shorter.
        media_type: of `data`.
        tag: its entity tag. It is compared weakly, because `data` and `packed` share it.
    """

    data: bytes
    packed: bytes
    media_type: str
    tag: str


@dataclass(frozen=True)
class PageFiles:
    """All files of the page.

    Attributes:
        files: by their names below the folder.
        version: a digest of all of them. It is a part of their addresses, so they may be cached for good, and files of
            two versions are never mixed.
        policy: the Content-Security-Policy of the page.
    """

    files: Mapping[str, PageFile]
    version: str
    policy: str


@cache
def page_files() -> PageFiles:
    """Reads the files of the page."""
    paths = sorted(path for path in FOLDER.rglob("*") if path.suffix in MEDIA_TYPES)
    contents = {path.relative_to(FOLDER).as_posix(): path.read_bytes() for path in paths}
    digest = hashlib.blake2b(digest_size=6)
    for name, data in contents.items():
        digest.update(b"%s\0%d\0" % (name.encode(), len(data)) + data)
    version = digest.hexdigest()
    policy = content_security_policy(contents[INDEX])
    contents[INDEX] = contents[INDEX].replace(VERSION, f"page/{version}/".encode())
    return PageFiles({name: page_file(name, data) for name, data in contents.items()}, version, policy)


def page_file(name: str, data: bytes) -> PageFile:
    """Returns a file by its name and content."""
    suffix = Path(name).suffix
    packed = b"" if suffix in PACKED_BEFORE else gzip.compress(data, mtime=0)
    tag = entity_tag(hashlib.blake2b(data, digest_size=16).hexdigest())
    return PageFile(data, packed if len(packed) < len(data) else b"", MEDIA_TYPES[suffix], tag)


def content_security_policy(index: bytes) -> str:
    """Returns the policy of a page: everything from this origin alone, and of inline scripts only its own."""
    hashes = [base64.b64encode(hashlib.sha256(script).digest()).decode() for script in INLINE_SCRIPT.findall(index)]
    scripts = " ".join(["'self'", *(f"'sha256-{each}'" for each in hashes)])
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {scripts}",
            "style-src 'self'",
            "img-src 'self' blob:",
            "connect-src 'self'",
            "manifest-src 'self'",
            "form-action 'self'",
            "base-uri 'none'",
            "frame-ancestors 'self'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )


def add_page_routes(app: FastAPI) -> None:
    """Adds the page and its files to an application."""
    page = page_files()

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def index(request: Request) -> Response:
        headers = {"Content-Security-Policy": page.policy, "Cross-Origin-Opener-Policy": "same-origin"}
        return answer(request, page.files[INDEX], headers | {"Cache-Control": LOOK_AGAIN})

    @app.api_route("/page/{version}/{name:path}", methods=["GET", "HEAD"], include_in_schema=False)
    async def file(request: Request, version: str, name: str) -> Response:
        found = page.files.get(name)
        if found is None or name == INDEX:
            raise HTTPException(404)
        # During an update, an older page may ask here for files of its version, and gets these.
        return answer(request, found, {"Cache-Control": FOR_GOOD if version == page.version else LOOK_AGAIN})


def answer(request: Request, file: PageFile, headers: dict[str, str]) -> Response:
    """Returns a file, or says that the browser has it already."""
    headers = COMMON | headers | {"ETag": f"W/{file.tag}"}
    if read_condition(request.headers.getlist("if-none-match")).is_met_by(file.tag):
        return Response(status_code=304, headers=headers)
    if file.packed and ACCEPTS_GZIP.search(",".join(request.headers.getlist("accept-encoding"))):
        return Response(file.packed, headers=headers | {"Content-Encoding": "gzip"}, media_type=file.media_type)
    return Response(file.data, headers=headers, media_type=file.media_type)
