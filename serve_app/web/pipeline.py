"""The service as the HTTP routes see it: a protocol, so that a fake pipeline tests every route without Ray."""

from collections.abc import Mapping
from typing import Protocol

from serve_app.frames import Order, Picture
from serve_app.settings import IngressSettings
from serve_app.styles.catalogue import InstalledStyle, Style


class Pipeline(Protocol):
    """What the routes need of the service behind them."""

    @property
    def settings(self) -> IngressSettings: ...

    @property
    def styles(self) -> Mapping[str, InstalledStyle]: ...

    @property
    def catalogue(self) -> Mapping[str, Style]: ...

    async def stylize(self, data: bytes, order: Order, client: str) -> Picture:
        """
        Args:
            client: whose request this is, as far as it can be known.

        Raises:
            RequestError: what the client is to be told.
        """

    async def is_ready(self) -> bool:
        """Whether a model replica has painted its warm-up picture."""
