"""PQ and HLG against the anchors of BT.2100 and BT.2408, and the roll-off against what its annex promises."""

import numpy as np
import pytest
from decoding import Pixels, mean_difference, ramp

from serve_app.images.hdr import HLG, PQ, WHITE, from_pq, luminances, roll_off, to_pq, to_sdr


def flat(*codes: int) -> Pixels:
    """A picture of grey patches, 100 pixels of each code."""
    return np.repeat(np.array(codes, np.uint8), 100).reshape(-1, 10, 1).repeat(3, axis=2)


def grey_of(picture: Pixels) -> list[int]:
    """The grey of each patch."""
    return [int(grey) for grey in picture[::10, 0, 0]]


@pytest.mark.parametrize(("code", "light"), [(0, 0), (0.508078, 100), (0.580689, 203), (0.751827, 1000), (1, 10_000)])
def test_pq_states_the_luminances_of_its_standard(code: float, light: float) -> None:
    assert from_pq(np.array([code], np.float32))[0] == pytest.approx(light, rel=2e-4, abs=1e-5)
    assert to_pq(np.array([light], np.float32))[0] == pytest.approx(code, abs=1e-4)


@pytest.mark.parametrize(("code", "light"), [(0.0, 0), (0.38, 26), (0.75, 203), (1.0, 1000)])
def test_hlg_shows_the_luminances_of_bt_2408(code: float, light: float) -> None:
    """Of a grey card of 18 %, of graphics white, and of the peak."""
    shown = luminances(np.full((1, 1, 3), round(255 * code), np.uint8), HLG)
    assert shown[0, 0, 0] == pytest.approx(light, rel=0.03, abs=1e-5)


@pytest.mark.parametrize(("transfer", "white"), [(PQ, 148), (HLG, 191)])
def test_picture_without_highlights_is_as_it_was_graded_for_sdr(transfer: int, white: int) -> None:
    codes = np.arange(0, white + 1, 8)
    light = luminances(flat(*codes), transfer)[::10, 0, 0] / WHITE
    want = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255
    assert np.abs(grey_of(to_sdr(flat(*codes), transfer)) - want).max() <= 1
    assert grey_of(to_sdr(flat(white), transfer))[0] >= 254


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_highlights_are_rolled_off_and_not_clipped(transfer: int) -> None:
    greys = grey_of(to_sdr(flat(*range(0, 256, 5)), transfer))
    assert greys == sorted(greys)
    assert (greys[0], greys[-1]) == (0, 255)
    white = (148 if transfer == PQ else 191) // 5
    assert 190 <= greys[white] <= 235  # the white of paper makes room for the highlights
    assert len(set(greys[white:])) >= 9


def test_a_few_specks_do_not_dim_the_picture() -> None:
    calm = flat(*range(0, 148, 2))
    specked = calm.copy()
    specked[0, :5] = 255
    assert mean_difference(to_sdr(specked, PQ)[1:], to_sdr(calm, PQ)[1:]) <= 0.5


@pytest.mark.parametrize("peak", [400.0, 1000.0, 10_000.0])
def test_roll_off_keeps_what_lies_below_its_knee_and_takes_the_peak_to_white(peak: float) -> None:
    top = float(to_pq(np.array([peak], np.float32))[0])
    white = float(to_pq(np.array([WHITE], np.float32))[0])
    codes = np.linspace(0, top, 500, dtype=np.float32)
    mapped = roll_off(codes, top)
    knee = 1.5 * white - 0.5 * top
    assert np.allclose(mapped[codes < knee], codes[codes < knee], atol=1e-6)
    assert mapped[-1] == pytest.approx(white, abs=1e-5)
    slopes = np.diff(mapped) / np.diff(codes)
    assert slopes.min() >= -1e-3
    assert np.abs(np.diff(slopes)).max() < 0.05  # no edge at the knee


def test_channels_keep_their_proportions() -> None:
    orange = np.full((10, 10, 3), (190, 160, 120), np.uint8)
    before = luminances(orange, PQ)[0, 0]
    mapped = to_sdr(orange, PQ)[0, 0] / 255
    after = np.where(mapped <= 0.04045, mapped / 12.92, ((mapped + 0.055) / 1.055) ** 2.4)
    assert after / after.max() == pytest.approx(before / before.max(), abs=0.01)


def test_strips_do_not_show() -> None:
    tall = np.tile(ramp(), (200, 8, 1))
    whole = to_sdr(tall, PQ)
    assert np.array_equal(whole[:48], whole[48:96])
    assert mean_difference(whole[:48], to_sdr(np.tile(ramp(), (1, 8, 1)), PQ)) <= 0.5
