"""Reads what OpenAI's clients send to have pictures edited, in bounded memory: a form, or JSON with `data:` URLs."""

import asyncio
import binascii
import io
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from serve_app.errors import NoImage
from serve_app.web.openai_errors import BadParameter
from serve_app.web.openai_schemas import MOST_PICTURES, EditFields, ImageReference
from serve_app.web.turns import Turns
from serve_app.web.uploads import Album, PhotoFormParser, bound, has_form, read_body, too_many_bytes

EDITS = ("/v1/images/edits",)
OVERHEAD_BYTES = 512 * 1024  # around the images; in JSON, each of a prompt's 32,000 characters may take twelve
MAX_FIELDS = 64
MAX_FIELD_BYTES = 256 * 1024
NOT_TAKEN = {
    "mask": "The whole picture is painted here, so there is no use for a mask; leave it out.",
    "markup": "Nothing guides the painting here, so there is no use for a markup; leave it out.",
}
DATA_URL = re.compile(r"data:[^,]{0,256}?;base64,", re.IGNORECASE)
SLICE = 4 * 2**20  # characters of base64 that are decoded at a time; a multiple of four
WHERE = "send it as a file in the field `image` of a form, or as a `data:` URL in `images` of JSON."
REFERENCES = TypeAdapter(list[ImageReference])


@dataclass(frozen=True)
class Edit:
    """What a client sent: photographs, at least one, and parameters."""

    album: Album
    fields: EditFields


def most_body_bytes(max_bytes: int, is_form: bool) -> int:
    """Returns how many bytes the body of an edit may have, if its images have `max_bytes` together when decoded."""
    return (max_bytes if is_form else base64_bytes(max_bytes)) + OVERHEAD_BYTES


def base64_bytes(count: int) -> int:
    """Returns how many bytes the base64 form of `count` bytes has."""
    return -(-count // 3) * 4


@asynccontextmanager
async def read_edit(request: Request, max_bytes: int, turns: Turns) -> AsyncIterator[Edit]:
    """Reads a body; large files of a form lie on the disk inside the block.

    Args:
        request: with nothing of its body read.
        max_bytes: of all images together, decoded.
        turns: in which JSON is parsed, since that takes several times the memory of the body.

    Raises:
        NoImage: if there is no image, or the body is malformed.
        BadParameter: if a parameter is wrong, or not taken here.
        TooManyBytes: as soon as too many are announced or received.
        TooBusy: if too many wait for a turn.
    """
    if has_form(request):
        async with read_form(request, max_bytes) as edit:
            yield edit
    elif request.headers.get("content-type", "").lower().startswith("application/json"):
        yield await read_json(request, max_bytes, turns)
    else:
        raise NoImage(f"The request has no image: {WHERE}")


@asynccontextmanager
async def read_form(request: Request, max_bytes: int) -> AsyncIterator[Edit]:
    """Reads a form, as `read_edit` does."""
    bounded = bound(request, most_body_bytes(max_bytes, is_form=True), max_bytes)
    parser = EditFormParser(
        bounded.headers,
        bounded.stream(),
        max_files=MOST_PICTURES + len(NOT_TAKEN),
        max_fields=MAX_FIELDS,
        max_part_size=MAX_FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise too_many_images("image") from None
        raise NoImage(f"The form cannot be read. To paint a picture, {WHERE}") from error
    try:
        photos = images_of(form)
        check_images([photo.size or 0 for photo in photos], max_bytes, "image")
        yield Edit(Album(photos), edit_fields(text_of(form), len(photos)))
    finally:
        await form.close()


class EditFormParser(PhotoFormParser):
    """A parser of forms whose images are in fields `image`, `image[]` or `image[0]`."""

    photo_fields: ClassVar[re.Pattern[bytes]] = re.compile(rb"image(\[\d{0,4}\])?")


def images_of(form: FormData) -> list[UploadFile]:
    """Returns the images of a form, in their order.

    Raises:
        BadParameter: if there are files in other fields.
    """
    photos = []
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if not EditFormParser.photo_fields.fullmatch(name.encode()):
                refuse_not_taken([name])
                raise BadParameter(f"{name[:64]} is no field for a file here; images are in `image`.", name[:64])
            photos.append(value)
    return photos


def text_of(form: FormData) -> dict[str, str]:
    """Returns the text fields of a form.

    Raises:
        BadParameter: if one that means something here is given twice.
    """
    fields: dict[str, str] = {}
    for name, value in form.multi_items():
        if isinstance(value, str):
            if name in fields and name in EditFields.model_fields:
                raise BadParameter(f"{name} is given twice.", name)
            fields[name] = value
    return fields


async def read_json(request: Request, max_bytes: int, turns: Turns) -> Edit:
    """Reads JSON, as `read_edit` does."""
    body = await read_body(bound(request, most_body_bytes(max_bytes, is_form=False), max_bytes))
    async with turns.turn():
        try:
            document = from_json(body, allow_inf_nan=False, cache_strings="none")
        except ValueError:
            raise NoImage("The body is not valid JSON.") from None
        del body
        if not isinstance(document, dict):
            raise NoImage(f"The body is JSON, but no object. To paint a picture, {WHERE}")
        references = document.pop("images", None)
        payloads = [payload_of(reference) for reference in references_of(references)]
        check_images([decoded_bytes(url, start) for url, start in payloads], max_bytes, "images")
        fields = edit_fields(document, len(payloads))
        return Edit(Album([await decoded(url, start) for url, start in payloads]), fields)


def references_of(images: Any) -> Sequence[ImageReference]:
    """Returns the images that JSON names.

    Raises:
        BadParameter: if they are not a list of references.
    """
    try:
        return REFERENCES.validate_python([] if images is None else images)
    except ValidationError as error:
        raise BadParameter(f"images: {error.errors()[0]['msg']}.", "images") from None


def payload_of(reference: ImageReference) -> tuple[str, int]:
    """Returns the `data:` URL of an image, and where its base64 begins.

    Raises:
        BadParameter: if it is not given so.
    """
    url = reference.image_url
    if url is None:
        raise BadParameter(
            "images: each needs an image_url; there are no files here that a file_id could name.", "images"
        )
    found = DATA_URL.match(url)
    if found is None:
        raise BadParameter("images: an image_url must be a data: URL in base64; nothing is fetched here.", "images")
    return url, found.end()


def decoded_bytes(url: str, start: int) -> int:
    """Returns how many bytes the base64 in a URL decodes to."""
    return (len(url) - start) // 4 * 3 - url.count("=", max(start, len(url) - 2))


async def decoded(url: str, start: int) -> bytes:
    """Decodes the base64 in a URL, in slices, so that other requests are served between them.

    Raises:
        BadParameter: if it is malformed.
    """
    data = io.BytesIO()
    try:
        for at in range(start, len(url), SLICE):
            if at + SLICE < len(url) and "=" in url[at + SLICE - 2 : at + SLICE]:
                raise ValueError
            data.write(binascii.a2b_base64(url[at : at + SLICE], strict_mode=True))
            await asyncio.sleep(0)
    except ValueError:
        raise BadParameter("images: the base64 of an image_url is malformed.", "images") from None
    return data.getvalue()


def edit_fields(fields: Mapping[str, Any], images: int) -> EditFields:
    """Returns the parameters for so many images, checked.

    Raises:
        BadParameter: naming the first wrong one.
    """
    refuse_not_taken([name for name, value in fields.items() if value is not None and value != ""])
    try:
        checked = EditFields.model_validate(fields)
    except ValidationError as error:
        detail = error.errors(include_input=False)[0]
        name = str(detail["loc"][0])
        raise BadParameter(f"{name}: {detail['msg']}.", name) from None
    if images * checked.n > MOST_PICTURES:
        sentence = f"n is {checked.n}, for {images} images; an answer has at most {MOST_PICTURES} pictures."
        raise BadParameter(sentence, "n")
    return checked


def refuse_not_taken(names: Sequence[str]) -> None:
    """Checks that no parameter is given that would make another picture, and cannot be obeyed here.

    Raises:
        BadParameter: if one is.
    """
    for name in names:
        if name in NOT_TAKEN:
            raise BadParameter(NOT_TAKEN[name], name)


def check_images(sizes: Sequence[int], max_bytes: int, parameter: str) -> None:
    """Checks the number and the sizes of images.

    Args:
        sizes: of the images, in bytes.
        max_bytes: of all together.
        parameter: that holds them.

    Raises:
        NoImage, BadParameter, TooManyBytes: if they are not taken.
    """
    if not sizes:
        raise NoImage(f"The request has no image: {WHERE}")
    if len(sizes) > MOST_PICTURES:
        raise too_many_images(parameter)
    if not min(sizes):
        raise NoImage("An image of the request is empty.")
    if sum(sizes) > max_bytes:
        raise too_many_bytes(max_bytes, sum(sizes))


def too_many_images(parameter: str) -> BadParameter:
    """Returns the refusal of too many images."""
    detail = f"At most {MOST_PICTURES} pictures are painted for one request; send the others in further ones."
    return BadParameter(detail, parameter)
