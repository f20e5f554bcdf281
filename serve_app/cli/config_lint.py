"""Strict reading of Serve config files.

Serve's own schema silently drops keys that it does not know, so a misspelt `max_ongoing_request: 9` has no effect. Here
every key is checked, Serve's and this service's.
"""

import math
import types
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from ray.runtime_env import RuntimeEnv
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import HTTPOptionsSchema, ServeDeploySchema

from serve_app.errors import AnimeganError, SettingsError
from serve_app.settings import (
    CodecSettings,
    GuardSettings,
    IngressSettings,
    JobRunnerSettings,
    MetricsSettings,
    Settings,
    StrictModel,
    StylizerSettings,
    describe,
    load_settings,
)
from serve_app.styles.catalogue import find_style, installed_styles
from serve_app.web.keys import NOT_SAID, is_private

BUILDER = "serve_app.app:build"
GUARD, METRICS = "guard", "metrics"  # the keys at the top that are not Serve's
MERGE_TAG = "tag:yaml.org,2002:merge"  # of the key `<<`
ONE_MACHINE = ("HeadOnly", "Disabled")  # places of proxies
SERVE_MAX_ONGOING_REQUESTS = 5  # Serve's default
SERVE_PORT = HTTPOptionsSchema.model_fields["port"].default
MAX_PORT = 65_535
USER_CONFIGS: dict[str, type[StrictModel]] = {
    "Ingress": IngressSettings,
    "Codec": CodecSettings,
    "Stylizer": StylizerSettings,
    "JobRunner": JobRunnerSettings,
}


class UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that is given twice; other YAML readers silently keep the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Builds the mapping of a YAML node."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == MERGE_TAG:  # its keys may be given again: that is what merging is for
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(
                    problem="a list or a mapping is used as a key", problem_mark=key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"key {key} is given twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def lint(path: Path) -> list[str]:
    """Returns what is wrong with a config file, one sentence each, naming keys by their path; empty if it is fine."""
    return read(path)[1]


def load_config(path: Path) -> tuple[ServeDeploySchema, MetricsSettings | None]:
    """Reads a config file that is to be deployed; returns what is Serve's, and where the metrics are to be answered.

    Raises:
        SettingsError: with all that `lint` finds, a line each.
    """
    config, findings = read(path)
    if findings:
        raise SettingsError("\n".join(findings))
    metrics = config.get(METRICS)
    return (
        ServeDeploySchema.model_validate(config),
        None if metrics in (None, False) else load_settings(MetricsSettings, metrics, METRICS),
    )


def read(path: Path) -> tuple[Any, list[str]]:
    """Returns the content of a config file and the findings in it."""
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), UniqueKeyLoader)  # noqa: S506 # nosec B506 # a SafeLoader
    except OSError as error:
        return None, [f"{path}: cannot be read: {error.strerror}"]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return None, [f"{path}: not YAML: {' '.join(str(error).split())}"]
    if not isinstance(config, dict):
        return None, [f"{path}: not a Serve config: the file must hold keys such as `applications`"]
    serve_keys = {key: value for key, value in config.items() if key not in (GUARD, METRICS)}
    findings = [
        *unknown_keys(ServeDeploySchema, serve_keys, ""),
        *wrong_values(config),
        *guard_findings(config),
        *metrics_findings(config),
        *http_findings(config),
        *own_findings(config),
    ]
    return config, [f"{path}: {finding}" for finding in dict.fromkeys(findings)]


def unknown_keys(model: type[BaseModel], values: Mapping[str, Any], where: str) -> Iterator[str]:
    """Yields the keys that the schema's models, nested as the values are, do not have."""
    for key, value in values.items():
        place = f"{where}.{key}" if where else str(key)
        field = model.model_fields.get(key)
        if field is None:
            yield describe(place, "extra_forbidden", "", list(model.model_fields))
        elif key == "runtime_env" and isinstance(value, dict):
            yield from unknown_runtime_env_keys(value, place)
        elif (inner := model_in(field.annotation)) is not None:
            for index, item in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(item, dict):
                    yield from unknown_keys(inner, item, f"{place}.{index}" if isinstance(value, list) else place)


def unknown_runtime_env_keys(values: Mapping[str, Any], where: str) -> Iterator[str]:
    """Yields unknown keys of a runtime environment, and variables that are not text."""
    known = sorted(RuntimeEnv.known_fields)
    for key in values:
        if key not in known:
            yield describe(f"{where}.{key}", "extra_forbidden", "", known)
    variables = values.get("env_vars")
    for name, value in (variables if isinstance(variables, dict) else {}).items():
        if not isinstance(value, str):
            yield f"{where}.env_vars.{name}: must be text; write it in quotes"


def model_in(annotation: Any) -> type[BaseModel] | None:
    """Returns the pydantic model inside an annotation, looking through Optional, Union and list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, list):
        return next(filter(None, map(model_in, get_args(annotation))), None)
    return None


def wrong_values(config: dict[str, Any]) -> Iterator[str]:
    """Yields values that Serve's schema refuses, and numbers that are not finite."""
    yield from numbers_not_finite(config, "")
    yield from violations(ServeDeploySchema, config, "")
    for index, application in enumerate(listed(config, "applications")):
        for number, deployment in enumerate(listed(application, "deployments")):
            scaling = deployment.get("autoscaling_config")
            if isinstance(scaling, dict):  # Serve's schema takes any dict here and checks it when it deploys
                where = f"applications.{index}.deployments.{number}.autoscaling_config"
                yield from violations(AutoscalingConfig, scaling, where)


def violations(model: type[BaseModel], values: dict[str, Any], where: str) -> Iterator[str]:
    """Yields values that one model refuses, except unknown keys, which `unknown_keys` names."""
    try:
        model.model_validate(values)
    except ValidationError as error:
        for detail in error.errors():
            if detail["type"] != "extra_forbidden":  # those are named by unknown_keys
                place = ".".join(map(str, filter(None, (where, *map(str, detail["loc"])))))
                yield f"{place}: {detail['msg']}"


def numbers_not_finite(values: Any, where: str) -> Iterator[str]:
    """Yields every infinite number and NaN in a config: no setting means anything with one."""
    if isinstance(values, float) and not math.isfinite(values):
        yield f"{where}: must be a finite number, not {values}"
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield from numbers_not_finite(value, f"{where}.{key}" if where else str(key))


def http_findings(config: dict[str, Any]) -> Iterator[str]:
    """Yields findings on the address that the service listens at."""
    options = config.get("http_options")
    port = options.get("port") if isinstance(options, dict) else None
    if isinstance(port, int) and not 1 <= port <= MAX_PORT:
        yield f"http_options.port: must be from 1 to {MAX_PORT}, not {port}"
    prefixes = [application.get("route_prefix") for application in listed(config, "applications")]
    for index, prefix in enumerate(prefixes):
        where = f"applications.{index}.route_prefix"
        if isinstance(prefix, str) and (not prefix.startswith("/") or (prefix != "/" and prefix.endswith("/"))):
            yield f"{where}: must start with / and, but for / itself, not end with it"
        if prefix is not None and prefixes.index(prefix) < index:
            yield f"{where}: {prefix} is taken by applications.{prefixes.index(prefix)}"


def guard_findings(config: dict[str, Any]) -> Iterator[str]:
    """Yields findings on the guard: its own settings, and what the Ingress's settings need of it."""
    block = config.get(GUARD, {})
    if block is False:  # YAML's `off`
        return
    values = {} if block is None else block
    findings = [*wrong_settings(GuardSettings, values, GUARD)]
    yield from findings
    if findings:
        return
    guard = load_settings(GuardSettings, values, GUARD)
    if guard.max_form_bytes < guard.max_bytes:
        yield f"{GUARD}.max_form_bytes: {guard.max_form_bytes} is under max_bytes ({guard.max_bytes})"
    for application in listed(config, "applications"):
        for deployment in listed(application, "deployments"):
            user_config = deployment.get("user_config") or {}
            if deployment.get("name") != "Ingress" or [*wrong_settings(IngressSettings, user_config, "")]:
                continue
            ingress = load_settings(IngressSettings, user_config, "")
            if guard.max_bytes < ingress.max_bytes:
                yield (
                    f"{GUARD}.max_bytes: {guard.max_bytes} is under the Ingress's max_bytes ({ingress.max_bytes}), "
                    "which then never counts"
                )
            if guard.max_bytes <= guard.max_form_bytes < ingress.max_form_bytes:
                yield (
                    f"{GUARD}.max_form_bytes: {guard.max_form_bytes} is under the Ingress's max_form_bytes "
                    f"({ingress.max_form_bytes}), which then never counts"
                )
            ongoing = deployment.get("max_ongoing_requests", SERVE_MAX_ONGOING_REQUESTS)
            pictures = ingress.queue_most_pictures
            if isinstance(ongoing, int) and pictures < ongoing and not pictures < guard.max_forwarded < ongoing:
                yield (
                    f"{GUARD}.max_forwarded: {guard.max_forwarded} is not above the Ingress's queue_most_pictures "
                    f"({pictures}), so that it can refuse, and under its max_ongoing_requests "
                    f"({ongoing}), so that uploads leave places for others"
                )


def metrics_findings(config: dict[str, Any]) -> Iterator[str]:
    """Yields findings on where the metrics are answered."""
    block = config.get(METRICS)
    if block is None or block is False:  # as `deployments.proxy.metrics_settings` has it
        return
    findings = [*wrong_settings(MetricsSettings, block, METRICS)]
    yield from findings
    options = config.get("http_options")
    port = options.get("port", SERVE_PORT) if isinstance(options, dict) else SERVE_PORT
    if not findings and load_settings(MetricsSettings, block, METRICS).port == port:
        yield f"{METRICS}.port: {port} is the service's own (http_options.port)"


def own_findings(config: dict[str, Any]) -> Iterator[str]:
    """Yields findings on this service's own keys."""
    for index, application in enumerate(listed(config, "applications")):
        where, import_path = f"applications.{index}", application.get("import_path")
        if import_path != BUILDER:
            yield f"{where}.import_path: this service is built by {BUILDER}, not by {import_path}"
            continue
        yield from request_findings(config, application, where)
        yield from key_findings(config, application, where)
        yield from runner_findings(application, where)
        yield from job_findings(config, application, where)
        names = [deployment.get("name") for deployment in listed(application, "deployments")]
        yield from (f"{where}.deployments: {name} is given twice" for name in names if names.count(name) > 1)
        yield from wrong_settings(Settings, application.get("args") or {}, f"{where}.args")
        for number, deployment in enumerate(listed(application, "deployments")):
            yield from deployment_findings(deployment, f"{where}.deployments.{number}")


def request_findings(config: dict[str, Any], application: dict[str, Any], where: str) -> Iterator[str]:
    """Yields findings on the Ingress's settings that other parts of the config contradict."""
    for number, deployment in enumerate(listed(application, "deployments")):
        values, args = deployment.get("user_config") or {}, application.get("args") or {}
        if deployment.get("name") != "Ingress" or [*wrong_settings(IngressSettings, values, "")]:
            continue
        place = f"{where}.deployments.{number}.user_config"
        settings = load_settings(IngressSettings, values, place)
        if settings.queue_least_pictures > settings.queue_most_pictures:
            yield (
                f"{place}.queue_least_pictures: {settings.queue_least_pictures} is above queue_most_pictures "
                f"({settings.queue_most_pictures})"
            )
        limit_s = (config.get("http_options") or {}).get("request_timeout_s")
        if isinstance(limit_s, int | float) and limit_s <= settings.timeout_s:
            yield (
                f"http_options.request_timeout_s: {limit_s:g} is not above the Ingress's timeout_s "
                f"({settings.timeout_s:g}), so Serve would cut requests off without a word"
            )
        if not [*wrong_settings(Settings, args, "")]:
            try:
                find_style(installed_styles(load_settings(Settings, args, "").styles_dir), settings.default_style)
            except AnimeganError as error:
                yield f"{place}.default_style: {error}"


def key_findings(config: dict[str, Any], application: dict[str, Any], where: str) -> Iterator[str]:
    """Yields findings on API keys: whether there are any must be said where other machines reach the service."""
    options = config.get("http_options")
    default = HTTPOptionsSchema.model_fields["host"].default
    host = options.get("host", default) if isinstance(options, dict) else default
    places = {
        deployment.get("name"): (f"{where}.deployments.{number}.user_config", deployment.get("user_config") or {})
        for number, deployment in enumerate(listed(application, "deployments"))
    }
    place, values = places.get("Ingress", (f"{where}.deployments: Ingress.user_config", {}))
    if [*wrong_settings(IngressSettings, values, "")]:
        return
    settings = load_settings(IngressSettings, values, place)
    if settings.keys is None and not is_private(host):
        yield f"{place}.keys: {NOT_SAID}"
    if settings.keys in (None, "off") and settings.anonymous_share:
        yield f"{place}.anonymous_share: has no effect without keys"


def runner_findings(application: dict[str, Any], where: str) -> Iterator[str]:
    """Yields findings on the JobRunner: whether there is one, and whether it leaves places to requests."""
    places = {
        deployment.get("name"): (f"{where}.deployments.{number}", deployment)
        for number, deployment in enumerate(listed(application, "deployments"))
    }
    place, runner = places.get("JobRunner", ("", {}))
    args = application.get("args") or {}
    if not place or [*wrong_settings(Settings, args, "")]:
        return
    if not load_settings(Settings, args, "").jobs.enabled:
        yield (
            f"{place}.name: there is no deployment JobRunner while jobs are off; set {where}.args.jobs.enabled, or "
            "leave the block out"
        )
    values = runner.get("user_config") or {}
    ongoing = places.get("Stylizer", ("", {}))[1].get("max_ongoing_requests", SERVE_MAX_ONGOING_REQUESTS)
    if [*wrong_settings(JobRunnerSettings, values, "")] or not isinstance(ongoing, int):
        return
    settings = load_settings(JobRunnerSettings, values, "")
    if settings.stylizer_places >= ongoing:
        yield (
            f"{place}.user_config.stylizer_places: {settings.stylizer_places} is not under the Stylizer's "
            f"max_ongoing_requests ({ongoing}), so jobs would leave no place for requests"
        )


def job_findings(config: dict[str, Any], application: dict[str, Any], where: str) -> Iterator[str]:
    """Yields findings on jobs: on a cluster every node must reach their database and their pictures.

    A file is for one machine if its `proxy_location` says HeadOnly, or Disabled. With EveryNode, Serve's default, any
    replica may be started on any node, however few replicas there are, and a new one need not be where the old one was.
    """
    args = application.get("args") or {}
    default = ServeDeploySchema.model_fields["proxy_location"].default
    if config.get("proxy_location", default) in ONE_MACHINE or [*wrong_settings(Settings, args, "")]:
        return
    jobs = load_settings(Settings, args, "").jobs
    needed = "a replica may run on any node (proxy_location), and what is kept on one is not there on another"
    if jobs.enabled and jobs.is_database_local:
        yield f"{where}.args.jobs.database_url: must be postgresql+psycopg://…: {needed}"
    if jobs.enabled and jobs.are_blobs_local:
        yield f"{where}.args.jobs.blobs_url: must be s3://… or another place on the network: {needed}"


def deployment_findings(deployment: dict[str, Any], where: str) -> Iterator[str]:
    """Yields findings on one deployment: its name, its `user_config`, and limits that contradict each other."""
    name = str(deployment.get("name"))
    model = USER_CONFIGS.get(name)
    if model is None:
        yield f"{where}.name: there is no deployment {name} (known: {', '.join(USER_CONFIGS)})"
        return
    user_config = deployment.get("user_config") or {}
    findings = list(wrong_settings(model, user_config, f"{where}.user_config"))
    yield from findings
    ongoing = deployment.get("max_ongoing_requests", SERVE_MAX_ONGOING_REQUESTS)
    if findings or not isinstance(ongoing, int):
        return
    if name == "Ingress":
        inside = load_settings(IngressSettings, user_config, where).queue_most_pictures
        if ongoing <= inside:
            yield (
                f"{where}.max_ongoing_requests: {ongoing} is not above queue_most_pictures ({inside}), so a full "
                "Ingress could not even refuse"
            )
    if name == "Stylizer":
        batch = load_settings(StylizerSettings, user_config, where).max_batch_size
        if ongoing < 2 * batch:
            yield (
                f"{where}.max_ongoing_requests: {ongoing} is less than twice max_batch_size "
                f"({batch}), so batches would never fill while one is being painted"
            )


def wrong_settings(model: type[StrictModel], values: Any, where: str) -> Iterator[str]:
    """Yields what a settings model refuses."""
    if not isinstance(values, dict):
        yield f"{where}: must hold keys"
        return
    try:
        load_settings(model, values, where)
    except SettingsError as error:
        yield from str(error).split("; ")


def listed(values: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """Returns the mappings in the list at `key`; empty if there is no list."""
    items = values.get(key)
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
