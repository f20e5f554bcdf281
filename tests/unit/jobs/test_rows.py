"""What older and newer code has written can be read."""

import json
from dataclasses import MISSING, dataclass, field, fields, replace

import pytest
from jobstores import RECEIPT, REQUEST, Bench

from serve_app.frames import Receipt, Size, StylizeRequest
from serve_app.jobs import rows
from serve_app.jobs.rows import receipt_members, receipt_of, request_members, request_of

FIRST_FIELDS = {"style", "max_side", "multiple", "format"}  # of requests in the first rows


@dataclass(frozen=True)
class NewerRequest(StylizeRequest):
    strength: float = 1.0
    tags: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class NewerReceipt(Receipt):
    signed: bool = False


def test_a_request_of_older_code_has_the_defaults_of_newer_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    written = request_members(REQUEST)
    monkeypatch.setattr(rows, "StylizeRequest", NewerRequest)
    monkeypatch.setattr(rows, "REQUEST_FIELDS", {each.name: each.default for each in fields(NewerRequest)})
    newer = request_of(written)
    assert newer == NewerRequest(REQUEST.style, REQUEST.max_side, REQUEST.multiple, REQUEST.format)
    assert request_of(request_members(newer)) == newer


def test_a_box_comes_back_as_a_size() -> None:
    boxed = replace(REQUEST, box=Size(60, 80))
    assert request_of(json.loads(json.dumps(request_members(boxed)))) == boxed
    assert isinstance(request_of(json.loads(json.dumps(request_members(boxed)))).box, Size)


def test_a_receipt_of_older_code_has_the_defaults_of_newer_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    written = receipt_members(RECEIPT)
    monkeypatch.setattr(rows, "Receipt", NewerReceipt)
    monkeypatch.setattr(rows, "fields", lambda _: fields(NewerReceipt))
    assert receipt_of(written) == NewerReceipt(RECEIPT.style, RECEIPT.original, RECEIPT.painted, RECEIPT.timings_ms)


def test_members_of_newer_code_are_left_out() -> None:
    assert request_of(request_members(REQUEST) | {"strength": 0.5}) == REQUEST
    assert receipt_of(receipt_members(RECEIPT) | {"signed": True}) == RECEIPT


def test_a_new_field_of_a_request_or_a_receipt_has_a_default() -> None:
    def without_default(kind: type) -> set[str]:
        return {each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING}

    assert without_default(StylizeRequest) == FIRST_FIELDS
    assert without_default(Receipt) == {"style", "original", "painted"}


def test_the_first_rows_can_be_read(bench: Bench) -> None:
    """As they were written when the table was made."""
    job = bench.succeed()
    first = {"request": '{"style": "toon", "max_side": 512, "multiple": 4, "format": "png"}'}
    first |= {"receipt": '{"style": "toon", "original": [60, 80], "painted": [30, 40]}'}
    with bench.database.write() as connection:
        for column, text in first.items():
            connection.exec_driver_sql(f"UPDATE jobs SET {column} = '{text}'")
    read = bench.store.get(job.id)
    assert (read.request, read.receipt) == (REQUEST, Receipt("toon", RECEIPT.original, RECEIPT.painted))
