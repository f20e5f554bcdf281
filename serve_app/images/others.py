"""Names files of kinds that are not read here, so that whoever sent one learns what it is."""

import re

LOOKED_AT = 1024  # bytes from the beginning
VIDEO = "a video; take a single picture from it and send that"
JPEG_XL = "a JPEG XL"
JPEG_2000 = "a JPEG 2000"
SIGNATURES = [  # offset, the bytes there, what the file is
    (0, b"%PDF", "a PDF document"),
    (0, b"%!PS", "a PostScript document"),
    (0, b"8BPS", "a Photoshop document"),
    (0, b"gimp xcf", "a GIMP document"),
    (0, b"\xff\x0a", JPEG_XL),
    (4, b"JXL \r\n\x87\n", JPEG_XL),
    (4, b"jP  \r\n\x87\n", JPEG_2000),
    (0, b"\xff\x4f\xff\x51", JPEG_2000),
    (0, b"\0\0\1\0", "an icon"),
    (0, b"\0\0\2\0", "a cursor"),
    (0, b"icns", "an icon"),
    (0, b"qoif", "a QOI"),
    (0, b"DDS ", "a texture (DDS)"),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR"),
    (0, b"#?RADIANCE", "a Radiance HDR"),
    (0, b"II\xbc", "a JPEG XR"),
    (40, b" EMF", "a metafile of Windows"),
    (0, b"\xd7\xcd\xc6\x9a", "a metafile of Windows"),
    (8, b"AVI ", VIDEO),
    (8, b"WAVE", "a sound"),
    (0, b"ID3", "a sound"),
    (0, b"OggS", "a sound or a video"),
    (0, b"\x1a\x45\xdf\xa3", VIDEO),  # Matroska, WebM
    (0, b"\x30\x26\xb2\x75", VIDEO),  # Windows Media
    (0, b"FLV\1", VIDEO),
    (4, b"moov", VIDEO),
    (4, b"mdat", VIDEO),
    (4, b"wide", VIDEO),
    (0, b"PK\x03\x04", "a zip archive or an office document"),
    (0, b"\x1f\x8b", "compressed with gzip"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!", "a RAR archive"),
    (0, b"\xd0\xcf\x11\xe0", "an office document"),
    (0, b"\x7fELF", "a program"),
    (0, b"MZ", "a program"),
]
VIDEO_BRANDS = re.compile(rb"isom|iso\d|mp4\d|qt  |avc1|M4V |M4VP|3g[pg]\w|dash|f4v |XAVC|hvc1|braw")
WEB_PAGE = re.compile(rb"<(!doctype\s+html|html|head|body|script)\b", re.I)
SVG = re.compile(rb"<svg\b", re.I)
BASE64 = re.compile(rb"data:image/|/9j/|iVBORw0KGgo|R0lGOD|UklGR")  # the beginnings of pictures, written as text
NETPBM = re.compile(rb"P[1-7f][\s#]", re.I)
CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")  # bytes that no text has


def name_kind(data: bytes) -> str | None:
    """Returns what a file is, in words that follow "it is"; None if it is not known here."""
    if not data:
        return "empty; send the bytes of a picture"
    beginning = data[:LOOKED_AT]
    for offset, signature, what in SIGNATURES:
        if beginning.startswith(signature, offset):
            return what
    if beginning[4:8] == b"ftyp":
        return VIDEO if VIDEO_BRANDS.match(beginning, 8) else None
    if NETPBM.match(beginning):
        return "a Netpbm"
    if CONTROL.search(beginning):
        return None
    start = beginning.removeprefix(b"\xef\xbb\xbf").lstrip()
    if BASE64.match(start):
        return "a picture written as text (base64); send its bytes themselves"
    if SVG.search(start) and not WEB_PAGE.match(start):
        return "a drawing (SVG)"
    if WEB_PAGE.search(start):
        return "a web page; send the picture itself"
    return "text" if start else None
