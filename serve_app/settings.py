"""Every setting, once, with its unit in its name. YAML keys are these field names.

`Settings` is the application's `args`: it shapes the graph and the engine, and changing it rebuilds them. The other
three are each the `user_config` of the deployment that uses it, and may change while the service runs.
"""

import difflib
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from serve_app.errors import SettingsError
from serve_app.frames import Device, ImageFormat, Precision

MIB = 2**20
MIN_SIDE = 8  # pixels: the generator divides by four and then reflects one pixel at each edge


class StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Settings(StrictModel):
    """The application's `args`.

    Attributes:
        device: `auto` takes CUDA where Ray grants a GPU, else the CPU. `cpu` says that a granted GPU is not meant.
        precision: of the generator; `auto` is fp16 on CUDA and fp32 on a CPU.
        memory_bytes: that painting may add to an idle Stylizer, as 600MB or 2GiB; default, on CUDA what the GPU share
            leaves, else the replica's `memory`, else half of what is free on the machine.
        threads: of the generator on a CPU: a number, `share` (the replica's num_cpus) or `host` (every core).
        styles_dir: pulled and imported styles; default `ANIMEGAN_STYLES_DIR`, else beside the shipped ones.
        cuda_context_bytes: what a process takes on the card before its first tensor; taken off the allocator's share.
    """

    device: Device = "auto"
    precision: Precision = "auto"
    memory_bytes: Annotated[ByteSize, Field(gt=0)] | None = None
    threads: PositiveInt | Literal["share", "host"] = "share"
    styles_dir: Path | None = None
    cuda_context_bytes: PositiveInt = 700 * MIB


class IngressSettings(StrictModel):
    """`user_config` of the Ingress: defaults and limits of a request.

    Attributes:
        default_style: painted with when a request names none.
        default_format: encoded to when neither `format` nor `Accept` decides.
        max_side: pixels of the longer painted side; larger photographs are fitted. WebP ends at 16,383.
        max_bytes: of one upload.
        queue_time_s: a picture is let in while all that one Ingress has let in can be painted within it.
        queue_least_pictures: let in however long they take.
        queue_most_pictures: let in at most.
        queue_most_pixels: of them together, as they are painted.
        timeout_s: that a picture may take once it is let in; a request may ask for less.
        trusted_proxies: networks whose X-Forwarded-For is believed when the queue is shared between clients.
    """

    default_style: str = "toon"
    default_format: ImageFormat = "jpeg"
    max_side: int = Field(default=1024, ge=MIN_SIDE, le=16_383)
    max_bytes: PositiveInt = 32 * MIB
    queue_time_s: PositiveFloat = 30
    queue_least_pictures: PositiveInt = 8
    queue_most_pictures: PositiveInt = 64
    queue_most_pixels: PositiveInt = 128_000_000
    timeout_s: PositiveFloat = 55
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()


class CodecSettings(StrictModel):
    """`user_config` of the Codec.

    Attributes:
        max_pixels: of a photograph as its header states it, before anything is decoded.
        memory_bytes: that all decodes under way in one replica may take; others wait. As 600MB or 1GiB.
    """

    max_pixels: PositiveInt = 64_000_000
    memory_bytes: Annotated[ByteSize, Field(gt=0)] = ByteSize(1280 * MIB)


class StylizerSettings(StrictModel):
    """`user_config` of the Stylizer.

    Attributes:
        max_batch_size: pictures painted together: on a GPU of one style and size; on a CPU side by side, of any, large
            ones no more than it has threads.
        linger_s: that a picture on an idle device waits for others of its size; 0 waits for nobody.
        release_after_s: idle seconds after which memory that painting has left free goes back to the system; the next
            picture pays for asking again.
        stuck_after_s: a batch that runs longer than this makes the replica unhealthy, and Serve replaces it.
    """

    max_batch_size: PositiveInt = 4
    linger_s: NonNegativeFloat = 0
    release_after_s: PositiveInt = 30
    stuck_after_s: PositiveInt = 120


Model = TypeVar("Model", bound=StrictModel)


def load_settings(model: type[Model], values: Mapping[str, Any], where: str) -> Model:
    """Checks YAML values against a settings model.

    Raises:
        SettingsError: naming `where`, each wrong key, and the key that was probably meant.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        # The first part of a location is the key; what follows are the model's own inner types.
        problems = [
            describe(f"{where}.{detail['loc'][0]}", detail["type"], detail["msg"], list(model.model_fields))
            for detail in error.errors()
        ]
        raise SettingsError("; ".join(dict.fromkeys(problems))) from None


def describe(key: str, kind: str, message: str, known: list[str]) -> str:
    """One sentence on one wrong key."""
    if kind != "extra_forbidden":
        return f"{key}: {message}"
    close = difflib.get_close_matches(key.rsplit(".", 1)[-1], known, n=1)
    return f"{key}: unknown key" + (f", did you mean {close[0]}?" if close else f" (known: {', '.join(known)})")
