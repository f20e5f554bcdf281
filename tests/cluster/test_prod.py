"""configs/prod.yaml as it ships, on a Ray that is started with one GPU, on a machine that has none."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
import yaml
from pictures import opened, photo_bytes
from service import ANIMEGAN, free_port, port_answers, wait_for
from shared import ROOT

from serve_app.deployments.proxy import CALLBACK, CALLBACK_VARIABLE, CONFIG_VARIABLE

BIN = Path(sys.executable).parent
PROD = ROOT / "configs" / "prod.yaml"
ADDRESS = "http://127.0.0.1:8000"  # prod.yaml's own port: nothing but the device is overridden here


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """A Ray head of 16 CPUs and one GPU that need not exist; yields the environment of its commands."""
    if port_answers(8000):
        pytest.skip("port 8000, which prod.yaml names, is taken on this machine")
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # pytest's own are too long for the sockets that Ray makes there
    # A Ray that is started by hand guards itself with a token, and a fresh machine has none; commands that name its
    # address need the setting to use it.
    guard = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = os.environ | guard | {"RAY_ADDRESS": f"127.0.0.1:{port}", "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {CALLBACK_VARIABLE: CALLBACK, CONFIG_VARIABLE: str(PROD)}
    command = [str(BIN / "ray"), "start", "--head", "--num-gpus=1", "--num-cpus=16", f"--port={port}", "--block"]
    with (folder / "log").open("w") as log:
        head = subprocess.Popen(
            [*command, f"--temp-dir={folder}"], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    wait_for(lambda: port_answers(port), 60)
    yield environment
    head.terminate()
    head.wait(60)
    shutil.rmtree(folder, ignore_errors=True)


def test_prod_paints_with_nothing_overridden_but_the_device(cluster: dict[str, str], tmp_path: Path) -> None:
    document = yaml.safe_load(PROD.read_text())
    assert document["applications"][0]["args"]["device"] == "auto"
    document["applications"][0]["args"]["device"] = "cpu"
    config = tmp_path / "prod-on-cpu.yaml"
    config.write_text(yaml.safe_dump(document))
    with (tmp_path / "log").open("w") as log:
        serve = subprocess.Popen(
            [BIN / "serve", "run", config],
            env=cluster,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            # A shell's background jobs ignore SIGINT, and what they start with them: `serve run` would never stop.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        wait_for(lambda: answers("/readyz") or serve.poll() is not None, 300)
        assert serve.poll() is None, (tmp_path / "log").read_text()
        answer = requests.post(f"{ADDRESS}/v1/stylize", data=photo_bytes(48, 64), timeout=60)
        assert answer.status_code == 200, answer.text
        assert opened(answer.content).size == (64, 48)
        refusal = requests.get(f"{ADDRESS}/livez", headers={"X-Anything": b"\xff"}, timeout=60)
        assert refusal.json()["code"] == "bad-header"  # the guard is there
        assert "NO GUARD" not in (tmp_path / "log").read_text()
        check_drain(cluster)
    finally:
        serve.send_signal(signal.SIGINT)
        serve.wait(200)


def check_drain(environment: dict[str, str]) -> None:
    """Has a service drain while it paints, and take everything again."""

    def animegan(*arguments: str) -> str:
        command = [*ANIMEGAN, "drain", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120).stdout

    def paint(side: int) -> requests.Response:
        return requests.post(f"{ADDRESS}/v1/stylize", data=photo_bytes(side, side, "JPEG"), timeout=120)

    with ThreadPoolExecutor(2) as pool:
        in_hand = [pool.submit(paint, side) for side in (1000, 800)]
        time.sleep(1)
        told = animegan()
        assert [answer.done() for answer in in_hand] == [True, True]
        assert [answer.result().status_code for answer in in_hand] == [200, 200]
    assert told.startswith("requests in hand: ")
    assert told.endswith("\nrequests in hand: 0\n")
    assert not answers("/readyz")
    assert paint(64).json()["code"] == "stopping"
    animegan("--undo")
    assert answers("/readyz")
    assert paint(64).status_code == 200


def test_prod_without_cuda_is_refused_with_a_reason(cluster: dict[str, str]) -> None:
    outcome = subprocess.run(
        [*ANIMEGAN, "run", str(PROD)], env=cluster, capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert outcome.returncode == 1
    assert (
        "num_gpus is 0.25, but torch sees no CUDA device on this machine. Set device: cpu in the application's args if "
        "painting on the CPU is meant; otherwise install a CUDA build of torch and the GPU's driver."
    ) in outcome.stderr


def answers(path: str) -> bool:
    try:
        return requests.get(ADDRESS + path, timeout=5).status_code == 200
    except requests.RequestException:
        return False
