"""`animegan batch` without Ray: storages, names, the manifest, sizes of pools, and what is told."""

import importlib.util
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from buckets import new_bucket, s3_service
from paint_process import InvertingBackend
from pictures import opened, photo_bytes

from serve_app.cli.batch import painters
from serve_app.cli.batch.cluster import Pool, size_pool
from serve_app.cli.batch.manifest import FOLDER, PART_LINES, PART_S, Earlier, Manifest, read_manifest
from serve_app.cli.batch.painters import END, LINES, PaintingActor, Work, from_table, to_table
from serve_app.cli.batch.plan import Plan, Task, list_names, lost_lines, make_plan
from serve_app.cli.batch.progress import SHOWN, Progress
from serve_app.cli.batch.storage import BucketStorage, LocalStorage, Storage, open_storage
from serve_app.cli.paint.local import Share
from serve_app.cli.paint.photographs import PhotographError
from serve_app.errors import AnimeganError, TooManyBytes
from serve_app.frames import ImageFormat

RunCommand = Callable[..., int]
NO_ROOT = pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    with s3_service() as address:
        yield address


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty bucket."""
    return f"s3://{new_bucket(s3_server, monkeypatch)}"


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for photographs and paintings."""
    return str(tmp_path) if request.param == "local" else str(request.getfixturevalue("bucket"))


def storage_with(address: str, *paths: str) -> Storage:
    """A storage with files, each of which holds its own path."""
    storage = open_storage(address)
    for path in paths:
        storage.write(path, path.encode())
    return storage


def planned(source: Storage, destination: Storage, format: ImageFormat | None = None, **earlier: object) -> Plan:
    return make_plan(source, destination, format, list_names(destination), Earlier(**earlier))  # type: ignore[arg-type]


def targets(plan: Plan) -> dict[str, str]:
    return {task.photo: task.painting for task in plan.tasks}


def test_storage_lists_and_reads_what_was_written(place: str) -> None:
    storage = storage_with(f"{place}/a é", "x.jpg", "d/e/y.png", "d/.hidden/z.png", ".trash/q/z.png")
    assert list_names(storage) == {"": {"x.jpg"}, "d/e": {"y.png"}} | ({"d": set()} if "://" not in place else {})
    assert {file.name: file.bytes for folder in storage.folders() for file in folder.files} == {
        "x.jpg": len("x.jpg"),
        "y.png": len("d/e/y.png"),
    }
    assert open_storage(storage.address).read("d/e/y.png", 100) == b"d/e/y.png"
    assert storage.is_file("d/e/y.png")
    assert not storage.is_file("d/e")
    storage.write("x.jpg", b"again")
    assert storage.read("x.jpg", 5) == b"again"


def test_file_with_too_many_bytes_or_that_has_gone_is_told_of(place: str) -> None:
    storage = storage_with(place, "long.jpg")
    with pytest.raises(TooManyBytes, match="more than the 7 bytes"):
        storage.read("long.jpg", 7)
    with pytest.raises(PhotographError, match=r"\.$"):
        storage.read("gone.jpg", 7)


def test_place_that_is_not_there_is_empty(place: str) -> None:
    assert list_names(open_storage(f"{place}/nothing")) == {}


def test_bucket_that_is_not_there_is_told_of(bucket: str) -> None:
    with pytest.raises(AnimeganError, match="there is no bucket"):
        list_names(open_storage(f"{bucket}-other"))
    with pytest.raises(PhotographError, match="NO_SUCH_BUCKET"):
        open_storage(f"{bucket}-other").write("a.jpg", b"a")


def test_objects_have_the_type_of_their_names(bucket: str) -> None:
    import s3fs

    storage_with(bucket, "a.jpg", "b.webp", f"{FOLDER}/c.jsonl")
    files = s3fs.S3FileSystem(skip_instance_cache=True)
    types = [files.info(f"{bucket}/{name}")["ContentType"] for name in ("a.jpg", "b.webp", f"{FOLDER}/c.jsonl")]
    assert types == ["image/jpeg", "image/webp", "application/jsonl"]


def test_endpoint_may_be_in_the_address(bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage_with(bucket, "a.jpg")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert list_names(open_storage(f"{bucket}?endpoint_override={s3_server}")) == {"": {"a.jpg"}}


@pytest.mark.parametrize("address", ["gs://bucket/photos", "http://host/photos"])
def test_other_schemes_are_refused(address: str) -> None:
    with pytest.raises(AnimeganError, match="neither a folder nor s3://"):
        open_storage(address)


def test_file_is_no_storage(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    with pytest.raises(AnimeganError, match="name a folder"):
        open_storage(str(tmp_path / "a.jpg"))


@NO_ROOT
def test_folder_that_cannot_be_read_is_one_failure(tmp_path: Path) -> None:
    source = storage_with(str(tmp_path / "in"), "open/a.jpg", "closed/b.jpg")
    (tmp_path / "in" / "closed").chmod(0)
    try:
        plan = planned(source, LocalStorage(tmp_path / "out"))
    finally:
        (tmp_path / "in" / "closed").chmod(0o700)
    assert targets(plan) == {"open/a.jpg": "open/a.jpg"}
    assert [str(outcome.error) for outcome in plan.outcomes] == ["Permission denied."]


def test_paintings_have_the_names_that_paint_gives_them(place: str) -> None:
    source = storage_with(f"{place}/in", "a.heic", "d/b.jpg", "d/b.png", "notes.txt", "_manifest/x.jsonl")
    destination = open_storage(f"{place}/out")
    assert targets(planned(source, destination)) == {"a.heic": "a.jpg", "d/b.jpg": "d/b.jpg", "d/b.png": "d/b.png"}
    assert targets(planned(source, destination, "webp")) == {
        "a.heic": "a.webp",
        "d/b.jpg": "d/b.jpg.webp",
        "d/b.png": "d/b.png.webp",
    }


def test_two_photographs_are_not_painted_to_one_name(tmp_path: Path) -> None:
    plan = planned(
        storage_with(str(tmp_path / "in"), "b.jpg", "b.png", "b.png.jpg"), LocalStorage(tmp_path / "out"), "jpeg"
    )
    assert targets(plan) == {"b.jpg": "b.jpg", "b.png": "b.png.jpg"}
    (outcome,) = plan.outcomes
    assert outcome.photograph.name == "b.png.jpg"
    assert "painted over b.png" in str(outcome.error)


def test_names_that_are_no_text_travel_to_the_painters_and_back() -> None:
    tasks = [Task(os.fsdecode(b"d/\xff.jpg"), os.fsdecode(b"d/\xff.jpg"), "jpeg", 2**40), Task("é", "é.png", "png", 1)]
    assert from_table(to_table(tasks)) == tasks


def test_destination_in_the_source_is_left_out(place: str) -> None:
    source = storage_with(place, "a.jpg", "out/b.jpg", "outer/c.jpg")
    assert set(targets(planned(source, open_storage(f"{place}/out")))) == {"a.jpg", "outer/c.jpg"}


def test_photographs_are_never_painted_over(place: str) -> None:
    source = storage_with(f"{place}/in", "in/a.jpg")
    for address in (place, f"{place}/in", f"{place}/in/"):
        with pytest.raises(AnimeganError, match="holds the photographs"):
            planned(source, open_storage(address))


def test_what_is_painted_is_skipped_and_recorded_once(place: str) -> None:
    source = storage_with(f"{place}/in", "a.jpg", "b.jpg", "c.jpg")
    destination = storage_with(f"{place}/out", "a.jpg", "b.jpg")
    plan = planned(source, destination, painted={"a.jpg"})
    assert set(targets(plan)) == {"c.jpg"}
    assert plan.done == 2
    assert [(outcome.photograph.name, outcome.status) for outcome in plan.outcomes] == [("b.jpg", "skipped")]


def test_failures_of_earlier_runs_are_tried_again_only_if_they_are_not_given(tmp_path: Path) -> None:
    source, destination = storage_with(str(tmp_path / "in"), "a.jpg"), LocalStorage(tmp_path / "out")
    assert set(targets(planned(source, destination))) == {"a.jpg"}
    plan = planned(source, destination, failed={"a.jpg": "the line"})
    assert (plan.tasks, plan.failures) == ([], ["the line"])


def line(photo: str, status: str = "painted") -> str:
    return json.dumps({"photo": photo, "status": status, "error": {"detail": f"{photo} is broken."}})


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def earlier_in(storage: Storage) -> Earlier:
    return read_manifest(storage, list_names(storage).get(FOLDER, ()))


def test_photographs_whose_painters_have_died_are_told_of(place: str) -> None:
    destination = open_storage(f"{place}/out")
    destination.write("a/1.jpg", b"painted before its painter died")
    tasks = [Task(f"a/{number}.jpg", f"a/{number}.jpg", "jpeg", 9) for number in (1, 2)]
    painted, lost = [json.loads(line) for line in lost_lines(tasks, destination)]
    assert (painted["photo"], painted["status"]) == ("a/1.jpg", "skipped")
    assert (lost["photo"], lost["status"], lost["error"]["code"]) == ("a/2.jpg", "failed", "painter-died")


def test_last_line_about_a_photograph_counts(place: str) -> None:
    storage = open_storage(place)
    with Manifest(storage) as manifest:
        for text in (line("a", "failed"), line("b", "failed"), line("c"), line("a"), line("c", "failed")):
            manifest.add(text)
    earlier = earlier_in(storage)
    assert earlier.painted == {"a"}
    assert earlier.failed == {"b": line("b", "failed"), "c": line("c", "failed")}


def test_parts_are_written_by_time_and_by_number_and_what_is_left_at_the_end(tmp_path: Path) -> None:
    storage, clock = LocalStorage(tmp_path), Clock()
    with Manifest(storage, clock) as manifest:
        manifest.add(line("a"))
        assert not earlier_in(storage).painted
        clock.now_s = PART_S * 1.1
        manifest.add(line("b"))
        assert earlier_in(storage).painted == {"a", "b"}
        for number in range(PART_LINES):
            manifest.add(line(str(number)))
        assert len(earlier_in(storage).painted) == 2 + PART_LINES
        manifest.add(line("last"))
    assert "last" in earlier_in(storage).painted
    assert len(list((tmp_path / FOLDER).iterdir())) == 3


def test_run_of_a_day_has_a_few_hundred_parts(tmp_path: Path) -> None:
    storage, clock = LocalStorage(tmp_path), Clock()
    with Manifest(storage, clock) as manifest:
        for second in range(0, 24 * 3600, 5):
            clock.now_s = float(second)
            manifest.add(line(str(second)))
    assert len(list((tmp_path / FOLDER).iterdir())) < 500


NODE = {"CPU": 4.0}
CARD = {"CPU": 16.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("nodes", "gpus", "cpus", "pool"),
    [
        ([NODE], None, None, Pool(1, 1, 4, 0, 1)),
        ([NODE, {"CPU": 8.0}], None, None, Pool(3, 3, 4, 0, 2)),
        ([NODE, {"memory": 1.0}], None, None, Pool(1, 1, 4, 0, 1)),
        ([NODE], None, 2, Pool(2, 2, 2, 0, 2)),
        ([CARD, NODE], None, None, Pool(2, 2, 8, 1, 2)),
        ([CARD, CARD, NODE], 0.25, None, Pool(16, 16, 2, 0.25, 8)),
        ([CARD], 0.25, 4, Pool(4, 4, 4, 0.25, 4)),
        ([CARD, NODE], 0, None, Pool(5, 5, 4, 0, 4)),
        ([{"CPU": 2.0, "GPU": 1.0}], 0.1, None, Pool(2, 2, 1, 0.1, 2)),
    ],
)
def test_pool_fills_the_cluster(
    nodes: list[dict[str, float]], gpus: float | None, cpus: int | None, pool: Pool
) -> None:
    assert size_pool(nodes, gpus, cpus, None, tasks=10**6) == pool


def test_pool_has_no_more_painters_than_blocks_and_as_many_as_are_wanted() -> None:
    assert size_pool([NODE], None, 1, None, tasks=10)[:2] == (2, 2)
    assert size_pool([], None, None, (2, 50), tasks=10**6)[:2] == (2, 50)


@pytest.mark.parametrize(("gpus", "cpus", "words"), [(1, None, "1 GPUs"), (None, 5, "5 CPUs")])
def test_cluster_without_room_for_a_painter_is_refused(gpus: float | None, cpus: int | None, words: str) -> None:
    with pytest.raises(AnimeganError, match=words):
        size_pool([NODE], gpus, cpus, None, tasks=10)


def test_time_left_follows_the_rate_since_the_first_one(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = Progress(11, clock)
    assert progress.left_s() is None
    for now_s in (100.0, 110.0, 120.0):
        clock.now_s = now_s
        progress.add({"photo": "a", "status": "painted"})
    assert progress.left_s() == 80
    assert (
        capsys.readouterr().err.splitlines()
        == [
            "animegan: 1 of 11, 0 failed",
            "animegan: 3 of 11, 0 failed, about 01:20 left",
        ][:1]
    )


def test_failures_are_listed_at_the_end_and_not_without_end(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(0)
    for number in range(SHOWN + 3):
        progress.add(json.loads(line(f"{number}.jpg", "failed")), is_new=False)
    progress.close()
    first, *others, last = capsys.readouterr().err.splitlines()
    assert first == f"0 painted, 0 skipped, {SHOWN + 3} failed"
    assert others[0] == "animegan: 0.jpg: 0.jpg is broken."
    assert (len(others), last) == (SHOWN, "animegan: and 3 more, in the manifest")


def test_nothing_to_paint_needs_no_cluster(
    animegan: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    storage_with(str(tmp_path / "in"), "a.jpg", "b.jpg", "c.jpg")
    storage_with(str(tmp_path / "out"), "a.jpg", "c.jpg")
    with Manifest(LocalStorage(tmp_path / "out")) as manifest:
        manifest.add(line("b.jpg", "failed"))
    assert animegan("batch", tmp_path / "in", tmp_path / "out", "--skip-failed") == 1
    assert capsys.readouterr().err.splitlines() == [
        "0 painted, 2 skipped, 1 failed",
        "animegan: b.jpg: b.jpg is broken.",
    ]
    (tmp_path / "in" / "b.jpg").unlink()
    assert animegan("batch", tmp_path / "in", tmp_path / "out") == 0
    assert earlier_in(LocalStorage(tmp_path / "out")).painted == {"a.jpg", "c.jpg"}


def test_folder_that_is_not_there_is_told_of(
    animegan: RunCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert animegan("batch", tmp_path / "nowhere", tmp_path / "out") == 1
    assert capsys.readouterr().err == f"animegan: there is no folder {tmp_path / 'nowhere'}\n"


def test_missing_extra_is_told_of(
    animegan: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "pyarrow" else found(name))
    assert animegan("batch", tmp_path, tmp_path / "out") == 1
    assert "pip install 'animegan-serve[batch]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--style", "nope"], "no style 'nope'"),
        (["--painters", "3", "2"], "smaller number first"),
        ([], "no photographs"),
    ],
)
def test_what_cannot_be_meant_is_told_before_a_cluster_starts(
    animegan: RunCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert animegan("batch", tmp_path, tmp_path / "out", *arguments) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--num-gpus", "1.5"], ["--num-gpus", "-1"], ["--num-cpus", "0"], ["--max-side", "3"]]
)
def test_wrong_number_is_an_error_of_the_command_line(animegan: RunCommand, arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        animegan("batch", "in", "out", *arguments)


def test_buckets_of_one_name_on_two_servers_are_two(bucket: str) -> None:
    source = BucketStorage(f"{bucket}/in?endpoint_override=http://127.0.0.1:1")
    destination = storage_with(f"{bucket}/in", "a.jpg")
    assert set(targets(planned(destination, LocalStorage(Path("out"))))) == {"a.jpg"}
    assert make_plan(destination, source, None, {}, Earlier()).tasks


def open_actor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, backend: InvertingBackend, overwrite: bool = False
) -> PaintingActor:
    """An actor that inverts, in this process."""
    monkeypatch.setattr(painters, "LocalPainter", lambda *_: backend)
    monkeypatch.setattr(painters, "node_id", lambda: "a-node")
    folders = str(tmp_path / "in"), str(tmp_path / "out")
    return PaintingActor(Work(*folders, "toon", "auto", 1024, None, overwrite, Share()))


def photographs(tmp_path: Path, count: int) -> list[Task]:
    storage = LocalStorage(tmp_path / "in")
    for number in range(count):
        storage.write(f"{number}.png", photo_bytes(24, 32, seed=number))
    return [Task(f"{number}.png", f"d/{number}.png", "png", 1000) for number in range(count)]


def lines_from(actor: PaintingActor, tasks: list[Task]) -> list[dict[str, Any]]:
    rows = list(actor(to_table(tasks)))
    assert all(len(row[LINES]) == 1 for row in rows)
    return [json.loads(text) for row in rows for text in row[LINES][0].splitlines()]


def test_actor_paints_past_what_is_broken_gone_or_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tasks = photographs(tmp_path, 5)
    (tmp_path / "in" / "1.png").write_bytes(photo_bytes(24, 32)[:60])
    (tmp_path / "in" / "2.png").unlink()
    storage_with(str(tmp_path / "out"), "d/3.png")
    lines = lines_from(open_actor(monkeypatch, tmp_path, InvertingBackend()), tasks)
    assert {line["photo"]: line["status"] for line in lines} == {
        "0.png": "painted",
        "1.png": "failed",
        "2.png": "failed",
        "3.png": "skipped",
        "4.png": "painted",
    }
    assert {line["node"] for line in lines} == {"a-node"}
    reasons = {line["photo"]: line["error"]["code"] for line in lines if line["status"] == "failed"}
    assert reasons == {"1.png": "broken-image", "2.png": "file-error"}
    assert opened((tmp_path / "out" / "d" / "4.png").read_bytes()).size == (32, 24)
    assert (tmp_path / "out" / "d" / "3.png").read_bytes() == b"d/3.png"


def test_actor_replaces_paintings_only_if_it_is_told_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tasks = photographs(tmp_path, 1)
    storage_with(str(tmp_path / "out"), "d/0.png")
    (line,) = lines_from(open_actor(monkeypatch, tmp_path, InvertingBackend(), overwrite=True), tasks)
    assert line["status"] == "painted"
    assert opened((tmp_path / "out" / "d" / "0.png").read_bytes()).size == (32, 24)


def test_calls_of_an_actor_are_painted_together_within_its_bounds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    backend = InvertingBackend()
    backend.together = backend.at_once  # these many wait for each other, so one call after the other would never end
    actor, tasks = open_actor(monkeypatch, tmp_path, backend), photographs(tmp_path, 12)
    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(lines_from, actor, tasks[start : start + 3]) for start in range(0, 12, 3)]
        lines = [line for call in calls for line in call.result(60)]
    assert Counter(line["status"] for line in lines) == {"painted": 12}
    assert backend.most_at_work == backend.at_once


def test_photograph_whose_painting_fails_is_told_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    backend = InvertingBackend()
    backend.fault = RuntimeError("the device has gone")
    (line,) = lines_from(open_actor(monkeypatch, tmp_path, backend), photographs(tmp_path, 1))
    assert line["error"]["code"] == "internal-error"
    assert "the device has gone" in line["error"]["detail"]


@pytest.mark.parametrize("fault", [AnimeganError("the disk is full"), KeyError("the disk is full")])
def test_fault_of_all_photographs_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: Exception
) -> None:
    backend = InvertingBackend()
    backend.fault = fault
    (line,) = lines_from(open_actor(monkeypatch, tmp_path, backend), photographs(tmp_path, 1))
    assert "the disk is full" in line[END]


def test_actor_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise AnimeganError("there is no GPU")

    monkeypatch.setattr(painters, "LocalPainter", refuse)
    monkeypatch.setattr(painters, "node_id", lambda: "a-node")
    actor = PaintingActor(Work("in", "out", "toon", "auto", 1024, None, False, Share()))
    assert lines_from(actor, photographs(tmp_path, 2)) == [{END: "there is no GPU"}]
