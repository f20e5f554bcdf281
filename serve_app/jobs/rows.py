"""Rows of the table to jobs, and what is kept as JSON.

What is read back may have been written by older or newer code: unknown members are left out, and missing ones have
their defaults. So a new field of a request or a receipt needs a default.
"""

from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import RowMapping

from serve_app.frames import Receipt, Size, StylizeRequest
from serve_app.jobs.words import Job, Status

REQUEST_FIELDS = {field.name: field.default for field in fields(StylizeRequest)}


def to_job(row: RowMapping) -> Job:
    """Returns the job of a row."""
    return Job(
        id=row["id"],
        number=row["number"],
        client=row["client"],
        status=Status(row["status"]),
        request=None if row["request"] is None else request_of(row["request"]),
        attempt=row["attempt"],
        created_at=to_time(row["created_at"]),
        started_at=None if row["started_at"] is None else to_time(row["started_at"]),
        finished_at=None if row["finished_at"] is None else to_time(row["finished_at"]),
        expires_at=None if row["expires_at"] is None else to_time(row["expires_at"]),
        photo=row["photo"],
        painting=row["painting"],
        media_type=row["media_type"],
        receipt=None if row["receipt"] is None else receipt_of(row["receipt"]),
        problem=row["problem"],
        callback_url=row["callback_url"],
        work=row["work_digest"],
    )


def to_time(milliseconds: int) -> datetime:
    """Returns a time of the table with its time zone, UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def request_members(request: StylizeRequest) -> dict[str, Any]:
    """Returns what is kept of a request: defaults are left out, so a new field does not change old requests."""
    return {name: value for name, value in asdict(request).items() if value != REQUEST_FIELDS[name]}


def request_of(members: dict[str, Any]) -> StylizeRequest:
    """Returns the request that was kept."""
    known = {name: value for name, value in members.items() if name in REQUEST_FIELDS}
    return StylizeRequest(**known | ({"box": Size(*known["box"])} if known.get("box") else {}))


def receipt_members(receipt: Receipt) -> dict[str, Any]:
    """Returns what is kept of a receipt."""
    return asdict(receipt) | {"original": list(receipt.original), "painted": list(receipt.painted)}


def receipt_of(members: dict[str, Any]) -> Receipt:
    """Returns the receipt that was kept."""
    known = {name: members[name] for name in (field.name for field in fields(Receipt)) if name in members}
    return Receipt(**known | {name: Size(*members[name]) for name in ("original", "painted")})
