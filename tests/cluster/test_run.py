"""`scripts/run` and `animegan run` from start to end: each test starts a Ray of its own, one after another."""

import os
import re
import signal
import socket
import stat
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import requests
import yaml
from pictures import photo_bytes
from service import ANIMEGAN, CHAOS, LOCAL_CONFIG, Service, changed_config, command_line, free_port, running, wait_for
from shared import ROOT, SHIPPED_STYLES

from serve_app.web.keys import new_key


def ray_processes(of: psutil.Process) -> list[psutil.Process]:
    return [process for process in of.children(recursive=True) if "ray" in command_line(process)]


def dashboards(of: psutil.Process) -> list[psutil.Process]:
    return [process for process in ray_processes(of) if "ray-dashboard" in command_line(process)]


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with Ray's dashboard and a queue of five small pictures."""
    folder = tmp_path_factory.mktemp("narrow")
    config = folder / "config.yaml"
    limits = {"queue_time_s": 0.001, "queue_least_pictures": 5, "timeout_s": 250, "trusted_proxies": []}
    address = changed_config(LOCAL_CONFIG, config, Ingress={"user_config": limits})
    with running([*ANIMEGAN, "run", str(config), "--dashboard"], address, folder / "log") as service:
        yield service


def test_ray_shows_its_dashboard_where_it_is_asked_for(narrow: Service) -> None:
    wait_for(lambda: dashboards(psutil.Process(narrow.process.pid)), 60)
    dashboard = re.search(r"Ray's dashboard: (http://\S+)", narrow.console())
    assert dashboard
    assert requests.get(dashboard[1], timeout=10).ok


def test_invented_address_of_a_client_is_not_believed(narrow: Service) -> None:
    """A client may fill four fifths of the queue, whatever it writes into X-Forwarded-For."""
    photo = photo_bytes(400, 400, "JPEG")

    def paint(number: int) -> requests.Response:
        headers = {"X-Forwarded-For": f"203.0.113.{number}"}
        return requests.post(f"{narrow.address}/v1/stylize", data=photo, headers=headers, timeout=120)

    with ThreadPoolExecutor(5) as pool:
        statuses = Counter(answer.status_code for answer in pool.map(paint, range(5)))
    assert statuses == {200: 4, 429: 1}


@pytest.mark.parametrize("name", ["gcs_server", pytest.param("raylet", marks=CHAOS)])
def test_death_of_ray_ends_the_service_with_a_sentence(tmp_path: Path, name: str) -> None:
    config = tmp_path / "config.yaml"
    address = changed_config(LOCAL_CONFIG, config)
    with running([*ANIMEGAN, "run", str(config)], address, tmp_path / "log") as service:
        (serving,) = psutil.Process(service.process.pid).children()
        (folder,) = Path("/tmp").glob(f"animegan-*/ray/session_*_{serving.pid}")
        private = folder.parents[1]
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
        (core,) = [process for process in serving.children() if process.name() == name]
        core.kill()
        assert service.process.wait(60) != 0
        assert re.search(rf"animegan: Ray's .*{name}.* has died, and the service with it", service.console())
        wait_for(lambda: not any(lives_in_session(other, serving.pid) for other in psutil.process_iter()), 60)
        assert not private.exists()


def test_service_with_a_key_file_asks_for_a_key(tmp_path: Path) -> None:
    key, line = new_key("alice")
    file = tmp_path / "keys"
    file.write_text(line)
    file.chmod(0o600)
    config = tmp_path / "config.yaml"
    address = changed_config(LOCAL_CONFIG, config, Ingress={"user_config": {"keys": f"file:{file}"}})
    config.write_text(config.read_text().replace("log_level: WARNING", "log_level: DEBUG"))

    def paint(data: bytes, **headers: str) -> requests.Response:
        return requests.post(f"{address}/v1/stylize", data=data, headers=headers, timeout=120)

    with running([*ANIMEGAN, "run", str(config)], address, tmp_path / "log") as service:
        refused = paint(bytes(16 * 2**20))
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
        assert refused.headers["WWW-Authenticate"] == 'Bearer realm="animegan-serve"'
        assert paint(photo_bytes(40, 48), Authorization="Bearer ag_wrong").status_code == 401
        assert paint(photo_bytes(40, 48), Authorization=f"Bearer {key}").status_code == 200
        assert requests.get(f"{address}/v1/styles", timeout=10).status_code == 200
        newer, line = new_key("alice")
        file.write_text(line)
        wait_for(lambda: paint(photo_bytes(40, 48), **{"X-API-Key": newer}).status_code == 200, 30)
        assert paint(photo_bytes(40, 48), **{"X-API-Key": key}).status_code == 401
        (serving,) = psutil.Process(service.process.pid).children()
        (folder,) = Path("/tmp").glob(f"animegan-*/ray/session_*_{serving.pid}")
        logs = [path.read_text(errors="replace") for path in (folder / "logs").rglob("*") if path.is_file()]
        assert any("POST /v1/stylize 401" in log for log in logs)
        assert not any(secret in log for log in (service.console(), *logs) for secret in (key, newer))


def test_service_that_is_stopped_answers_what_it_has_in_hand(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    address = changed_config(LOCAL_CONFIG, config)
    with running([*ANIMEGAN, "run", str(config)], address, tmp_path / "log") as service, ThreadPoolExecutor(3) as pool:

        def paint(side: int) -> requests.Response:
            return requests.post(f"{address}/v1/stylize", data=photo_bytes(side, side, "JPEG"), timeout=120)

        assert paint(64).status_code == 200
        in_hand = [pool.submit(paint, side) for side in (1020, 1010, 1000)]
        time.sleep(1.5)  # until they are there; one may be done by then
        service.process.send_signal(signal.SIGTERM)
        wait_for(lambda: re.search("requests in hand: [23]", service.console()), 60)
        refusal = paint(64)
        assert (refusal.status_code, refusal.json()["code"]) == (503, "stopping")
        assert requests.get(f"{address}/readyz", timeout=9).status_code == 503
        assert requests.get(f"{address}/livez", timeout=9).status_code == 200
        assert [answer.result().status_code for answer in in_hand] == [200, 200, 200]
        assert service.process.wait(60) == 0
        assert service.console().endswith("\nstopped\n")


@pytest.mark.parametrize("after_s", [0.5, 1.5, 3, 5])
def test_an_interrupted_start_leaves_nothing(tmp_path: Path, after_s: float) -> None:
    config = tmp_path / "config.yaml"
    changed_config(LOCAL_CONFIG, config)
    command = [*ANIMEGAN, "run", str(config)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(psutil.Process(process.pid).children, 30)
    time.sleep(after_s)  # in the middle of whatever it is doing by then
    (serving,) = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGINT)
    console, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert console.endswith("\nstopped\n")
    assert "Traceback" not in console
    wait_for(lambda: not any(lives_in_session(other, serving.pid) for other in psutil.process_iter()), 60)


def lives_in_session(process: psutil.Process, session: int) -> bool:
    with suppress(ProcessLookupError, psutil.Error):
        return os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE
    return False


def broken_copy(tmp_path: Path, **args: object) -> Path:
    config = tmp_path / "config.yaml"
    changed_config(LOCAL_CONFIG, config)
    document = yaml.safe_load(config.read_text())
    document["applications"][0]["args"] |= args
    config.write_text(yaml.safe_dump(document))
    return config


def run_to_its_end(config: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*ANIMEGAN, "run", str(config)], capture_output=True, text=True, cwd=ROOT, timeout=300)


def test_a_failed_deployment_prints_why_and_exits(tmp_path: Path) -> None:
    outcome = run_to_its_end(broken_copy(tmp_path, memory_bytes=1_000_000))
    assert outcome.returncode == 1
    assert "the deployment failed" in outcome.stderr
    assert re.search(r"Painting 64 x 64 takes \d+ MB, and 1 MB are set aside for it here", outcome.stderr)


def test_missing_style_is_refused_before_anything_starts(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    changed_config(LOCAL_CONFIG, config, Ingress={"user_config": {"default_style": "missing"}})
    outcome = run_to_its_end(config)
    assert outcome.returncode == 1
    assert f"There is no style 'missing' here; installed are: {', '.join(SHIPPED_STYLES)}." in outcome.stderr
    assert "starting" not in outcome.stdout


def test_a_misspelt_key_is_refused_before_anything_starts(tmp_path: Path) -> None:
    outcome = run_to_its_end(broken_copy(tmp_path, devise="cpu"))
    assert outcome.returncode == 1
    assert "applications.0.args.devise: unknown key, did you mean device?" in outcome.stderr


def test_a_taken_port_is_refused_before_anything_starts(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    with socket.socket() as other:
        port = free_port()
        other.bind(("127.0.0.1", port))
        other.listen()
        changed_config(LOCAL_CONFIG, config)
        document = yaml.safe_load(config.read_text())
        document["http_options"]["port"] = port
        config.write_text(yaml.safe_dump(document))
        outcome = run_to_its_end(config)
    assert outcome.returncode == 1
    assert f"port {port} of 127.0.0.1 is taken" in outcome.stderr
