"""What strangers can do to a real service, at the size that it was found at. A service of its own."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
import yaml
from benchmarks.chaos.bad_clients import Outcome, chunked, converse, drip, request_head
from health import Health, memory_bytes
from pictures import photo_bytes
from service import ANIMEGAN, LOCAL_CONFIG, Service, changed_config, command_line, running, wait_for

MB = 1_000_000
PHOTO = photo_bytes(192, 256, "JPEG")
STALLED = request_head("/v1/stylize", "Content-Length: 500000", "X-Request-Timeout-Seconds: 0")
LIVEZ_S = 2.0  # half a second is measured on a quiet machine; here other tests may have left work behind


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """configs/local.yaml, with less patience for slow clients so that the tests are short."""
    folder = tmp_path_factory.mktemp("guard")
    path = folder / "config.yaml"
    address = changed_config(LOCAL_CONFIG, path)
    config = yaml.safe_load(path.read_text())
    config["guard"] |= {"rate_window_s": 5, "header_timeout_s": 5}
    path.write_text(yaml.safe_dump(config))
    with running([*ANIMEGAN, "run", str(path)], address, folder / "log") as started:
        assert paint(started).status_code == 200
        yield started


def paint(service: Service, data: bytes = PHOTO, **query: Any) -> requests.Response:
    return requests.post(f"{service.address}/v1/stylize", params={"max_side": 64} | query, data=data, timeout=300)


def proxy(service: Service) -> psutil.Process:
    tree = psutil.Process(service.process.pid).children(recursive=True)
    return next(process for process in tree if command_line(process).startswith("ray::ProxyActor"))


def edge(service: Service) -> tuple[psutil.Process, psutil.Process]:
    """The two processes that uploads go through."""
    return proxy(service), service.replica("Ingress")


def ray_folder(service: Service) -> Path:
    """The private folder that Ray writes its logs in."""
    tree = psutil.Process(service.process.pid).children(recursive=True)
    line = next(line for line in map(command_line, tree) if "--ray-folder " in line)
    return Path(line.split("--ray-folder ")[1].split()[0])


async def together(address: str, count: int, first: bytes, more: Any) -> list[Outcome]:
    return await asyncio.gather(*(converse(address, first, more) for _ in range(count)))


def padded(megabytes: int) -> bytes:
    """A valid photograph of so many megabytes: decoders ignore what follows its end."""
    return PHOTO + bytes(megabytes * MB - len(PHOTO))


def settled(service: Service, idle: int) -> None:
    """Waits until what the uploads took is given back."""
    wait_for(lambda: memory_bytes(*edge(service)) - idle < 150 * MB, 60)


def test_200_stalled_bodies_hold_nobody_up(service: Service) -> None:
    with Health(service.address) as health, ThreadPoolExecutor(1) as pool:
        stalled = pool.submit(lambda: asyncio.run(together(service.address, 200, STALLED, drip)))
        photos: Counter[int] = Counter()
        while not stalled.done():
            photos[paint(service).status_code] += 1
    assert Counter(outcome.status for outcome in stalled.result()) == {408: 200}
    assert set(photos) == {200}
    assert (health.failures, health.worst_s < LIVEZ_S) == (0, True), health


def test_an_endless_chunked_upload_beside_stalled_ones_takes_no_memory(service: Service) -> None:
    async def scene() -> list[Outcome]:
        head = request_head("/v1/stylize", "Transfer-Encoding: chunked")
        endless = converse(service.address, head, chunked(1500 * MB))
        return await asyncio.gather(endless, together(service.address, 130, STALLED, drip))  # type: ignore[return-value]

    before = memory_bytes(proxy(service))
    with Health(service.address, (proxy(service),)) as health:
        endless, *_ = asyncio.run(scene())
    assert endless.status == 413
    assert health.peak_bytes - before < 64 * MB
    assert (health.failures, health.worst_s < LIVEZ_S) == (0, True), health


def test_fifty_chunked_uploads_of_100_mb_take_little_memory(service: Service) -> None:
    idle = memory_bytes(*edge(service))
    head = request_head("/v1/stylize", "Transfer-Encoding: chunked")
    with Health(service.address, edge(service)) as health:
        outcomes = asyncio.run(together(service.address, 50, head, chunked(100 * MB)))
    assert {outcome.status for outcome in outcomes} <= {413, 429}
    assert health.peak_bytes - idle < 600 * MB
    settled(service, idle)


def test_forty_photos_of_31_mb_are_painted_in_little_memory(service: Service) -> None:
    photo = padded(31)

    def until_painted(_: int) -> list[int]:
        statuses = []
        while True:
            answer = paint(service, photo)
            statuses.append(answer.status_code)
            if answer.status_code != 429:
                return statuses
            time.sleep(int(answer.headers["retry-after"]))

    idle = memory_bytes(*edge(service))
    with Health(service.address, edge(service)) as health, ThreadPoolExecutor(40) as pool:
        statuses = list(pool.map(until_painted, range(40)))
    assert [each[-1] for each in statuses] == [200] * 40
    assert sum(each[0] == 200 for each in statuses) >= 8
    assert health.peak_bytes - idle < 600 * MB
    settled(service, idle)


def test_a_folder_of_32_photos_of_12_mb_is_painted(service: Service) -> None:
    photo = padded(12)
    with ThreadPoolExecutor(32) as pool:
        assert {answer.status_code for answer in pool.map(lambda _: paint(service, photo), range(32))} == {200}


def test_a_header_of_128_mib_is_cut_off(service: Service) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(2048):
            yield b"a" * 65536
            sent += 65536

    with Health(service.address) as health:
        asyncio.run(converse(service.address, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", endless))
        time.sleep(1)
    assert sent < 32 * 2**20  # what the buffers of two sockets hold
    assert (health.failures, health.worst_s < LIVEZ_S) == (0, True), health


def test_200_slow_headers_are_given_up(service: Service) -> None:
    with Health(service.address) as health:
        outcomes = asyncio.run(together(service.address, 200, b"GET / HTTP/1.1\r\nX: ", drip))
    assert {outcome.status for outcome in outcomes} == {408}
    assert (health.failures, health.worst_s < LIVEZ_S) == (0, True), health


def test_a_photo_over_a_slow_line_is_painted(service: Service) -> None:
    async def at_one_megabit() -> AsyncIterator[bytes]:
        for start in range(0, len(photo), 12_500):
            yield photo[start : start + 12_500]
            await asyncio.sleep(0.1)

    photo = padded(1)  # 8 s; the 10 MB take 80 s and nothing else differs
    head = request_head("/v1/stylize?max_side=64", f"Content-Length: {len(photo)}", "Connection: close")
    outcome = asyncio.run(converse(service.address, head, at_one_megabit))
    assert outcome.status == 200


def test_200_aborted_uploads_and_impatient_clients_log_nothing(service: Service) -> None:
    logs = list(ray_folder(service).glob("ray/session_latest/logs/serve/*.log"))
    assert logs
    before = {path: path.stat().st_size for path in logs}

    async def leave(number: int) -> None:
        """Breaks an upload off in its middle, or leaves when it is complete and waits for its turn or is painted."""
        length = len(PHOTO) if number % 2 else 500_000
        _, writer = await asyncio.open_connection(*service.address.removeprefix("http://").split(":"))
        writer.write(
            request_head("/v1/stylize", f"Content-Length: {length}", "X-Request-Disconnect-Disabled: ?1") + PHOTO
        )
        await writer.drain()
        await asyncio.sleep(0.02 * (number % 10))
        writer.transport.abort()

    async def scene() -> None:
        await asyncio.gather(*(leave(number) for number in range(200)))

    asyncio.run(scene())
    assert paint(service).status_code == 200  # at once: nobody who has gone is painted
    said = service.console() + "".join(path.read_text()[before[path] :] for path in logs)
    assert not [line for line in said.splitlines() if "Traceback" in line or "ERROR" in line or "Cancelled" in line]


def test_a_request_that_is_lost_with_its_ingress_is_told_so(service: Service) -> None:
    answers: list[requests.Response] = []
    large = photo_bytes(576, 768, "JPEG")
    threads = [threading.Thread(target=lambda: answers.append(paint(service, large, max_side=768))) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(1.5)
    service.replica("Ingress").kill()
    for thread in threads:
        thread.join()
    assert Counter(answer.status_code for answer in answers).keys() <= {200, 503}
    lost = [answer for answer in answers if answer.status_code == 503]
    assert lost
    for answer in lost:
        assert (answer.json()["code"], int(answer.headers["retry-after"]) > 0) == ("lost", True)
    wait_for(lambda: paint(service).status_code == 200, 60)
