"""Stickers: a glyph on its own dilated, hole-filled silhouette, which is the object's exact mask.

Thin bare glyphs are lost on a coarse feature grid; a sticker has an area. Rendering is slow (about 1 ms), so each
combination of glyph, side and tilt is rendered once per process and kept.
"""

import importlib.util
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

MASTER_PX = 128
"""Side of the square in which a glyph is drawn before it is scaled down."""
RIM = 0.06
"""Width of the rim around the glyph, as a share of the sticker's side."""

_FONTS = {
    "mdi": ("fonticon_mdi7", "MDI7", "fonts/materialdesignicons-webfont.ttf"),
    "fa": ("fonticon_fa6", "FA6S", "fonts/Font Awesome 6 Free-Solid-900.otf"),
}


@dataclass(frozen=True)
class Sticker:
    """Two coverage maps (h, w) uint8, 255 = covered, cut to the silhouette's bounding box."""

    silhouette: np.ndarray
    glyph: np.ndarray


@cache
def _font(key: str) -> ImageFont.FreeTypeFont:
    package, _, path = _FONTS[key]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"the embedded world draws with the font package {package}, which is missing")
    return ImageFont.truetype(str(Path(spec.origin).parent / path), MASTER_PX)


def _character(glyph: str) -> tuple[str, str]:
    """Return (font key, character) of a glyph such as `mdi.cat`."""
    key, name = glyph.split(".", 1)
    package, icons, _ = _FONTS[key]
    return key, getattr(getattr(importlib.import_module(package), icons), name)[-1]


@cache
def _master(glyph: str) -> tuple[Image.Image, Image.Image]:
    """Draw (silhouette, glyph) as 8-bit images at the master size, tight around the silhouette."""
    key, character = _character(glyph)
    font = _font(key)
    left, top, right, bottom = font.getbbox(character)
    rim_px = round(RIM * max(right - left, bottom - top))
    margin_px = 2 * rim_px
    ink = Image.new("L", (int(right - left) + 2 * margin_px, int(bottom - top) + 2 * margin_px))
    ImageDraw.Draw(ink).text((margin_px - left, margin_px - top), character, fill=255, font=font)
    dilated = ink.filter(ImageFilter.MaxFilter(2 * rim_px + 1)).filter(ImageFilter.GaussianBlur(rim_px / 2))
    solid = dilated.point(lambda value: 255 * (value > 96))
    outside = solid.copy()
    ImageDraw.floodfill(outside, (0, 0), 128)
    filled = ImageChops.lighter(solid, outside.point(lambda value: 255 * (value != 128)))
    box = filled.getbbox()
    return filled.crop(box), ink.crop(box)


@lru_cache(maxsize=20_000)
def render_sticker(glyph: str, side_px: int, tilt_deg: int) -> Sticker:
    """Render a glyph so that the longer side of its upright silhouette measures `side_px` pixels."""
    maps = []
    for image in _master(glyph):
        scale = side_px / max(image.size)
        width, height = (max(1, round(length * scale)) for length in image.size)
        small = image.resize((width, height), Image.Resampling.BOX)
        maps.append(small.rotate(tilt_deg, Image.Resampling.BILINEAR, expand=True))
    box = maps[0].getbbox()
    silhouette, ink = (np.asarray(image.crop(box)) for image in maps)
    return Sticker(silhouette, ink)
