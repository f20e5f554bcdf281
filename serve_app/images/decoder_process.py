"""The processes of a `DecoderPool`: one that forks decoders, and the decoders.

    pool ──┬── fork server            python -m serve_app.images.decoder_process FD
           │   ├── decoder            decodes one photograph after another, within limits of memory and time
           │   └── decoder
           └── a socket to each

The fork server has imported all that decoding needs and never touches a photograph, so a new decoder costs milliseconds
and shares its memory. It ends with the pool's process, and its decoders with it: a decoder that works does not notice
that its socket is closed, so the fork server watches it, and the kernel kills decoders whose parent is gone.
"""

import contextlib
import ctypes
import gc
import os
import resource
import select
import signal
import socket
import sys
from pathlib import Path

import pi_heif
from PIL import AvifImagePlugin, BmpImagePlugin, GifImagePlugin, Image, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from serve_app.errors import DecodeMemory, OutOfMemory, RequestError
from serve_app.frames import DecodedImage
from serve_app.images.decode import decode_opened, open_image, predict_decode_bytes, refusals
from serve_app.images.messages import FILE_COPIES, DecodeTask, receive, refusal_message, send

PLUGINS = (AvifImagePlugin, BmpImagePlugin, GifImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin)

READY = b"ready"
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
GROWTH_BYTES = 16 * 2**20  # that a decoder may have gained when it has decoded; then another takes its place
STATM_DATA = 5  # field of /proc/self/statm
PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serves a pool over the socket whose descriptor is the argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the pool's process decides
    Image.preinit()
    # One thread each: the pool decodes several photographs at a time, and memory does not depend on the machine.
    pi_heif.options.DECODE_THREADS = AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    gc.collect()
    gc.freeze()  # shared pages stay shared
    control = socket.socket(fileno=int(sys.argv[1]))
    control.send(READY)
    ForkServer(control).run()


class ForkServer:
    """Forks a decoder for every socket that it is sent, and kills those whose socket the pool has closed."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.decoders: dict[int, tuple[int, socket.socket]] = {}  # by descriptor: process, and its end of the socket
        self.poller = select.poll()
        self.poller.register(control, select.POLLIN)
        self.child_ended, wakeup = socket.socketpair()
        for end in (self.child_ended, wakeup):
            end.setblocking(False)
        self.wakeup = wakeup
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.poller.register(self.child_ended, select.POLLIN)

    def run(self) -> None:
        """Works until the pool is gone."""
        while True:
            events = {descriptor for descriptor, _ in self.poller.poll()}
            for descriptor in events & self.decoders.keys():
                self.poller.unregister(descriptor)
                os.kill(self.decoders[descriptor][0], signal.SIGKILL)
            if self.child_ended.fileno() in events:
                self.child_ended.recv(1024)
                self.reap()
            if self.control.fileno() in events and not self.accept():
                return

    def accept(self) -> bool:
        """Forks a decoder for the socket that comes; returns False if the pool is gone."""
        _, files, _, _ = socket.recv_fds(self.control, 16, 1)
        if not files:
            return False
        channel = socket.socket(fileno=files[0])
        parent = os.getpid()
        try:
            process = os.fork()
        except OSError:
            send(channel, refusal_message(OutOfMemory("There is no memory for a process that decodes; try again.")))
            channel.close()
            return True
        if process == 0:
            become_decoder(channel, parent)
        self.decoders[channel.fileno()] = process, channel
        self.poller.register(channel, 0)  # that is: for hang-ups only
        return True

    def reap(self) -> None:
        """Tells the pool which decoders have died."""
        while self.decoders:
            process, status = os.waitpid(-1, os.WNOHANG)
            if process == 0:
                return
            descriptor = next(key for key, (decoder, _) in self.decoders.items() if decoder == process)
            _, channel = self.decoders.pop(descriptor)
            try:
                self.poller.unregister(descriptor)
                if status:
                    send(channel, {"died": os.waitstatus_to_exitcode(status)})
            except (KeyError, OSError):  # the pool has closed its end, so this process was killed
                pass
            channel.close()


def become_decoder(channel: socket.socket, parent: int) -> None:
    """Turns this process, just forked, into a decoder; does not return."""
    try:
        leave_parent(channel, parent)
        decode_all(channel)
        os._exit(0)
    finally:
        os._exit(1)


def leave_parent(channel: socket.socket, parent: int) -> None:
    """Gives up all that a forked process shares with the fork server but the socket, and ties its life to it."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    with contextlib.suppress(OSError):  # a container may forbid it
        Path("/proc/self/oom_score_adj").write_text("1000")  # the first to go if the machine runs out of memory
    silence = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(silence, standard)  # libraries print what hostile files make them
    own = channel.fileno()
    os.closerange(3, own)
    os.closerange(own + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def decode_all(channel: socket.socket) -> None:
    """Decodes until the pool closes the socket, a file is refused, or this process has grown."""
    idle, is_last = data_bytes(), False
    while not is_last:
        message, shared = receive(channel)
        if message is None or shared is None:
            return
        try:
            image = decode_limited(channel, DecodeTask.from_message(message), shared)
        except RequestError as refusal:
            limit_memory(None)
            send(channel, refusal_message(refusal))
            return
        limit_memory(None)
        if image is None:
            return
        os.pwrite(shared, image.frame.data, 0)
        if image.alpha is not None:
            os.pwrite(shared, image.alpha.data, image.frame.nbytes)
        os.close(shared)
        answer = {"painted": image.size, "original": image.original, "has_alpha": image.alpha is not None}
        del image
        is_last = data_bytes() > idle + GROWTH_BYTES
        send(channel, answer | {"is_last": is_last})


def decode_limited(channel: socket.socket, task: DecodeTask, shared: int) -> DecodedImage | None:
    """Decodes one file within the memory that its header foretells; asks the pool for it first.

    Args:
        channel: to the pool.
        task: what to do.
        shared: descriptor of the memory shared with the pool, which holds the upload.

    Returns:
        The image; None if the pool is gone.

    Raises:
        RequestError: whatever the file is refused for.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = int(used.ru_utime + used.ru_stime + task.cpu_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    start, limit = data_bytes(), 0
    try:
        with refusals():
            limit = limit_memory(start, task.opening_bytes)
            data = os.pread(shared, task.upload_bytes, 0)
            image = open_image(data, task.header, task.max_pixels)
            needed = predict_decode_bytes(image, task.max_side) + FILE_COPIES * len(data)
            if needed > task.max_memory_bytes:
                raise too_much_memory(image, needed, task.max_memory_bytes)
            send(channel, {"needed_bytes": needed})
            if receive(channel)[0] is None:
                return None
            limit = limit_memory(start, needed)
            return decode_opened(image, data, task.max_side, task.multiple, task.box)
    except OutOfMemory:
        raise DecodeMemory(
            "Decoding this picture takes more memory than its header tells of. Save it again and send the new file.",
            limit,
            unit="bytes",
        ) from None


def too_much_memory(image: Image.Image, needed: int, most: int) -> DecodeMemory:
    """Returns the refusal of an opened file that takes `needed` bytes where `most` are set aside."""
    return DecodeMemory(
        f"Decoding this {image.width} x {image.height} {image.format} takes {needed / 1e6:,.0f} MB, and "
        f"{most / 1e6:,.0f} MB are set aside for it here. Send it smaller, or as a baseline JPEG.",
        most,
        needed,
        "bytes",
    )


def limit_memory(start: int | None, count: int = 0) -> int:
    """Allows this process `count` bytes more than the `start` it had, any number if that is None; returns the count."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (hard if start is None else start + count, hard))
    return count


def data_bytes() -> int:
    """Returns the bytes of private writable memory that this process has, which is what the kernel limits."""
    return int(Path("/proc/self/statm").read_bytes().split()[STATM_DATA]) * PAGE_BYTES


if __name__ == "__main__":
    main()
