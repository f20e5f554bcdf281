"""The manifests for Kubernetes, against their schemas, prod.yaml and the memory plan."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from containers.manifests import MANIFEST, PROD, TEMPLATE, guard_digest, manifest
from ray.serve.schema import ServeDeploySchema
from shared import ROOT, SHARED
from validators import module

from serve_app.cli.config_lint import lint
from serve_app.cli.memory_plan import FULL
from serve_app.cli.plan import read_service
from serve_app.settings import MIB

FOLDER = ROOT / "configs" / "kubernetes"
SCHEMA = SHARED / "kuberay" / "rayservice-v1.schema.json"
KUBERNETES = "1.33"
NAME = "app.kubernetes.io/name"


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of the manifests, with its file and name."""
    for path in sorted(FOLDER.glob("*.yaml")):
        for each in yaml.safe_load_all(path.read_text()):
            if each["kind"] != "Kustomization":
                yield f"{path.stem} {each['kind']} {each['metadata']['name']}", each


OBJECTS = dict(documents())
SERVICE: dict[str, Any] = OBJECTS["rayservice RayService animegan"]
CLUSTER = SERVICE["spec"]["rayClusterConfig"]
GROUPS = {"head": CLUSTER["headGroupSpec"], **{each["groupName"]: each for each in CLUSTER["workerGroupSpecs"]}}
SERVED: dict[str, Any] = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])
DEPLOYMENTS = {each["name"]: each for each in SERVED["applications"][0]["deployments"]}


def strict(schema: Any) -> Any:
    """A schema that also refuses keys that it does not name, which Kubernetes would drop without a word."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: strict(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        inner = {"type": ["integer", "string"]}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        inner.setdefault("additionalProperties", False)
    return inner


def container(group: str) -> dict[str, Any]:
    """The one container of a group's Pods."""
    (only,) = GROUPS[group]["template"]["spec"]["containers"]
    return dict(only)


def memory_limit(group: str) -> int:
    """The memory limit of a group's Pods."""
    return int(container(group)["resources"]["limits"]["memory"].removesuffix("Gi")) * 1024 * MIB


def test_the_manifest_is_what_the_script_makes_of_the_production_config() -> None:
    assert MANIFEST.read_text() == manifest(TEMPLATE.read_text(), PROD.read_text()), "run scripts/manifests"


def test_a_change_of_the_config_changes_the_manifest() -> None:
    changed = (
        PROD.read_text().replace("max_replicas: 16", "max_replicas: 17").replace("disk_bytes: 2GiB", "disk_bytes: 3GiB")
    )
    made = list(yaml.safe_load_all(manifest(TEMPLATE.read_text(), changed)))
    assert made[0]["data"]["prod.yaml"].rstrip() == changed.rstrip()
    served = yaml.safe_load(made[1]["spec"]["serveConfigV2"])
    assert served["applications"] == yaml.safe_load(changed)["applications"]
    annotations = made[1]["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["metadata"]["annotations"]
    assert (
        annotations["animegan/guard"]
        == guard_digest(yaml.safe_load(changed))
        != guard_digest(yaml.safe_load(PROD.read_text()))
    )


def test_what_is_served_is_the_production_config_without_our_own_blocks_and_serve_takes_it(tmp_path: Path) -> None:
    prod = yaml.safe_load(PROD.read_text())
    for block in ("guard", "metrics"):
        prod.pop(block)
    assert prod == SERVED
    ServeDeploySchema.model_validate(SERVED)
    path = tmp_path / "prod.yaml"
    path.write_text(OBJECTS["rayservice ConfigMap animegan-config"]["data"]["prod.yaml"])
    assert lint(path) == []


@pytest.mark.skipif(not SCHEMA.is_file(), reason=f"no schema of RayService at {SCHEMA} (set ANIMEGAN_SHARED)")
def test_the_ray_service_is_what_the_schema_of_kuberay_allows() -> None:
    jsonschema = module("jsonschema")
    checker = jsonschema.Draft202012Validator(strict(json.loads(SCHEMA.read_text())))
    assert [f"{list(each.absolute_path)}: {each.message}" for each in checker.iter_errors(SERVICE)] == []
    wrong = json.loads(json.dumps(SERVICE))
    wrong["spec"]["rayClusterConfig"]["autoscalerOptions"]["versoin"] = "v2"
    assert [each.message for each in checker.iter_errors(wrong)], "unknown keys would pass"


@pytest.mark.parametrize("name", [name for name in OBJECTS if " RayService " not in name])
def test_every_other_object_is_what_kubernetes_allows(name: str) -> None:
    module("kubernetes_validate").validate(OBJECTS[name], KUBERNETES, strict=True)


@pytest.mark.parametrize("group", GROUPS)
def test_pods_of_ray_are_what_kubernetes_allows(group: str) -> None:
    template = GROUPS[group]["template"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": group, **template["metadata"]},
        "spec": template["spec"],
    }
    module("kubernetes_validate").validate(pod, KUBERNETES, strict=True)


def test_kustomization_names_every_manifest() -> None:
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    assert set(kustomization["resources"]) == {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}


@pytest.mark.parametrize("group", GROUPS)
def test_pods_run_without_rights_and_with_probes(group: str) -> None:
    spec, only = GROUPS[group]["template"]["spec"], container(group)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert only["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        *interpreter, code = only[probe]["exec"]["command"]
        assert interpreter == ["python", "-c"]
        compile(code, probe, "exec")


@pytest.mark.parametrize("group", GROUPS)
def test_every_proxy_finds_the_guard_and_its_config(group: str) -> None:
    only, spec = container(group), GROUPS[group]["template"]["spec"]
    variables = {each["name"]: each["value"] for each in only["env"]}
    assert variables["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] == "serve_app.deployments.proxy:middlewares"
    mount = next(each for each in only["volumeMounts"] if each["name"] == "config")
    (config,) = OBJECTS["rayservice ConfigMap animegan-config"]["data"]
    assert variables["ANIMEGAN_CONFIG"] == f"{mount['mountPath']}/{config}"
    assert {each["name"] for each in only["volumeMounts"]} == {each["name"] for each in spec["volumes"]}


@pytest.mark.parametrize("group", GROUPS)
def test_a_pod_has_the_memory_that_the_plan_asks_for_what_is_in_it(group: str) -> None:
    whole = {name: sum(part.values()) for name, part in read_service(PROD, cores=4).parts.items()}
    started = {key: int(value) for key, value in GROUPS[group]["rayStartParams"].items() if value.isdecimal()}
    parts = whole["node"] + whole["proxy"] + started["object-store-memory"] + started.get("memory", 0)
    assert parts + (whole["head"] if group == "head" else 0) <= FULL * memory_limit(group)
    stored = {"head": 0, "cpu": whole["files"] + whole["frames"], "gpu": whole["frames"]}
    assert stored[group] <= started["object-store-memory"]


def asked(name: str, key: str) -> float:
    """What each replica of a deployment asks Ray for."""
    return float(DEPLOYMENTS[name]["ray_actor_options"].get(key, 0))


@pytest.mark.parametrize(
    ("group", "replicas"), [("cpu", {"Ingress": 1, "Codec": 3}), ("gpu", {"Stylizer": 4})], ids=["cpu", "gpu"]
)
def test_the_replicas_that_a_worker_is_meant_for_fit_it(group: str, replicas: dict[str, int]) -> None:
    started = GROUPS[group]["rayStartParams"]
    for parameter, key in {"num-cpus": "num_cpus", "num-gpus": "num_gpus", "memory": "memory"}.items():
        needed = sum(count * asked(name, key) for name, count in replicas.items())
        assert needed <= float(started.get(parameter, 0)), parameter
    assert GROUPS[group]["minReplicas"] <= GROUPS[group]["replicas"] <= GROUPS[group]["maxReplicas"]


def test_all_the_replicas_that_may_be_fit_all_the_workers_that_may_be() -> None:
    most = {name: each["autoscaling_config"]["max_replicas"] for name, each in DEPLOYMENTS.items()}
    per_node = DEPLOYMENTS["Stylizer"]["max_replicas_per_node"]
    assert most["Stylizer"] <= per_node * GROUPS["gpu"]["maxReplicas"]
    memory = sum(most[name] * asked(name, "memory") for name in ("Ingress", "Codec"))
    assert memory <= GROUPS["cpu"]["maxReplicas"] * int(GROUPS["cpu"]["rayStartParams"]["memory"])


def test_pods_live_long_enough_for_their_replicas_to_finish() -> None:
    for group, names in {"cpu": ("Ingress", "Codec"), "gpu": ("Stylizer",)}.items():
        longest = max(DEPLOYMENTS[name]["graceful_shutdown_timeout_s"] for name in names)
        assert GROUPS[group]["template"]["spec"]["terminationGracePeriodSeconds"] > longest


def test_the_head_may_be_lost_and_workers_grow() -> None:
    options = CLUSTER["gcsFaultToleranceOptions"]
    redis = OBJECTS["redis Service animegan-redis"]
    assert options["redisAddress"] == f"{redis['metadata']['name']}:{redis['spec']['ports'][0]['port']}"
    server = OBJECTS["redis StatefulSet animegan-redis"]["spec"]["template"]["spec"]["containers"][0]
    assert server["env"][0]["valueFrom"] == options["redisPassword"]["valueFrom"]
    assert CLUSTER["enableInTreeAutoscaling"] is True
    assert CLUSTER["autoscalerOptions"]["version"] == "v2"
    assert CLUSTER["authOptions"] == {"mode": "token"}
    assert GROUPS["head"]["rayStartParams"]["num-cpus"] == "0"


def test_the_policy_lets_others_in_to_the_ports_for_clients_and_metrics_alone() -> None:
    policy = OBJECTS["network NetworkPolicy animegan"]["spec"]
    for group in GROUPS.values():
        assert group["template"]["metadata"]["labels"][NAME] == policy["podSelector"]["matchLabels"][NAME]
    own, *others = policy["ingress"]
    assert own == {"from": [{"podSelector": policy["podSelector"]}]}
    doors = {
        rule["from"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]: {
            each["port"] for each in rule["ports"]
        }
        for rule in others
    }
    assert doors == {"kuberay-system": {8265, 8000}, "ingress-nginx": {8000}, "monitoring": {8001, 8080}}


def test_budgets_keep_a_worker_of_each_kind() -> None:
    for group in ("cpu", "gpu"):
        budget = OBJECTS[f"disruption PodDisruptionBudget animegan-{group}"]["spec"]
        labels = GROUPS[group]["template"]["metadata"]["labels"]
        assert budget["selector"]["matchLabels"].items() <= labels.items()
        assert budget["minAvailable"] <= GROUPS[group]["minReplicas"]
