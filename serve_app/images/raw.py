"""Raw files of cameras, which are refused: what they show depends on a developer's choices.

Many hold a small JPEG or thumbnail that a reader of pictures takes for the photograph. They are recognised by their
first bytes here, and by their tags where they are TIFFs (`tiff.py`).
"""

from serve_app.errors import UnsupportedFormat

RAW_FILE = "This is a camera's raw file, which is not read here; export it as JPEG, PNG or TIFF and send that."

SIGNATURES = (
    b"FUJIFILMCCD-RAW",  # RAF
    b"IIRO", b"IIRS", b"MMOR",  # Olympus ORF
    b"IIU\0",  # Panasonic RW2, Leica RWL
    b"\0MRM",  # Minolta MRW
    b"FOVb",  # Sigma X3F
    b"IIII", b"MMMM",  # Phase One IIQ
    b"II\x1a\0\0\0HEAPCCDR",  # Canon CRW
)  # fmt: skip
INNER_SIGNATURES = (b"CR\x02", b"IIII", b"MMMM")  # at byte 8 of a TIFF: Canon CR2, Phase One IIQ
BRANDS = {b"crx "}  # Canon CR3


def refuse_raw(data: bytes) -> None:
    """Raises UnsupportedFormat if the first bytes are those of a camera's raw file."""
    is_raw = (
        data.startswith(SIGNATURES)
        or (data[:2] in (b"II", b"MM") and data.startswith(INNER_SIGNATURES, 8))
        or (data[4:8] == b"ftyp" and data[8:12] in BRANDS)
    )
    if is_raw:
        raise UnsupportedFormat(RAW_FILE)
