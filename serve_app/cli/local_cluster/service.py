"""Serves a config file on a Ray of its own on this machine.

It does what `serve run` does, without Ray's dashboard. It also says when the service is ready, and exits with a reason
if the deployment fails, where `serve run` sleeps on. At SIGINT it answers what it has in hand, and shuts down the
application and its Ray in order; a second SIGINT ends the wait. If RAY_ADDRESS names a cluster, that is used instead of
a Ray of its own.
"""

import argparse
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path

import psutil
import ray
import requests
from ray import serve
from ray.exceptions import RayError
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from serve_app.cli.config_lint import load_config
from serve_app.cli.local_cluster.environment import ray_environment
from serve_app.deployments.draining import drain_service
from serve_app.deployments.proxy import CONFIG_VARIABLE
from serve_app.errors import AnimeganError, SettingsError
from serve_app.settings import IngressSettings, load_settings
from serve_app.web.keys import load_keys

POLL_S = 0.5
READY_TIMEOUT_S = 300
SERVE_NAMESPACE = "serve"  # the namespace that `serve run` uses
WATCH_S = 2.0  # between two looks at Ray's own processes


class StartError(AnimeganError):
    """The service did not come up."""


def main() -> int:
    """Serves until SIGINT, and returns the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--ray-folder", type=Path, required=True)
    parser.add_argument("--dashboard", action="store_true")
    parser.add_argument("--drain", type=float, default=0.0)
    options = parser.parse_args()
    try:
        start(options.config, options.ray_folder, options.dashboard)
        watch(ray_core())
    except RayDied as error:
        print(f"animegan: {error}", file=sys.stderr, flush=True)
        os._exit(1)  # to shut down in order would wait for the Ray that is dead; the supervisor kills what is left
    except (StartError, SettingsError) as error:
        shut_down()
        print(f"animegan: {error}", file=sys.stderr)  # after everything that Ray prints
        return 1
    except KeyboardInterrupt:
        finish_requests(options.drain)
        shut_down()
    return 0


def finish_requests(timeout_s: float) -> None:
    """Has the service take nothing new, and waits until what it has in hand is answered, or for the next SIGINT."""

    def tell(in_hand: int) -> None:
        if in_hand:
            print(f"requests in hand: {in_hand} (up to {timeout_s:g} s; Ctrl-C ends the wait)", flush=True)

    try:
        if timeout_s and ray.is_initialized():
            drain_service(timeout_s, tell)
    except KeyboardInterrupt:
        print("not waiting; Ray takes some 20 s to stop", flush=True)
    except (AnimeganError, RayError) as error:
        print(f"not waiting: {error}", flush=True)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


class RayDied(AnimeganError):
    """A process without which Ray cannot work has ended."""


def start(config: Path, ray_folder: Path, dashboard: bool = False) -> None:
    """Deploys a config file, and returns when the service is ready.

    Args:
        config: a Serve config file.
        ray_folder: where Ray writes its sockets and logs.
        dashboard: start Ray's dashboard too. It takes eleven processes and 220 MB; `serve status` needs it.

    Raises:
        SettingsError: naming everything that is wrong with the config.
        StartError: if its port is taken, or the deployment fails or takes too long.
    """
    document, metrics = load_config(config)
    host, port = http_address(document)
    if port_is_taken(host, port):
        raise StartError(
            f"port {port} of {host} is taken; stop what listens there, or set http_options.port in {config}"
        )
    if metrics is not None and port_is_taken(metrics.host, metrics.port):
        raise StartError(f"{metrics.address} is taken; stop what listens there, or set metrics.port in {config}")
    if "RAY_ADDRESS" not in os.environ:  # on another machine the files may be others
        check_keys(document)
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        raise StartError(
            "RAY_AUTH_MODE=disabled lets everybody who reaches Ray's ports run code on this machine; unset it"
        )
    print(f"starting {config} ...", flush=True)
    if "RAY_ADDRESS" not in os.environ:  # by itself Ray would join whatever cluster ran last here, alive or not
        os.environ[CONFIG_VARIABLE] = str(config.resolve())  # for the guard in the proxy
        for name, value in ray_environment(dashboard).items():
            os.environ.setdefault(name, value)
        context = ray.init(
            "local",
            namespace=SERVE_NAMESPACE,
            include_dashboard=dashboard,
            logging_level=logging.WARNING,
            _temp_dir=str(ray_folder / "ray"),  # Ray opens its own folder to everybody, but not the one around it
        )
        if dashboard:
            print(f"Ray's dashboard: http://{context.dashboard_url} (it asks for the token of `ray get-auth-token`)")
    else:
        ray.init(namespace=SERVE_NAMESPACE)
    deploy(document)
    wait_until_ready(f"http://{host}:{port}")
    print_welcome(f"http://{host}:{port}")


def check_keys(document: ServeDeploySchema) -> None:
    """Reads the API keys as the Ingress will: Serve would try a broken file three times before it gives up.

    Raises:
        SettingsError: if they cannot be read.
    """
    for application in document.applications:
        for deployment in application.deployments:
            if deployment.name == "Ingress":
                values = deployment.user_config or {}
                load_keys(load_settings(IngressSettings, values, "Ingress.user_config"), host=None)


def ray_core() -> list[psutil.Process]:
    """Returns the processes of this process's own Ray without which it cannot work; none of a cluster's."""
    children = psutil.Process().children()
    return [process for process in children if process.name() in ("raylet", "gcs_server")]


def watch(core: list[psutil.Process]) -> None:
    """Waits as long as all of these processes live; for ever if there are none.

    Raises:
        RayDied: naming those that have ended.
    """
    if not core:
        signal.pause()
    names = {process: process.name() for process in core}
    while not (ended := psutil.wait_procs(core, WATCH_S)[0]):
        pass
    died = " and ".join(names[process] for process in ended)
    raise RayDied(f"Ray's {died} has died, and the service with it; start it again")


def deploy(document: ServeDeploySchema) -> None:
    """Starts Serve and submits the config, as `serve run` does, with the config's logging level in all processes."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(
        proxy_location=document.proxy_location,
        http_options=document.http_options.model_dump(),
        grpc_options=document.grpc_options.model_dump(),
        controller_options=document.controller_options,
        logging_config=document.logging_config,
    )
    # Serve has no public call that deploys a config file from Python: its REST API needs the dashboard.
    client = _get_global_client()
    assert client is not None  # Serve has been started above
    client.deploy_apps(document, _blocking=False)


def shut_down() -> None:
    """Shuts down the application and Ray, if Ray has been started."""
    if ray.is_initialized():
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


def http_address(document: ServeDeploySchema) -> tuple[str, int]:
    """Returns the host and port at which this machine reaches the service."""
    host, port = document.http_options.host, document.http_options.port
    is_any = host in ("0.0.0.0", "::")  # noqa: S104 # nosec B104 # compared, and bound only if the config says so
    return ("127.0.0.1" if is_any else host), port


def port_is_taken(host: str, port: int) -> bool:
    """Returns whether something listens on the port."""
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0  # 0.0.0.0 is reached at the loopback


def wait_until_ready(address: str) -> None:
    """Returns when `/readyz` answers 200.

    Raises:
        StartError: if the deployment fails or takes too long.
    """
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not answers(f"{address}/readyz"):
        if reason := failure():
            raise StartError(f"the deployment failed:\n{reason}")
        if time.monotonic() > deadline:
            raise StartError(f"the service was not ready after {READY_TIMEOUT_S} s")
        time.sleep(POLL_S)


def answers(url: str) -> bool:
    """Returns whether a GET is answered with 200."""
    try:
        return requests.get(url, timeout=5).status_code == 200
    except requests.RequestException:
        return False


def failure() -> str | None:
    """Returns why an application failed to deploy, or None if none has failed."""
    for application in serve.status().applications.values():
        if application.status == "DEPLOY_FAILED":
            messages = [application.message, *(deployment.message for deployment in application.deployments.values())]
            return "\n".join(dict.fromkeys(filter(None, messages)))
    return None


def print_welcome(address: str) -> None:
    """Prints the address and a command to try."""
    print(
        f"""
ready: {address}           (drop photographs on this page; the API is described at {address}/docs)

  curl --fail-with-body --data-binary @photo.jpg '{address}/v1/stylize' -o painted.jpg

Ctrl-C stops it.
""",
        flush=True,
    )
