"""Drains a service before it is stopped: its proxies take nothing new, and what they have in hand is answered.

Serve itself closes its proxies at once when it shuts down, and Ray its processes when a node is stopped.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.serve._private.constants import SERVE_NAMESPACE, SERVE_PROXY_NAME
from ray.util import list_named_actors

from serve_app.deployments.proxy import drain
from serve_app.errors import AnimeganError

POLL_S = 0.5
ANSWER_S = 10.0  # within which a proxy says what it has in hand

logger = logging.getLogger(__name__)


def drain_service(timeout_s: float, told: Callable[[int], None]) -> int:
    """Has all proxies of the cluster that this process is connected to drain, and waits for what they have in hand.

    Args:
        timeout_s: the most that it waits.
        told: is called with the number of requests in hand, first and whenever it has changed.

    Returns:
        The requests that are still in hand; 0 if all are answered.

    Raises:
        AnimeganError: if a proxy has no guard.
    """
    deadline_s = time.monotonic() + timeout_s
    before = -1
    while True:
        in_hand = set_draining(True)  # again each time: a proxy may have been started meanwhile
        if in_hand != before:
            told(in_hand)
            before = in_hand
        if not in_hand or time.monotonic() >= deadline_s:
            return in_hand
        time.sleep(POLL_S)


def set_draining(is_on: bool) -> int:
    """Has all proxies drain, or take everything again; returns how many requests they have in hand.

    Raises:
        AnimeganError: if a proxy has no guard.
    """
    return sum(asked(proxy, is_on) for proxy in proxies())


def asked(proxy: Any, is_on: bool) -> int:
    """Has one proxy drain or not; returns how many requests it has in hand, 0 if it has died.

    Raises:
        AnimeganError: if it has no guard.
    """
    try:
        in_hand: int | None = ray.get(proxy.__ray_call__.remote(drain, is_on), timeout=ANSWER_S)
    except GetTimeoutError:
        return 1  # too busy to say: it has something in hand
    except RayError as error:
        logger.warning("a proxy does not answer: %s", error)
        return 0
    if in_hand is None:
        raise AnimeganError("the guard is off in the HTTP proxies, so they do not drain; docs/guard.md")
    return in_hand


def proxies() -> list[Any]:
    """Returns Serve's HTTP proxies, one for each node that has one."""
    named = list_named_actors(all_namespaces=True)
    names = [each["name"] for each in named if each["namespace"] == SERVE_NAMESPACE]
    found = []
    for name in names:
        if name.startswith(SERVE_PROXY_NAME):
            try:
                found.append(ray.get_actor(name, namespace=SERVE_NAMESPACE))
            except ValueError:
                continue  # it has ended meanwhile
    return found
