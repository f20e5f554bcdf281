import pytest
from decoding import refusal

RAWS = {
    "RAF": b"FUJIFILMCCD-RAW 0201FF383501X-T1",
    "ORF": b"IIRO\x08\0\0\0",
    "ORF, big-endian": b"MMOR\0\0\0\x08",
    "RW2": b"IIU\0\x18\0\0\0",
    "CR2": b"II*\0\x10\0\0\0CR\2\0",
    "CR3": b"\0\0\0\x18ftypcrx \0\0\0\1crx isom",
    "CRW": b"II\x1a\0\0\0HEAPCCDR",
    "X3F": b"FOVb\0\0\2\0",
    "MRW": b"\0MRM\0\0\1\0",
    "IIQ without TIFF": b"IIII\x52\x61\x77\x54",
    "IIQ": b"II*\0\x08\0\0\0IIIIwaR",
}


@pytest.mark.parametrize("kind", RAWS)
def test_raw_file_is_recognised_by_its_first_bytes(kind: str) -> None:
    refused = refusal(RAWS[kind] + bytes(300))
    assert refused.code == "unsupported-format"
    assert str(refused) == (
        "This is a camera's raw file, which is not read here; export it as JPEG, PNG or TIFF and send that."
    )
