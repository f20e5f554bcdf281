"""`animegan jobs` over a store on SQLite."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jobstores import Bench, make_settings

from serve_app.cli.main import main
from serve_app.errors import BrokenImage
from serve_app.jobs.signing import client_secret, parse_secret

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(make_settings(tmp_path / "data"))
    yield bench
    bench.close()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path, {"enabled": True, "data_dir": str(tmp_path / "data"), "min_free_bytes": 0})


def write_config(folder: Path, jobs: dict[str, Any]) -> Path:
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump({"applications": [{"name": "animegan", "args": {"jobs": jobs}}]}))
    return path


@pytest.fixture
def animegan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["animegan", "jobs", *map(str, arguments)])
        status = main()
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_jobs_are_counted_by_status_and_client(bench: Bench, config: Path, animegan: Command) -> None:
    bench.succeed("ann")
    bench.store.remove(bench.succeed("ann").id)
    bench.submit("ann")
    bench.submit("bob")
    bench.submit("bob")
    bench.claim()
    bench.pass_time(90)
    status, out, _ = animegan("--config", config, "--json")
    counted = json.loads(out)
    assert status == 0
    totals = {"queued": 2, "running": 1, "succeeded": 1, "failed": 0, "cancelled": 0, "expired": 1}
    assert counted["by_status"] == totals
    assert counted["by_client"] == {"ann": {"running": 1, "succeeded": 1}, "bob": {"queued": 2}}
    assert 90 <= counted["oldest_queued_s"] < 150
    assert counted["stored_bytes"] == 4 * len(b"photo") + len(b"painting")
    status, out, _ = animegan("--config", config)
    assert [line.split() for line in out.splitlines()[:4]] == [
        ["queued", "running", "succeeded", "failed", "cancelled", "expired"],
        ["ann", "0", "1", "1", "0", "0", "0"],
        ["bob", "2", "0", "0", "0", "0", "0"],
        ["all", "2", "1", "1", "0", "0", "1"],
    ]
    assert "oldest that waits: 9" in out


def test_a_job_is_shown(bench: Bench, config: Path, animegan: Command) -> None:
    job = bench.submit("ann")
    status, out, _ = animegan("show", job.id, "--json", "--config", config)
    shown = json.loads(out)
    assert (status, shown["id"], shown["client"], shown["position"]) == (0, job.id, "ann", 0)
    assert shown["request"]["style"] == "toon"
    assert shown["created_at"] == job.created_at.isoformat()
    status, out, _ = animegan("--config", config, "show", job.id)
    assert ["status", "queued"] in [line.split() for line in out.splitlines()]


def test_a_failed_job_waits_again_as_if_it_were_new(bench: Bench, config: Path, animegan: Command) -> None:
    job = bench.submit("ann")
    assert bench.store.queue.fail(bench.claim(), BrokenImage("It seems so."))
    assert animegan("requeue", job.id, "--config", config)[0] == 0
    bench.check()
    lease = bench.claim()
    assert (lease.job.id, lease.job.attempt, lease.job.problem) == (job.id, 1, None)
    assert bench.store.photo(lease.job) == b"photo"


def test_only_a_failed_or_cancelled_job_with_its_photo_waits_again(
    bench: Bench, config: Path, animegan: Command
) -> None:
    done, waiting = bench.succeed("ann"), bench.submit("ann")
    for job in (done, waiting):
        status, out, err = animegan("requeue", job.id, "--config", config)
        assert (status, out) == (1, "")
        assert err.startswith("animegan: this job is ")
    assert bench.store.cancel(waiting.id)
    status, _, err = animegan("requeue", waiting.id, "--config", config)
    assert (status, err) == (1, "animegan: the photograph of this job is not kept any more\n")
    assert bench.store.get(waiting.id).status == "cancelled"


def test_a_waiting_job_is_cancelled_and_a_finished_one_is_not_erased(
    bench: Bench, config: Path, animegan: Command
) -> None:
    done, job = bench.succeed("ann"), bench.submit("ann")
    status, out, _ = animegan("cancel", job.id, "--json", "--config", config)
    assert (status, json.loads(out)["status"]) == (0, "cancelled")
    assert len(bench.files() - {"owner"}) == 2
    status, _, err = animegan("cancel", done.id, "--config", config)
    assert (status, err) == (1, "animegan: this job is succeeded; only jobs that wait or run can be cancelled\n")
    assert bench.store.get(done.id).painting is not None
    bench.check()


def test_purging_does_what_is_due_and_all_that_is_finished_if_asked(
    bench: Bench, config: Path, animegan: Command
) -> None:
    expired = bench.succeed("ann")
    bench.pass_time(bench.settings.keep_for_s + 1)
    kept, waiting = bench.succeed("ann"), bench.submit("ann")
    status, out, _ = animegan("purge", "--json", "--config", config)
    assert (status, json.loads(out)["expired"], json.loads(out)["erased"]) == (0, 1, 0)
    assert (bench.store.get(kept.id).status, len(bench.files() - {"owner"})) == ("succeeded", 3)
    status, out, _ = animegan("purge", "--all-finished", "--config", config)
    assert (status, out.startswith("erased 1, ")) == (0, True)
    assert bench.store.find([expired.id, kept.id])[kept.id].status == "expired"
    assert bench.store.get(waiting.id).status == "queued"
    assert len(bench.files() - {"owner"}) == 1
    bench.check()


@pytest.mark.parametrize(
    ("jobs", "said"),
    [
        ({}, "serve.yaml: jobs are switched off there (applications.0.args.jobs.enabled)"),
        ({"enabled": True, "keep": 1}, "serve.yaml: applications.0.args.jobs.keep: unknown key"),
        ({"enabled": True, "data_dir": "/nowhere"}, "there are no jobs: /nowhere/jobs.sqlite3 does not exist"),
    ],
)
def test_a_config_without_jobs_says_so(tmp_path: Path, animegan: Command, jobs: dict[str, Any], said: str) -> None:
    status, out, err = animegan("--config", write_config(tmp_path, jobs))
    assert (status, out) == (1, "")
    assert said in err
    assert err.startswith("animegan: ")
    assert not Path("/nowhere").exists()


@pytest.mark.parametrize("content", [None, "- 1", "applications: []", "a: [", "applications: [5]"])
def test_a_file_that_is_no_config_says_so(tmp_path: Path, animegan: Command, content: str | None) -> None:
    path = tmp_path / "serve.yaml"
    if content is not None:
        path.write_text(content)
    status, _, err = animegan("--config", path)
    assert (status, err.startswith(f"animegan: {path}: ")) == (1, True)


@pytest.mark.parametrize("action", ["show", "requeue", "cancel"])
def test_an_unknown_id_says_so(bench: Bench, config: Path, animegan: Command, action: str) -> None:
    assert animegan(action, "unknown", "--config", config) == (1, "", "animegan: There is no job with this id.\n")


@pytest.mark.parametrize(
    ("name", "client"),
    [("ann", "key:ann"), ("key:ann", "key:ann"), ("192.0.2.1", "192.0.2.1"), ("2001:db8::/64", "2001:db8::/64")],
)
def test_the_webhook_secret_of_a_client_is_printed(
    tmp_path: Path, animegan: Command, monkeypatch: pytest.MonkeyPatch, name: str, client: str
) -> None:
    status, secret, _ = animegan("new-webhook-secret")
    assert status == 0
    monkeypatch.setenv("HOOKS", secret)
    config = write_config(tmp_path, {"enabled": True, "webhooks": {"secret": "env:HOOKS"}})
    expected = client_secret(parse_secret(secret), client)
    assert animegan("webhook-secret", name, "--config", config) == (0, f"{expected}\n", "")
    status, out, _ = animegan("--json", "--config", config, "webhook-secret", name)
    assert json.loads(out) == {"client": client, "secret": expected}


@pytest.mark.parametrize(
    ("secret", "said"),
    [
        ("off", "this config sends no webhooks"),
        ("env:HOOKS", "jobs.webhooks.secret: the variable HOOKS is not set"),
        ("HOOKS", "jobs.webhooks.secret: must be off, file:/ABSOLUTE/PATH or env:VARIABLE"),
    ],
)
def test_a_config_without_a_webhook_secret_says_so(
    tmp_path: Path, animegan: Command, monkeypatch: pytest.MonkeyPatch, secret: str, said: str
) -> None:
    monkeypatch.delenv("HOOKS", raising=False)
    config = write_config(tmp_path, {"enabled": True, "webhooks": {"secret": secret}})
    status, out, err = animegan("webhook-secret", "ann", "--config", config)
    assert (status, out) == (1, "")
    assert said in err
