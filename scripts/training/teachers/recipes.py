"""The recipes of the styles: what each teacher paints, step by step.

All radii are pixels of the photograph as it is given.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from serve_app.frames import Frame
from training.teachers import guards
from training.teachers.colour import blueness, fresh_skin, saturated, skin_likeness, split_toned, with_luminance
from training.teachers.flattening import flattened
from training.teachers.lines import contour_lines, inked, outlines
from training.teachers.planes import RgbImage, blurred, luminance_of, mixed, smoothstep, to_lab, to_rgb
from training.teachers.smoothing import along_contours, bilateral, kuwahara
from training.teachers.tones import bright_tone, quantised, with_standard_contrast

Teacher = Callable[[Frame], Frame]

NEUTRAL = 14  # chroma in units of Lab


class Recipe(NamedTuple):
    """A teacher, what its style is called, and a sentence on what that is good for."""

    teacher: Teacher
    title: str
    summary: str


def toon(photo: Frame) -> Frame:
    """Returns a mild painting: flat areas, eight soft tones, lifted shadows, thin lines."""
    lab = to_lab(with_standard_contrast(photo))
    detail = guards.detail(luminance_of(lab))
    smooth = bilateral(lab)
    lines = contour_lines(luminance_of(smooth))
    flat = 0.85 * flattened(smooth, 0.007) + 0.15 * smooth
    lab = mixed(flat, lab, detail)
    luminance = luminance_of(lab)
    luminance = (0.04 + 0.96 * (0.4 * luminance + 0.6 * quantised(luminance, 8))) ** 0.8
    lab = split_toned(saturated(with_luminance(lab, luminance), 1.35), 14)
    return to_frame(inked(to_rgb(lab), 0.85 * lines, 0.72))


def cel(photo: Frame) -> Frame:
    """Returns the painting of an animation cel: flat, bright colour in few tones, and dark outlines on contours."""
    photo_rgb = with_standard_contrast(photo)
    lab = to_lab(photo_rgb)
    luminance = luminance_of(lab)
    skin = blurred(skin_likeness(lab), 4)
    features = guards.features(luminance, skin)
    detail = np.maximum(0.85 * guards.detail(luminance), 0.8 * features)
    smooth = bilateral(to_lab(along_contours(kuwahara(photo_rgb, 4), 2.0)), 2, 10)
    flat = flattened(smooth, 0.014)

    lines = np.maximum(
        outlines(flat, 12, 26, 1.3) * (1 - 0.9 * guards.texture(flat / 100)),
        contour_lines(luminance_of(smooth), 1.4, 0.55, 0.5),
    )
    lines = (
        lines * guards.sharp_contours(smooth / 100) * (1 - 0.3 * skin) * (1 - np.maximum(0.8 * features, 0.5 * detail))
    )

    tone = bright_tone(luminance_of(flat))
    tone = mixed(tone, quantised(tone, 4, 6.0), 0.9 * (1 - guards.calm(luminance)))
    painted = saturated(with_luminance(flat, tone), 2.1, 100, NEUTRAL)
    original = saturated(with_luminance(lab, bright_tone(luminance)), 1.5, 96, NEUTRAL)
    painted = fresh_skin(split_toned(mixed(painted, original, detail), 10, 3), skin)
    return to_frame(inked(to_rgb(painted), lines, 0.92))


def brush(photo: Frame) -> Frame:
    """Returns the painting of an anime background: brush strokes, luminous skies, warm lights and cool shadows."""
    photo_rgb = with_standard_contrast(photo)
    lab = to_lab(photo_rgb)
    detail = 0.6 * guards.detail(luminance_of(lab))
    skin = blurred(skin_likeness(lab), 4)
    strokes = to_lab(along_contours(kuwahara(kuwahara(photo_rgb, 11), 7), 4.0))
    lines = contour_lines(luminance_of(strokes), 1.2, 0.5, 0.8) * guards.sharp_contours(strokes / 100)
    painted = mixed(strokes, lab, detail)
    luminance = luminance_of(painted)
    luminance = 0.4 * luminance + 0.6 * quantised(luminance, 7)
    sky = blueness(painted) * smoothstep(luminance, 0.2, 0.5)
    luminance = (0.07 + 0.93 * luminance) ** 0.62
    luminance = luminance + 0.3 * sky * (1 - luminance)
    painted = with_luminance(painted, luminance)
    painted = mixed(saturated(painted, 1.7, 96, NEUTRAL), saturated(painted, 2.0, 96, NEUTRAL), sky)
    painted = fresh_skin(split_toned(painted, 40, 12), skin)
    return to_frame(inked(to_rgb(painted), lines, 0.5))


def ink(photo: Frame) -> Frame:
    """Returns a page of manga: black lines, and two greys on white paper."""
    photo_rgb = with_standard_contrast(photo)
    lab = to_lab(photo_rgb)
    luminance = luminance_of(lab)
    detail = guards.detail(luminance)
    smooth = to_lab(along_contours(kuwahara(photo_rgb, 4), 2.0))
    contours = guards.sharp_contours(smooth / 100) * (1 - 0.7 * guards.texture(smooth / 100))
    flat = flattened(smooth, 0.02)
    lines = np.maximum(contour_lines(luminance_of(smooth), 1.2, 0.45, 0.5), outlines(flat, 12, 26, 1.3)) * contours
    tone = luminance_of(flat)
    paper = (
        0.12
        + 0.43 * smoothstep(tone, 0.16, 0.24)
        + 0.24 * smoothstep(tone, 0.40, 0.48)
        + 0.18 * smoothstep(tone, 0.62, 0.70)
    )
    paper = mixed(paper, luminance, np.asarray(0.6 * detail, np.float32))
    page = np.repeat(paper[..., None], 3, axis=2).astype(np.float32)
    return to_frame(inked(page, lines, 0.95))


def to_frame(rgb: RgbImage) -> Frame:
    """Returns an image on [0, 1] as a frame."""
    return np.asarray(np.clip(rgb * 255 + 0.5, 0, 255), np.uint8)


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "toon": Recipe(toon, "Toon", "Mild and true to the photograph: flat colours, clean contours, lifted shadows."),
        "cel": Recipe(
            cel, "Cel", "Like a frame of an animation: flat, bright colour and dark outlines; people above all."
        ),
        "brush": Recipe(
            brush, "Brush", "Like an anime background: brush strokes and luminous light; landscapes and skies."
        ),
        "ink": Recipe(ink, "Ink", "Like a page of manga: black lines and two greys on white paper."),
    }
)
