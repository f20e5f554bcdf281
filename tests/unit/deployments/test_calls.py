"""Calls from replica to replica: which errors mean a lost process, and what becomes of the others."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc
import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ObjectLostError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.serve.exceptions import BackPressureError, RayServeException

from serve_app.deployments.calls import Callee, is_lost
from serve_app.errors import BrokenImage, Lost, RequestError, TooBusy


def raised_in_a_replica(cause: Exception) -> RayTaskError:
    return RayTaskError("paint", "a traceback", cause)  # type: ignore[no-untyped-call]


def said_by_grpc(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata())


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
        said_by_grpc(grpc.StatusCode.CANCELLED),
        raised_in_a_replica(said_by_grpc(grpc.StatusCode.INTERNAL)),
        RuntimeError("Unexpected error (StatusCode.UNAVAILABLE): Socket closed."),
    ],
)
def test_death_of_a_process_is_a_loss(error: Exception) -> None:
    assert is_lost(error)


@pytest.mark.parametrize(
    "error", [TaskCancelledError(), raised_in_a_replica(ValueError("our fault")), raised_in_a_replica(MemoryError())]
)
def test_what_a_replica_raised_and_what_was_cancelled_is_none(error: Exception) -> None:
    assert not is_lost(error)


class Handle:
    """A deployment's handle whose replica gives one answer, or raises it; without an answer it never ends."""

    def __init__(self, outcome: object = None) -> None:
        self.outcome = outcome
        self.options_given: list[dict[str, object]] = []
        self.by_reference: object = None
        self.is_cancelled = False
        self.method = self

    def options(self, **options: object) -> "Handle":
        self.options_given.append(options)
        child = Handle(self.outcome)
        child.by_reference = options["_by_reference"]
        child.parent = self  # type: ignore[attr-defined]
        return child

    def remote(self, *args: object) -> "Handle":
        self.parent.called = (self.by_reference, args)  # type: ignore[attr-defined]
        return self

    async def __aiter__(self) -> AsyncIterator[object]:
        if self.outcome is None:
            await asyncio.Event().wait()
        if isinstance(self.outcome, Exception) and not isinstance(self.outcome, RequestError):
            raise self.outcome
        yield self.outcome

    def cancel(self) -> None:
        self.parent.is_cancelled = True  # type: ignore[attr-defined]


def call(handle: Handle, *args: object, is_small: bool = False) -> Any:
    return asyncio.run(Callee(cast("Any", handle)).call("method", *args, is_small=is_small))


def test_small_calls_go_straight_to_the_replica_and_all_say_at_once_whether_it_takes_them() -> None:
    handle: Any = Handle("answer")
    assert call(handle, 1, 2, is_small=True) == "answer"
    assert handle.called == (False, (1, 2))
    assert call(handle, 3) == "answer"
    assert handle.called == (True, (3,))
    assert all(options["stream"] for options in handle.options_given)


def test_refusal_that_a_replica_answers_is_raised() -> None:
    with pytest.raises(BrokenImage):
        call(Handle(BrokenImage("not a picture")))


def test_full_queue_of_serve_is_a_refusal_with_a_time_to_come_back() -> None:
    full = BackPressureError(num_queued_requests=9, max_queued_requests=9, status_code=429, retry_after_s=1)
    with pytest.raises(TooBusy) as caught:
        call(Handle(full))
    assert (caught.value.status, caught.value.retry_after_s) == (429, 3)


def test_lost_process_is_a_refusal_and_a_fault_stays_a_fault() -> None:
    with pytest.raises(Lost):
        call(Handle(ActorDiedError()))
    with pytest.raises(RayTaskError):
        call(Handle(raised_in_a_replica(ValueError("our fault"))))


def test_call_whose_caller_gives_up_is_cancelled() -> None:
    handle = Handle()

    async def give_up() -> None:
        async with asyncio.timeout(0.01):
            await Callee(cast("Any", handle)).call("method", is_small=True)

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    assert handle.is_cancelled
