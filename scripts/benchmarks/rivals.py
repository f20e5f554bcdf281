"""The same work behind other servers, and behind none: what `scripts/bench service` compares the service with.

    python -m benchmarks.rivals litserve plain --port 8101   LitServe: POST photographs to /v1/stylize, ready at /readyz
    python -m benchmarks.rivals bentoml ours --port 8102     BentoML, likewise
    python -m benchmarks.rivals bare ours --side 512         decodes, paints, encodes in a loop; prints a line of JSON

`plain` is the generator in eager PyTorch, channels last; `ours` is `serve_app.engine.stylist.Stylist`. Batches are of
one size: photographs of different sizes must not be sent together. LitServe and BentoML need a Python that has them and
this project's packages. BentoML wants an older OpenTelemetry than Ray has here, hence an environment upon .venv:

    python3 -m venv runs/rivals
    echo "import site; site.addsitedir('$PWD/.venv/lib/python3.11/site-packages')" \\
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
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from benchmarks import ROOT, SCRIPTS
from serve_app.frames import Frame, Order, Photo
from serve_app.images.decode import decode
from serve_app.images.encode import encode
from serve_app.settings import CodecSettings, IngressSettings, Settings
from serve_app.styles.catalogue import InstalledStyle, installed_styles

PATH, READY_PATH = "/v1/stylize", "/readyz"
# Workers are started by the servers, so what they are to run travels in the environment.
ENGINE_VARIABLE, BATCH_VARIABLE, THREADS_VARIABLE = "RIVAL_ENGINE", "RIVAL_BATCH", "RIVAL_THREADS"
BATCH_TIMEOUT_S = 0.05  # LitServe's wait for company; its default of 0 keeps an idle worker's core busy

Paint = Callable[[Sequence[Frame]], Sequence[Frame]]  # frames of one size


def plain_engine(style: InstalledStyle) -> Paint:
    """A batch through the generator as one tensor."""
    import numpy as np
    import torch

    from serve_app.engine.checkpoints import load_generator

    generator = load_generator(style).to(memory_format=torch.channels_last)

    def paint(frames: Sequence[Frame]) -> Sequence[Frame]:
        with torch.inference_mode():
            photos = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
            painted = generator(photos.contiguous(memory_format=torch.channels_last))
            painted = painted.add_(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
            return list(painted.permute(0, 2, 3, 1).contiguous().numpy())

    return paint


def our_engine(style: InstalledStyle, threads: int) -> Paint:
    from serve_app.engine.stylist import Stylist

    stylist = Stylist({style.name: style}, Settings(device="cpu", threads=threads))
    stylist.warm_up()

    def paint(frames: Sequence[Frame]) -> Sequence[Frame]:
        outcomes = stylist.paint(style.name, frames)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        return outcomes

    return paint


def make_engine(name: str, threads: int) -> Paint:
    import torch

    torch.set_num_threads(threads)
    return plain_engine(default_style()) if name == "plain" else our_engine(default_style(), threads)


def engine_of_worker() -> Paint:
    return make_engine(os.environ[ENGINE_VARIABLE], int(os.environ[THREADS_VARIABLE]))


@cache
def default_style() -> InstalledStyle:
    return installed_styles()[IngressSettings().default_style]


def decoded(data: bytes) -> Photo:
    style = default_style()
    order = Order(style.name, IngressSettings().max_side, style.multiple, IngressSettings().default_format)
    return decode(data, order, CodecSettings().max_pixels)


def encoded(photo: Photo, frame: Frame) -> bytes:
    return encode(replace(photo, frame=frame), IngressSettings().default_format).data


# No server


def bare_loop(paint: Paint, side: int, seconds: float) -> dict[str, float]:
    """Pictures one after another, each decoded, painted and encoded; all memory is mapped before the clock starts."""
    from benchmarks.soak import photograph

    photos = [photograph(seed, side, side, "JPEG") for seed in range(32)]
    began = 0.0
    ends: list[float] = []
    while not ends or ends[-1] - began < seconds:
        photo = decoded(photos[len(ends) % len(photos)])
        encoded(photo, paint([photo.frame])[0])
        if began:
            ends.append(time.perf_counter())
        else:
            began = time.perf_counter()
    return {"pictures": len(ends), "seconds": ends[-1] - began, "per_s": len(ends) / (ends[-1] - began)}


# LitServe


def litserve_painter() -> type:
    """One worker that decodes, paints and encodes its batches."""
    import litserve
    from fastapi import Body, Response

    class LitPainter(litserve.LitAPI):
        def setup(self, device: str) -> None:
            self.paint = engine_of_worker()

        def decode_request(self, request: Annotated[bytes, Body(media_type="image/jpeg")]) -> Photo:
            return decoded(request)

        def batch(self, inputs: list[Photo]) -> list[Photo]:
            return inputs

        def predict(self, x: list[Photo]) -> list[tuple[Photo, Frame]]:
            return list(zip(x, self.paint([photo.frame for photo in x]), strict=True))

        def unbatch(self, output: list[tuple[Photo, Frame]]) -> list[tuple[Photo, Frame]]:
            return output

        def encode_response(self, output: tuple[Photo, Frame]) -> Response:
            return Response(encoded(*output), media_type="image/jpeg")

    return LitPainter


def run_litserve(port: int, batch: int) -> None:
    import litserve

    painter = sys.modules[__name__].LitPainter(max_batch_size=batch, batch_timeout=BATCH_TIMEOUT_S, api_path=PATH)
    server = litserve.LitServer(painter, accelerator="cpu", healthcheck_path=READY_PATH)
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)


# BentoML


def bentoml_gateway() -> Any:
    """Its documented shape for such work: a service with the codecs, and one with the model, which batches."""
    import bentoml
    import numpy as np
    from bentoml.validators import ContentType
    from numpy.typing import NDArray

    quiet = {"access": {"enabled": False}}
    # By default every hundredth call between the two closes their session, and those under way fail (BentoML 5540).
    kept_open = {"max_requests": 10**9, "max_age": 1e9}

    @bentoml.service(name="Painter", workers=1, logging=quiet, runner_connection=kept_open)
    class Painter:
        def __init__(self) -> None:
            self.engine = engine_of_worker()

        @bentoml.api(batchable=True, max_batch_size=int(os.environ[BATCH_VARIABLE]))
        def paint(self, frames: np.ndarray) -> np.ndarray:  # (N, H, W, 3)
            return np.stack(self.engine(list(frames)))

    @bentoml.service(name="Gateway", workers=1, logging=quiet)
    class Gateway:
        painter = bentoml.depends(Painter)

        @bentoml.api(route=PATH)
        async def stylize(self, photo: Annotated[Path, ContentType("image/jpeg")], /) -> bytes:
            opened = await asyncio.to_thread(decoded, photo.read_bytes())
            painted: NDArray[np.uint8] = await self.painter.to_async.paint(frames=opened.frame[None])
            return await asyncio.to_thread(encoded, opened, painted[0])

    return Gateway


def run_bentoml(port: int, batch: int) -> None:
    os.environ["BENTOML_DO_NOT_TRACK"] = "true"
    os.environ.setdefault("BENTOML_HOME", str(ROOT / "runs" / "bench" / "bentoml"))
    command = [sys.executable, "-m", "bentoml", "serve", "benchmarks.rivals:Gateway"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--working-dir", str(SCRIPTS)]
    os.execv(sys.executable, command)


MADE_FOR_WORKERS = {"LitPainter": litserve_painter, "Gateway": bentoml_gateway}


def __getattr__(name: str) -> Any:
    """What a server's workers look for here by its name; made when asked for, so that neither imports the other's."""
    if name not in MADE_FOR_WORKERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = MADE_FOR_WORKERS[name]()
    if isinstance(made, type):
        made.__qualname__ = name  # pickled by it
    globals()[name] = made
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", choices=["litserve", "bentoml", "bare"])
    parser.add_argument("engine", choices=["plain", "ours"])
    parser.add_argument("--port", type=int, default=8101)
    parser.add_argument("--batch", type=int, default=4, help="pictures painted together at most, from 2")
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
