"""Messages between a `DecoderPool` and its processes: JSON over a socket that keeps messages apart, and open files.

They are not pickled: whoever has taken a decoder over by a hostile file must not get any further.
"""

import json
import socket
from dataclasses import asdict, dataclass
from typing import Any

from serve_app.errors import BrokenImage, RequestError
from serve_app.frames import Size
from serve_app.images.header import ImageHeader

MESSAGE_BYTES = 65_536  # at most

OPENING_BYTES = 20 * 2**20  # for a header: metadata, and what Python makes of it
FILE_COPIES = 3  # of an upload: the decoder's own, and what it keeps of metadata
CANVAS_BYTES = 9  # per pixel of a WebP, whose canvas is allocated when it is opened

Message = dict[str, Any]


@dataclass(frozen=True)
class DecodeTask:
    """All that a decoder is told about a photograph, besides its bytes.

    Attributes:
        upload_bytes: size of the file, which lies in the shared memory.
        header: as `read_header` has read it.
        max_side: the longer painted side in pixels, at most.
        multiple: painted sides are rounded down to a multiple of this.
        box: the painting fits into it as well, upright; None if `max_side` alone bounds it.
        max_pixels: width x height as the header states them, at most.
        max_memory_bytes: a photograph that takes more is refused.
        cpu_s: seconds of CPU after which the kernel ends the process, should the pool not have done so.
    """

    upload_bytes: int
    header: ImageHeader
    max_side: int
    multiple: int
    box: Size | None
    max_pixels: int
    max_memory_bytes: int
    cpu_s: float

    @property
    def opening_bytes(self) -> int:
        """The most that opening the file may take, before anything is decoded."""
        canvas = self.header.stored.pixels if self.header.format == "WEBP" and self.header.stored else 0
        return OPENING_BYTES + FILE_COPIES * self.upload_bytes + CANVAS_BYTES * canvas

    def to_message(self) -> Message:
        """Returns the task as a message."""
        return asdict(self)

    @classmethod
    def from_message(cls, message: Message) -> "DecodeTask":
        """Returns the task that a message holds."""
        stored = message["header"]["stored"]
        header = ImageHeader(message["header"]["format"], Size(*stored) if stored else None)
        box = Size(*message["box"]) if message["box"] else None
        return cls(**(message | {"header": header, "box": box}))


def refusal_message(refusal: RequestError) -> Message:
    """Returns a refusal as a message."""
    return {"refusal": refusal.code, "args": refusal.args}


def refusal_of(message: Message) -> RequestError:
    """Returns the refusal that a message holds."""
    kinds = {kind.code: kind for kind in RequestError.__subclasses__()}
    return kinds.get(message["refusal"], BrokenImage)(*message["args"])


def send(channel: socket.socket, message: Message, file: int | None = None) -> None:
    """Sends a message, and the descriptor of an open file with it."""
    socket.send_fds(channel, [json.dumps(message).encode()], [] if file is None else [file])


def receive(channel: socket.socket) -> tuple[Message | None, int | None]:
    """Receives a message, None if the other side is gone, and the descriptor of the file that came with it."""
    data, files, _, _ = socket.recv_fds(channel, MESSAGE_BYTES, 1)
    return (json.loads(data) if data else None), (files[0] if files else None)
