"""Strict reading of Serve config files. Serve's own schema drops keys that it does not know in silence, so a misspelt
`max_ongoing_request: 9` vanishes; here every key is checked, Serve's and this service's.
"""

import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from ray.runtime_env import RuntimeEnv
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

from serve_app.errors import SettingsError
from serve_app.settings import (
    CodecSettings,
    IngressSettings,
    Settings,
    StrictModel,
    StylizerSettings,
    describe,
    load_settings,
)

BUILDER = "serve_app.app:build"
SERVES_MAX_ONGOING_REQUESTS = 5  # what Serve takes where a deployment does not say
USER_CONFIGS: dict[str, type[StrictModel]] = {
    "Ingress": IngressSettings,
    "Codec": CodecSettings,
    "Stylizer": StylizerSettings,
}


class UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML readers keep the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"key {key} is given twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def lint(path: Path) -> list[str]:
    """What is wrong with a config file, one sentence each, keys named by their path; empty if nothing is."""
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), UniqueKeyLoader)  # noqa: S506 (it is a SafeLoader)
    except OSError as error:
        return [f"{path}: cannot be read: {error.strerror}"]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return [f"{path}: not YAML: {' '.join(str(error).split())}"]
    if not isinstance(config, dict):
        return [f"{path}: not a Serve config: the file must hold keys such as `applications`"]
    findings = [*unknown_keys(ServeDeploySchema, config, ""), *wrong_values(config), *own_findings(config)]
    return [f"{path}: {finding}" for finding in dict.fromkeys(findings)]


def unknown_keys(model: type[BaseModel], values: Mapping[str, Any], where: str) -> Iterator[str]:
    """Walks the schema's models beside the values."""
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
    known = sorted(RuntimeEnv.known_fields)
    for key in values:
        if key not in known:
            yield describe(f"{where}.{key}", "extra_forbidden", "", known)
    variables = values.get("env_vars")
    for name, value in (variables if isinstance(variables, dict) else {}).items():
        if not isinstance(value, str):
            yield f"{where}.env_vars.{name}: must be text; write it in quotes"


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model that an annotation holds, through Optional, Union and List."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, list):
        return next(filter(None, map(model_in, get_args(annotation))), None)
    return None


def wrong_values(config: dict[str, Any]) -> Iterator[str]:
    yield from violations(ServeDeploySchema, config, "")
    for index, application in enumerate(listed(config, "applications")):
        for number, deployment in enumerate(listed(application, "deployments")):
            scaling = deployment.get("autoscaling_config")
            if isinstance(scaling, dict):  # Serve's schema takes any dict here and checks it when it deploys
                where = f"applications.{index}.deployments.{number}.autoscaling_config"
                yield from violations(AutoscalingConfig, scaling, where)


def violations(model: type[BaseModel], values: dict[str, Any], where: str) -> Iterator[str]:
    try:
        model.model_validate(values)
    except ValidationError as error:
        for detail in error.errors():
            if detail["type"] != "extra_forbidden":  # those are named by unknown_keys
                place = ".".join(map(str, filter(None, (where, *map(str, detail["loc"])))))
                yield f"{place}: {detail['msg']}"


def own_findings(config: dict[str, Any]) -> Iterator[str]:
    """This service's own keys in applications that it builds."""
    for index, application in enumerate(listed(config, "applications")):
        where, import_path = f"applications.{index}", str(application.get("import_path"))
        if import_path != BUILDER:
            if import_path.startswith("serve_app"):
                yield f"{where}.import_path: this service is built by {BUILDER}, not by {import_path}"
            continue
        names = [deployment.get("name") for deployment in listed(application, "deployments")]
        yield from (f"{where}.deployments: {name} is given twice" for name in names if names.count(name) > 1)
        yield from wrong_settings(Settings, application.get("args") or {}, f"{where}.args")
        for number, deployment in enumerate(listed(application, "deployments")):
            yield from deployment_findings(deployment, f"{where}.deployments.{number}")


def deployment_findings(deployment: dict[str, Any], where: str) -> Iterator[str]:
    name = str(deployment.get("name"))
    model = USER_CONFIGS.get(name)
    if model is None:
        yield f"{where}.name: there is no deployment {name} (known: {', '.join(USER_CONFIGS)})"
        return
    user_config = deployment.get("user_config") or {}
    findings = list(wrong_settings(model, user_config, f"{where}.user_config"))
    yield from findings
    ongoing = deployment.get("max_ongoing_requests", SERVES_MAX_ONGOING_REQUESTS)
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
    if not isinstance(values, dict):
        yield f"{where}: must hold keys"
        return
    try:
        load_settings(model, values, where)
    except SettingsError as error:
        yield from str(error).split("; ")


def listed(values: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    items = values.get(key)
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
