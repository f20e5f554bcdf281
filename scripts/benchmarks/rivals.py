r"""The same work behind other servers, and behind none: what `scripts/bench service` compares the service with.

    python -m benchmarks.rivals litserve plain --port 8101   LitServe: POST photographs to /v1/stylize, ready at /readyz
    python -m benchmarks.rivals bentoml ours --port 8102     BentoML, likewise
    python -m benchmarks.rivals bare ours --side 512         decodes, paints, encodes in a loop; prints a line of JSON

`plain` is the generator in eager PyTorch, channels last; `ours` is `serve_app.painter.Painter`. The images of a
batch have one size, so photographs of different sizes must not be sent together. LitServe and BentoML need a Python
that has them and this project's packages. BentoML needs an older OpenTelemetry than Ray has here, hence an environment
on top of .venv:

    python3 -m venv runs/rivals
    echo "import site; site.addsitedir('$PWD/.venv/lib/python3.11/site-packages')" \
        > runs/rivals/lib/python3.11/site-packages/service.pth
    runs/rivals/bin/pip install litserve==0.2.19 bentoml==1.4.40
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from benchmarks.paths import READY_PATH, SCRATCH, SCRIPTS, STYLIZE_PATH
from benchmarks.photographs import photograph
from serve_app.frames import DecodedImage, Frame, Size, StylizeRequest
from serve_app.images.decode import decode
from serve_app.images.encode import encode
from serve_app.settings import CodecSettings, IngressSettings
from serve_app.styles.catalogue import InstalledStyle, installed_styles

# The servers start the workers, so the environment tells these what to run.
ENGINE_VARIABLE, BATCH_VARIABLE, THREADS_VARIABLE = "RIVAL_ENGINE", "RIVAL_BATCH", "RIVAL_THREADS"
BATCH_TIMEOUT_S = 0.05  # LitServe's wait to fill a batch; its default of 0 keeps an idle worker's core busy

Paint = Callable[[Sequence[Frame]], Sequence[Frame]]  # frames of one size


def plain_engine(style: InstalledStyle) -> Paint:
    """Makes an engine that runs a batch through the generator as one tensor."""
    import numpy as np
    import torch

    from serve_app.engine.checkpoints import load_generator

    generator = load_generator(style).to(memory_format=torch.channels_last)

    def paint(frames: Sequence[Frame]) -> Sequence[Frame]:
        with torch.inference_mode():
            x = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
            painted = generator(x.contiguous(memory_format=torch.channels_last))
            painted = painted.add_(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
            return list(painted.permute(0, 2, 3, 1).contiguous().numpy())

    return paint


def our_engine(style: InstalledStyle, threads: int) -> Paint:
    """Makes a Stylizer's engine."""
    import numpy as np

    from serve_app.painter import Painter

    painter = Painter(style.name, device="cpu", max_side=IngressSettings().max_side, threads=threads)
    painter.stylist.warm_up()

    def paint(frames: Sequence[Frame]) -> Sequence[Frame]:
        return [np.asarray(painted) for painted in painter.paint_many(frames)]

    return paint


def make_engine(name: str, threads: int) -> Paint:
    """Makes the engine `plain` or `ours` for the service's default style."""
    import torch

    torch.set_num_threads(threads)
    return plain_engine(default_style()) if name == "plain" else our_engine(default_style(), threads)


def worker_engine() -> Paint:
    """Makes the engine that the environment asks for."""
    return make_engine(os.environ[ENGINE_VARIABLE], int(os.environ[THREADS_VARIABLE]))


@cache
def default_style() -> InstalledStyle:
    """Returns the style that the service paints if a request names none."""
    return installed_styles()[IngressSettings().default_style]


def decode_photograph(data: bytes) -> DecodedImage:
    """Decodes an upload with the service's defaults."""
    style = default_style()
    request = StylizeRequest(style.name, IngressSettings().max_side, style.multiple, IngressSettings().default_format)
    return decode(data, request, CodecSettings().max_pixels)


def encode_painting(photo: DecodedImage, frame: Frame) -> bytes:
    """Encodes the painted frame of a photograph with the service's defaults."""
    return encode(frame, photo.alpha, IngressSettings().default_format)


# No server


def bare_loop(paint: Paint, side: int, seconds: float) -> dict[str, float]:
    """Decodes, paints and encodes one photograph after another.

    The first one maps all memory before the clock starts.
    """
    photos = [photograph(seed, Size(side, side), "JPEG") for seed in range(32)]
    began = 0.0
    ends: list[float] = []
    while not ends or ends[-1] - began < seconds:
        photo = decode_photograph(photos[len(ends) % len(photos)])
        encode_painting(photo, paint([photo.frame])[0])
        if began:
            ends.append(time.perf_counter())
        else:
            began = time.perf_counter()
    return {"images": len(ends), "seconds": ends[-1] - began, "per_s": len(ends) / (ends[-1] - began)}


# LitServe


def litserve_api() -> type:
    """Returns LitServe's API for one worker that decodes, paints and encodes its batches."""
    import litserve
    from fastapi import Body, Response

    class StylizeAPI(litserve.LitAPI):  # type: ignore[misc]
        def setup(self, device: str) -> None:
            self.engine = worker_engine()

        def decode_request(self, request: Annotated[bytes, Body(media_type="image/jpeg")]) -> DecodedImage:
            return decode_photograph(request)

        def batch(self, inputs: list[DecodedImage]) -> list[DecodedImage]:
            return inputs

        def predict(self, x: list[DecodedImage]) -> list[tuple[DecodedImage, Frame]]:
            return list(zip(x, self.engine([photo.frame for photo in x]), strict=True))

        def unbatch(self, output: list[tuple[DecodedImage, Frame]]) -> list[tuple[DecodedImage, Frame]]:
            return output

        def encode_response(self, output: tuple[DecodedImage, Frame]) -> Response:
            return Response(encode_painting(*output), media_type="image/jpeg")

    return StylizeAPI


def run_litserve(port: int, batch: int) -> None:
    """Serves with LitServe."""
    import litserve

    api = sys.modules[__name__].StylizeAPI(max_batch_size=batch, batch_timeout=BATCH_TIMEOUT_S, api_path=STYLIZE_PATH)
    server = litserve.LitServer(api, accelerator="cpu", healthcheck_path=READY_PATH)
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)


# BentoML


def bentoml_gateway() -> Any:
    """Returns two BentoML services, as its documentation advises: one with the codecs, one with the batching model."""
    import bentoml
    import numpy as np
    from bentoml.validators import ContentType
    from numpy.typing import NDArray

    quiet = {"access": {"enabled": False}}
    # By default every hundredth call between the two closes their session, and calls in progress fail (BentoML 5540).
    one_session = {"max_requests": 10**9, "max_age": 1e9}

    @bentoml.service(name="Model", workers=1, logging=quiet, runner_connection=one_session)
    class Model:
        def __init__(self) -> None:
            self.engine = worker_engine()

        @bentoml.api(batchable=True, max_batch_size=int(os.environ[BATCH_VARIABLE]))  # type: ignore[untyped-decorator]
        def paint(self, frames: np.ndarray) -> np.ndarray:  # (N, H, W, 3)
            return np.stack(self.engine(list(frames)))

    @bentoml.service(name="Gateway", workers=1, logging=quiet)
    class Gateway:
        model = bentoml.depends(Model)

        @bentoml.api(route=STYLIZE_PATH)  # type: ignore[untyped-decorator]
        async def stylize(self, photo: Annotated[Path, ContentType("image/jpeg")], /) -> bytes:
            opened = await asyncio.to_thread(decode_photograph, photo.read_bytes())
            painted: NDArray[np.uint8] = await self.model.to_async.paint(frames=opened.frame[None])
            return await asyncio.to_thread(encode_painting, opened, painted[0])

    return Gateway


def run_bentoml(port: int, batch: int) -> None:
    """Replaces this process with BentoML's server."""
    os.environ["BENTOML_DO_NOT_TRACK"] = "true"
    os.environ.setdefault("BENTOML_HOME", str(SCRATCH / "bentoml"))
    command = [sys.executable, "-m", "bentoml", "serve", "benchmarks.rivals:Gateway"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--working-dir", str(SCRIPTS)]
    os.execv(sys.executable, command)


MADE_FOR_WORKERS = {"StylizeAPI": litserve_api, "Gateway": bentoml_gateway}


def __getattr__(name: str) -> Any:
    """Makes what a server's workers look up here, when they do, so that neither server needs the other's package."""
    if name not in MADE_FOR_WORKERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = MADE_FOR_WORKERS[name]()
    if isinstance(made, type):
        made.__qualname__ = name  # pickled by it
    globals()[name] = made
    return made


def main() -> None:
    """Runs the server or the loop that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", choices=["litserve", "bentoml", "bare"])
    parser.add_argument("engine", choices=["plain", "ours"])
    parser.add_argument("--port", type=int, default=8101)
    parser.add_argument("--batch", type=int, default=4, help="images painted together at most, from 2")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--side", type=int, default=512, help="bare: pixels of the square photographs")
    parser.add_argument("--seconds", type=float, default=20.0, help="bare: how long, at least")
    options = parser.parse_args()
    if options.server == "bare":
        print(json.dumps(bare_loop(make_engine(options.engine, options.threads), options.side, options.seconds)))
        return
    os.environ[ENGINE_VARIABLE] = options.engine
    os.environ[BATCH_VARIABLE] = str(options.batch)
    os.environ[THREADS_VARIABLE] = str(options.threads)
    {"litserve": run_litserve, "bentoml": run_bentoml}[options.server](options.port, options.batch)


if __name__ == "__main__":
    main()
