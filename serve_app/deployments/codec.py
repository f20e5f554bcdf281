"""The CPU preprocessing replica: photographs' bytes to frames, painted frames to bytes."""

from typing import Any

import ray
from ray import serve

from serve_app.errors import RequestError
from serve_app.frames import ImageFormat, Order, Photo, Picture
from serve_app.images.budget import ByteBudget
from serve_app.images.decode import decode
from serve_app.images.encode import encode
from serve_app.settings import CodecSettings, load_settings


@serve.deployment(user_config={})
class Codec:
    """Its methods are synchronous: Serve runs them in threads, and Pillow's codecs work outside the interpreter lock.

    A refusal travels the road as a value: raised, it would log a traceback in every replica for each user's mistake.
    """

    def __init__(self) -> None:
        self.settings = CodecSettings()
        self.budget = ByteBudget(self.settings.memory_bytes)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        self.settings = load_settings(CodecSettings, user_config, "Codec.user_config")
        self.budget.total_bytes = self.settings.memory_bytes

    def decode(self, data: bytes, order: Order) -> Photo | RequestError:
        try:
            return decode(data, order, self.settings.max_pixels, self.budget)
        except RequestError as refusal:
            return refusal

    def encode(
        self, painted: "list[ray.ObjectRef[Photo | RequestError]]", format: ImageFormat, quality: int | None
    ) -> Picture | RequestError:
        """
        Args:
            painted: a reference to the photo.
        """
        photo = ray.get(painted[0])
        return photo if isinstance(photo, RequestError) else encode(photo, format, quality)
