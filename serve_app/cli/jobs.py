"""`animegan jobs`: looks into the store of jobs of a config file. It needs no running service."""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from serve_app.errors import AnimeganError, SettingsError
from serve_app.jobs.signing import client_secret, new_secret, read_secret
from serve_app.jobs.words import Census, Job, Status
from serve_app.settings import JobsSettings, Settings, load_settings
from serve_app.styles.catalogue import shipped_dir

if TYPE_CHECKING:  # SQLAlchemy, which no other command needs
    from serve_app.jobs.store import JobStore

Commands = Any  # argparse has no public name for what `add_subparsers` returns


def add_jobs_parser(commands: Commands) -> None:
    """Adds `animegan jobs` and its actions to the commands."""
    jobs = commands.add_parser("jobs", help="count, show, requeue, cancel and purge jobs")
    add_options(jobs, default=None)
    jobs.set_defaults(command=with_store(count_jobs))
    actions = jobs.add_subparsers(metavar="ACTION")

    def add(name: str, action: "Action", help: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = actions.add_parser(name, help=help)
        add_options(parser, default=argparse.SUPPRESS)  # so that what stands before the action stays
        parser.set_defaults(command=with_store(action))
        return parser

    for name, action, help in (
        ("show", show_job, "all that is known of a job"),
        ("requeue", requeue_job, "let a failed or cancelled job wait again, while its photograph is kept"),
        ("cancel", cancel_job, "end a job that waits or runs"),
    ):
        add(name, action, help).add_argument("id", metavar="ID")
    secret = actions.add_parser("webhook-secret", help="print the secret by which a client verifies its webhooks")
    secret.add_argument("name", metavar="NAME", help="of its API key; of a client without one its address")
    add_options(secret, default=argparse.SUPPRESS)
    secret.set_defaults(command=print_client_secret)
    new = actions.add_parser("new-webhook-secret", help="print a new secret for a service that sends webhooks")
    new.set_defaults(command=print_new_secret)
    purge = add("purge", purge_jobs, "do what is due: expire jobs, forget ids, delete files")
    purge.add_argument("--all-finished", action="store_true", help="erase every finished job now")


def add_options(parser: argparse.ArgumentParser, default: Any) -> None:
    """Adds the options that every action has."""
    is_json = False if default is None else default
    parser.add_argument("--config", type=Path, default=default, help="default: the shipped configs/local.yaml")
    parser.add_argument("--json", action="store_true", default=is_json, help="print JSON")


Action = Callable[["JobStore", argparse.Namespace], tuple[dict[str, Any], str]]


def with_store(action: Action) -> Callable[[argparse.Namespace], int]:
    """Returns a command that opens the store, does something, and prints what came of it as JSON or as text."""

    def command(options: argparse.Namespace) -> int:
        with opened(options.config or default_config()) as store:
            members, text = action(store, options)
        print(json.dumps(members, default=str) if options.json else text)
        return 0

    return command


@contextmanager
def opened(config: Path) -> Iterator["JobStore"]:
    """Opens the store of a config file.

    Raises:
        SettingsError: if the file names none, or there is none yet.
        StoreUnavailable: if it cannot be reached.
    """
    from serve_app.jobs.database import check_exists
    from serve_app.jobs.store import open_store

    settings = read_jobs_settings(config)
    check_exists(settings)
    store = open_store(settings)
    try:
        yield store
    finally:
        store.close()


def default_config() -> Path:
    """Returns configs/local.yaml: inside the package in a wheel, beside it in a clone."""
    return shipped_dir().parent / "configs" / "local.yaml"


def read_jobs_settings(path: Path) -> JobsSettings:
    """Returns the settings of jobs in a config file. `animegan check` says what else may be wrong with it.

    Raises:
        SettingsError: if it cannot be read, a key in its `args` is wrong, or jobs are off there.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        args = config["applications"][0].get("args") or {}
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, LookupError, TypeError, AttributeError):
        raise SettingsError(f"{path}: not a Serve config; `animegan check` says more") from None
    settings = load_settings(Settings, args, f"{path}: applications.0.args").jobs
    if not settings.enabled:
        raise SettingsError(f"{path}: jobs are switched off there (applications.0.args.jobs.enabled)")
    return settings


def count_jobs(store: "JobStore", options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """`animegan jobs`."""
    census = store.census()
    totals = {status: sum(counts.get(status, 0) for counts in census.jobs.values()) for status in Status}
    return {"by_status": totals} | {"by_client": by_client(census)} | seconds_and_bytes(census), table(census, totals)


def by_client(census: Census) -> dict[str, dict[Status, int]]:
    """Returns the counts of clients that are still known; expired jobs have none."""
    return {client: counts for client, counts in census.jobs.items() if client}


def seconds_and_bytes(census: Census) -> dict[str, Any]:
    """Returns the other members of a census."""
    return {"oldest_queued_s": census.oldest_queued_s, "stored_bytes": census.stored_bytes}


def table(census: Census, totals: dict[Status, int]) -> str:
    """Returns a census as text."""
    rows = [
        ("", *(str(status) for status in Status)),
        *((c, *cells(counts)) for c, counts in by_client(census).items()),
    ]
    rows.append(("all", *cells(totals)))
    width = max(len(row[0]) for row in rows)
    lines = ["  ".join([f"{row[0]:{width}}", *(f"{cell:>9}" for cell in row[1:])]).rstrip() for row in rows]
    waited = "none waits" if census.oldest_queued_s is None else f"{census.oldest_queued_s:.0f} s"
    return "\n".join([*lines, "", f"oldest that waits: {waited}", f"stored: {census.stored_bytes / 1e6:.1f} MB"])


def cells(counts: dict[Status, int]) -> list[str]:
    """Returns the counts of all statuses as text."""
    return [str(counts.get(status, 0)) for status in Status]


def show_job(store: "JobStore", options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """`animegan jobs show`."""
    job = store.get(options.id)
    outlook = store.positions.outlook_now(job.id)
    return described(job, {} if outlook is None else asdict(outlook))


def requeue_job(store: "JobStore", options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """`animegan jobs requeue`."""
    job = store.queue.requeue(options.id)
    if job is None:
        found = store.get(options.id)
        if found.status in (Status.FAILED, Status.CANCELLED):
            raise AnimeganError("the photograph of this job is not kept any more")
        raise AnimeganError(f"this job is {found.status}; only failed and cancelled jobs can wait again")
    return described(job)


def cancel_job(store: "JobStore", options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """`animegan jobs cancel`."""
    if store.cancel(options.id) is None:
        raise AnimeganError(f"this job is {store.get(options.id).status}; only jobs that wait or run can be cancelled")
    return described(store.get(options.id))


def purge_jobs(store: "JobStore", options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """`animegan jobs purge`."""
    erased = store.erase_finished() if options.all_finished else 0
    swept = {"erased": erased} | asdict(store.sweep())
    text = (
        f"erased {swept['erased']}, expired {swept['expired']}, photographs gone {swept['photos']}, ids forgotten "
        f"{swept['forgotten']}, files deleted {swept['blobs']}"
    )
    lost = swept["queued"] + swept["failed"]
    return swept, f"{text}; jobs of lost workers {lost}" if lost else text


def print_client_secret(options: argparse.Namespace) -> int:
    """`animegan jobs webhook-secret`."""
    webhooks = read_jobs_settings(options.config or default_config()).webhooks
    secret = read_secret(webhooks.secret)
    if secret is None:
        raise SettingsError("this config sends no webhooks (applications.0.args.jobs.webhooks.secret)")
    client = client_of(options.name)
    shown = client_secret(secret, client)
    print(json.dumps({"client": client, "secret": shown}) if options.json else shown)
    return 0


def client_of(name: str) -> str:
    """Returns the client of a key's name; an address, and what `animegan jobs` shows, are clients already."""
    if ":" in name or is_address(name):
        return name
    return f"key:{name}"


def is_address(name: str) -> bool:
    """Returns whether a name is an IPv4 address, as clients without a key are called."""
    try:
        IPv4Address(name)
    except ValueError:
        return False
    return True


def print_new_secret(options: argparse.Namespace) -> int:
    """`animegan jobs new-webhook-secret`."""
    print(new_secret())
    return 0


def described(job: Job, more: dict[str, Any] | None = None) -> tuple[dict[str, Any], str]:
    """Returns a job as members of JSON and as text."""
    members = {name: as_text(value) for name, value in asdict(job).items()} | (more or {})
    width = max(map(len, members))
    return members, "\n".join(f"{name:{width}}  {value}" for name, value in members.items() if value is not None)


def as_text(value: Any) -> Any:
    """Returns a time as text, and anything else as it is."""
    return value.isoformat() if isinstance(value, datetime) else value
