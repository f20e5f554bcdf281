"""Two JobRunners on two nodes over one PostgreSQL: no job is done twice, and two do twice the work of one.

The device is simulated: it paints any number of photographs at a time, each in a second. So what one runner holds at a
time decides how much it gets done. Run by `scripts/chaos`.
"""

import asyncio
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import ray
from benchmarks.postgres import PostgresServer, find_binaries
from jobstores import REQUEST, Bench, make_settings
from pictures import photo_bytes
from ray import cloudpickle, serve
from ray.cluster_utils import Cluster
from service import CHAOS, wait_for

from serve_app.deployments.codec import Codec
from serve_app.deployments.job_runner import JobRunner
from serve_app.deployments.steps import Handed, Painted, fetch_async, hand_over
from serve_app.jobs.words import NewJob
from serve_app.settings import JobsSettings, Settings

JOBS = int(os.environ.get("ANIMEGAN_CHAOS_JOBS", "500"))
HELD = 8  # jobs at work in one runner
PAINT_S = 1.0
MIB = 2**20
# The replicas cannot import this file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]

pytestmark = CHAOS


class SimulatedStylizer:
    """Paints by waiting."""

    async def paint(
        self, handed: Handed, style: str, expires_s: float | None = None, background: bool = False
    ) -> AsyncIterator[Painted]:
        frame = await fetch_async(handed)
        await asyncio.sleep(PAINT_S)
        yield Painted(hand_over(frame), 1000 * PAINT_S)

    def hear_of_jobs(self, queued_pixels: int) -> None:
        return


@pytest.fixture
def nodes() -> Iterator[None]:
    """A cluster of two nodes."""
    sizes: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 256 * MIB}
    cluster = Cluster(initialize_head=True, head_node_args={**sizes, "include_dashboard": False})
    cluster.add_node(**sizes)
    ray.init(address=cluster.address, namespace="serve", log_to_driver=False)
    yield
    serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()
    cluster.shutdown()  # type: ignore[no-untyped-call]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL's server is not installed")
    server = PostgresServer(binaries)
    made = Bench(make_settings(tmp_path / "data", server.new_database(), enabled=True, client_share=1))
    yield made
    made.close()
    server.remove()


def application(jobs: JobsSettings, runners: int) -> Any:
    """A graph without an Ingress: what comes from the database goes back there."""
    stylizer = serve.deployment(name="Stylizer", max_ongoing_requests=200, ray_actor_options={"num_cpus": 0.1})(
        SimulatedStylizer
    ).bind()
    codec, runner = (cast("serve.Deployment", part) for part in (Codec, JobRunner))
    codec = codec.options(max_ongoing_requests=200, ray_actor_options={"num_cpus": 0.1}, user_config={})
    coding = codec.bind(stylizer)
    runner = runner.options(
        num_replicas=runners,
        max_replicas_per_node=1,
        user_config={"most_pictures": HELD, "stylizer_places": 1000, "poll_s": 0.2},
    )
    return runner.bind(Settings(device="cpu", jobs=jobs), coding, stylizer)


def throughput(bench: Bench, runners: int) -> float:
    """Jobs a second that so many runners do, from the first start to the last end."""
    photos = [photo_bytes(48, 64, seed=seed) for seed in range(20)]
    ids = [
        bench.store.submit(f"client {number % 5}", [NewJob(REQUEST, photos[number % 20])]).jobs[0].id
        for number in range(JOBS)
    ]
    serve.run(application(bench.settings, runners), name="animegan", route_prefix=None)
    wait_for(lambda: bench.unfinished() == 0, 60 + 3 * JOBS * PAINT_S / HELD)
    homes = runner_nodes()
    serve.delete("animegan")
    found = list(bench.store.find(ids).values())
    assert Counter(job.status for job in found) == {"succeeded": JOBS}
    assert {job.attempt for job in found} == {1}
    assert len({job.painting for job in found}) == JOBS
    assert len(homes) == runners
    seconds = max(job.finished_at for job in found if job.finished_at) - min(
        job.started_at for job in found if job.started_at
    )
    return JOBS / seconds.total_seconds()


def runner_nodes() -> set[str]:
    """The nodes of the JobRunners that live."""
    actors = ray._private.state.actors().values()
    return {
        actor["Address"]["NodeID"]
        for actor in actors
        if actor["State"] == "ALIVE" and actor["Name"].startswith("SERVE_REPLICA::animegan#JobRunner#")
    }


def test_two_runners_do_nearly_twice_the_work_and_nothing_twice(nodes: None, bench: Bench) -> None:
    rates = {runners: throughput(bench, runners) for runners in (1, 2)}
    print(
        f"{JOBS} jobs: {rates[1]:.2f} a second with one runner, {rates[2]:.2f} with two ({rates[2] / rates[1]:.2f} x)"
    )
    bench.pass_time(61)
    bench.store.sweep()
    bench.check()
    assert len([name for name in bench.files() if name.startswith("paintings/")]) == 2 * JOBS
    assert rates[2] >= 1.8 * rates[1]
