"""A client that has gone is a disconnect, not a fault."""

import asyncio
import logging

import pytest
from ray.exceptions import ActorDiedError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import RequestCancelledError
from starlette.types import Message, Receive, Scope, Send

from serve_app.deployments.cancellation import DisconnectOnCancel, is_cancellation, log_no_cancellations


def in_a_task(cause: Exception) -> RayTaskError:
    return RayTaskError("method", "traceback", cause)  # type: ignore[no-untyped-call]


CANCELLED: list[Exception] = [TaskCancelledError(), RequestCancelledError("id"), in_a_task(TaskCancelledError())]
CANCELLED.append(in_a_task(TaskCancelledError()).as_instanceof_cause())  # type: ignore[no-untyped-call]
FAULTS = [ActorDiedError(), in_a_task(ValueError()), ValueError(), None]


@pytest.mark.parametrize("error", CANCELLED)
def test_cancellation_is_recognised_however_ray_wraps_it(error: Exception) -> None:
    assert is_cancellation(error)


@pytest.mark.parametrize("error", FAULTS)
def test_other_errors_are_none(error: Exception | None) -> None:
    assert not is_cancellation(error)


@pytest.mark.parametrize("error", [*CANCELLED, ActorDiedError()])
def test_body_that_ray_cancels_ends_as_a_disconnect(error: Exception) -> None:
    received: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        received.append(await receive())

    async def receive() -> Message:
        raise error

    async def send(message: Message) -> None:
        raise AssertionError

    asyncio.run(DisconnectOnCancel(app)({"type": "http"}, receive, send))
    assert received == [{"type": "http.disconnect"}]


def test_asyncio_logs_faults_but_no_cancellations(caplog: pytest.LogCaptureFixture) -> None:
    log_no_cancellations()
    for error in (CANCELLED[2], ValueError("a fault")):
        logging.getLogger("asyncio").error("never retrieved", exc_info=error)
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [error]
