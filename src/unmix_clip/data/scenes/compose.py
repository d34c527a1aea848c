"""Compose scenes: stickers of names that stand together, overlapping, on a textured ground, with exact masks.

A scene is a pure function of (seed, split, index, size): any of them can be made again, in any order, on any machine
with the same fonts.
"""

import colorsys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from unmix_clip.data.scenes.stickers import Sticker, render_sticker
from unmix_clip.data.scenes.world import World, load_world

OBJECTS_A_SCENE = (0.24, 0.31, 0.24, 0.14, 0.07)
"""Probability of 1, 2, ... 5 objects: 2.5 on average."""
SIDE_RANGE = (0.35, 0.62)
"""Longer side of an object as a share of the picture's side, for up to three objects."""
CROWDED_SIDE_RANGE = (0.30, 0.46)
"""The same for four and five objects."""
COMPANION_SHARE = 0.45
"""Probability that the next object is a companion of an earlier one, where one has companions."""
THEME_SHARE = 0.75
"""Otherwise: probability that the next object comes from the first one's theme (else from anywhere)."""
MIN_VISIBLE = 0.45
"""An object that would leave an earlier one with less of its area visible is moved, or drawn smaller."""
MIN_SIDE_PX = 16
"""An object of this size is drawn even so."""
TILTS_DEG = (-20, -10, 0, 10, 20)
SIDE_STEP_PX = 4
"""Sides are rounded to this step, so that the sticker cache hits."""
POSITIONS_TRIED = 6


@dataclass(frozen=True)
class Scene:
    """A picture (H, W, 3) uint8, its mask (H, W) int32 (0 = ground, else 1 + index into `names`), and its names."""

    pixels: np.ndarray
    mask: np.ndarray
    names: tuple[str, ...]


def scene_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """Return the random generator of one scene, independent of every other scene's."""
    return np.random.default_rng([seed, zlib.crc32(split.encode()), index])


def draw_names(rng: np.random.Generator, allowed: tuple[str, ...], first_from: tuple[str, ...], most: int) -> list[str]:
    """Draw distinct names that stand together: the first uniformly, the next from companions or the same theme.

    Args:
        rng: source of randomness.
        allowed: names that may appear.
        first_from: names from which the first object is drawn.
        most: largest number of objects.
    """
    world = load_world()
    probability = np.asarray(OBJECTS_A_SCENE[:most])
    count = int(rng.choice(len(probability), p=probability / probability.sum())) + 1
    names = [str(rng.choice(first_from))]
    theme = _theme_of(rng, world, names[0])
    while len(names) < count:
        pools = [[other for name in names for other in world.companions.get(name, ())], theme, allowed]
        chances = (COMPANION_SHARE, THEME_SHARE, 1.0)
        for pool, chance in zip(pools, chances, strict=True):
            fresh = [name for name in pool if name in allowed and name not in names]
            if fresh and rng.random() < chance:
                names.append(fresh[rng.integers(len(fresh))])
                break
    return names


def _theme_of(rng: np.random.Generator, world: World, name: str) -> tuple[str, ...]:
    themes = [members for members in world.themes.values() if name in members]
    return themes[rng.integers(len(themes))]


def compose_scene(rng: np.random.Generator, names: Sequence[str], size_px: int) -> Scene:
    """Draw the named objects, in order, on a textured ground."""
    picture = _ground(rng, size_px)
    mask = np.zeros((size_px, size_px), dtype=np.int32)
    areas: list[int] = []
    for number, name in enumerate(names, start=1):
        sticker, (top, left) = _choose_place(rng, name, mask, areas, crowded=len(names) > 3)
        silhouette, glyph = sticker.silhouette, sticker.glyph
        region = np.s_[top : top + silhouette.shape[0], left : left + silhouette.shape[1]]
        body, ink = _two_colours(rng)
        patch = picture[region]
        for colour, coverage in ((body, silhouette), (ink, glyph)):
            patch += (colour - patch) * (coverage[..., None] * np.float32(1 / 255))
        solid = silhouette > 127
        mask[region][solid] = number
        areas.append(int(solid.sum()))
    picture += np.float32(rng.normal(0, 3))
    return Scene(np.clip(picture, 0, 255).astype(np.uint8), mask, tuple(names))


def _choose_place(
    rng: np.random.Generator, name: str, mask: np.ndarray, areas: list[int], crowded: bool
) -> tuple[Sticker, tuple[int, int]]:
    """Return a sticker and its (top, left) that leave every earlier object visible, smaller if it does not fit."""
    glyphs = load_world().glyphs[name]
    glyph = glyphs[rng.integers(len(glyphs))]
    tilt_deg = TILTS_DEG[rng.integers(len(TILTS_DEG))]
    mirrored = rng.random() < 0.5
    share = rng.uniform(*(CROWDED_SIDE_RANGE if crowded else SIDE_RANGE))
    while True:
        side_px = max(round(share * len(mask) / SIDE_STEP_PX), 2) * SIDE_STEP_PX
        sticker = render_sticker(glyph, side_px, tilt_deg)
        if mirrored:
            sticker = Sticker(sticker.silhouette[:, ::-1], sticker.glyph[:, ::-1])
        last = side_px <= MIN_SIDE_PX
        place = _find_place(rng, mask, sticker.silhouette > 127, areas, 0.0 if last else MIN_VISIBLE)
        if place is not None:
            return sticker, place
        share *= 0.75


def _find_place(
    rng: np.random.Generator, mask: np.ndarray, solid: np.ndarray, areas: list[int], min_visible: float
) -> tuple[int, int] | None:
    """Return (top, left) of the place, among a few random ones, that hides least, or None if all hide too much."""
    height, width = solid.shape
    free = (mask.shape[0] - height, mask.shape[1] - width)
    if min(free) < 0:
        return None
    before = np.bincount(mask.ravel(), minlength=len(areas) + 1)
    best: tuple[int, tuple[int, int]] | None = None
    for _ in range(POSITIONS_TRIED):
        place = int(rng.integers(free[0] + 1)), int(rng.integers(free[1] + 1))
        under = mask[place[0] : place[0] + height, place[1] : place[1] + width][solid]
        hidden = np.bincount(under, minlength=len(areas) + 1)
        left = before - hidden
        if all(left[i + 1] >= min_visible * area for i, area in enumerate(areas)):
            cost = int(hidden[1:].sum())
            if best is None or cost < best[0]:
                best = cost, place
            if rng.random() < 0.5:  # otherwise objects would overlap only where there is no other room
                break
    return best[1] if best else None


def _two_colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return body and ink colours (3,) float32 in [0, 255] that contrast; the hue says nothing about the class."""
    light_body = rng.random() < 0.6
    body_value, ink_value = (rng.uniform(0.75, 1.0), rng.uniform(0.0, 0.35))
    if not light_body:
        body_value, ink_value = ink_value + 0.1, body_value
    return _colour(rng, body_value), _colour(rng, ink_value)


def _colour(rng: np.random.Generator, value: float) -> np.ndarray:
    rgb = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.2, 0.9), value)
    return np.asarray(rgb, dtype=np.float32) * 255


def _ground(rng: np.random.Generator, size_px: int) -> np.ndarray:
    """Return a ground (H, W, 3) float32: a random cut of a random texture between two mid colours."""
    textures = _textures(2 * size_px)
    texture = textures[rng.integers(len(textures))]
    top, left = rng.integers(size_px, size=2)
    cut = texture[top : top + size_px, left : left + size_px, None]
    low, high = _colour(rng, rng.uniform(0.3, 0.7)), _colour(rng, rng.uniform(0.4, 0.9))
    return low + (high - low) * cut


@cache
def _textures(side_px: int) -> np.ndarray:
    """Return 48 textures (48, side, side) float32 in [0, 1]: smooth noise, stripes and checks, always the same."""
    rng = np.random.default_rng(20250205)
    row, column = np.meshgrid(*(np.linspace(0, 1, side_px, dtype=np.float32),) * 2, indexing="ij")
    made = []
    for i in range(48):
        angle, waves = rng.uniform(0, np.pi), rng.uniform(4, 40)
        along = row * np.cos(angle) + column * np.sin(angle)
        across = column * np.cos(angle) - row * np.sin(angle)
        if i % 3 == 0:  # noise at three scales
            texture = np.zeros_like(row)
            for cells in (4, 16, 64):
                texture += _smooth_noise(rng, cells, side_px) / np.sqrt(cells)
        elif i % 3 == 1:  # stripes, bent a little
            texture = np.sin(2 * np.pi * (waves * along + 0.5 * np.sin(6 * across)))
        else:  # soft checks
            texture = np.sin(np.pi * waves * along) * np.sin(np.pi * waves * across)
        texture += rng.normal(0, 0.05, texture.shape)
        made.append((texture - texture.min()) / (texture.max() - texture.min()))
    return np.stack(made).astype(np.float32)


def _smooth_noise(rng: np.random.Generator, cells: int, side_px: int) -> np.ndarray:
    """Return bilinear noise (side, side) with `cells` knots a side."""
    knots = rng.normal(size=(cells + 1, cells + 1)).astype(np.float32)
    at = np.linspace(0, cells, side_px, endpoint=False)
    i = at.astype(int)
    t = (at - i).astype(np.float32)
    rows = knots[i] * (1 - t)[:, None] + knots[i + 1] * t[:, None]
    return rows[:, i] * (1 - t) + rows[:, i + 1] * t
