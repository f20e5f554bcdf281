"""Calls from replica to replica, and what became of those that were lost."""

import asyncio
import logging
from typing import Any

import grpc
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from serve_app.deployments.cancellation import is_cancellation
from serve_app.deployments.steps import LOST_RETRY_AFTER_S
from serve_app.errors import Lost, RequestError, TooBusy

# What gRPC says of messages that should not have been sent; all else is said of connections and processes that end.
OUR_FAULTS = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED)
CUT_OFF = "Unexpected error (StatusCode."  # Serve's words for a replica that ended before it took a call

logger = logging.getLogger("ray.serve")  # Serve writes it to the replica's log file

# Retry-After of Serve's own queues, as in prod.yaml. Admission is stricter, so they fill only if the settings disagree.
SERVE_RETRY_AFTER_S = 3


class Callee:
    """A deployment, as the replicas that call it see it. Its methods are generators that yield one answer.

    Serve sends a call through Ray, which takes arguments and answers of any size and references to objects, or by gRPC
    straight to the replica, which takes half of the CPU time, but is slower above a megabyte and refuses 4 MiB. A call
    that streams its answer says at once whether the replica takes it; else Serve would learn of that, and of how much
    the replica has to do, with the answer only, and would share the work out badly.

    Args:
        handle: of the deployment.
    """

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._by_ray = handle.options(stream=True, _by_reference=True)
        self._by_grpc = handle.options(stream=True, _by_reference=False)

    async def call(self, method: str, *args: Any, is_small: bool, trace: str | None = None) -> Any:
        """Calls a method of one of the replicas, and returns its answer; if it is cancelled, so is the call.

        Args:
            method: its name.
            args: its arguments.
            is_small: whether neither they nor the answer can take 4 MiB, and none of them is a reference.
            trace: the `traceparent` of the request, if the method takes one and the request is traced.

        Raises:
            RequestError: the refusal that the replica answered.
            TooBusy: if Serve's own queue before the replicas is full.
            Lost: if a process, a node or an object was lost, which says nothing about the photograph.
        """
        handle = self._by_grpc if is_small else self._by_ray
        response = getattr(handle, method).remote(*args, **({} if trace is None else {"trace": trace}))
        try:
            (answer,) = [answer async for answer in response]
        except BackPressureError:
            detail = "Too many pictures are waiting; try again shortly."
            raise TooBusy(detail, retry_after_s=SERVE_RETRY_AFTER_S) from None
        except asyncio.CancelledError:  # the client has disconnected, or the deadline has passed
            response.cancel()
            raise
        except (RayError, RayServeException, grpc.RpcError, RuntimeError) as error:
            if not is_lost(error):
                raise
            reason = str(error).partition("\n")[0][:200]
            logger.warning("a call of %s was lost (%s: %s)", method, type(error).__name__, reason)
            detail = "A process that worked on the picture was lost; try again later."
            raise Lost(detail, retry_after_s=LOST_RETRY_AFTER_S) from None
        if isinstance(answer, RequestError):
            raise answer
        return answer


def is_lost(error: Exception) -> bool:
    """Returns whether a process, a node or an object was lost, which says nothing about the photograph."""
    if isinstance(error, RayTaskError):  # raised inside a replica: by its code, or because an argument was lost
        return is_lost(error.cause)
    if isinstance(error, grpc.RpcError):  # Serve translates only the plainest of them
        return getattr(error, "code", lambda: None)() not in OUR_FAULTS
    if isinstance(error, RuntimeError):
        return str(error).startswith(CUT_OFF)
    return isinstance(error, RayError | RayServeException) and not is_cancellation(error)
