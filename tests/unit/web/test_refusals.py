"""Refusals that hold for a moment."""

import json

import pytest

from serve_app.errors import Lost, RequestError, TooBusy
from serve_app.web.refusals import HELD_S, MOST_CLIENTS, HeldRefusals, key_of

ALICE, BOB = key_of("/v1/stylize", "192.0.2.1", []), key_of("/v1/stylize", "192.0.2.2", [])
FULL = TooBusy("9 pictures are waiting", 9, 10, "pixels", 3, 9)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def document(refusal: RequestError) -> bytes:
    return json.dumps(refusal.problem()).encode()


def test_refusal_is_repeated_word_for_word_for_a_moment_to_its_client_alone() -> None:
    clock = Clock()
    refusals = HeldRefusals(clock)
    refusals.hold(ALICE, document(FULL))
    clock.now += HELD_S - 0.01
    with pytest.raises(TooBusy) as caught:
        refusals.check(ALICE)
    assert caught.value.problem() == FULL.problem()
    refusals.check(BOB)
    clock.now += 0.02
    refusals.check(ALICE)


def test_refusal_that_is_repeated_does_not_grow() -> None:
    clock = Clock()
    refusals = HeldRefusals(clock)
    refusals.hold(ALICE, document(FULL))

    def depth() -> int:
        with pytest.raises(TooBusy) as caught:
            refusals.check(ALICE)
        return len(caught.traceback)

    assert {depth() for _ in range(5)} == {depth()}
    clock.now += HELD_S
    refusals.check(ALICE)
    assert refusals._held == {}


def test_refusals_of_other_kinds_do_not_hold() -> None:
    refusals = HeldRefusals(Clock())
    refusals.hold(ALICE, document(Lost("gone")))
    refusals.check(ALICE)


def test_refusals_are_bounded_and_forgotten() -> None:
    clock = Clock()
    refusals = HeldRefusals(clock)
    for number in range(MOST_CLIENTS + 10):
        refusals.hold(key_of("/v1/stylize", str(number), []), document(FULL))
    assert len(refusals._held) == MOST_CLIENTS
    refusals.hold(ALICE, document(FULL))
    refusals.check(ALICE)  # there was no room for it
    clock.now += HELD_S
    refusals.hold(ALICE, document(FULL))
    assert list(refusals._held) == [ALICE]


def test_keys_tell_routes_addresses_and_credentials_apart() -> None:
    keys = {
        key_of(path, client, credentials)
        for path in ("/v1/stylize", "/v1/jobs")
        for client in ("192.0.2.1", "192.0.2.2")
        for credentials in ([], [b"Bearer a"], [b"Bearer b"], [b"Bearer a", b"b"])
    }
    assert len(keys) == 16
