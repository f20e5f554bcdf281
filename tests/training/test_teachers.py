import cv2
import numpy as np
import pytest

pytest.importorskip("torchvision", reason="the extra `train` is not installed: scripts/setup train")

from training.teachers import guards
from training.teachers.colour import fresh_skin, saturated, skin_likeness
from training.teachers.lines import contour_lines
from training.teachers.planes import Plane, RgbImage, coherence, to_lab
from training.teachers.recipes import RECIPES
from training.teachers.smoothing import kuwahara
from training.teachers.tones import bright_tone, quantised, with_standard_contrast


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("size", [(28, 40), (33, 47), (8, 8)])
def test_teacher_keeps_shape_and_type_and_paints_the_same_twice(name: str, size: tuple[int, int]) -> None:
    teacher = RECIPES[name].teacher
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    before = photo.copy()
    painted = teacher(photo)
    assert painted.shape == photo.shape
    assert painted.dtype == np.uint8
    assert np.array_equal(painted, teacher(photo))
    assert not np.array_equal(painted, photo)
    assert np.array_equal(photo, before)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("grey", [0, 128, 255])
def test_teacher_paints_a_plain_photograph_plain(name: str, grey: int) -> None:
    painted = RECIPES[name].teacher(np.full((64, 96, 3), grey, np.uint8))
    assert np.ptp(painted.reshape(-1, 3), axis=0).max() <= 1


def test_teacher_ignores_contrast_which_the_student_cannot_see() -> None:
    """To the student's first norm, a photograph and the same at half the contrast about mid-grey are equal."""
    bold = 127.5 + 100 * np.random.default_rng(0).uniform(-1, 1, (32, 32, 3))
    pale = 127.5 + (bold - 127.5) / 2
    exposed = [with_standard_contrast(photo.astype(np.float32)) for photo in (bold, pale)]
    assert np.abs(exposed[0] - exposed[1]).max() < 1e-5


def step(blur: float, side: int = 96) -> Plane:
    """An edge from dark to light in the middle, blurred by `blur` pixels."""
    plane = np.full((side, side), 0.2, np.float32)
    plane[:, side // 2 :] = 0.8
    return np.asarray(cv2.GaussianBlur(plane, (0, 0), blur), np.float32) if blur else plane


@pytest.mark.parametrize("height", [0.1, 1.0])
def test_contours_out_of_focus_are_told_from_sharp_ones_whatever_their_height(height: float) -> None:
    sharp, soft = (guards.sharp_contours(height * step(blur))[48, 44:52].max() for blur in (0, 5))
    assert sharp > 0.95
    assert soft < 0.05


def test_grass_is_texture_and_a_contour_is_not() -> None:
    noise = np.random.default_rng(0).uniform(0, 1, (96, 96)).astype(np.float32)
    assert guards.texture(noise)[20:-20, 20:-20].mean() > 0.8
    assert guards.texture(step(0))[20:-20, 44:52].max() < 0.05
    assert coherence(step(0), 3.0)[48, 48] > 0.99


def test_a_sky_is_calm_and_a_contour_is_not() -> None:
    sky = np.linspace(0.5, 0.7, 200, dtype=np.float32)[:, None].repeat(96, axis=1)
    assert guards.calm(sky)[20:-20].min() > 0.95
    assert guards.calm(step(0))[48, 48] < 0.05


def test_a_lone_spot_is_detail_and_the_plain_around_it_is_not() -> None:
    plane = np.full((96, 96), 0.6, np.float32)
    cv2.circle(plane, (48, 48), 4, 0.1, -1)
    detail = guards.detail(plane)
    assert detail[48, 48] > 0.8
    assert detail[10, 10] < 0.05


def test_lines_lie_on_the_dark_side_of_a_contour() -> None:
    lines = contour_lines(step(0))
    assert lines[48, 44:48].max() > 0.9
    assert lines[48, 49:].max() < 0.1
    assert lines[48, :30].max() < 0.1


def test_kuwahara_smooths_noise_and_keeps_an_edge_sharp() -> None:
    clean = np.repeat(step(0)[..., None], 3, axis=2)
    noisy = np.clip(clean + np.random.default_rng(0).normal(0, 0.05, clean.shape), 0, 1).astype(np.float32)
    painted = kuwahara(noisy, 5)
    assert painted[:, 10:40].std() < 0.4 * noisy[:, 10:40].std()
    rise = painted[48, 50:53].mean() - painted[48, 43:46].mean()
    assert rise > 0.5


def test_quantised_luminance_has_few_levels() -> None:
    ramp = np.linspace(0, 1, 1000, dtype=np.float32)[None]
    tones = quantised(ramp, 5, 20.0)
    from_level = np.abs(tones * 5 - np.round(tones * 5)) / 5
    assert (from_level < 0.01).mean() > 0.8
    assert np.unique(np.round(tones[from_level < 0.01] * 5)).size == 6
    assert (np.diff(tones) >= -1e-6).all()


def test_chroma_grows_within_its_limit_and_grey_stays_grey() -> None:
    lab = np.zeros((1, 3, 3), np.float32)
    lab[0, :, 0] = 50
    lab[0, :, 1] = [0, 20, 100]
    chroma = saturated(lab, 1.5, limit=90)[0, :, 1]
    assert chroma[0] == 0
    assert 25 < chroma[1] < 30
    assert 80 < chroma[2] <= 90


@pytest.mark.parametrize(
    ("rgb", "is_skin"),
    [
        ((224, 172, 140), True),
        ((141, 85, 54), True),
        ((90, 56, 37), True),
        ((60, 120, 220), False),
        ((60, 160, 60), False),
        ((220, 20, 30), False),
        ((128, 128, 128), False),
    ],
)
def test_skin_is_told_by_its_colour(rgb: tuple[int, int, int], is_skin: bool) -> None:
    image: RgbImage = np.full((1, 1, 3), rgb, np.float32) / np.float32(255)
    likeness = skin_likeness(to_lab(image))[0, 0]
    assert likeness > 0.7 if is_skin else likeness < 0.1


def test_nearly_grey_stays_so_where_that_is_wished() -> None:
    lab = np.full((1, 2, 3), 50, np.float32)
    lab[0, :, 1:] = [[2, 0], [30, 0]]
    wished, plain = saturated(lab, 2, neutral=14)[0, :, 1], saturated(lab, 2)[0, :, 1]
    assert wished[0] == pytest.approx(2, abs=0.01)
    assert plain[0] > 3.9
    assert wished[1] == plain[1] > 50


def test_eyes_of_a_face_are_features_and_spots_elsewhere_are_not() -> None:
    luminance = np.full((96, 96), 0.6, np.float32)
    cv2.circle(luminance, (48, 48), 3, 0.1, -1)
    everywhere, nowhere = (np.full((96, 96), share, np.float32) for share in (1, 0))
    features = guards.features(luminance, everywhere)
    assert features[48, 48] > 0.9
    assert features[10, 10] < 0.05
    assert guards.features(luminance, nowhere).max() == 0


def test_bright_tone_keeps_black_and_white_and_lifts_the_middle() -> None:
    tones = bright_tone(np.array([[0.0, 0.1, 0.5, 1.0]], np.float32))[0]
    assert tones[:2].tolist() == [0, 0]
    assert 0.55 < tones[2] < 0.65
    assert tones[3] == pytest.approx(1)


def test_windows_of_a_night_are_lights_and_those_of_a_day_are_not() -> None:
    night = np.full((96, 96), 0.15, np.float32)
    cv2.circle(night, (48, 48), 2, 0.7, -1)
    lights = guards.lights(night)
    assert lights[48, 48] > 0.9
    assert lights[10, 10] < 0.05
    assert guards.lights(night + 0.5).max() < 0.05


def test_skin_becomes_neither_grey_nor_orange() -> None:
    lab = np.full((1, 2, 3), 50, np.float32)
    lab[0, :, 1:] = [[6, 8], [36, 48]]
    everywhere = np.ones((1, 2), np.float32)
    chroma = np.hypot(*np.moveaxis(fresh_skin(lab, everywhere)[0, :, 1:], 1, 0))
    assert 15 < chroma[0] < chroma[1] < 45
    assert (fresh_skin(lab, 0 * everywhere) == lab).all()
