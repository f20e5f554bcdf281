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
from training.teachers.planes import Plane, RgbImage, blurred, luminance_of, mixed, smoothstep, to_lab, to_rgb
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
    lights = blurred(guards.lights(luminance), 2)
    detail = np.maximum.reduce([0.75 * guards.detail(luminance), 0.8 * features, lights])
    flat = bilateral(to_lab(along_contours(kuwahara(kuwahara(photo_rgb, 8), 5), 2.0)), 4, 14)

    contours = guards.sharp_contours(bilateral(lab) / 100) * (1 - 0.8 * guards.texture(flat / 100))
    lines = np.maximum(outlines(flat, 12, 24, 1.3), contour_lines(luminance_of(flat), 1.4, 0.4, 0.5)) * contours
    lines = lines * (1 - 0.3 * skin) * (1 - np.maximum.reduce([0.8 * features, 0.5 * detail, lights]))

    tone = bright_tone(luminance_of(flat))
    tone = mixed(tone, quantised(tone, 4, 5.0), 1 - 0.9 * guards.calm(luminance))
    painted = saturated(with_luminance(flat, tone), 2.3, 100, NEUTRAL)
    original = saturated(with_luminance(lab, bright_tone(luminance)), 1.5, 96, NEUTRAL)
    painted = fresh_skin(split_toned(mixed(painted, original, detail), 24, 8), skin, 0.8)
    return to_frame(inked(to_rgb(painted), lines, 0.92))


def brush(photo: Frame) -> Frame:
    """Returns the painting of an anime background: brush strokes, luminous skies, warm lights and cool shadows."""
    photo_rgb = with_standard_contrast(photo)
    lab = to_lab(photo_rgb)
    luminance = luminance_of(lab)
    skin = blurred(skin_likeness(lab), 4)
    features, lights = guards.features(luminance, skin), blurred(guards.lights(luminance), 2)
    detail = np.maximum.reduce([0.6 * guards.detail(luminance), 0.85 * features, 0.9 * lights])
    strokes = to_lab(along_contours(kuwahara(kuwahara(photo_rgb, 13), 9), 4.0))
    lines = contour_lines(luminance_of(strokes), 1.2, 0.5, 0.8) * guards.sharp_contours(strokes / 100)
    painted = mixed(strokes, lab, detail)
    tone = luminance_of(painted)
    tone = mixed(tone, quantised(tone, 6), 0.7 * (1 - 0.9 * guards.calm(tone)))
    sky = blueness(painted) * smoothstep(tone, 0.2, 0.5)
    tone = bright_tone(tone, 0.06, 0.6)
    painted = with_luminance(painted, tone + 0.3 * sky * (1 - tone))
    painted = mixed(saturated(painted, 2.0, 100, NEUTRAL), saturated(painted, 2.2, 100, NEUTRAL), sky)
    painted = fresh_skin(split_toned(painted, 46, 14), skin)
    return to_frame(inked(to_rgb(painted), lines, 0.5))


def ink(photo: Frame) -> Frame:
    """Returns a page of manga: black lines, and two greys on white paper."""
    photo_rgb = with_standard_contrast(photo)
    lab = to_lab(photo_rgb)
    luminance = luminance_of(lab)
    skin = blurred(skin_likeness(lab), 4)
    features = guards.features(luminance, skin)
    detail = np.maximum(guards.detail(luminance), features)
    smooth = bilateral(to_lab(along_contours(kuwahara(photo_rgb, 6), 3.0)), 2, 12)
    contours = guards.sharp_contours(bilateral(lab) / 100) * (1 - 0.7 * guards.texture(smooth / 100))
    lines = contour_lines(luminance_of(smooth), 1.3, 0.45, 0.6)
    lines = lines * contours * (1 - 0.3 * skin) * (1 - 0.8 * features)
    tone = luminance_of(smooth) + 0.2 * skin  # faces are white paper
    paper = 0.1 + 0.32 * step(tone, 0.18) + 0.32 * step(tone, 0.32) + 0.24 * step(tone, 0.5)
    paper = mixed(paper, smoothstep(luminance + 0.25 * skin, 0.12, 0.75), np.asarray(0.85 * detail, np.float32))
    page = np.repeat(paper[..., None], 3, axis=2).astype(np.float32)
    return to_frame(inked(page, lines, 0.95))


def step(tone: Plane, threshold: float) -> Plane:
    """Returns a step from 0 to 1 at a threshold, over some tenth, since the student cannot learn a sharper one."""
    return smoothstep(tone, threshold - 0.05, threshold + 0.05)


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
