"""What decoding takes, beside what is predicted, where Pillow does not decode alone."""

import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from decoding import save
from PIL import Image
from pngs import chunk, code_points_chunk, with_chunks
from shared import ROOT
from tiffs import tiff_of

LARGE = Image.effect_noise((400, 300), 90).convert("RGB").resize((4000, 3000))
RGB = np.asarray(LARGE)
DEEP = RGB.astype(np.uint16) * 257


def framed_gif() -> bytes:
    data = bytearray(save(LARGE.quantize(64), "GIF"))
    struct.pack_into("<HH", data, 6, 4000, 3100)
    return bytes(data)


KINDS: dict[str, Callable[[], bytes]] = {
    "16 bits": lambda: tiff_of(DEEP, photometric="rgb"),
    "16 bits, differences": lambda: tiff_of(DEEP, photometric="rgb", compression="lzw", predictor=True),
    "planes": lambda: tiff_of(DEEP, photometric="rgb", planarconfig="separate"),
    "10 bits": lambda: tiff_of(DEEP >> 6, photometric="rgb", bitspersample=10),
    "alpha": lambda: tiff_of(np.dstack([DEEP, DEEP[..., 0]]), photometric="rgb", extrasamples=["unassalpha"]),
    "floats": lambda: tiff_of((RGB / 255).astype("f4"), photometric="rgb", compression="lzw", predictor=True),
    "32 bits": lambda: tiff_of(RGB.astype(np.uint32) << 24, photometric="rgb"),
    "transparent colour": lambda: with_chunks(
        bytes(imagecodecs.png_encode(DEEP, level=1)), chunk(b"tRNS", b"\1\1" * 3)
    ),
    "gif with a margin": framed_gif,
    "no end": lambda: save(LARGE, "JPEG")[:-2],
    "pq": lambda: with_chunks(save(LARGE, "PNG", compress_level=1), code_points_chunk(9, 16)),
}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux reports a process's peak")
@pytest.mark.parametrize("kind", KINDS)
def test_decoding_takes_no_more_than_predicted(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(KINDS[kind]())
    script = f"""
        from pathlib import Path
        from serve_app.images.decode import decode, predict_decode_bytes
        from serve_app.images.formats import open_as
        from serve_app.images.header import sniff
        from serve_app.frames import StylizeRequest

        def status(key):
            line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
            return int(line.split()[1]) * 1024

        data = Path({str(path)!r}).read_bytes()
        predicted = predict_decode_bytes(open_as(data, sniff(data)), 1024)
        idle = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        decode(data, StylizeRequest("toon", max_side=1024, multiple=4, format="jpeg"), 64_000_000)
        print(status("VmHWM") - idle, predicted)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    measured, predicted = map(int, run.stdout.split())
    assert measured <= predicted
    assert predicted <= 2 * measured + 20_000_000  # and not a wild guess either
