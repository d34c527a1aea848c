"""The one image loader: whatever the file, an RGB picture as a person sees it, or one clear line.

EXIF orientation is applied, transparency is laid over white, 16-bit greys are scaled by their depth; those of
unknown range (floating-point, 32-bit) are refused. The number of pixels is read from the header before decoding.
"""

import glob
import hashlib
import os
import struct
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from unmix_clip.errors import InputError

MAX_PIXELS = 100_000_000
"""Larger pictures are refused: decoding one would take more than 300 MB."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000")
"""What Pillow may take a file for, whatever its suffix: no EPS, which would start Ghostscript on a stranger's file."""
SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"))
"""What counts as a picture in a folder; a file that is named outright may have any suffix."""
DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error)
"""What Pillow's decoders and its EXIF reader raise for damaged files."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""From the stored picture to the displayed one, by EXIF orientation. Pillow's exif_transpose does the same, but writes
the EXIF data anew, which fails for the broken ones of real cameras."""
SWAPPING_TURNS = frozenset(
    (Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90)
)
"""Those that make rows of columns."""


def load_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read a picture as RGB in its displayed orientation; raises InputError that names the file."""
    with _opened(path, max_pixels) as file:
        file.load()
        return _to_rgb(_upright(file), path, file.format)


def load_image_hw(path: str | Path) -> tuple[int, int]:
    """Return the (rows, columns) of the picture that `load_image` gives, for most formats from the header alone."""
    with _opened(path, MAX_PIXELS) as file:
        if file.format == "TIFF":
            file.load()  # Pillow turns these itself while it loads them
        turned = _turn(file) in SWAPPING_TURNS
        return (file.width, file.height) if turned else (file.height, file.width)


@contextmanager
def _opened(path: str | Path, max_pixels: int) -> Iterator[Image.Image]:
    """Open a picture of no more than `max_pixels`; what Pillow raises in the block becomes an InputError."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of many pixels, where the cap below is stricter, and of broken EXIF data, which is skipped.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as file:
                width, height = file.size
                if width * height > max_pixels:
                    raise InputError(
                        f"{path} has {width} x {height} pixels; expected at most {max_pixels:,}: scale it down first"
                    )
                yield file
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"no picture at {path}; check the path") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; expected a picture") from None
    except PermissionError:
        raise InputError(f"{path} may not be read; change its permissions") from None
    except Image.DecompressionBombError:
        raise InputError(f"{path} has far more than {max_pixels:,} pixels, the most expected: scale it down") from None
    except UnidentifiedImageError:
        raise InputError(f"{path} is no picture that can be read; expected one of {', '.join(FORMATS)}") from None
    except MemoryError:  # a damaged header can ask for any amount
        raise InputError(f"{path} needs more memory than there is; replace the file or scale it down") from None
    except DECODER_ERRORS as error:
        raise InputError(f"{path} is damaged or truncated: {error}; replace the file") from None


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return how to turn a picture upright; None where its EXIF is broken or says nothing."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except DECODER_ERRORS:
        return None
    return TURNS.get(orientation) if isinstance(orientation, int) else None


def _upright(image: Image.Image) -> Image.Image:
    turn = _turn(image)
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image, path: str | Path, file_format: str | None) -> Image.Image:
    """Bring any mode to RGB."""
    if image.mode == "F" or (image.mode == "I" and file_format == "TIFF"):
        kind = "floating-point" if image.mode == "F" else "32-bit"
        raise InputError(f"{path} has {kind} pixels of unknown range; expected 8 or 16 bits: convert it first")
    if image.mode.startswith("I"):  # 16 bits; "I" is what PPM, and PNG in older Pillow, gives for them
        values = np.asarray(image, dtype=np.float64)
        grey = np.clip(values / 257, 0, 255).round()
        if isinstance(clear := image.info.get("transparency"), int):
            grey[values == clear] = 255
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
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


_READS_PICTURES = ContextVar("reads_pictures", default=True)


@contextmanager
def pictures_unread() -> Iterator[None]:
    """Load data sets without reading their pictures: digests say nothing then."""
    token = _READS_PICTURES.set(False)
    try:
        yield
    finally:
        _READS_PICTURES.reset(token)


def image_digests(paths: Sequence[Path]) -> list[str]:
    """Return the digests of many files, several being read at a time."""
    if not _READS_PICTURES.get():
        return ["0" * 64] * len(paths)
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(image_digest, paths))


def list_images(paths: Sequence[str | Path]) -> list[Path]:
    """Return the pictures of files, folders (with all below them, but nothing hidden) and globs: sorted, each once.

    Raises:
        InputError: a path that does not exist, a folder or glob without pictures.
    """
    found: dict[str, Path] = {}  # by absolute path, so that a.jpg and ../here/a.jpg are one picture
    for given in paths:
        path = Path(given)
        if os.path.isdir(path):  # Path.is_dir would raise for a name that is too long
            inside = [file for file in path.rglob("*") if _is_picture(file, path)]
        elif os.path.isfile(path):
            inside = [path]
        else:
            inside = [Path(file) for file in glob.glob(str(given), recursive=True) if os.path.isfile(file)]
        if not inside:
            raise InputError(f"no pictures at {given}; expected a file, a folder with pictures, or a glob that matches")
        for file in inside:
            found.setdefault(os.path.abspath(file), file)
    return sorted(found.values())


def _is_picture(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.suffix.lower() in SUFFIXES and not hidden and file.is_file()
