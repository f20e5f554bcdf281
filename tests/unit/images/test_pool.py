"""Decoder processes: what they decode, and what becomes of those that take too long, too much, or die."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import hostile
import numpy as np
import psutil
import pytest
from PIL import ExifTags, Image
from pngs import chunk, code_points_chunk, with_chunks
from shared import ROOT, files_of, name_of, needs_shared
from tiffs import tiff_of

from serve_app.errors import (
    BrokenImage,
    DecodeMemory,
    DecodeTimeout,
    Lost,
    RequestError,
    TooManyPixels,
    TooSmall,
)
from serve_app.frames import DecodedImage, Size
from serve_app.images.decode import decode
from serve_app.images.header import read_header
from serve_app.images.messages import refusal_message, refusal_of
from serve_app.images.pool import DecodeLimits, DecoderPool

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory files and limits are Linux's")

REQUEST = hostile.request()
MEMORY = 1464 * 2**20
T = TypeVar("T")

# Files that take longer than any test does, whatever the machine.
ENDLESS: dict[str, Callable[[], bytes]] = {
    "scans": lambda: hostile.jpeg_of_scans(20_000, 2048),
    "filling": lambda: hostile.jpeg_of_filling(32_000_000),
    "junk": lambda: hostile.gif_of_junk(32_000_000),
}


def with_pool(scene: Callable[[DecoderPool], Awaitable[T]], processes: int = 16, memory_bytes: int = MEMORY) -> T:
    """Runs a scene with a pool of its own."""

    async def main() -> T:
        pool = DecoderPool(processes, memory_bytes)
        try:
            return await scene(pool)
        finally:
            pool.close()

    return asyncio.run(main())


async def decoded(pool: DecoderPool, data: bytes, timeout_s: float = 60, **changes: Any) -> DecodedImage:
    limits = DecodeLimits(changes.pop("max_pixels", 64_000_000), timeout_s)
    async with pool.decoded(data, read_header(data), hostile.request(**changes), limits) as image:
        alpha = None if image.alpha is None else image.alpha.copy()
        return DecodedImage(image.frame.copy(), alpha, image.original)


def photo(height: int = 300, width: int = 400, mode: str = "RGB", format: str = "PNG") -> bytes:
    return hostile.saved(Image.effect_noise((80, 60), 60).resize((width, height)).convert(mode), format)


def decoders(pool: DecoderPool) -> list[psutil.Process]:
    try:
        return [process for process in psutil.Process(pool.server.pid).children() if is_alive(process)]
    except psutil.NoSuchProcess:
        return []


async def busy(pool: DecoderPool, count: int = 1) -> list[psutil.Process]:
    """Waits until so many decoders work, and returns them."""
    async with asyncio.timeout(60):
        while len(working := [process for process in decoders(pool) if user_s(process) > 0.1]) < count:
            await asyncio.sleep(0.02)
    return working


async def ended(processes: list[psutil.Process], within_s: float = 1) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if not any(is_alive(process) for process in processes):
            return True
        await asyncio.sleep(0.02)
    return False


def is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def user_s(process: psutil.Process) -> float:
    try:
        return float(process.cpu_times().user)
    except psutil.NoSuchProcess:
        return 0.0


def same(one: DecodedImage, other: DecodedImage) -> bool:
    if one.alpha is None or other.alpha is None:
        return one.alpha is other.alpha and one.original == other.original and np.array_equal(one.frame, other.frame)
    return np.array_equal(one.alpha, other.alpha) and np.array_equal(one.frame, other.frame)


def test_a_photograph_that_exif_turns_fits_into_its_box_upright() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = hostile.saved(Image.effect_noise((400, 300), 60).convert("RGB"), "JPEG", exif=exif)
    image = with_pool(lambda pool: decoded(pool, turned, box=Size(200, 100)))
    assert (image.original, image.size) == (Size(400, 300), Size(133, 100))
    assert decode(turned, hostile.request(box=Size(200, 100)), 64_000_000).size == Size(133, 100)


def test_pool_decodes_as_this_process_does() -> None:
    files = [photo(format="JPEG"), photo(mode="RGBA"), photo(mode="LA"), photo(format="WEBP"), photo(format="AVIF")]
    files.append(photo(3000, 4000, format="JPEG"))
    files.append(files[0][:-2])  # without its end marker
    files += [path.read_bytes() for path in sorted((ROOT / "tests" / "data").iterdir()) if path.suffix != ".md"]
    deep = np.random.default_rng(0).integers(0, 65_536, (600, 800, 3), np.uint16)
    files.append(tiff_of(deep, photometric="rgb", compression="lzw", predictor=True))
    files.append(with_chunks(files[1], code_points_chunk(9, 16)))

    async def scene(pool: DecoderPool) -> None:
        for data in files:
            assert same(await decoded(pool, data), decode(data, REQUEST, 64_000_000))

    with_pool(scene)


def test_upload_or_painting_above_the_shared_memory_gets_memory_of_its_own() -> None:
    data = photo(1800, 2000, format="BMP")
    assert len(data) > 8 * 2**20

    async def scene(pool: DecoderPool) -> None:
        large = await decoded(pool, data, max_side=4000)
        assert same(large, decode(data, hostile.request(max_side=4000), 64_000_000))
        assert (await decoded(pool, photo())).original == (300, 400)

    with_pool(scene)


@pytest.mark.parametrize(
    ("data", "changes", "kind"),
    [
        (photo(7, 80), {}, TooSmall),
        (photo(), {"max_pixels": 1000}, TooManyPixels),
        (photo(format="WEBP"), {"max_pixels": 1000}, TooManyPixels),
        (photo(format="JPEG")[:3000], {}, BrokenImage),
        (photo()[:-100], {}, BrokenImage),
    ],
)
def test_refusals_are_the_same_as_in_this_process(
    data: bytes, changes: dict[str, int], kind: type[RequestError]
) -> None:
    async def scene(pool: DecoderPool) -> RequestError:
        with pytest.raises(kind) as caught:
            await decoded(pool, data, **changes)
        return caught.value

    refusal = with_pool(scene)
    with pytest.raises(kind) as caught:
        decode(data, REQUEST, changes.get("max_pixels", 64_000_000))
    assert refusal.args == caught.value.args


@pytest.mark.parametrize("kind", RequestError.__subclasses__())
def test_every_refusal_can_be_sent(kind: type[RequestError]) -> None:
    refusal = kind("why", 1, 2, "bytes", 3, 4)
    copy = refusal_of(refusal_message(refusal))
    assert type(copy) is kind
    assert copy.args == refusal.args


def test_decode_that_takes_more_than_there_is_is_refused_before_decoding() -> None:
    data = photo(600, 800, "RGBA")[:-1000]  # decoded, it would be broken

    async def scene(pool: DecoderPool) -> None:
        with pytest.raises(DecodeMemory) as caught:
            await decoded(pool, data)
        assert caught.value.actual is not None
        assert str(caught.value) == (
            f"Decoding this 800 x 600 PNG takes {caught.value.actual / 1e6:,.0f} MB, and 14 MB are set aside for it "
            "here. Send it smaller, or as a baseline JPEG."
        )
        assert (caught.value.limit, caught.value.unit) == (14_000_000, "bytes")  # an eighth is kept for small ones
        pool.resize(4, 100_000_000)
        with pytest.raises(BrokenImage):
            await decoded(pool, data)

    with_pool(scene, memory_bytes=16_000_000)


def test_decode_that_takes_more_than_its_header_tells_is_refused() -> None:
    data = hostile.jpeg_of_segments(1_000_000)  # Pillow keeps each of them

    async def scene(pool: DecoderPool) -> None:
        with pytest.raises(DecodeMemory, match="more memory than its header tells of"):
            await decoded(pool, data)
        assert (await decoded(pool, photo())).original == (300, 400)

    with_pool(scene)


@pytest.mark.parametrize("side", [2000, 5000])
def test_frame_larger_than_its_header_says_takes_no_more_than_foretold(side: int) -> None:
    data = hostile.avif_larger_than_it_says(side)

    async def scene(pool: DecoderPool) -> None:
        before = {process.pid: peak_bytes(process) for process in decoders(pool)}
        outcome: RequestError | DecodedImage
        try:
            outcome = await decoded(pool, data)
        except RequestError as refusal:
            outcome = refusal
        if side == 5000:  # 75 MB, where 64 x 64 pixels foretell a few
            assert isinstance(outcome, BrokenImage | DecodeMemory)
        for process in decoders(pool):
            if process.pid in before:
                assert peak_bytes(process) - before[process.pid] < 60_000_000 + 3 * len(data)

    with_pool(scene)


def peak_bytes(process: psutil.Process) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ENDLESS)
def test_decode_is_stopped_in_time_and_does_not_go_on(kind: str) -> None:
    data = ENDLESS[kind]()

    async def scene(pool: DecoderPool) -> None:
        decode = asyncio.create_task(decoded(pool, data, timeout_s=1))
        working = await busy(pool)
        with pytest.raises(DecodeTimeout, match="stopped after 1 seconds") as caught:
            await decode
        assert (caught.value.status, caught.value.limit, caught.value.unit) == (408, 1, "seconds")
        assert await ended(working)
        assert (await decoded(pool, photo())).original == (300, 400)

    with_pool(scene)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ENDLESS)
def test_photo_beside_five_hostile_files_does_not_wait_for_them(kind: str) -> None:
    data, timeout_s = ENDLESS[kind](), 15.0
    normal = photo(3000, 4000, format="JPEG")

    async def scene(pool: DecoderPool) -> None:
        hostiles = [asyncio.create_task(decoded(pool, data, timeout_s)) for _ in range(5)]
        await busy(pool, 2)
        began = time.monotonic()
        assert (await decoded(pool, normal)).original == (3000, 4000)
        assert time.monotonic() - began < timeout_s
        assert not any(hostile.done() for hostile in hostiles)
        for task in hostiles:
            task.cancel()
        await asyncio.gather(*hostiles, return_exceptions=True)

    with_pool(scene)


@pytest.mark.slow
def test_photo_does_not_wait_for_hostile_files_that_foretell_all_of_the_memory() -> None:
    data = hostile.jpeg_of_scans(20_000, 4000)  # 8 bytes for each of 16 megapixels, and as much again

    async def scene(pool: DecoderPool) -> None:
        hostiles = [asyncio.create_task(decoded(pool, data, timeout_s=600)) for _ in range(3)]
        await busy(pool)
        assert (await decoded(pool, photo(300, 400, format="JPEG"))).original == (300, 400)
        assert not any(hostile.done() for hostile in hostiles)
        for task in hostiles:
            task.cancel()
        await asyncio.gather(*hostiles, return_exceptions=True)

    with_pool(scene, memory_bytes=240_000_000)


@pytest.mark.parametrize("where", ["decoding", "waiting for memory", "waiting for a process"])
def test_caller_that_gives_up_ends_its_decode(where: str) -> None:
    data = ENDLESS["scans"]()

    async def scene(pool: DecoderPool) -> None:
        first = asyncio.create_task(decoded(pool, data))
        working = await busy(pool)
        if where != "decoding":
            second = asyncio.create_task(decoded(pool, data))
            await asyncio.sleep(0.3)
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await ended(working)
        assert (await decoded(pool, photo())).original == (300, 400)

    memory = 110_000_000 if where == "waiting for memory" else MEMORY
    with_pool(scene, processes=1 if where == "waiting for a process" else 16, memory_bytes=memory)


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSEGV])
def test_decoder_that_dies_costs_its_own_photo_only(signal_number: int) -> None:
    data = ENDLESS["scans"]()

    async def scene(pool: DecoderPool) -> None:
        doomed = asyncio.create_task(decoded(pool, data))
        (working,) = await busy(pool)
        others = [asyncio.create_task(decoded(pool, photo(2000, 2000, format="JPEG"))) for _ in range(3)]
        await asyncio.sleep(0)
        working.send_signal(signal_number)
        with pytest.raises(BrokenImage, match="cannot be decoded"):
            await doomed
        assert [image.original for image in await asyncio.gather(*others)] == [(2000, 2000)] * 3

    with_pool(scene)


def test_idle_decoder_that_dies_is_replaced_unnoticed() -> None:
    async def scene(pool: DecoderPool) -> None:
        await decoded(pool, photo())
        for process in decoders(pool):
            process.kill()
        await asyncio.sleep(0.2)
        assert (await decoded(pool, photo())).original == (300, 400)

    with_pool(scene)


def test_decode_goes_on_when_the_fork_server_is_killed() -> None:
    async def scene(pool: DecoderPool) -> None:
        slow = asyncio.create_task(decoded(pool, hostile.jpeg_of_scans(1000, 1024)))
        working = await busy(pool)
        psutil.Process(pool.server.pid).kill()
        assert await ended(working)
        assert (await slow).original == (1024, 1024)
        assert (await decoded(pool, photo())).original == (300, 400)

    with_pool(scene)


def test_photo_whose_fork_server_is_lost_again_is_refused_with_a_time_to_come_back() -> None:
    async def scene(pool: DecoderPool) -> None:
        endless = asyncio.create_task(decoded(pool, ENDLESS["scans"]()))
        for _ in range(2):
            await busy(pool)
            psutil.Process(pool.server.pid).kill()
            await asyncio.sleep(0.3)
        with pytest.raises(Lost) as caught:
            await endless
        assert caught.value.retry_after_s == 5

    with_pool(scene)


@pytest.mark.slow
def test_no_process_outlives_its_owner() -> None:
    script = """
        import asyncio, hostile, sys
        from serve_app.images.header import read_header
        from serve_app.images.pool import DecodeLimits, DecoderPool

        async def main():
            pool = DecoderPool(4, 10**9)
            data = hostile.jpeg_of_scans(20_000, 2048)
            print(pool.server.pid, flush=True)
            async with pool.decoded(data, read_header(data), hostile.request(), DecodeLimits(10**9, 600)):
                pass

        asyncio.run(main())
    """
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    owner = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert owner.stdout is not None
    server = psutil.Process(int(owner.stdout.readline()))
    processes = [server, *server.children()]
    while max(process.cpu_times().user for process in server.children()) < 0.3:
        time.sleep(0.05)
    owner.kill()
    owner.wait()
    assert asyncio.run(ended(processes))


def test_decoders_are_small_and_hold_nothing_of_the_service() -> None:
    async def scene(pool: DecoderPool) -> None:
        for _ in range(4):
            await decoded(pool, photo(2000, 3000, format="BMP"))
        async with asyncio.timeout(30):
            # Standard streams, and a socket: one that was forked just now has yet to close what it inherits.
            while (found := look(pool)) is None or found[1] > 4:
                await asyncio.sleep(0.05)
        assert found[0] < 40 * 2**20

    def look(pool: DecoderPool) -> tuple[int, int] | None:
        """The most memory of any process, and the most open files of a decoder; None while one is replaced."""
        try:
            processes = decoders(pool)
            sizes = [process.memory_full_info().pss for process in (psutil.Process(pool.server.pid), *processes)]
            return max(sizes), max(process.num_fds() for process in processes)
        except (psutil.NoSuchProcess, ValueError):
            return None

    with_pool(scene)


@pytest.mark.slow
def test_decoder_imports_neither_ray_nor_torch_nor_the_settings() -> None:
    code = "import sys, serve_app.images.decoder_process; print(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).split()
    assert not {"ray", "torch", "pydantic", "asyncio", "serve_app.settings"} & set(modules)


def test_nothing_is_left_open_by_decodes_that_end_badly() -> None:
    async def scene(pool: DecoderPool) -> None:
        async def bad() -> None:
            for data, timeout_s in ((photo()[:-100], 60.0), (ENDLESS["scans"](), 0.1)):
                with pytest.raises(RequestError):
                    await decoded(pool, data, timeout_s)

        await bad()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            await bad()
        assert len(os.listdir("/proc/self/fd")) == before
        assert len(decoders(pool)) <= 4

    with_pool(scene)


def test_pool_that_cannot_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="did not start"):
        DecoderPool(1, MEMORY)


@pytest.mark.slow
@needs_shared
def test_every_shared_file_decodes_to_the_same_pixels_or_refusal_within_its_prediction() -> None:
    async def scene(pool: DecoderPool) -> list[str]:
        return [name_of(path) for path in [*files_of("photos"), *files_of("bad")] if not await agrees(pool, path)]

    assert with_pool(scene) == []


async def agrees(pool: DecoderPool, path: Path) -> bool:
    data = path.read_bytes()
    try:
        expected: DecodedImage | RequestError = decode(data, REQUEST, 64_000_000)
    except RequestError as refusal:
        expected = refusal
    try:
        found: DecodedImage | RequestError = await decoded(pool, data)
    except RequestError as refusal:
        found = refusal
    if isinstance(expected, RequestError) or isinstance(found, RequestError):
        return repr(expected) == repr(found)
    return same(expected, found)


RAW_EXIF = b"Raw profile type exif\0"
NOISE = np.random.default_rng(0).bytes(2**20)
LARGE_CHUNKS: dict[str, Callable[[], bytes]] = {
    "EXIF as packed text": lambda: chunk(
        b"zTXt", RAW_EXIF + b"\0" + zlib.compress(b"\nexif\n1\n" + b"4d4d\n" * 800_000)
    ),
    "EXIF as packed text, 100 MB": lambda: chunk(b"zTXt", RAW_EXIF + b"\0" + zlib.compress(b"\n" * 100_000_000)),
    "EXIF as packed noise": lambda: chunk(b"zTXt", RAW_EXIF + b"\0" + zlib.compress(NOISE * 28, 0)),
    "EXIF as text": lambda: chunk(b"tEXt", RAW_EXIF + b"\nexif\n1\n" + b"4d4d\n" * 5 * 2**20),
    "EXIF": lambda: chunk(b"eXIf", b"MM\0*" + NOISE * 28),
    "EXIF of many tags": lambda: chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff" + NOISE * 28),
    "profile": lambda: chunk(b"iCCP", b"p\0\0" + zlib.compress(NOISE * 28, 0)),
    "profile, named at length": lambda: chunk(b"iCCP", b"p" * 28 * 2**20),
    "profile of 100 MB": lambda: chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(100_000_000))),
}


@pytest.mark.parametrize("kind", LARGE_CHUNKS)
def test_large_chunk_that_does_not_matter_takes_no_memory_that_is_not_set_aside(kind: str) -> None:
    plain = hostile.saved(Image.new("RGB", (64, 64), "teal"), "PNG")

    async def scene(pool: DecoderPool) -> DecodedImage:
        return await decoded(pool, with_chunks(plain, LARGE_CHUNKS[kind]()))

    assert (with_pool(scene, processes=1).frame == (0, 128, 128)).all()
