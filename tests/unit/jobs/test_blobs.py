"""The blob store: a local folder, and S3 by the same tests."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from buckets import new_bucket, s3_service
from jobstores import REQUEST, make_settings, painting
from sqlalchemy import select

from serve_app.errors import Gone, SettingsError, StoreFull, StoreUnavailable
from serve_app.jobs import blobs as blobs_module
from serve_app.jobs.blobs import BlobStore, LocalBlobs, RemoteBlobs, blob_name, open_blobs
from serve_app.jobs.database import open_database
from serve_app.jobs.store import open_store
from serve_app.jobs.table import blobs as blob_rows
from serve_app.jobs.words import NewJob

DATA = os.urandom(100_000)


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    with s3_service() as address:
        yield address


@pytest.fixture
def s3_url(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder in a bucket of its own."""
    return f"s3://{new_bucket(s3_server, monkeypatch, 'AWS_ENDPOINT_URL_S3')}/pictures"


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where blobs lie, as the setting `blobs_url` says it."""
    if request.param == "local":
        return str(tmp_path / "blobs")
    url: str = request.getfixturevalue("s3_url")
    return url


@pytest.fixture
def blobs(place: str, tmp_path: Path) -> BlobStore:
    return open_blobs(make_settings(tmp_path, blobs_url=place), "an owner")


def test_what_is_put_can_be_got_until_it_is_deleted(blobs: BlobStore) -> None:
    name = blob_name("photos", DATA)
    blobs.put(name, DATA)
    assert blobs.get(name) == DATA
    assert list(blobs.names()) == [name]
    blobs.delete(name)
    blobs.delete(name)
    assert list(blobs.names()) == []
    with pytest.raises(Gone):
        blobs.get(name)


def test_the_same_content_gets_another_name_each_time(blobs: BlobStore) -> None:
    one, other = blob_name("photos", DATA), blob_name("photos", DATA)
    blobs.put(one, DATA)
    blobs.put(other, DATA)
    blobs.delete(one)
    assert blobs.get(other) == DATA


def test_damaged_content_is_not_handed_out(blobs: BlobStore) -> None:
    name = blob_name("photos", b"what it was")
    blobs.put(name, b"what it is")
    with pytest.raises(Gone, match="damaged"):
        blobs.get(name)


def test_place_belongs_to_one_database(place: str, tmp_path: Path) -> None:
    settings = make_settings(tmp_path, blobs_url=place)
    open_blobs(settings, "one")
    open_blobs(settings, "one")
    with pytest.raises(SettingsError, match="belong to another database"):
        open_blobs(settings, "another")


def test_place_that_lost_its_owner_is_down_and_nothing_in_it_is_gone(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is not mounted, or a bucket that is another, looks as if every picture had been deleted."""
    settings = make_settings(tmp_path, blobs_url=place)
    store = open_store(settings)
    (job,) = store.submit("ann", [NewJob(REQUEST, DATA)]).jobs
    files: BlobStore = RemoteBlobs(place) if "://" in place else LocalBlobs(Path(place))
    files.delete(str(job.photo))
    with pytest.raises(Gone):
        store.photo(job)
    files.delete("owner")
    for call in (lambda: store.photo(job), store.is_disk_full, lambda: open_store(settings)):
        with pytest.raises(StoreUnavailable):
            call()
    store.close()


def test_jobs_run_over_every_place_and_leave_nothing_when_they_are_removed(place: str, tmp_path: Path) -> None:
    settings = make_settings(tmp_path, blobs_url=place)
    store = open_store(settings)
    (job,) = store.submit("ann", [NewJob(REQUEST, DATA)]).jobs
    lease = store.queue.claim()
    assert lease is not None
    assert store.photo(lease.job) == DATA
    assert store.finish(lease, painting(b"painted"))
    assert store.painting(store.get(job.id)) == b"painted"
    store.remove(job.id)
    database = open_database(settings)
    with database.read() as connection:
        assert connection.execute(select(blob_rows)).all() == []
    found = RemoteBlobs(place) if "://" in place else LocalBlobs(Path(place))
    assert list(found.names()) == []
    store.close()
    database.close()


def test_a_sweep_deletes_files_that_no_row_names_and_nothing_else(place: str, tmp_path: Path) -> None:
    store = open_store(make_settings(tmp_path, blobs_url=place))
    (job,) = store.submit("ann", [NewJob(REQUEST, DATA)]).jobs
    files = RemoteBlobs(place) if "://" in place else LocalBlobs(Path(place))
    files.put(blob_name("paintings", b"stray"), b"stray")
    files.put("photos/ab/someone-elses-file", b"not ours")
    assert store.sweep().blobs == 1
    assert list(files.names()) == [job.photo]
    if isinstance(files, LocalBlobs):
        assert (Path(place) / "photos/ab/someone-elses-file").exists()
    store.close()


def test_local_files_are_for_this_user_only(tmp_path: Path) -> None:
    store = open_store(make_settings(tmp_path / "data"))
    store.submit("ann", [NewJob(REQUEST, b"photo")])
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [tmp_path / "data", *(tmp_path / "data").rglob("*")]}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}
    assert {path.name for path in modes if path.name.startswith("jobs.")} >= {"jobs.sqlite3", "jobs.sqlite3-wal"}
    store.close()


def test_write_that_breaks_off_leaves_nothing_and_is_told_clearly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = LocalBlobs(tmp_path / "blobs")
    name = blob_name("photos", DATA)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreFull):
            files.put(name, DATA)
    assert [path for path in files.folder.rglob("*") if path.is_file()] == []


def test_a_write_is_synced_before_it_gets_its_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = LocalBlobs(tmp_path / "blobs")
    name = blob_name("photos", DATA)
    files.put(blob_name("photos", DATA), DATA)  # makes the folder
    seen = []
    real = os.fsync

    def watched(descriptor: int) -> None:
        seen.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")).name, (files.folder / name).exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    files.put(name, DATA)
    base = name.rsplit("/", 1)[-1]
    assert seen == [(base + blobs_module.TEMPORARY, False), (name.split("/")[1], True)]


def test_s3_that_does_not_answer_is_told_clearly_and_no_secret_is_logged(
    s3_url: str, s3_server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setitem(
        blobs_module.S3_OPTIONS, "config_kwargs", {"connect_timeout": 1, "retries": {"max_attempts": 1}}
    )
    with pytest.raises(StoreUnavailable):
        RemoteBlobs(s3_url).put(blob_name("photos", DATA), DATA)
    assert "the blob store failed" in caplog.text
    assert "secret" not in caplog.text


def test_bucket_that_does_not_exist_and_folder_that_cannot_be_made_are_told_at_start(
    s3_url: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"jobs\.blobs_url"):
        open_blobs(make_settings(tmp_path, blobs_url=str(tmp_path / "file" / "blobs")), "owner")
    with pytest.raises((SettingsError, StoreUnavailable)):
        open_blobs(make_settings(tmp_path, blobs_url="s3://no-such-bucket/here"), "owner")
