"""configs/prod.yaml on a cluster of several nodes, with a declared GPU that does not exist: scaling, deaths under load.

All nodes are on this machine, so they would share the proxies' port: only the head's proxy is started.
"""

import copy
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest
import ray
import requests
import yaml
from pictures import opened, photo_bytes
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve._private import api as serve_api
from ray.serve._private.common import ReplicaState
from ray.serve.config import gRPCOptions
from ray.serve.schema import ServeDeploySchema
from service import CHAOS, command_line, free_port, wait_for
from shared import ROOT

GIB = 2**30
PROD: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "prod.yaml").read_text())
OVERRIDDEN = {
    *("resources", "device", "memory", "upscale_delay_s", "downscale_delay_s", "proxy_location", "port"),
    "health_check_period_s",
}
DEPLOYMENTS = ("Ingress", "Codec", "Stylizer")
PATIENCE_S = 400  # painting takes the processors that replicas need for their start, and a machine may be slow


def on_these_nodes(port: int) -> dict[str, Any]:
    """prod.yaml, but painting on CPUs, in the memory that is here, and scaling within a test's patience."""
    config = copy.deepcopy(PROD)
    config["proxy_location"] = "HeadOnly"
    config["http_options"]["port"] = port
    application = config["applications"][0]
    application["args"]["device"] = "cpu"
    for deployment in application["deployments"]:
        deployment["ray_actor_options"]["memory"] = GIB
        deployment["autoscaling_config"] |= {"upscale_delay_s": 2, "downscale_delay_s": 8}
        deployment["health_check_period_s"] = 1
        if deployment["name"] == "Ingress":  # which must not die with a node: its connections would
            deployment["ray_actor_options"]["resources"] = {"head": 0.01}
    return config


def differences(a: Any, b: Any, key: str = "") -> Iterator[str]:
    """The keys whose values differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for inner in a.keys() | b.keys():
            yield from differences(a.get(inner), b.get(inner), inner)
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for x, y in zip(a, b, strict=True):
            yield from differences(x, y, key)
    elif a != b:
        yield key


class Nodes:
    """The cluster, its service and their processes."""

    def __init__(self, cluster: Cluster, port: int) -> None:
        self.cluster = cluster
        self.address = f"http://127.0.0.1:{port}"
        self.config = on_these_nodes(port)
        self.client = serve_api.serve_start(
            http_options=ServeDeploySchema.model_validate(self.config).http_options.model_dump(),
            proxy_location="HeadOnly",
            grpc_options=gRPCOptions(),
        )
        self.deploy()

    def deploy(self) -> None:
        self.client.deploy_apps(ServeDeploySchema.model_validate(self.config), _blocking=False)

    def deployment(self, name: str) -> dict[str, Any]:
        return next(d for d in self.config["applications"][0]["deployments"] if d["name"] == name)

    def add_gpu(self) -> Any:
        return self.cluster.add_node(num_cpus=8, num_gpus=1, memory=64 * GIB, object_store_memory=GIB // 2)

    def replicas(self, deployment: str) -> dict[int, str]:
        """Node by process id, of replicas that live."""
        actors = ray._private.state.actors().values()
        return {
            actor["Pid"]: actor["Address"]["NodeID"]
            for actor in actors
            if actor["State"] == "ALIVE" and actor["Name"].startswith(f"SERVE_REPLICA::animegan#{deployment}#")
        }

    def running(self, deployment: str) -> int:
        states = serve.status().applications["animegan"].deployments[deployment].replica_states
        return states.get(ReplicaState.RUNNING, 0)

    def is_settled(self) -> bool:
        application = serve.status().applications["animegan"]
        return application.status == "RUNNING" and all(
            deployment.status == "HEALTHY" for deployment in application.deployments.values()
        )

    def at_rest(self, *deployments: str) -> dict[str, int]:
        """Process id of the only replica of each, once what earlier load brought has gone."""
        wait_for(lambda: self.is_settled() and all(len(self.replicas(name)) == 1 for name in deployments), PATIENCE_S)
        return {name: next(iter(self.replicas(name))) for name in deployments}

    def live_on(self, replicas: dict[str, int]) -> bool:
        """Whether they are all there still; autoscaling may have added more."""
        return all(pid in self.replicas(name) for name, pid in replicas.items())

    def kill(self, deployment: str) -> int:
        pid = next(iter(self.replicas(deployment)))
        os.kill(pid, signal.SIGKILL)
        return pid

    def paint(self, side: int = 96, seed: int = 0, **query: str | float) -> requests.Response:
        photo = photo_bytes(side, side, seed=seed)
        return requests.post(f"{self.address}/v1/stylize", params=query, data=photo, timeout=90)


class Load:
    """Clients that each send the next photograph when the one before is answered, and wait as long as a 429 says."""

    def __init__(self, nodes: Nodes, clients: int, side: int) -> None:
        self.statuses: Counter[str] = Counter()
        self.done = threading.Event()
        self._nodes = nodes
        self._side = side
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(clients)]

    def _send(self, number: int) -> None:
        while not self.done.is_set():
            try:
                answer = self._nodes.paint(self._side, number)
                self.statuses[str(answer.status_code)] += 1
                if answer.status_code == 429:
                    self.done.wait(int(answer.headers["Retry-After"]))
            except requests.RequestException as error:
                self.statuses[type(error).__name__] += 1

    def painted(self) -> int:
        return self.statuses["200"]

    def more(self, count: int) -> None:
        """Waits for so many more paintings."""
        until = self.painted() + count
        wait_for(lambda: self.painted() >= until, PATIENCE_S)


@contextmanager
def load(nodes: Nodes, clients: int = 4, side: int = 96) -> Iterator[Load]:
    sending = Load(nodes, clients, side)
    for thread in sending._threads:
        thread.start()
    try:
        yield sending
    finally:
        sending.done.set()
        for thread in sending._threads:
            thread.join(PATIENCE_S)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 6,
            "memory": 64 * GIB,
            "object_store_memory": GIB,
            "include_dashboard": False,
            "resources": {"head": 1},
        },
    )
    ray.init(address=cluster.address, namespace="serve", log_to_driver=False)
    started = Nodes(cluster, free_port())
    # The Codec has gone to the head before there is a node with a GPU, so that killing one does not kill it.
    wait_for(lambda: started.replicas("Ingress") and started.replicas("Codec"), PATIENCE_S)
    started.add_gpu()
    wait_for(started.is_settled, PATIENCE_S)
    yield started
    serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()
    cluster.shutdown()  # type: ignore[no-untyped-call]


def test_nothing_but_the_machine_is_overridden() -> None:
    assert set(differences(PROD, on_these_nodes(free_port()))) == OVERRIDDEN


def used_gpus() -> float:
    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return total["GPU"] - free.get("GPU", 0)


def test_prod_paints_on_a_quarter_of_a_gpu(nodes: Nodes) -> None:
    answer = nodes.paint()
    assert answer.status_code == 200, answer.text
    assert opened(answer.content).size == (96, 96)
    assert used_gpus() == 0.25


@pytest.mark.parametrize("deployment", ["Stylizer", "Codec"])
def test_killing_a_replica_under_load_loses_no_image(nodes: Nodes, deployment: str) -> None:
    with load(nodes) as sent:
        sent.more(8)
        killed = nodes.kill(deployment)
        sent.more(20)
    assert set(sent.statuses) <= {"200", "429"}, sent.statuses
    wait_for(nodes.is_settled, PATIENCE_S)
    assert killed not in nodes.replicas(deployment)


def test_killing_the_controller_under_load_loses_no_image(nodes: Nodes) -> None:
    before = nodes.at_rest(*DEPLOYMENTS)
    with load(nodes) as sent:
        sent.more(4)
        controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        ray.kill(controller, no_restart=False)
        sent.more(20)
    assert set(sent.statuses) <= {"200", "429"}, sent.statuses
    assert nodes.live_on(before)


def test_killing_an_ingress_breaks_its_own_connections_and_nothing_else(nodes: Nodes) -> None:
    before = nodes.at_rest("Codec", "Stylizer")
    nodes.kill("Ingress")
    wait_for(lambda: nodes.replicas("Ingress") and nodes.is_settled(), PATIENCE_S)
    assert nodes.paint().status_code == 200
    assert nodes.live_on(before)


def test_settings_change_in_place_and_drop_nothing(nodes: Nodes) -> None:
    before = nodes.at_rest(*DEPLOYMENTS)
    with load(nodes) as sent:
        sent.more(4)
        nodes.deployment("Ingress")["user_config"]["max_side"] = 64
        nodes.deployment("Stylizer")["user_config"]["max_batch_size"] = 4
        nodes.deploy()
        wait_for(lambda: nodes.paint().headers["X-Painted-Size"] == "64x64", PATIENCE_S)
        sent.more(8)
        nodes.deployment("Ingress")["user_config"]["max_side"] = 1024
        nodes.deploy()
        wait_for(lambda: nodes.paint().headers["X-Painted-Size"] == "96x96", PATIENCE_S)
    assert set(sent.statuses) <= {"200", "429"}, sent.statuses
    assert nodes.live_on(before)


def test_rolling_update_drops_nothing(nodes: Nodes) -> None:
    before = {name: set(nodes.replicas(name)) for name in DEPLOYMENTS}
    with load(nodes) as sent:
        sent.more(4)
        # It shapes the engine, so every replica that has it is new; and it leaves a processor for those that start.
        nodes.config["applications"][0]["args"]["threads"] = 1
        nodes.deploy()
        wait_for(lambda: not before["Stylizer"] & set(nodes.replicas("Stylizer")) and nodes.is_settled(), PATIENCE_S)
        sent.more(8)
    assert set(sent.statuses) <= {"200", "429"}, sent.statuses


@CHAOS
def test_a_replica_that_retires_under_load_runs_until_another_one_does(nodes: Nodes) -> None:
    retired = nodes.at_rest("Stylizer")["Stylizer"]
    settings = nodes.deployment("Stylizer")["user_config"]
    mark = settings["retire_at_bytes"]
    fewest = 1

    def has_gone() -> bool:
        nonlocal fewest
        fewest = min(fewest, nodes.running("Stylizer"))
        return retired not in nodes.replicas("Stylizer")

    with load(nodes) as sent:
        sent.more(4)
        settings["retire_at_bytes"] = 1
        nodes.deploy()
        wait_for(has_gone, PATIENCE_S)
        settings["retire_at_bytes"] = mark  # or its successors would follow
        nodes.deploy()
        sent.more(8)
    assert set(sent.statuses) <= {"200", "429"}, sent.statuses
    assert fewest == 1


def test_load_scales_to_four_replicas_on_one_gpu_and_back(nodes: Nodes) -> None:
    wait_for(lambda: nodes.running("Stylizer") == 1, PATIENCE_S)
    with load(nodes, clients=24, side=224) as sent:
        wait_for(lambda: nodes.running("Stylizer") == 4, PATIENCE_S)
        assert len(set(nodes.replicas("Stylizer").values())) == 1
        assert used_gpus() == 1
    assert set(sent.statuses) <= {"200", "429"}, sent.statuses
    wait_for(lambda: nodes.running("Stylizer") == 1 and len(nodes.replicas("Stylizer")) == 1, PATIENCE_S)


def test_killing_a_node_under_load_loses_no_image(nodes: Nodes) -> None:
    (stylizer,) = nodes.at_rest("Stylizer").values()
    home = nodes.replicas("Stylizer")[stylizer]
    nodes.add_gpu()
    node = next(node for node in nodes.cluster.worker_nodes if node.node_id == home)
    with load(nodes) as sent:
        sent.more(8)
        nodes.cluster.remove_node(node, allow_graceful=False)
        sent.more(20)
    assert set(sent.statuses) <= {"200", "429"}, sent.statuses
    assert home not in nodes.replicas("Stylizer").values()


def test_no_process_is_left_behind_by_the_dead(nodes: Nodes) -> None:
    def stylizers() -> list[psutil.Process]:
        tree = psutil.Process().children(recursive=True)
        return [process for process in tree if "ServeReplica:animegan:Stylizer" in command_line(process)]

    wait_for(lambda: len(stylizers()) == len(nodes.replicas("Stylizer")), PATIENCE_S)
