"""What a real service writes: lines of requests in the files of Serve, and nothing that only a client should know."""

import io
import json
import re
from pathlib import Path
from typing import Any

import psutil
import requests
from pictures import photo_bytes
from PIL import Image
from service import Service, wait_for

PEER = "198.51.100.77"
FINISHED = ("succeeded", "failed")


def log_files(service: Service) -> list[Path]:
    """Every log of Ray and of Serve."""
    (serving,) = psutil.Process(service.process.pid).children()
    (folder,) = Path("/tmp").glob(f"animegan-*/ray/session_*_{serving.pid}")
    return [path for path in (folder / "logs").rglob("*") if path.is_file()]


def members(service: Service, kind: str, request_id: str | None = None) -> list[dict[str, Any]]:
    """The lines of requests or jobs, of one request or of all."""
    found = []
    for path in log_files(service):
        if path.parent.name == "serve" and path.suffix == ".log":
            lines = path.read_text().splitlines()
            found += [json.loads(line)[kind] for line in lines if f'"{kind}": {{' in line]
    return [each for each in found if request_id is None or each.get("id") == request_id]


def marked_photograph() -> bytes:
    exif = Image.Exif()
    exif[0x010E], exif[0x013B] = "marker-description", "marker-artist"
    buffer = io.BytesIO()
    options: dict[str, Any] = {"exif": exif, "comment": b"marker-comment"}
    Image.open(io.BytesIO(photo_bytes(96, 128))).convert("RGB").save(buffer, "JPEG", **options)
    return buffer.getvalue()


def test_each_request_has_one_line_with_what_its_answer_says(service: Service) -> None:
    photo = photo_bytes(96, 128)
    answer = requests.post(f"{service.address}/v1/stylize?max_side=64", data=photo, timeout=60)
    assert answer.status_code == 200
    request_id = answer.headers["X-Request-ID"]
    wait_for(lambda: members(service, "request", request_id), 30)
    (line,) = members(service, "request", request_id)
    timings = line.pop("timings_ms")
    assert line == {
        "id": request_id,
        "method": "POST",
        "route": "/v1/stylize",
        "status": 200,
        "outcome": "ok",
        "style": answer.headers["X-Style"],
        "photograph": "128x96",
        "painting": "64x48",
        "reused": False,
        "bytes_in": len(photo),
        "bytes_out": len(answer.content),
    }
    told = dict(re.findall(r"(\w+);dur=([\d.]+)", answer.headers["Server-Timing"]))
    assert {name: f"{timings[name]:.1f}" for name in told} == told
    assert list(timings) == ["guard", *told, "total"]


def test_what_the_guard_refuses_has_one_line_too(service: Service) -> None:
    refused = requests.post(f"{service.address}/v1/nothing", data=bytes(2**21), timeout=60)
    request_id = refused.headers["X-Request-ID"]
    wait_for(lambda: members(service, "request", request_id), 30)
    (line,) = members(service, "request", request_id)
    assert (refused.status_code, line["outcome"], "route" in line) == (413, "too-many-bytes", False)


def test_nothing_that_only_the_client_should_know_is_in_any_file(service: Service) -> None:
    before = len(members(service, "job"))
    headers = {"X-API-Key": "ag_marker", "X-Forwarded-For": PEER, "Cookie": "marker", "User-Agent": "marker"}
    upload = {"image": ("marker-file.jpg", marked_photograph())}
    damaged = {"image": ("marker-file.jpg", marked_photograph()[:-300])}

    def ask(method: str, path: str, **options: Any) -> requests.Response:
        return requests.request(method, service.address + path, headers=headers, timeout=60, **options)

    assert ask("POST", "/v1/stylize?max_side=64", files=upload).status_code == 200
    assert ask("POST", "/v1/stylize", files=damaged).status_code == 422
    assert ask("POST", "/v1/stylize?marker=1", files=upload).status_code == 400
    assert ask("GET", "/v1/marker").status_code == 404
    job = ask("POST", "/v1/jobs?max_side=64", files=upload).json()["id"]
    wait_for(lambda: ask("GET", f"/v1/jobs/{job}").json()["status"] in FINISHED, 60)
    for path in (f"/v1/jobs/{job}/image", f"/v1/jobs?id={job}", f"/v1/jobs/{job}/nothing"):
        ask("GET", path)
    last = ask("DELETE", f"/v1/jobs/{job}")
    assert last.status_code == 200
    wait_for(lambda: members(service, "request", last.headers["X-Request-ID"]), 30)
    wait_for(lambda: len(members(service, "job")) > before, 30)
    written = {path.name: path.read_text(errors="replace") for path in log_files(service)}
    for name, text in (written | {"console": service.console()}).items():
        for secret in ("marker", job, PEER):
            where = re.search(f".{{0,80}}{re.escape(secret)}.{{0,80}}", text)
            assert where is None, (name, where)
