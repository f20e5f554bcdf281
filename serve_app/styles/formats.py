"""Tells what a file is that was taken for a checkpoint and is none: a web page, an ONNX model, an archive.

It looks at the first and last bytes and at the list of files in a zip, and unpacks nothing.
"""

import io
import re
import zipfile
from collections.abc import Iterator

GIT_LFS = "a Git LFS pointer, not the file itself; `git lfs pull` fetches that"
WEB_PAGE = "a web page; download the file itself, by its raw address"
ONNX = "an ONNX model; import the PyTorch checkpoint that it was exported from"
TORCHSCRIPT = "a TorchScript archive, which holds code; save the state dict of its module instead"
TORCH_EXPORT = "an archive of torch.export; save the state dict of its module instead"
TORCH_PACKAGE = "an archive of torch.package, which holds code; save the state dict of its module instead"
KERAS = "a Keras model; convert it to a PyTorch state dict"
HDF5 = "an HDF5 file, as Keras saves them; convert it to a PyTorch state dict"
TENSORFLOW = "a TensorFlow file; convert the checkpoint to a PyTorch state dict"
NUMPY = "a NumPy file; convert it to a PyTorch state dict"
ZIP = "a zip archive of other files; unpack it first"
PICTURE = "a picture"

SIGNATURES: list[tuple[int, bytes, str]] = [  # offset, the bytes there, what the file is
    (0, b"version https://git-lfs", GIT_LFS),
    (0, b"\x89HDF\r\n\x1a\n", HDF5),
    (0, b"\x93NUMPY", NUMPY),
    (0, b"model_checkpoint_path:", TENSORFLOW),
    (4, b"TFL3", "a TensorFlow Lite model; convert it to a PyTorch state dict"),
    (0, b"MATLAB 5.0 MAT-file", "a MATLAB file; convert it to a PyTorch state dict"),
    (0, b"GGUF", "a GGUF file; convert it to a PyTorch state dict"),
    (0, b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (0, b"BZh", "compressed with bzip2; unpack it first"),
    (0, b"\xfd7zXZ\0", "compressed with xz; unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with Zstandard; unpack it first"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (0, b"Rar!\x1a\x07", "a RAR archive; unpack it first"),
    (257, b"ustar", "a tar archive; unpack it first"),
    (0, b"\x89PNG\r\n\x1a\n", PICTURE),
    (0, b"\xff\xd8\xff", PICTURE),
    (0, b"GIF8", PICTURE),
    (8, b"WEBP", PICTURE),
    (0, b"%PDF", "a PDF document"),
]
PIECE_BYTES = 2**20  # of a file in a zip that is read at a time
TABLE_END = bytes.fromhex("57fb808b247547db")  # the end of a LevelDB table, such as TensorFlow's .index files
CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")  # bytes that no text has
WEB_PAGE_START = re.compile(rb"(<!--.*?-->\s*|<\?xml[^>]*>\s*)*<(!doctype\s+html|html|head|body|title)\b", re.S | re.I)
ONNX_FIELDS = {1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26}  # numbers of the fields of ModelProto
ONNX_GRAPH = 7
NAMES = {  # of files that nothing but their names tells apart from any other bytes
    re.compile(r"\.(index|meta|pb|data-\d{5}-of-\d{5})$"): TENSORFLOW,
    re.compile(r"\.mlmodel$"): "a Core ML model; import the PyTorch checkpoint that it was converted from",
}


def identify(data: bytes) -> str | None:
    """Returns what a file is if it certainly is no checkpoint, in words that follow "it is"; else None."""
    if not data:
        return "empty"
    for offset, signature, what in SIGNATURES:
        if data.startswith(signature, offset):
            return what
    if data.endswith(TABLE_END):
        return TENSORFLOW
    if data.startswith(b"PK"):
        return identify_zip(data)
    return identify_text(data[:1024]) or (ONNX if is_onnx(data) else None)


def identify_by_name(name: str) -> str | None:
    """Returns what a file with unknown content probably is; None if its name does not tell."""
    return next((what for pattern, what in NAMES.items() if pattern.search(name)), None)


def identify_zip(data: bytes) -> str | None:
    """Returns what a zip is; None if it may be a PyTorch checkpoint, or is damaged."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return None
    inner = {name.partition("/")[2] for name in names}  # PyTorch packs everything into one folder
    for member, what in (
        ("constants.pkl", TORCHSCRIPT),
        ("archive_format", TORCH_EXPORT),
        (".data/extern_modules", TORCH_PACKAGE),
        ("data.pkl", None),
    ):
        if member in inner:
            return what
    if "model.weights.h5" in names:
        return KERAS
    return NUMPY if names and all(name.endswith(".npy") for name in names) else ZIP


def damaged_member(data: bytes) -> str | None:
    """Returns the first file in a zip that does not match its checksum, which PyTorch does not look at; None if none.

    Files whose checksum is 0 count as sound: PyTorch can be told to write none.

    Raises:
        Exception: if the zip is damaged or is none.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for member in archive.infolist():
            try:
                with archive.open(member) as file:
                    while member.CRC and file.read(PIECE_BYTES):
                        pass
            except zipfile.BadZipFile:
                return member.filename
    return None


def identify_text(beginning: bytes) -> str | None:
    """Returns what a file of text is by its first bytes; None if they are no text."""
    if beginning.startswith((b"\xff\xfe", b"\xfe\xff")):
        beginning = beginning.decode("utf-16", "replace").encode()
    if CONTROL.search(beginning):
        return None
    start = beginning.removeprefix(b"\xef\xbb\xbf").lstrip()
    if WEB_PAGE_START.match(start):
        return WEB_PAGE
    if start.startswith(b"<"):
        return "an XML document"
    return "a JSON document" if start.startswith((b"{", b"[")) else "plain text"


def is_onnx(data: bytes) -> bool:
    """Returns whether a file is an ONNX model, complete or cut off: a protobuf message with a version and a graph."""
    if not data.startswith(b"\x08"):  # the version, field 1
        return False
    try:
        fields = set(protobuf_fields(data))
    except ValueError:
        return False
    return ONNX_GRAPH in fields and fields <= ONNX_FIELDS


def protobuf_fields(data: bytes) -> Iterator[int]:
    """Yields the number of each field of a protobuf message; the last field may be cut off.

    Raises:
        ValueError: if the bytes are no such message.
    """
    at = 0
    while at < len(data):
        tag, at = read_varint(data, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 2:
            length, at = read_varint(data, at)
            at += length
        elif wire_type in (1, 5):
            at += 8 if wire_type == 1 else 4
        elif wire_type == 0:
            _, at = read_varint(data, at)
        else:
            raise ValueError("a type that fields do not have")
        yield number


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Returns the protobuf integer at an offset, and the offset behind it; the data may be cut off within it.

    Raises:
        ValueError: if it has too many bytes.
    """
    value = 0
    for index, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    if at + 10 > len(data):
        return value, len(data)
    raise ValueError("an integer that does not end")
