"""The HTTP replica: bytes in, bytes out. It sends a photograph along the road and never touches pixels."""

import asyncio
import functools
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray import serve
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from serve_app.errors import RequestError, TooBusy
from serve_app.frames import Order, Picture
from serve_app.routes import create_app
from serve_app.settings import IngressSettings, Settings, load_settings
from serve_app.styles import find_style, installed_styles, read_catalogue

READY_CACHE_S = 1.0  # load balancers ask often, and each question goes to Serve's one controller

WAITING_THREADS = 256  # made as needed; more than any max_ongoing_requests of an Ingress


@serve.deployment(user_config={})
@serve.ingress()
class Ingress:
    """Implements `serve_app.routes.Pipeline` over deployment handles."""

    def __init__(self, settings: Settings, codec: DeploymentHandle[Any], stylizer: DeploymentHandle[Any]) -> None:
        self.codec = codec
        self.stylizer = stylizer
        self.settings = IngressSettings()
        self.styles = installed_styles(settings.styles_dir)
        self.catalogue = read_catalogue()
        self.waiting = ThreadPoolExecutor(WAITING_THREADS, "waiting")
        self._ready = (False, 0.0)  # answer, when it was asked

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return create_app(self)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        settings = load_settings(IngressSettings, user_config, "Ingress.user_config")
        find_style(self.styles, settings.default_style)
        self.settings = settings

    async def stylize(self, data: bytes, order: Order) -> Picture:
        """The whole road: encode(stylize(decode(photo))). Frames pass by reference, from replica to replica."""
        try:
            photo = await self.finished(self.codec.decode.remote(data, order))
            painted = await self.finished(self.stylizer.paint.remote(photo))
            answer: Picture | RequestError = await self.codec.encode.remote(painted, order.format, order.quality)
        except BackPressureError:
            retry_after_s = self.settings.retry_after_s
            raise TooBusy(
                f"Too many pictures are waiting; try again in {retry_after_s} s.", retry_after_s=retry_after_s
            ) from None
        if isinstance(answer, RequestError):
            raise answer
        return answer

    async def finished(self, response: Any) -> Any:
        """Waits for a step without fetching its frame.

        Ray starts an actor's calls in the order of one caller: an encode that was sent before its painting is there
        holds up every decode behind it, and batches never fill.
        """
        reference = await response._to_object_ref()
        wait = functools.partial(ray.wait, [reference], fetch_local=False)
        await asyncio.get_running_loop().run_in_executor(self.waiting, wait)
        return response

    async def is_ready(self) -> bool:
        answer, asked = self._ready
        if time.monotonic() - asked > READY_CACHE_S:
            answer = await asyncio.to_thread(has_running_replica, "Stylizer")
            self._ready = (answer, time.monotonic())
        return answer


def has_running_replica(deployment: str) -> bool:
    """Whether a replica of this application's deployment has been constructed, warm-up included, and is in service."""
    application = serve.status().applications[serve.get_replica_context().app_name]
    states = application.deployments[deployment].replica_states
    return any(state == "RUNNING" and count > 0 for state, count in states.items())
