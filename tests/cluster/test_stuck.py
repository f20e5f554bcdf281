"""A device that hangs, in a real service: its process is replaced, and the photographs that waited are painted."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
import yaml
from pictures import photo_bytes
from service import ANIMEGAN, LOCAL_CONFIG, Service, changed_config, command_line, running, wait_for

STUCK_AFTER_S = 5
NOTICED_AFTER_S = 45  # from then on, at most
STICKS = (72, 104)  # height and width of photographs that the device hangs on
# Python runs a module of this name first, here in the process of the Stylizer alone.
SITECUSTOMIZE = f"""
import threading

from serve_app.engine.stylist import Stylist

forward = Stylist._forward


def forward_or_hang(self, style, frames, rows):
    if frames[0].shape[:2] == {STICKS}:
        threading.Event().wait()
    return forward(self, style, frames, rows)


Stylist._forward = forward_or_hang
"""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    config = tmp_path / "config.yaml"
    address = changed_config(LOCAL_CONFIG, config, Stylizer={"user_config": {"stuck_after_s": STUCK_AFTER_S}})
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE)
    document = yaml.safe_load(config.read_text())
    (stylizer,) = (d for d in document["applications"][0]["deployments"] if d["name"] == "Stylizer")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    stylizer["ray_actor_options"]["runtime_env"]["env_vars"]["PYTHONPATH"] = path
    config.write_text(yaml.safe_dump(document))
    with running([*ANIMEGAN, "run", str(config)], address, tmp_path / "log") as started:
        yield started


def paint(service: Service, height: int, width: int, **query: float) -> requests.Response:
    photo = photo_bytes(height, width)
    return requests.post(f"{service.address}/v1/stylize", params=query, data=photo, timeout=280)


def test_device_that_hangs_is_noticed_and_what_waits_for_it_is_painted_by_another_process(service: Service) -> None:
    stuck = service.replica("Stylizer")
    with ThreadPoolExecutor(1) as pool:
        assert paint(service, *STICKS, timeout_s=2).status_code == 408  # the device still hangs, and nobody waits
        waiting = pool.submit(paint, service, 64, 64)
        began_s = time.monotonic()
        wait_for(lambda: not command_line(stuck), STUCK_AFTER_S + NOTICED_AFTER_S)
        ended_s = time.monotonic()
        assert waiting.result().status_code == 200
    print(f"ended {ended_s - began_s:.1f} s after the photograph, painted {time.monotonic() - began_s:.1f} s after it")
    assert service.replica("Stylizer").pid != stuck.pid
    assert f"above stuck_after_s ({STUCK_AFTER_S})" in service.console()
