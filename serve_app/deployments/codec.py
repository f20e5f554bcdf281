"""The CPU preprocessing replica: decodes photographs, and encodes painted frames."""

import time
from typing import Any

import ray
from ray import serve

from serve_app.deployments.steps import Decoded, Encoded, Painted
from serve_app.errors import RequestError
from serve_app.frames import ImageFormat, StylizeRequest
from serve_app.images.budget import ByteBudget
from serve_app.images.decode import ImageHeader, decode
from serve_app.images.encode import encode
from serve_app.settings import CodecSettings, load_settings


@serve.deployment(user_config={})
class Codec:
    """Decodes and encodes. Its methods are synchronous: Serve runs them in threads, and Pillow releases the GIL.

    A refusal is returned, not raised: Serve logs a traceback for every exception, and a user's mistake is not a fault.
    """

    def __init__(self) -> None:
        self.settings = CodecSettings()
        self.budget = ByteBudget(self.settings.memory_bytes)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes new settings; Serve calls it at the start and when the config changes."""
        self.settings = load_settings(CodecSettings, user_config, "Codec.user_config")
        self.budget.total_bytes = self.settings.memory_bytes

    def decode(self, data: bytes, header: ImageHeader, request: StylizeRequest) -> Decoded | RequestError:
        """Decodes a photograph and resizes it to the size it is painted at."""
        began = time.perf_counter()
        try:
            image = decode(data, request, self.settings.max_pixels, self.budget, header)
        except RequestError as refusal:
            return refusal
        return Decoded(
            ray.put(image.frame),
            None if image.alpha is None else ray.put(image.alpha),
            image.original,
            image.size,
            elapsed_ms(began),
        )

    def encode(self, painted: Painted, decoded: Decoded, format: ImageFormat, quality: int | None) -> Encoded:
        """Encodes a painting, with the transparency of its photograph where the format has any."""
        began = time.perf_counter()
        alpha = None if decoded.alpha is None else ray.get(decoded.alpha)
        data = encode(ray.get(painted.frame), alpha, format, quality)
        return Encoded(data, elapsed_ms(began))


def elapsed_ms(began: float) -> float:
    """Returns the milliseconds since a `time.perf_counter()`."""
    return 1000 * (time.perf_counter() - began)
