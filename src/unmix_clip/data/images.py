"""The one image loader: whatever the file, an RGB picture as a person sees it, or one clear line.

EXIF orientation is applied, transparency is laid over white, 16-bit greys are scaled by their depth. The number of
pixels is read from the header before anything is decoded.
"""

import glob
import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from unmix_clip.data.samples import IGNORE
from unmix_clip.errors import InputError

MAX_PIXELS = 100_000_000
"""Larger pictures are refused: decoding one would take more than 300 MB."""
SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"))
"""What counts as a picture in a folder; a file that is named outright may have any suffix."""
PNG_IGNORE = 255
"""Mask value of files that counts for nothing (VOC, ADE20K, Cityscapes, ...)."""


def load_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read a picture as RGB in its displayed orientation; raises InputError that names the file."""
    try:
        with warnings.catch_warnings():
            # The pixel cap below is stricter than Pillow's own, and says what to do.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                width, height = file.size
                if width * height > max_pixels:
                    raise InputError(
                        f"{path} has {width} x {height} pixels; expected at most {max_pixels:,}: scale it down first"
                    )
                file.load()
                return _to_rgb(ImageOps.exif_transpose(file))
    except FileNotFoundError:
        raise InputError(f"no picture at {path}; check the path") from None
    except Image.DecompressionBombError:
        raise InputError(f"{path} has far more than {max_pixels:,} pixels, the most expected: scale it down") from None
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is no picture that can be read: {error}") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged or truncated: {error}; replace the file") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    """Bring any mode to RGB."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        # I;16 says its depth; I has 32 bits for files of 16, so its values have to tell.
        scale = 257 if image.mode.startswith("I;16") or (image.mode == "I" and values.max(initial=0) > 255) else 1
        return Image.fromarray(np.clip(values / scale, 0, 255).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")


def image_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes as hex."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def list_images(paths: Sequence[str | Path]) -> list[Path]:
    """Return the pictures of files, folders (with all below them) and globs: sorted, each once.

    Raises:
        InputError: a path that does not exist, a folder or glob without pictures.
    """
    found: set[Path] = set()
    for given in paths:
        path = Path(given)
        if path.is_dir():
            inside = [file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()]
        elif path.is_file():
            inside = [path]
        else:
            inside = [Path(file) for file in glob.glob(str(given), recursive=True) if Path(file).is_file()]
        if not inside:
            raise InputError(f"no pictures at {given}; expected a file, a folder with pictures, or a glob that matches")
        found.update(inside)
    return sorted(found)


def load_mask_png(path: str | Path, expected_hw: tuple[int, int], n_classes: int) -> np.ndarray:
    """Read an indexed mask (H, W) int32: 0 background, 1 + class index, 255 in the file = IGNORE.

    Raises:
        InputError: another size than the picture, or values that are no class.
    """
    try:
        with Image.open(path) as file:
            mask = np.asarray(file).astype(np.int32)
    except (OSError, SyntaxError) as error:
        raise InputError(f"cannot read the mask {path}: {error}") from None
    if mask.shape != expected_hw:
        raise InputError(
            f"the mask {path} is {mask.shape}, its picture {expected_hw} (rows, columns); expected the same"
        )
    wrong = sorted(int(value) for value in np.setdiff1d(np.unique(mask), [*range(n_classes + 1), PNG_IGNORE]))
    if wrong:
        raise InputError(f"the mask {path} has the values {wrong}; expected 0 to {n_classes} and {PNG_IGNORE} = ignore")
    return np.where(mask == PNG_IGNORE, IGNORE, mask)
