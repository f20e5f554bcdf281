"""The replica around the runner of jobs, without Ray."""

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from jobstores import REQUEST, make_settings
from pictures import photo_bytes
from ray import serve
from receivers import LOCAL, Receiver
from standardwebhooks import Webhook

from serve_app.deployments import job_runner as module
from serve_app.deployments.job_runner import JobRunner
from serve_app.deployments.steps import Stylized
from serve_app.errors import SettingsError, StoreUnavailable
from serve_app.frames import Size, StylizeRequest
from serve_app.images.header import ImageHeader
from serve_app.jobs.signing import client_secret, new_secret, parse_secret
from serve_app.jobs.store import open_store
from serve_app.jobs.words import JobReport, NewJob, Status
from serve_app.settings import Settings, WebhookSettings
from serve_app.web.receipts import job_info

PATIENCE_S = 20


class Graph:
    """Paints at once, and remembers what it was asked for."""

    def __init__(self, _: Any) -> None:
        self.asked: list[tuple[StylizeRequest, bool]] = []

    async def stylize(
        self, data: bytes, header: ImageHeader, request: StylizeRequest, background: bool = False
    ) -> Stylized:
        self.asked.append((request, background))
        return Stylized(b"painted", Size(60, 80), Size(60, 80), {"decode": 1.0, "paint": 2.0, "encode": 3.0})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(jobs=make_settings(tmp_path / "data", enabled=True))


@pytest.fixture
def replica(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(module, "Graph", Graph)
    monkeypatch.setattr(serve, "get_replica_context", lambda: SimpleNamespace(app_name="animegan"))
    return cast("Any", JobRunner).func_or_class(settings, None, None)


async def until_ended(settings: Settings, job_id: str) -> Status:
    store = open_store(settings.jobs)
    async with asyncio.timeout(PATIENCE_S):
        while (status := store.get(job_id).status).is_unfinished:
            await asyncio.sleep(0.05)
    store.close()
    return status


def test_job_goes_down_the_way_of_requests_behind_them_and_in_its_own_time(replica: Any, settings: Settings) -> None:
    store = open_store(settings.jobs)
    (job,) = store.submit("ann", [NewJob(REQUEST, photo_bytes(60, 80))]).jobs

    async def scene() -> None:
        await replica.reconfigure({"poll_s": 0.05, "timeout_s": 77})
        assert await until_ended(settings, job.id) == Status.SUCCEEDED
        replica.check_health()
        await replica.__del__()

    asyncio.run(scene())
    ((request, background),) = replica.graph.asked
    assert (request.timeout_s, background) == (77, True)
    done = store.get(job.id)
    assert done.receipt is not None
    assert list(done.receipt.timings_ms) == ["decode", "queue", "paint", "encode"]
    assert store.painting(done) == b"painted"
    store.close()


def test_replica_starts_without_its_database_and_begins_when_that_answers(
    replica: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_gone = True

    def open_if_there(jobs: Any) -> Any:
        if is_gone:
            raise StoreUnavailable("gone")
        return open_store(jobs)

    monkeypatch.setattr(module, "open_store", open_if_there)
    monkeypatch.setattr(module, "OPEN_AGAIN_S", 0.05)

    async def scene() -> None:
        nonlocal is_gone
        await replica.reconfigure({})
        await asyncio.sleep(0.2)
        replica.check_health()
        assert replica.runner is None
        is_gone = False
        async with asyncio.timeout(PATIENCE_S):
            while replica.runner is None:
                await asyncio.sleep(0.05)
        await replica.__del__()

    asyncio.run(scene())


def test_wrong_setting_ends_the_start_with_its_sentence(replica: Any) -> None:
    with pytest.raises(SettingsError, match=r"JobRunner\.user_config\.most_picture: unknown key, did you mean"):
        asyncio.run(replica.reconfigure({"most_picture": 3}))


def test_runner_that_has_ended_by_a_fault_is_unhealthy(replica: Any) -> None:
    async def scene() -> None:
        await replica.reconfigure({})
        replica.runner._loops[1].cancel()
        replica.check_health()  # a loop that was cancelled is no fault
        replica.store.queue.claim = lambda: 1 / 0
        replica.runner.nudge()
        async with asyncio.timeout(PATIENCE_S):
            while replica.runner.fault() is None:
                await asyncio.sleep(0.05)
        with pytest.raises(RuntimeError, match="the runner of jobs has ended"):
            replica.check_health()
        await replica.__del__()

    asyncio.run(scene())


def test_webhook_shows_the_job_as_its_route_does(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOKS", new_secret())
    webhooks = WebhookSettings(**LOCAL | {"secret": "env:HOOKS"})
    settings = settings.model_copy(update={"jobs": settings.jobs.model_copy(update={"webhooks": webhooks})})
    monkeypatch.setattr(module, "Graph", Graph)
    monkeypatch.setattr(module, "root_path", lambda application: f"/{application}/")
    monkeypatch.setattr(serve, "get_replica_context", lambda: SimpleNamespace(app_name="animegan"))
    store = open_store(settings.jobs)

    async def scene() -> None:
        replica = cast("Any", JobRunner).func_or_class(settings, None, None)
        async with Receiver().listening() as receiver:
            (job,) = store.submit("ann", [NewJob(REQUEST, photo_bytes(60, 80), callback_url=receiver.url())]).jobs
            await replica.reconfigure({"poll_s": 0.05})
            async with asyncio.timeout(PATIENCE_S):
                while not receiver.requests:
                    await asyncio.sleep(0.05)
            replica.check_health()
            await replica.__del__()
        ((headers, body),) = receiver.requests
        secret = client_secret(parse_secret(os.environ["HOOKS"]), "ann")
        message = Webhook(secret).verify(body, headers)
        done = store.get(job.id)
        assert message["type"] == "job.succeeded"
        assert message["data"] == job_info(JobReport(done), "/animegan").model_dump(mode="json", by_alias=True)
        assert message["data"]["links"]["image"] == f"/animegan/v1/jobs/{job.id}/image"
        assert message["timestamp"] == message["data"]["finished_at"]

    asyncio.run(scene())
    store.close()


def test_courier_that_has_ended_by_a_fault_is_unhealthy(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOKS", new_secret())
    webhooks = WebhookSettings(secret="env:HOOKS")
    settings = settings.model_copy(update={"jobs": settings.jobs.model_copy(update={"webhooks": webhooks})})
    monkeypatch.setattr(module, "root_path", lambda application: "/")
    monkeypatch.setattr(module, "Graph", Graph)
    monkeypatch.setattr(serve, "get_replica_context", lambda: SimpleNamespace(app_name="animegan"))

    async def scene() -> None:
        replica = cast("Any", JobRunner).func_or_class(settings, None, None)
        await replica.reconfigure({})
        replica.store.outbox.claim = lambda *_: 1 / 0
        async with asyncio.timeout(PATIENCE_S):
            while replica.courier is None or replica.courier.fault() is None:
                await asyncio.sleep(0.05)
        with pytest.raises(RuntimeError, match="the runner of jobs has ended"):
            replica.check_health()
        await replica.__del__()

    asyncio.run(scene())


def test_secret_of_webhooks_that_is_missing_ends_the_start_with_its_sentence(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOOKS", raising=False)
    webhooks = WebhookSettings(secret="env:HOOKS")
    settings = settings.model_copy(update={"jobs": settings.jobs.model_copy(update={"webhooks": webhooks})})
    with pytest.raises(SettingsError, match=r"jobs\.webhooks\.secret: the variable HOOKS is not set"):
        cast("Any", JobRunner).func_or_class(settings, None, None)
