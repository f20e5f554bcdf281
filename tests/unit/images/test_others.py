"""Files of kinds that are not read here are named."""

import base64
import io
import zipfile

import pytest
from decoding import ramp, refusal, save
from PIL import Image

JPEG = save(Image.fromarray(ramp()), "JPEG")


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("photo.jpg", JPEG)
    return buffer.getvalue()


OTHERS = {
    "a PDF document": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj",
    "a Photoshop document": b"8BPS\0\1\0\0\0\0\0\0\0\3\0\0\0\x30\0\0\0\x40\0\x08\0\3",
    "a JPEG XL": b"\xff\x0a\xfa\x1f\x01\x91\x08\x06\x01\x00",
    "a JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 ",
    "an icon": save(Image.fromarray(ramp()), "ICO"),
    "a Netpbm": save(Image.fromarray(ramp()), "PPM"),
    "a drawing (SVG)": b'<?xml version="1.0"?>\n<!-- made by hand -->\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "a zip archive or an office document": zipped(),
    "text": b"Please paint my cat.\n",
    "empty; send the bytes of a picture": b"",
    "a video; take a single picture from it and send that": b"\0\0\0\x14ftypqt  \0\0\2\0qt  \0\0\0\x08wide",
    "a web page; send the picture itself": b"\n <!DOCTYPE html><html><body><svg></svg></body></html>",
    "a picture written as text (base64); send its bytes themselves": b"data:image/jpeg;base64,"
    + base64.b64encode(JPEG),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_file_of_another_kind_is_named(kind: str) -> None:
    refused = refusal(OTHERS[kind])
    assert (refused.status, refused.code) == (415, "unsupported-format")
    assert str(refused).startswith(f"The upload is {kind}. Send it as one of these: JPEG, PNG,")


@pytest.mark.parametrize("data", [b"\x93\x01\x02garbage\xfe", bytes(64)])
def test_file_of_an_unknown_kind_is_refused_with_what_is_read(data: bytes) -> None:
    refused = refusal(data)
    assert (refused.status, refused.code) == (415, "unsupported-format")
    assert str(refused).startswith("The upload is no picture that is known here. Send it as one of these: JPEG, PNG,")
