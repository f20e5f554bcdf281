"""The service as the HTTP routes see it: a protocol, so that a fake pipeline tests every route without Ray."""

from collections.abc import Mapping
from typing import Protocol

from serve_app.frames import Client, EncodedImage, StylizeRequest
from serve_app.settings import IngressSettings
from serve_app.styles.catalogue import InstalledStyle, Style
from serve_app.web.keys import Keys


class Pipeline(Protocol):
    """The part of the service behind the routes."""

    @property
    def settings(self) -> IngressSettings:
        """Defaults and limits of a request; they may change while the service runs."""

    @property
    def keys(self) -> Keys:
        """Who may paint."""

    @property
    def styles(self) -> Mapping[str, InstalledStyle]:
        """Installed styles by name."""

    @property
    def catalogue(self) -> Mapping[str, Style]:
        """Styles that can be downloaded, by name."""

    async def stylize(self, data: bytes, request: StylizeRequest, client: Client) -> EncodedImage:
        """Paints a photograph.

        Args:
            data: the file as it was uploaded.
            request: the client's options.
            client: whose photograph it is, for sharing the queue.

        Raises:
            RequestError: a refusal for the client.
        """

    async def is_ready(self) -> bool:
        """Returns whether a model replica has painted its warm-up image."""
