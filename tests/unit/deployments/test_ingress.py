"""The Ingress beside its handles: its limits, its keys, and the receipt."""

import asyncio
import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any, cast

import pytest
from jobstores import make_settings

from serve_app.deployments import ingress as module
from serve_app.deployments.graph import encoded_image
from serve_app.deployments.ingress import Ingress, admission_limits
from serve_app.deployments.metrics import IngressMetrics, Interval
from serve_app.deployments.steps import Stylized
from serve_app.errors import SettingsError, TooBusy, Unauthorized
from serve_app.frames import Client, Size, StylizeRequest
from serve_app.jobs.desk import JobDesk
from serve_app.jobs.store import JobStore
from serve_app.jobs.works import painter_name
from serve_app.queueing.admission import AdmissionController
from serve_app.settings import IngressSettings
from serve_app.styles.catalogue import installed_styles, read_catalogue, shipped_dir
from serve_app.web.keys import KeyRing, KeysOff


def test_admission_gets_its_limits_from_the_settings() -> None:
    settings = IngressSettings(
        queue_time_s=5, queue_least_pictures=2, queue_most_pictures=30, queue_most_pixels=1_000_000
    )
    limits = admission_limits(settings)
    assert (limits.queue_time_s, limits.least_pictures) == (5, 2)
    assert (limits.most_pictures, limits.most_pixels) == (30, 1_000_000)


@pytest.mark.parametrize(("total_ms", "queue_ms"), [(500.0, 370.0), (100.0, 0.0)])
def test_queue_is_all_the_time_that_was_not_work(total_ms: float, queue_ms: float) -> None:
    worked_ms = {"decode": 10.0, "paint": 100.0, "encode": 20.0}
    stylized = Stylized(b"jpeg", Size(90, 120), Size(60, 80), worked_ms, "1-auto-abc")
    answer = encoded_image(StylizeRequest("toon", 80, 4, "jpeg"), stylized, total_ms)
    assert list(answer.receipt.timings_ms.items()) == [
        ("decode", 10.0),
        ("queue", queue_ms),
        ("paint", 100.0),
        ("encode", 20.0),
    ]
    assert (answer.data, answer.media_type) == (b"jpeg", "image/jpeg")
    assert (answer.receipt.style, answer.receipt.original, answer.receipt.painted) == ("toon", (90, 120), (60, 80))
    assert (answer.receipt.painter, answer.receipt.reused) == ("1-auto-abc", False)


def bare_ingress(settings: IngressSettings) -> Any:
    """The parts of an Ingress that need no Ray."""
    ingress = SimpleNamespace(
        settings=settings,
        keys=KeyRing(),
        admission=AdmissionController(admission_limits(settings)),
        styles=installed_styles(),
        catalogue=read_catalogue(),
        precision="bf16",
        metrics=IngressMetrics(),
        interval=Interval(lambda: None),
        release=SimpleNamespace(update=lambda is_idle: None),
    )
    wrapped = cast("Any", Ingress).func_or_class
    for name in ("reconfigure", "admitted", "painter"):
        setattr(ingress, name, MethodType(getattr(wrapped, name), ingress))
    return ingress


def reconfigured(monkeypatch: pytest.MonkeyPatch, host: str, user_config: Mapping[str, object]) -> Any:
    monkeypatch.setattr(module, "http_host", lambda: host)
    ingress = bare_ingress(IngressSettings())
    asyncio.run(ingress.reconfigure(user_config))
    return ingress


def test_ingress_that_other_machines_reach_does_not_start_without_a_word_on_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for user_config in ({}, {"keys": None}):
        with pytest.raises(SettingsError, match=r"^Ingress\.user_config\.keys: not given"):
            reconfigured(monkeypatch, "0.0.0.0", user_config)
    assert isinstance(reconfigured(monkeypatch, "0.0.0.0", {"keys": False}).keys, KeysOff)
    assert isinstance(reconfigured(monkeypatch, "127.0.0.1", {}).keys, KeysOff)


def test_ingress_asks_for_the_keys_of_its_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"alice:sha256:{hashlib.sha256(b'secret').hexdigest()}")
    keys = reconfigured(monkeypatch, "127.0.0.1", {"keys": f"file:{file}"}).keys
    assert keys.identify(["Bearer secret"], [], "192.0.2.1") == Client("key:alice")
    with pytest.raises(Unauthorized):
        keys.identify([], [], "192.0.2.1")


def test_wrong_keys_leave_an_ingress_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "http_host", lambda: "127.0.0.1")
    ingress = bare_ingress(IngressSettings(max_side=512))
    before = ingress.keys
    with pytest.raises(SettingsError, match="cannot be read: No such file or directory"):
        asyncio.run(ingress.reconfigure({"keys": "file:/nowhere/keys", "max_side": 64}))
    assert (ingress.keys, ingress.settings.max_side) == (before, 512)


def test_a_painter_is_named_until_the_file_of_its_style_is_replaced(styles_dir: Path) -> None:
    """What would paint then depends on which replica was started when."""
    file = styles_dir / "mine.safetensors"
    shutil.copy(shipped_dir() / "toon.safetensors", file)
    ingress = bare_ingress(IngressSettings())
    assert ingress.styles["toon"].path == file  # under its own name, from the local folder
    name = ingress.painter("toon")
    assert name == painter_name(ingress.styles["toon"].digest, "bf16") != ""
    shutil.copy(shipped_dir() / "toon.safetensors", file)
    assert ingress.painter("toon") == ""
    assert bare_ingress(IngressSettings()).painter("toon") == name  # after a restart


def refused(ingress: Any, client: Client) -> str:
    with pytest.raises(TooBusy) as caught, ingress.admitted(client, 1_000_000):
        pass
    return caught.value.detail


def test_refusal_says_whose_share_of_the_queue_is_used_up() -> None:
    ingress = bare_ingress(IngressSettings(queue_least_pictures=5))
    strangers = [Client(f"192.0.2.{number}", 0.01, "anonymous") for number in range(2)]
    with ingress.admitted(Client("key:alice"), 1_000_000), ingress.admitted(strangers[0], 1_000_000):
        assert refused(ingress, strangers[1]).startswith(
            "2 pictures are waiting, and clients without an API key hold their whole share; try again in "
        )
        assert refused(ingress, strangers[0]).startswith(
            "2 pictures are waiting, 1 of them yours, as many as leave room for others; try again in "
        )


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/v1/jobs/0123456789abcdef", "/v1/jobs/{job_id}"),
        ("/v1/jobs/0123456789abcdef/", "/v1/jobs/{job_id}/"),
        ("/v1/jobs/0123456789abcdef/image", "/v1/jobs/{job_id}/image"),
        ("/v1/jobs/0123456789abcdef/photo", "/v1/jobs/{job_id}/photo"),
        ("/v1/jobs/0123456789abcdef/nothing", "/"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "DELETE", "PATCH"])
def test_access_logs_and_metrics_of_serve_hold_templates_in_place_of_ids(path: str, template: str, method: str) -> None:
    """By the rules of Serve's proxy, which knows only the patterns of the routes."""
    from fakes import FakePipeline
    from ray.serve._private.proxy_router import ProxyRouter
    from ray.serve._private.thirdparty.get_asgi_route_name import extract_route_patterns

    from serve_app.web.routes import create_app

    router = ProxyRouter(cast("Any", None))
    router.route_patterns = {"/": extract_route_patterns(create_app(FakePipeline()))}
    scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": []}
    logged = router.match_route_pattern("/", scope)
    assert "0123456789abcdef" not in logged
    if method == "GET":
        assert logged == template


def test_ingress_that_stops_closes_the_store_of_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[JobStore] = []
    monkeypatch.setattr(JobStore, "close", lambda store: closed.append(store))
    wrapped = cast("Any", Ingress).func_or_class
    desk = JobDesk(make_settings(tmp_path))

    async def scene() -> None:
        assert await desk.reports(["nothing"]) == []  # opens the store
        for jobs in (desk, None):
            ingress = bare_ingress(IngressSettings())
            ingress.jobs = jobs
            await wrapped.__base__.__del__(ingress)

    asyncio.run(scene())
    assert len(closed) == 1
    closed[0]._database.close()
