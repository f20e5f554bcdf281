"""PQ and HLG, the two transfer functions of HDR (ITU-R BT.2100), mapped to SDR.

The picture is first put on the reference display of BT.2100. PQ states luminances; HLG is shown at 1000 cd/m² with
system gamma 1.2. The white of graphics and paper is 203 cd/m² there (ITU-R BT.2408), and becomes the white of SDR.
Highlights above it are rolled off by the EETF of ITU-R BT.2408, annex 5 (formerly in BT.2390): in PQ's scale a line up
to a knee, then a Hermite spline which takes the brightest luminance of the picture to 203 cd/m². All three channels are
scaled as their maximum is, which keeps hues. A picture without highlights comes out as it was graded for SDR.

The W3C's Color on the Web group describes the same steps (https://github.com/w3c/ColorWeb-CG/issues/113). There, the
brightest luminance is 1000 cd/m² for every picture.
"""

import numpy as np
from numpy.typing import NDArray

from serve_app.images.samples import STRIP_SAMPLES

PQ, HLG = 16, 18  # transfer characteristics of ITU-T H.273

WHITE = 203.0  # cd/m² of graphics white, BT.2408
PQ_PEAK = 10_000.0
HLG_PEAK = 1000.0
HLG_GAMMA = 1.2
LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)  # BT.2020's weights
M1, M2 = 2610 / 16384, 2523 / 32
C1, C2, C3 = 3424 / 4096, 2413 / 128, 2392 / 128
HLG_A, HLG_B, HLG_C = 0.17883277, 0.28466892, 0.55991073

BINS = 1024  # of the histogram that the brightest luminance is read from
CLIPPED = 0.001  # the share of pixels that may clip to white: a few specks shall not dim the picture

Floats = NDArray[np.float32]


def to_sdr(coded: NDArray[np.uint8], transfer: int) -> NDArray[np.uint8]:
    """Maps a picture in PQ or HLG to SDR.

    Args:
        coded: (H, W, 3), in the transfer function.
        transfer: PQ or HLG.

    Returns:
        (H, W, 3), of the same primaries, in the transfer function of sRGB.
    """
    rows = max(1, STRIP_SAMPLES // max(1, coded[:1].size))
    strips = [slice(row, row + rows) for row in range(0, len(coded), rows)]
    counts = np.zeros(BINS, np.int64)
    for strip in strips:
        brightest = to_pq(luminances(coded[strip], transfer).max(axis=-1))
        counts += np.bincount((brightest * (BINS - 1)).astype(np.int64).ravel(), minlength=BINS)
    peak = percentile(counts, 1 - CLIPPED)
    result = np.empty_like(coded)
    for strip in strips:
        light = luminances(coded[strip], transfer)
        before = to_pq(light.max(axis=-1, keepdims=True))
        light *= from_pq(roll_off(before, peak)) / np.maximum(from_pq(before), 1e-6)
        result[strip] = srgb_bytes(light / WHITE)
    return result


def luminances(coded: NDArray[np.uint8], transfer: int) -> Floats:
    """Returns what the reference display shows, in cd/m², channel by channel."""
    codes: Floats = np.arange(256, dtype=np.float32) / np.float32(255)
    if transfer == PQ:
        return from_pq(codes)[coded]
    scene = np.where(codes <= 0.5, codes**2 / 3, (np.exp((codes - HLG_C) / HLG_A) + HLG_B) / 12).astype(np.float32)
    light: Floats = scene[coded]
    luminance: Floats = np.dot(light, LUMINANCE)[..., None]
    shown: Floats = light * (HLG_PEAK * luminance ** np.float32(HLG_GAMMA - 1))
    return shown


def from_pq(coded: Floats) -> Floats:
    """PQ's EOTF: from 0 to 1, to cd/m²."""
    power = coded ** np.float32(1 / M2)
    light: Floats = PQ_PEAK * (np.maximum(power - C1, 0) / (C2 - C3 * power)) ** np.float32(1 / M1)
    return light


def to_pq(light: Floats) -> Floats:
    """The inverse of `from_pq`; what is brighter than PQ can say is clipped."""
    power = (np.clip(light, 0, PQ_PEAK) / PQ_PEAK) ** np.float32(M1)
    return ((C1 + C2 * power) / (1 + C3 * power)) ** np.float32(M2)


def percentile(counts: NDArray[np.int64], share: float) -> float:
    """Returns the upper edge, from 0 to 1, of the bin that a share of all that was counted lies below."""
    index = int(np.searchsorted(np.cumsum(counts), share * counts.sum()))
    return min(index + 1, BINS - 1) / (BINS - 1)


def roll_off(coded: Floats, peak: float) -> Floats:
    """The EETF, in PQ's scale: maps `peak` to white and everything up to the knee to itself."""
    white = float(to_pq(np.array(WHITE, np.float32)))
    if peak <= white:
        return np.minimum(coded, np.float32(white))
    ceiling = white / peak
    knee = 1.5 * ceiling - 0.5
    value = np.minimum(coded / np.float32(peak), 1)
    t = np.clip((value - knee) / (1 - knee), 0, 1)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * ceiling
    mapped: Floats = (np.where(value < knee, value, spline) * peak).astype(np.float32)
    return mapped


def srgb_bytes(linear: Floats) -> NDArray[np.uint8]:
    """Encodes linear light, white at 1, in the transfer function of sRGB."""
    linear = np.clip(linear, 0, 1)
    coded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** np.float32(1 / 2.4) - 0.055)
    return (255 * coded + 0.5).astype(np.uint8)
