"""The service as the HTTP routes see it: a protocol, so that a fake pipeline tests every route without Ray."""

from collections.abc import Mapping
from typing import Protocol

from serve_app.frames import EncodedImage, StylizeRequest
from serve_app.settings import IngressSettings
from serve_app.styles.catalogue import InstalledStyle, Style


class Pipeline(Protocol):
    """The part of the service behind the routes."""

    @property
    def settings(self) -> IngressSettings:
        """Defaults and limits of a request; they may change while the service runs."""

    @property
    def styles(self) -> Mapping[str, InstalledStyle]:
        """Installed styles by name."""

    @property
    def catalogue(self) -> Mapping[str, Style]:
        """Styles that can be downloaded, by name."""

    async def stylize(self, data: bytes, request: StylizeRequest, client: str) -> EncodedImage:
        """Paints a photograph.

        Args:
            data: the file as it was uploaded.
            request: the client's options.
            client: identifies the client for fair sharing, as far as it can be known.

        Raises:
            RequestError: a refusal for the client.
        """

    async def is_ready(self) -> bool:
        """Returns whether a model replica has painted its warm-up image."""
