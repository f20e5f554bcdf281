"""Decodes photographs in processes that can be killed: hostile files cost their own request, and no other."""

import asyncio
import contextlib
import fcntl
import logging
import mmap
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass

import numpy as np

from serve_app.errors import BrokenImage, DecodeTimeout, Lost
from serve_app.frames import DecodedImage, Size, StylizeRequest
from serve_app.images.budget import ByteBudget
from serve_app.images.header import ImageHeader
from serve_app.images.messages import DecodeTask, Message, receive, refusal_of, send

logger = logging.getLogger(__name__)

START_S = 60  # for a fork server to import what decoding needs: half a second, but machines may be slow
SPARES = 2  # idle decoders at least, so that a photograph need not wait for one
KEPT = 4  # idle decoders at most
TURNS = 4  # decodes that share the CPU of a replica
TURN_S = 1.0  # a decode that takes longer goes on, but another may start beside it
BUFFER_BYTES = 8 * 2**20  # of the memory that a decoder keeps for the next photograph; larger ones are for one only
ATTEMPTS = 2
LOST_RETRY_AFTER_S = 5
ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",  # numpy's own threads would not survive a fork
    "MALLOC_ARENA_MAX": "1",
    # glibc: buffers of up to 8 MiB come from memory that stays, which saves the kernel's work of zeroing it each time
    "MALLOC_MMAP_THRESHOLD_": str(8 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(12 * 2**20),
}


class ForkServerLost(Exception):
    """The process that forks decoders has ended, and all decoders with it."""


@dataclass(frozen=True)
class DecodeLimits:
    """The limits of one decode.

    Attributes:
        max_pixels: width x height as the header states them, at most.
        timeout_s: of work; waiting for memory or for a process does not count.
    """

    max_pixels: int
    timeout_s: float


class DecoderPool:
    """Decoder processes, some of them idle; used from one event loop.

    A decoder that refuses its file, dies, takes too long or whose caller gives up is killed and replaced. All of them
    end with this process.

    Args:
        processes: photographs decoded at a time.
        memory_bytes: the most that all decodes take together; those that would take more wait.

    Raises:
        RuntimeError: if the fork server cannot be started.
    """

    def __init__(self, processes: int, memory_bytes: int) -> None:
        self.budget = ByteBudget(memory_bytes)
        self.server = ForkServer()
        self._processes = asyncio.Semaphore(processes)
        self._turns = asyncio.Semaphore(TURNS)
        self._restarting = asyncio.Lock()
        self._idle: list[Decoder] = []
        self._refill()

    def resize(self, processes: int, memory_bytes: int) -> None:
        """Takes new limits; decodes that run or wait keep to those that they came under."""
        self._processes = asyncio.Semaphore(processes)
        self.budget.total_bytes = memory_bytes

    def close(self) -> None:
        """Ends all processes."""
        self._drop_idle()
        self.server.close()

    @asynccontextmanager
    async def decoded(
        self, data: bytes | memoryview, header: ImageHeader, request: StylizeRequest, limits: DecodeLimits
    ) -> AsyncIterator[DecodedImage]:
        """Decodes one photograph; if the caller is cancelled, so is the decode.

        Args:
            data: the file as it was uploaded.
            header: as `read_header` has read it.
            request: gives the size that it may be painted at.
            limits: of this decode.

        Yields:
            The image, upright, sRGB, on white, at its painted size. Its arrays are shared with the decoder, and are
            valid inside the block only.

        Raises:
            DecodeTimeout, DecodeMemory, TooManyPixels, TooSmall, BrokenImage: what the photograph's owner can mend.
            OutOfMemory: there is no memory for another process.
            Lost: the fork server was killed, more than once.
        """
        task = DecodeTask(
            upload_bytes=len(data),
            header=header,
            max_side=request.max_side,
            multiple=request.multiple,
            box=request.box,
            max_pixels=limits.max_pixels,
            max_memory_bytes=self.budget.most_bytes,
            cpu_s=limits.timeout_s,
        )
        async with self._processes, self._turn(), AsyncExitStack() as decoding:
            image = await self._decode(data, task, limits.timeout_s, decoding)
            yield image

    async def _decode(
        self, data: bytes | memoryview, task: DecodeTask, timeout_s: float, decoding: AsyncExitStack
    ) -> DecodedImage:
        """Decodes one photograph, on another fork server if this one is lost; `decoding` holds what that takes."""
        for _ in range(ATTEMPTS):
            server = self.server
            try:
                decoder = decoding.enter_context(self._borrowed_decoder())
                return await decoder.decode(data, task, self.budget, timeout_s, decoding)
            except ForkServerLost:
                logger.warning("the process that forks decoders was lost, and is started again")
                await decoding.aclose()
                await self._restart(server)
        raise Lost(
            "The processes that decode pictures were lost, several times; try again later.",
            retry_after_s=LOST_RETRY_AFTER_S,
        )

    @contextmanager
    def _borrowed_decoder(self) -> Iterator["Decoder"]:
        """Lends an idle decoder, or a new one, and replaces it unless it can be used again."""
        decoder = self._take()
        try:
            yield decoder
        finally:
            if decoder.is_reusable and len(self._idle) < KEPT:
                self._idle.append(decoder)
            else:
                decoder.close()
                self._refill()

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Holds one of the turns, for `TURN_S` at most."""
        await self._turns.acquire()
        with ExitStack() as held:
            held.callback(self._turns.release)
            timer = asyncio.get_running_loop().call_later(TURN_S, held.close)
            try:
                yield
            finally:
                timer.cancel()

    def _take(self) -> "Decoder":
        """Returns an idle decoder, or a new one."""
        while self._idle:
            decoder = self._idle.pop()
            if decoder.is_idle():
                break
            decoder.close()
        else:
            decoder = Decoder(self.server.fork())
        return decoder

    def _refill(self) -> None:
        """Has decoders forked until there are some to spare."""
        try:
            while len(self._idle) < SPARES:
                self._idle.append(Decoder(self.server.fork()))
        except ForkServerLost:  # the next photograph finds out
            pass

    def _drop_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()

    async def _restart(self, lost: "ForkServer") -> None:
        """Starts another fork server, unless that has been done."""
        async with self._restarting:
            if self.server is lost:
                self._drop_idle()
                lost.close()
                try:
                    self.server = await asyncio.to_thread(ForkServer)
                except RuntimeError as error:  # the next photograph tries again
                    logger.error("%s", error)
                else:
                    self._refill()


class ForkServer:
    """The process that forks decoders; it and they end when this object is closed or this process ends.

    Raises:
        RuntimeError: if it does not start.
    """

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 # nosec B603 # our own module, with nothing of a client's
                [sys.executable, "-P", "-m", "serve_app.images.decoder_process", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=os.environ | ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(sys.path)},
            )
        self._control.settimeout(START_S)
        try:
            is_ready = bool(self._control.recv(16))
        except OSError:
            is_ready = False
        if not is_ready:
            self.close()
            raise RuntimeError("the process that forks decoders did not start; standard error says why")

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def fork(self) -> socket.socket:
        """Has a decoder forked, and returns the socket to it.

        Raises:
            ForkServerLost: if this process has ended.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                socket.send_fds(self._control, [b"fork"], [theirs.fileno()])
            except OSError:
                ours.close()
                raise ForkServerLost from None
        ours.setblocking(False)
        return ours

    def close(self) -> None:
        """Ends the process."""
        self._control.close()
        self._process.kill()
        self._process.wait()


class Decoder:
    """The pool's side of one decoder process.

    Attributes:
        is_reusable: whether the process can decode another photograph; not while it decodes one.
    """

    def __init__(self, channel: socket.socket) -> None:
        self.is_reusable = True
        self._channel = channel
        self._buffer = SharedBuffer(BUFFER_BYTES)

    def close(self) -> None:
        """Ends the process, whatever it does: the fork server sees that the socket is closed, and kills it."""
        self._channel.close()
        self._buffer.close()

    def is_idle(self) -> bool:
        """Returns whether it still lives: an idle decoder says nothing unless it has ended."""
        try:
            self._channel.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    async def decode(
        self, data: bytes | memoryview, task: DecodeTask, budget: ByteBudget, timeout_s: float, decoding: AsyncExitStack
    ) -> DecodedImage:
        """Decodes one photograph, as `DecoderPool.decoded` does; `decoding` holds the memory reserved for it."""
        self.is_reusable = False
        try:
            async with budget.reserve(task.opening_bytes), asyncio.timeout(timeout_s):
                began = time.monotonic()
                self._put_upload(data, task)
                answer = await self._ask(task.to_message(), self._buffer.file)
                rest_s = timeout_s - (time.monotonic() - began)
            await decoding.enter_async_context(budget.reserve(answer["needed_bytes"]))
            async with asyncio.timeout(rest_s):
                answer = await self._ask({"go_on": True})
            image = self._image(answer)
            self.is_reusable = not answer["is_last"] and self._buffer.capacity == BUFFER_BYTES
        except TimeoutError:
            raise DecodeTimeout(
                f"Decoding this picture was stopped after {timeout_s:g} seconds. Save it again and send the new file, "
                "or send it smaller.",
                timeout_s,
                unit="seconds",
            ) from None
        except (LookupError, TypeError, ValueError):
            raise died("it answered nonsense") from None
        return image

    def _put_upload(self, data: bytes | memoryview, task: DecodeTask) -> None:
        """Puts the file into the shared memory, where the decoder will put the pixels over it."""
        needed = max(task.upload_bytes, 4 * task.max_side**2)
        if needed > self._buffer.capacity:
            self._buffer.close()
            self._buffer = SharedBuffer(needed)
        os.pwrite(self._buffer.file, data, 0)

    async def _ask(self, message: Message, file: int | None = None) -> Message:
        """Sends a message, and returns the answer.

        Raises:
            RequestError: if that is the answer.
            ForkServerLost: if the fork server has ended.
        """
        with contextlib.suppress(ConnectionError):  # if it has ended, its last words can be received
            send(self._channel, message, file)
        await readable(self._channel)
        try:
            answer, _ = receive(self._channel)
        except ConnectionResetError:  # it has ended without reading the message, says the socket first
            answer, _ = receive(self._channel)
        if answer is None:
            raise ForkServerLost
        if "died" in answer:
            raise died(answer["died"])
        if "refusal" in answer:
            raise refusal_of(answer)
        return answer

    def _image(self, answer: Message) -> DecodedImage:
        """Returns the image that lies in the shared memory by now.

        Raises:
            ValueError: if there cannot be such an image.
        """
        size = Size(*answer["painted"])
        frame = np.frombuffer(self._buffer.memory, np.uint8, 3 * size.pixels).reshape(*size, 3)
        alpha = None
        if answer["has_alpha"]:
            alpha = np.frombuffer(self._buffer.memory, np.uint8, size.pixels, offset=frame.nbytes).reshape(size)
        return DecodedImage(frame, alpha, Size(*answer["original"]))


class SharedBuffer:
    """Memory that this process and a decoder share: the upload on the way there, pixels on the way back.

    Its pages are allocated as they are used, and stay for the next photograph.

    Args:
        capacity: in bytes.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.file = os.memfd_create("decoder", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.file, capacity)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW  # reading beyond the end of a file would kill this process
        fcntl.fcntl(self.file, fcntl.F_ADD_SEALS, seals)
        self.memory = mmap.mmap(self.file, capacity, access=mmap.ACCESS_READ)

    def close(self) -> None:
        """Gives the file back; the memory lives as long as arrays refer to it."""
        os.close(self.file)


async def readable(channel: socket.socket) -> None:
    """Waits until a socket has something to be received."""
    loop = asyncio.get_running_loop()
    is_ready = asyncio.Event()
    loop.add_reader(channel, is_ready.set)
    try:
        await is_ready.wait()
    finally:
        loop.remove_reader(channel)


def died(reason: object) -> BrokenImage:
    """Returns the refusal of a file that has ended the process that decoded it, and logs how."""
    logger.warning("a process that decodes has died: %s", reason)
    return BrokenImage(
        "The picture is damaged or malformed and cannot be decoded; save it again and send the new file."
    )
