"""`animegan batch` on a Ray of its own, killed and resumed, and on two nodes, from a bucket to a bucket."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from buckets import new_bucket, s3_service
from pictures import opened, photo_bytes
from ray.cluster_utils import Cluster
from service import ANIMEGAN, command_line, wait_for

from serve_app import Painter
from serve_app.cli.batch.manifest import FOLDER, read_manifest
from serve_app.cli.batch.plan import list_names
from serve_app.cli.batch.storage import LocalStorage, Storage, open_storage
from serve_app.engine.stylist import has_cuda

PHOTOGRAPHS = 200
BROKEN = {7, 61, 150}
TIMEOUT_S = 300
STORE_BYTES = 100 * 2**20


def fill(storage: Storage, count: int, broken: set[int]) -> None:
    """Writes photographs of two sizes to two folders; broken ones end too early."""
    for number in range(count):
        data = photo_bytes(*[(48, 64), (64, 48)][number % 2], "JPEG", seed=number)
        storage.write(f"{number % 2}/{number}.jpg", data[:200] if number in broken else data)


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [*ANIMEGAN, "batch", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)


def inodes(folder: Path) -> dict[str, int]:
    """Every painting with what tells it from a later one of its name."""
    return {path.name: path.stat().st_ino for path in folder.glob("*/*.jpg") if path.name[0] != "."}


def test_batch_that_is_killed_goes_on_where_it_ended(tmp_path: Path) -> None:
    fill(LocalStorage(tmp_path / "in"), PHOTOGRAPHS, BROKEN)
    destination = tmp_path / "out"
    with (tmp_path / "log").open("w") as log:
        first = subprocess.Popen([*ANIMEGAN, "batch", tmp_path / "in", destination], stdout=log, stderr=log)
        wait_for(lambda: len(inodes(destination)) > PHOTOGRAPHS // 4 or first.poll() is not None, TIMEOUT_S)
        processes = psutil.Process(first.pid).children(recursive=True)
        painters = [process for process in processes if "PaintingActor" in command_line(process)]
        first.kill()
        first.wait()
    assert painters, (tmp_path / "log").read_text()
    assert psutil.wait_procs(painters, TIMEOUT_S)[1] == []  # they end with it
    before = inodes(destination)
    assert PHOTOGRAPHS // 4 < len(before) < PHOTOGRAPHS - len(BROKEN)

    second = run(tmp_path / "in", destination, "--json")
    assert second.returncode == 1
    told, *failures = second.stderr.splitlines()[-4:]
    assert told == f"{PHOTOGRAPHS - len(BROKEN) - len(before)} painted, {len(before)} skipped, 3 failed"
    assert sorted(failures) == [
        f"animegan: {number % 2}/{number}.jpg: The picture ends before it is complete; send the whole file."
        for number in sorted(BROKEN, key=lambda number: f"{number % 2}/{number}.jpg")
    ]
    after = inodes(destination)
    assert len(after) == PHOTOGRAPHS - len(BROKEN)
    assert before.items() <= after.items()  # none of them was painted again
    assert opened((destination / "1" / "1.jpg").read_bytes()).size == (48, 64)

    earlier = read_manifest(LocalStorage(destination), list_names(LocalStorage(destination))[FOLDER])
    assert {Path(photo).name for photo in earlier.painted} == set(after)
    assert set(earlier.failed) == {f"{number % 2}/{number}.jpg" for number in BROKEN}
    lines = [json.loads(line) for line in second.stdout.splitlines()]  # and nothing that Ray says
    assert sum(line["status"] == "painted" for line in lines) == len(after) - len(before)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The address of an empty bucket; Ray's processes get its keys from the environment, as those of a user do."""
    with s3_service() as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # beside other work, workers of the usual 15 take minutes to start
        yield f"s3://{new_bucket(address, patch)}"


@pytest.fixture(scope="module")
def two_nodes(bucket: str) -> Iterator[str]:
    """The address of a cluster of two nodes, of one CPU and one GPU each; the GPUs do not exist."""
    node: dict[str, Any] = {
        "num_cpus": 1,
        "num_gpus": 1,
        "object_store_memory": STORE_BYTES,
        "include_dashboard": False,
    }
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(**node)
    cluster.wait_for_nodes()
    yield str(cluster.address)
    ray.shutdown()
    cluster.shutdown()  # type: ignore[no-untyped-call]


def test_nodes_share_the_work_from_a_bucket_to_a_bucket(two_nodes: str, bucket: str) -> None:
    source, destination = open_storage(f"{bucket}/in"), open_storage(f"{bucket}/out")
    fill(source, 60, broken={5})
    look = "--format", "png"
    outcome = run(source.address, destination.address, "--address", two_nodes, "--num-gpus", 0, "--json", *look)
    assert outcome.returncode == 1, outcome.stderr
    told, failure = outcome.stderr.splitlines()[-2:]
    assert told == "59 painted, 0 skipped, 1 failed"
    assert failure.startswith("animegan: 1/5.jpg: The picture ends")
    lines = [json.loads(line) for line in outcome.stdout.splitlines()]
    assert len({line["node"] for line in lines if line["status"] == "painted"}) == 2
    assert len(read_manifest(destination, list_names(destination)[FOLDER]).painted) == 59

    painting = np.asarray(opened(destination.read("0/2.png", 10**6)), np.int16)
    with Painter() as painter:
        alone = np.asarray(painter.paint(source.read("0/2.jpg", 10**6)), np.int16)
    assert np.abs(painting - alone).max() <= 1

    again = run(source.address, destination.address, "--skip-failed", *look)
    assert (again.returncode, again.stderr.splitlines()[0]) == (1, "0 painted, 59 skipped, 1 failed")


@pytest.mark.skipif(has_cuda(), reason="there is a GPU")
def test_painter_that_cannot_start_ends_the_run_in_words(two_nodes: str, tmp_path: Path) -> None:
    fill(LocalStorage(tmp_path / "in"), 3, broken=set())
    outcome = run(tmp_path / "in", tmp_path / "out", "--address", two_nodes, "--num-gpus", 0.5)
    assert outcome.returncode == 1
    assert re.search("^animegan: .*CUDA", outcome.stderr.splitlines()[-1])
    assert "Traceback" not in outcome.stderr
