"""The real graph: real Ray, real HTTP, the shipped style, no GPU."""

import re
import socket
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import psutil
import pytest
import requests
from pictures import opened, photo_bytes
from service import Service, wait_for
from shared import SHARED, SHIPPED_STYLES, files_of, name_of, needs_shared

TOO_SMALL = {"tiny_1x1_prophoto.png", "tiny_2x2.png"}


def stylize(
    service: Service, data: bytes, headers: dict[str, str] | None = None, **query: str | float
) -> requests.Response:
    return requests.post(f"{service.address}/v1/stylize", data=data, params=query, headers=headers, timeout=60)


def problem(response: requests.Response) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert document["status"] == response.status_code
    return document


def peak_bytes(process: psutil.Process) -> int:
    """VmHWM: the largest resident size since it was last reset."""
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    assert peak
    return int(peak[1]) * 1024


def reset_peak(process: psutil.Process) -> None:
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")


def test_service_paints_a_photo_with_its_receipt(service: Service) -> None:
    answer = stylize(service, photo_bytes(160, 200), max_side=100)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/jpeg"
    assert opened(answer.content).size == (100, 80)
    receipt = {name: answer.headers[name] for name in ("X-Style", "X-Original-Size", "X-Painted-Size", "X-Resized")}
    assert receipt == {
        "X-Style": "cel",
        "X-Original-Size": "200x160",
        "X-Painted-Size": "100x80",
        "X-Resized": "true",
    }
    assert re.fullmatch(
        r"decode;dur=[\d.]+, queue;dur=[\d.]+, paint;dur=[\d.]+, encode;dur=[\d.]+", answer.headers["Server-Timing"]
    )
    assert answer.headers["Vary"] == "Accept"
    assert answer.headers["X-Request-ID"]


def test_every_format_comes_back(service: Service) -> None:
    for format in ("jpeg", "webp", "png", "avif"):
        answer = stylize(service, photo_bytes(40, 48), format=format)
        assert answer.headers["content-type"] == f"image/{format}"
        assert opened(answer.content).format == format.upper()


def test_two_styles_are_served_by_one_replica(service: Service) -> None:
    photo = photo_bytes(61, 83)
    toon, second = (stylize(service, photo, style=style, format="png") for style in ("toon", "second"))
    assert (toon.headers["X-Painted-Size"], second.headers["X-Painted-Size"]) == ("80x60", "83x61")
    assert (toon.headers["X-Style"], second.headers["X-Style"]) == ("toon", "second")
    assert len(service.replicas("Stylizer")) == 1


def test_damaged_style_is_named_at_start_and_is_404(service: Service) -> None:
    assert "damaged.safetensors is damaged: its content does not match its digest" in service.console()
    refused = stylize(service, photo_bytes(40, 48), style="damaged")
    assert (refused.status_code, problem(refused)["code"]) == (404, "unknown-style")
    assert problem(refused)["detail"].startswith("The style 'damaged' is left out, because its file cannot be used")


def test_images_sent_together_equal_the_same_images_sent_alone(service: Service) -> None:
    photos = [photo_bytes(96, 128, seed=seed) for seed in range(8)]
    alone = [np.asarray(opened(stylize(service, photo, format="png").content), float) for photo in photos]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda photo: stylize(service, photo, format="png"), photos))
    together = [np.asarray(opened(answer.content), float) for answer in answers]
    assert max(np.abs(a - b).max() for a, b in zip(alone, together, strict=True)) <= 1


@needs_shared
@pytest.mark.parametrize("path", files_of("photos"), ids=name_of)
def test_every_photo_is_painted_at_its_right_size(service: Service, path: Path) -> None:
    answer = stylize(service, path.read_bytes(), max_side=160)
    if path.name in TOO_SMALL:
        assert answer.status_code == 422
        assert (problem(answer)["code"], problem(answer)["limit"]) == ("too-small", 8)
        return
    assert answer.status_code == 200
    width, height = map(int, answer.headers["X-Original-Size"].split("x"))
    scale = min(1, 160 / max(width, height))
    assert opened(answer.content).size == tuple(round(side * scale) // 4 * 4 for side in (width, height))


@needs_shared
def test_hostile_files_cost_an_answer_and_nothing_else(service: Service) -> None:
    index = (SHARED / "bad" / "INDEX.md").read_text().splitlines()
    replicas = [service.replica(name).pid for name in ("Ingress", "Codec", "Stylizer")]
    codec = service.replica("Codec")
    idle_bytes = codec.memory_info().rss
    reset_peak(codec)
    for path in files_of("bad"):
        verdict = next(line for line in index if name_of(path) in line).split("|")[3].strip()
        answer = stylize(service, path.read_bytes(), max_side=160)
        if answer.status_code == 200:
            assert verdict.startswith("decodes"), path
        else:
            assert 400 <= answer.status_code < 500, path
            assert problem(answer)["detail"], path
    assert peak_bytes(codec) - idle_bytes < 300 * 2**20
    assert [service.replica(name).pid for name in ("Ingress", "Codec", "Stylizer")] == replicas
    assert stylize(service, photo_bytes(40, 48)).status_code == 200


def decoders(service: Service) -> list[psutil.Process]:
    (server,) = service.replica("Codec").children()
    return server.children()


def user_s(process: psutil.Process) -> float:
    try:
        return float(process.cpu_times().user)
    except psutil.NoSuchProcess:
        return 0.0


@pytest.mark.parametrize("end", ["deadline", "client gone"])
def test_photo_beside_five_hostile_files_is_painted_and_their_decoding_ends_with_them(
    service: Service, end: str
) -> None:
    data = hostile.jpeg_of_scans(20_000, 2048)
    timeout_s = 4 if end == "deadline" else 50
    with ThreadPoolExecutor(5) as pool:
        hostiles = [pool.submit(hostile_answer, service, data, timeout_s, end) for _ in range(5)]
        wait_for(lambda: any(user_s(process) > 0.5 for process in decoders(service)), 20)
        answer = stylize(service, photo_bytes(60, 80))
        assert answer.status_code == 200
        working = [process for process in decoders(service) if user_s(process) > 0.5]
        assert not any(hostile.done() for hostile in hostiles)
        outcomes = {hostile.result() for hostile in hostiles}
    assert outcomes == {"deadline-exceeded" if end == "deadline" else "client gone"}
    wait_for(lambda: all(user_s(process) == 0 for process in working), 1)  # they have ended


def hostile_answer(service: Service, data: bytes, timeout_s: float, end: str) -> str:
    url, wait_s = f"{service.address}/v1/stylize", 60 if end == "deadline" else 4
    try:
        answer = requests.post(url, data=data, params={"timeout_s": timeout_s}, timeout=wait_s)
    except requests.Timeout:
        return "client gone"
    return str(problem(answer)["code"])


def test_decoders_are_small(service: Service) -> None:
    (server,) = service.replica("Codec").children()
    assert all(process.memory_full_info().pss < 40 * 2**20 for process in [server, *decoders(service)])


def test_a_users_mistake_logs_no_traceback(service: Service) -> None:
    assert stylize(service, b"not a picture").status_code == 415
    assert "Traceback" not in service.console()


def test_metadata_never_leaves(service: Service) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 51.0, 30.0)})
    data = photo_bytes(40, 48, "JPEG", exif=exif, comment=b"secret place")
    assert opened(data).getexif().get_ifd(0x8825)
    for format in ("jpeg", "webp", "png", "avif"):
        answer = stylize(service, data, format=format)
        painted = opened(answer.content)
        assert not painted.getexif().get_ifd(0x8825)
        assert b"secret" not in answer.content
        assert "icc_profile" not in painted.info


def burst(service: Service, count: int, side: int, client: str = "198.51.100.1") -> list[requests.Response]:
    """Returns the answers to so many photographs sent at once by one client."""
    with ThreadPoolExecutor(count) as pool:
        return [sent.result() for sent in send_all(pool, service, count, side, client)]


def send_all(
    pool: ThreadPoolExecutor, service: Service, count: int, side: int, client: str
) -> list[Future[requests.Response]]:
    photos = [photo_bytes(side, side, seed=seed) for seed in range(count)]
    return [pool.submit(stylize, service, photo, {"X-Forwarded-For": client}) for photo in photos]


def test_burst_that_fits_is_never_refused(service: Service) -> None:
    answers = burst(service, 16, 128)  # four fifths of queue_least_pictures
    assert [answer.status_code for answer in answers] == [200] * 16


def test_burst_beyond_the_queue_is_refused_on_arrival(service: Service) -> None:
    answers = burst(service, 40, 320)
    assert {answer.status_code for answer in answers} == {200, 429}
    for refused in (answer for answer in answers if answer.status_code == 429):
        document = problem(refused)
        assert document["code"] == "too-busy"
        assert document["actual"] > document["limit"] > 0
        assert document["position"] >= 16
        assert int(refused.headers["Retry-After"]) == document["retry_after_s"] >= 1
        assert f"{document['position']} pictures are waiting" in document["detail"]


def test_burst_of_one_client_shuts_no_other_out(service: Service) -> None:
    with ThreadPoolExecutor(40) as pool:
        sent = send_all(pool, service, 40, 320, "198.51.100.1")
        refused = (429 for each in as_completed(sent) if each.result().status_code == 429)
        assert next(refused, None) == 429  # the queue is full for this client
        newcomer = stylize(service, photo_bytes(64, 64), {"X-Forwarded-For": "198.51.100.2"})
        assert newcomer.status_code == 200


def test_image_past_its_time_is_answered_408(service: Service) -> None:
    late = stylize(service, photo_bytes(1024, 1024), timeout_s=0.001)
    assert (late.status_code, problem(late)["code"]) == (408, "deadline-exceeded")
    assert stylize(service, photo_bytes(64, 64)).status_code == 200


def test_client_that_goes_away_frees_its_place_and_its_work(service: Service) -> None:
    host, port = service.address.removeprefix("http://").split(":")
    stylizer = service.replica("Stylizer")
    before_s = stylizer.cpu_times().user
    assert stylize(service, photo_bytes(640, 640)).status_code == 200
    one_s = stylizer.cpu_times().user - before_s
    connections = []
    for seed in range(16):
        photo = photo_bytes(640, 640, seed=seed)
        head = "POST /v1/stylize HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 198.51.100.3\r\n"
        head += f"Content-Length: {len(photo)}"
        connections.append(socket.create_connection((host, int(port))))
        connections[-1].sendall(f"{head}\r\n\r\n".encode() + photo)
    wait_for(lambda: 429 in {answer.status_code for answer in burst(service, 8, 64, "198.51.100.3")}, 30)
    before_s = stylizer.cpu_times().user
    for connection in connections:
        connection.close()
    wait_for(lambda: {answer.status_code for answer in burst(service, 16, 64, "198.51.100.3")} == {200}, 60)
    assert stylizer.cpu_times().user - before_s < 8 * one_s  # the work of fewer than half of the sixteen


def test_only_the_stylizers_process_holds_torch(service: Service) -> None:
    def holds_torch(deployment: str) -> bool:
        return "libtorch_cpu" in Path(f"/proc/{service.replica(deployment).pid}/maps").read_text()

    assert {name: holds_torch(name) for name in ("Ingress", "Codec", "Stylizer")} == {
        "Ingress": False,
        "Codec": False,
        "Stylizer": True,
    }


def test_service_describes_itself(service: Service) -> None:
    def get(path: str) -> requests.Response:
        return requests.get(f"{service.address}{path}", timeout=10)

    assert get("/livez").json() == {"status": "ok"}
    assert get("/readyz").json() == {"status": "ok", "jobs": "ready"}
    installed = {style["name"]: style["licence"] for style in get("/v1/styles").json()["styles"] if style["installed"]}
    assert installed == {**dict.fromkeys(SHIPPED_STYLES, "MIT"), "second": "test"}
    assert "/v1/stylize" in get("/openapi.json").json()["paths"]
    assert "swagger-ui" in get("/docs").text
    assert "<html" in get("/").text
