"""The metrics of several processes at one address, without Ray."""

import errno
import logging
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, values
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from shared import ROOT

from serve_app.deployments import exposition
from serve_app.deployments.exposition import KINDS, NodeCollector, count_in, serve
from serve_app.settings import MetricsSettings

PROCESS = """
import sys
from pathlib import Path
from serve_app.deployments.exposition import count_in
from serve_app.deployments.metrics import counter, gauge, histogram

count_in(Path(sys.argv[1]))
counter("things", "Things.", "kind").labels("a").inc(float(sys.argv[2]))
histogram("waits_seconds", "Waits.").observe(0.3)
gauge("held", "Held.").set(float(sys.argv[2]))
gauge("most", "Most.", mode="livemax").set(float(sys.argv[2]))
gauge("size_bytes", "Size.", mode="liveall").set(float(sys.argv[2]))
print("counted", flush=True)
sys.stdin.read()
"""

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for metrics; this process counts for itself again afterwards."""
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    monkeypatch.setenv(exposition.FOLDER_VARIABLE, "")
    monkeypatch.setattr(exposition, "_locks", [])
    yield tmp_path / "metrics"
    for lock in exposition._locks:
        os.close(lock)


def process(folder: Path, amount: int) -> "subprocess.Popen[str]":
    """A process that has counted so many."""
    command = [sys.executable, "-c", PROCESS, str(folder), str(amount)]
    started = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    assert started.stdout.readline() == "counted\n"
    return started


def end(*processes: "subprocess.Popen[str]") -> None:
    for each in processes:
        each.kill()
        each.communicate()


def samples(collector: Collector) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for metric in collector.collect()
        for sample in metric.samples
    }


def test_what_processes_have_counted_is_added_up_and_outlives_them(folder: Path) -> None:
    folder.mkdir()
    collector = NodeCollector(folder, before=lambda: None)
    first, second = process(folder, 3), process(folder, 4)
    both = samples(collector)
    assert both["animegan_things_total", (("kind", "a"),)] == 7
    assert both["animegan_waits_seconds_sum", ()] == pytest.approx(0.6)
    assert both["animegan_waits_seconds_bucket", (("le", "0.25"),)] == 0
    assert both["animegan_waits_seconds_bucket", (("le", "0.5"),)] == 2
    assert (both["animegan_held", ()], both["animegan_most", ()]) == (7, 4)
    assert {number: both["animegan_size_bytes", (("number", number),)] for number in "01"} == {"0": 3, "1": 4}

    end(first)
    one = samples(collector)
    assert one["animegan_things_total", (("kind", "a"),)] == 7
    assert (one["animegan_held", ()], one["animegan_most", ()]) == (4, 4)
    assert ("animegan_size_bytes", (("number", "0"),)) not in one

    third = process(folder, 10)  # goes on in the files of the first
    assert samples(collector)["animegan_things_total", (("kind", "a"),)] == 17
    assert len(list(folder.glob("*.db"))) == 2 * len(KINDS)
    end(second, third)


def test_process_does_not_inherit_what_its_predecessor_held(folder: Path) -> None:
    end(process(folder, 3))
    count_in(folder)
    found = samples(NodeCollector(folder, before=lambda: None))
    assert ("animegan_held", ()) not in found
    assert found["animegan_things_total", (("kind", "a"),)] == 3


def test_files_have_their_space_before_anything_is_counted(folder: Path) -> None:
    """A write into a hole of a file that the disk has no room for would kill the process."""
    count_in(folder)
    for path in folder.glob("*.db"):
        status = path.stat()
        assert 512 * status.st_blocks >= status.st_size == exposition.FILE_BYTES


def test_process_without_room_counts_for_itself_and_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = values.ValueClass
    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr(exposition, "node_folder", lambda: folder)
    monkeypatch.setattr(logging.getLogger("ray.serve"), "handlers", [caplog.handler])
    assert exposition.join() is None
    assert values.ValueClass is before
    assert list(folder.glob("*.db*")) == list(folder.glob("*.new")) == []
    assert "the metrics of this process are not published: [Errno 28] No space left" in caplog.text


def test_server_answers_at_the_address_of_the_settings_what_is_so_at_that_moment(folder: Path) -> None:
    folder.mkdir()
    asked: list[None] = []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = serve(MetricsSettings(port=port), folder, lambda: asked.append(None))
    counting = process(folder, 5)
    try:
        assert server.server_address[:2] == ("127.0.0.1", port)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            families = {each.name: each for each in text_string_to_metric_families(answer.read().decode())}
        assert (families["animegan_things"].type, families["animegan_things"].documentation) == ("counter", "Things.")
        assert asked == [None]
    finally:
        end(counting)
        server.shutdown()
        server.server_close()


def test_address_that_is_taken_is_logged_and_costs_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder.mkdir()
    monkeypatch.setattr(logging.getLogger("ray.serve"), "handlers", [caplog.handler])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert serve(MetricsSettings(port=taken.getsockname()[1]), folder, lambda: None) is None
    assert "change `metrics` in the config file" in caplog.text


def test_registry_takes_the_collector_without_asking_it(folder: Path) -> None:
    """There may be no files yet."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(NodeCollector(folder, before=lambda: None))
