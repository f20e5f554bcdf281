"""`animegan drain`: has a running service finish what it has in hand, before its cluster or its Ray is stopped."""

import argparse
import logging
import os
import socket
from typing import Any

from serve_app.cli.arguments import add_command
from serve_app.errors import AnimeganError

CONNECT_S = 5.0
TIMEOUT_S = 300.0  # the shipped configs answer every request within it
EXAMPLES = """
examples:
  animegan drain && serve shutdown --yes && ray stop
  animegan drain --undo

Meanwhile /readyz answers 503, so load balancers send nobody, and so are new
photographs, with Retry-After. The exit status is 0 if all requests in hand were
answered, and 1 if the time was too short.
"""


def add_drain_parser(commands: Any) -> None:
    """Adds `animegan drain` to the commands."""
    drain = add_command(
        commands,
        "drain",
        help="have a service finish its requests before it is stopped",
        description="Has the service of a Ray cluster take nothing new, and waits for its requests.",
        examples=EXAMPLES,
    )
    drain.add_argument("--address", metavar="HOST:PORT", help="of the cluster; default: RAY_ADDRESS, or the one here")
    drain.add_argument("--timeout", type=seconds, default=TIMEOUT_S, metavar="SECONDS", help=f"default: {TIMEOUT_S:g}")
    drain.add_argument("--undo", action="store_true", help="have the service take everything again")
    drain.set_defaults(command=drain_cluster)


def seconds(text: str) -> float:
    """Returns a time in seconds.

    Raises:
        argparse.ArgumentTypeError: if it is none.
    """
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, up to a day")
    return number


def check_address(address: str) -> None:
    """Checks that something listens at HOST:PORT: Ray itself would try for more than a minute.

    Raises:
        OSError: if nothing does.
    """
    host, _, port = address.rpartition(":")
    if port.isdecimal():
        socket.create_connection((host, int(port)), CONNECT_S).close()


def drain_cluster(options: argparse.Namespace) -> int:
    """`animegan drain`."""
    import ray

    from serve_app.deployments.draining import drain_service, proxies, set_draining

    address = options.address or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        check_address(address)
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, ValueError, RuntimeError) as error:
        where = "on this machine" if address == "auto" else f"at {address}"
        raise AnimeganError(f"no Ray cluster can be reached {where}: {error}") from None
    try:
        if not proxies():
            raise AnimeganError("this cluster runs no service")
        if options.undo:
            set_draining(False)
            print("the service takes everything again")
            return 0
        left = drain_service(options.timeout, lambda in_hand: print(f"requests in hand: {in_hand}", flush=True))
    finally:
        ray.shutdown()
    return 1 if left else 0
