"""A config file served by a Ray of its own on this machine: the process that `animegan run` starts and stops.

Like `serve run`, but without Ray's dashboard, it says when the service is ready, and it ends with a reason when the
deployment fails, on which `serve run` sleeps on. SIGINT shuts the application and its Ray down in order. RAY_ADDRESS
names a cluster to use instead.
"""

import argparse
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path

import click
import ray
import requests
import yaml
from ray import serve
from ray.serve.schema import ServeDeploySchema
from ray.serve.scripts import cli as serve_command

from serve_app.cli.config_lint import lint
from serve_app.errors import AnimeganError

POLL_S = 0.5
READY_TIMEOUT_S = 300
SERVES_NAMESPACE = "serve"  # where `serve run` puts what it starts


class StartError(AnimeganError):
    """The service did not come up."""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--dashboard", action="store_true")
    options = parser.parse_args()
    try:
        start(options.config, options.dashboard)
        signal.pause()
    except StartError as error:
        shut_down()
        print(f"animegan: {error}", file=sys.stderr)  # after all that Ray had to say
        return 1
    except KeyboardInterrupt:
        shut_down()
    return 0


def start(config: Path, dashboard: bool = False) -> None:
    """Serves a config file, and returns when it is ready.

    Args:
        config: is linted first.
        dashboard: start Ray's too: eleven processes, 220 MB, and `serve status` works.

    Raises:
        StartError: if the config is wrong, its port is taken, or the deployment fails or takes too long.
    """
    if findings := lint(config):
        raise StartError("\n".join(findings))
    document = ServeDeploySchema.model_validate(yaml.safe_load(config.read_text(encoding="utf-8")))
    host, port = http_address(document)
    if port_is_taken(host, port):
        raise StartError(
            f"port {port} of {host} is taken; stop what listens there, or set http_options.port in {config}"
        )
    print(f"starting {config} ...", flush=True)
    if "RAY_ADDRESS" not in os.environ:  # left to itself Ray joins whatever ran last, dead or not
        context = ray.init(
            "local", namespace=SERVES_NAMESPACE, include_dashboard=dashboard, logging_level=logging.WARNING
        )
        if dashboard:
            print(f"Ray's dashboard: http://{context.dashboard_url} (it asks for what `ray get-auth-token` prints)")
        start_serve(document)
    try:
        serve_command(["run", "--non-blocking", str(config)], standalone_mode=False)
    except click.Abort:  # what click makes of SIGINT
        raise KeyboardInterrupt from None
    except SystemExit:  # it has printed a traceback, and would have said that all went well
        raise StartError("`serve run` gave up; see above") from None
    wait_until_ready(f"http://{host}:{port}")
    print_welcome(f"http://{host}:{port}")


def start_serve(document: ServeDeploySchema) -> None:
    """As `serve run` would, which leaves the controller and the proxy louder than the document says."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(
        proxy_location=document.proxy_location,
        http_options=document.http_options.model_dump(),
        grpc_options=document.grpc_options.model_dump(),
        controller_options=document.controller_options,
        logging_config=document.logging_config,
    )


def shut_down() -> None:
    if ray.is_initialized():
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


def http_address(document: ServeDeploySchema) -> tuple[str, int]:
    """Where this machine reaches it."""
    host, port = document.http_options.host, document.http_options.port
    return ("127.0.0.1" if host in ("0.0.0.0", "::") else host), port


def port_is_taken(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def wait_until_ready(address: str) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not answers(f"{address}/readyz"):
        if reason := failure():
            raise StartError(f"the deployment failed:\n{reason}")
        if time.monotonic() > deadline:
            raise StartError(f"the service was not ready after {READY_TIMEOUT_S} s")
        time.sleep(POLL_S)


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).status_code == 200
    except requests.RequestException:
        return False


def failure() -> str | None:
    """Why an application failed to deploy; None while it has not."""
    for application in serve.status().applications.values():
        if application.status == "DEPLOY_FAILED":
            messages = [application.message, *(deployment.message for deployment in application.deployments.values())]
            return "\n".join(dict.fromkeys(filter(None, messages)))
    return None


def print_welcome(address: str) -> None:
    print(
        f"""
ready: {address}           (a page to drop photographs on; API at {address}/docs)

  curl --fail-with-body --data-binary @photo.jpg '{address}/v1/stylize' -o painted.jpg

Ctrl-C stops it.
""",
        flush=True,
    )
