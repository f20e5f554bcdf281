"""What the Ingress takes for the loss of a process, which it answers by sending the photograph again."""

import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ObjectLostError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.serve.exceptions import RayServeException

from serve_app.deployments.ingress import is_lost, limits_of, with_waits
from serve_app.frames import Picture, Receipt
from serve_app.settings import IngressSettings


def raised_in_a_replica(cause: Exception) -> RayTaskError:
    return RayTaskError("paint", "a traceback", cause)


@pytest.mark.parametrize(
    "error",
    [
        ActorDiedError(),
        ActorUnavailableError("gone for now", None),
        ObjectLostError("00", None, ""),
        WorkerCrashedError(),
        RayServeException("an upstream actor died"),
        raised_in_a_replica(ActorDiedError()),
        raised_in_a_replica(raised_in_a_replica(WorkerCrashedError())),
    ],
)
def test_death_of_a_process_is_a_loss(error: Exception) -> None:
    assert is_lost(error)


@pytest.mark.parametrize(
    "error", [TaskCancelledError(), raised_in_a_replica(ValueError("our fault")), raised_in_a_replica(MemoryError())]
)
def test_what_a_replica_raised_and_what_was_cancelled_is_none(error: Exception) -> None:
    assert not is_lost(error)


def test_door_gets_its_limits_from_the_settings() -> None:
    settings = IngressSettings(
        queue_time_s=5, queue_least_pictures=2, queue_most_pictures=30, queue_most_pixels=1_000_000
    )
    limits = limits_of(settings)
    assert (limits.queue_time_s, limits.least_pictures) == (5, 2)
    assert (limits.most_pictures, limits.most_pixels) == (30, 1_000_000)


def test_queue_is_all_that_was_not_work() -> None:
    timings = {"decode": 10.0, "queue": 5.0, "paint": 100.0, "encode": 20.0}
    receipt = Receipt("toon", (8, 8), (8, 8), timings)
    told = with_waits(Picture(b"", "image/jpeg", receipt), 0.5).receipt.timings_ms
    assert told == timings | {"queue": 370.0}
    assert list(told) == list(timings)
    assert with_waits(Picture(b"", "image/jpeg", receipt), 0.1).receipt.timings_ms["queue"] == 0
