"""Puts the guard into Serve's HTTP proxies, and beside it the address that answers the metrics of their nodes.

Serve calls `middlewares` in each proxy if the variable `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` names it. The
settings of both are in the config file that `ANIMEGAN_CONFIG` names. Both variables must be in the environment that
starts Ray.
"""

import logging
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn.config
import yaml
from ray.serve._private.constants import SERVE_SESSION_ID
from starlette.middleware import Middleware

from serve_app.deployments import exposition
from serve_app.deployments.cancellation import log_no_cancellations
from serve_app.deployments.idle import IdleRelease
from serve_app.deployments.logs import log_to_serve
from serve_app.deployments.metrics import GuardMetrics
from serve_app.engine.allocator import return_large_buffers
from serve_app.errors import SettingsError
from serve_app.jobs.news import News
from serve_app.jobs.threads import StoreThreads
from serve_app.settings import GuardSettings, IngressSettings, JobsSettings, MetricsSettings, load_settings
from serve_app.web.connection import GuardedProtocol
from serve_app.web.draining import Draining
from serve_app.web.guard import Guard, Site
from serve_app.web.keys import is_private
from serve_app.web.request_log import GuardLog

if TYPE_CHECKING:  # SQLAlchemy
    from serve_app.jobs.reader import JobReader

CALLBACK_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
CALLBACK = "serve_app.deployments.proxy:middlewares"
CONFIG_VARIABLE = "ANIMEGAN_CONFIG"

DRAINING = Draining()  # of this process, if it is a proxy; `deployments.draining` switches it on

logger = logging.getLogger("ray.serve")


def middlewares() -> list[Middleware]:
    """Returns the middleware of one proxy, and sets uvicorn up for it.

    Raises:
        SettingsError: if the config file cannot be read or is wrong; the proxy does not start then.
    """
    return_large_buffers()
    log_no_cancellations()
    log_to_serve()
    os.environ["FORWARDED_ALLOW_IPS"] = ""  # or uvicorn believes X-Forwarded-For from 127.0.0.1; the guard decides that
    config = read_config()
    observer = Observer()
    serve_metrics(config, observer)
    block = config.get("guard")
    if block is False:  # YAML's `off`
        logger.warning("the guard is off: uploads reach Serve as they come")
        return []
    if not isinstance(block, dict | None):
        raise SettingsError("guard: must hold keys, or be off")
    settings = load_settings(GuardSettings, block or {}, "guard")
    if settings.spool_dir is not None and not os.access(settings.spool_dir, os.W_OK | os.X_OK):
        raise SettingsError(f"guard.spool_dir: {settings.spool_dir} is not a folder that this process may write to")
    protocol = type("Protocol", (GuardedProtocol,), {"header_timeout_s": settings.header_timeout_s})
    uvicorn.config.HTTP_PROTOCOLS["auto"] = protocol  # type: ignore[assignment]  # a class will do, too
    known = site(config)
    return [  # the last is the outermost
        Middleware(
            Guard, settings=settings, site=known, observer=observer, news=news_of_jobs(config), draining=DRAINING
        ),
        Middleware(GuardLog, trusted_proxies=known.trusted_proxies, log_clients=known.log_clients),
    ]


def serve_metrics(config: dict[str, Any], observer: GuardMetrics) -> None:
    """Answers the metrics of this node at the address that a config names, if it names one.

    Raises:
        SettingsError: if its block `metrics` is wrong.
    """
    block, folder = config.get("metrics"), exposition.join()
    if block is None or block is False or folder is None:  # YAML's `off` is False
        return
    if not isinstance(block, dict):
        raise SettingsError("metrics: must hold keys, or be off")
    exposition.serve(load_settings(MetricsSettings, block, "metrics"), folder, observer.publish_process)


def drain(proxy: Any, is_on: bool) -> int | None:
    """Has a proxy drain, or take everything again; returns how many requests it has in hand, None without a guard.

    It is called in the process of the proxy, through Ray.

    Args:
        proxy: Serve's actor.
        is_on: whether it is to drain.
    """
    DRAINING.is_on = is_on
    return DRAINING.in_hand if DRAINING.has_guard else None


def warn_without_guard() -> None:
    """Logs loudly if the environment of this process, which is that of the proxy on its node, names no guard."""
    if not is_guarded():
        logger.warning(
            "NO GUARD in the HTTP proxies: uploads that are huge or never end can take the service down, and headers "
            "that steer Serve are obeyed. Start Ray "
            "with %s=%s and %s naming the config file, on every node; docs/guard.md says how.",
            CALLBACK_VARIABLE,
            CALLBACK,
            CONFIG_VARIABLE,
        )


def is_guarded() -> bool:
    """Returns whether the environment of this process names the guard."""
    return os.environ.get(CALLBACK_VARIABLE, "").replace(":", ".") == CALLBACK.replace(":", ".")


def read_config() -> dict[str, Any]:
    """Returns the config file that the environment names, or nothing if it names none.

    Raises:
        SettingsError: if it cannot be read.
    """
    path = os.environ.get(CONFIG_VARIABLE)
    if not path:
        return {}
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{CONFIG_VARIABLE}: {path} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise SettingsError(f"{CONFIG_VARIABLE}: {path} is not a Serve config")
    return config


def site(config: dict[str, Any]) -> Site:
    """Returns what the guard needs to know of a config beside its own block."""
    applications = config.get("applications") or ()
    deployments = [each for application in applications for each in application.get("deployments") or ()]
    values = next((each.get("user_config") or {} for each in deployments if each.get("name") == "Ingress"), {})
    ingress = load_settings(IngressSettings, values, "Ingress.user_config")
    host = (config.get("http_options") or {}).get("host")
    return Site(ingress.trusted_proxies, SERVE_SESSION_ID, host is not None and is_private(host), ingress.log_clients)


def news_of_jobs(config: dict[str, Any]) -> News | None:
    """Returns the news of the jobs of a config, which are read in this process; None if they are switched off."""
    for application in config.get("applications") or ():
        jobs = (application.get("args") or {}).get("jobs")
        if jobs:
            settings = load_settings(JobsSettings, jobs, "jobs")
            if settings.enabled:
                return News(StoreThreads(partial(open_jobs, settings)), lambda reader: reader)
    return None


def open_jobs(settings: JobsSettings) -> "JobReader":
    """Opens the database of jobs; SQLAlchemy is imported only now, when the first client waits for events."""
    from serve_app.jobs.reader import open_reader

    return open_reader(settings)


class Observer(GuardMetrics):
    """Counts what the guard does, and returns memory when it holds nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._release = IdleRelease()

    def holds(self, guard: Guard) -> None:
        """Takes note that what the guard holds has changed."""
        super().holds(guard)
        self._release.update(is_idle=not guard.intake.uploads)
