"""tmp."""

from pathlib import Path
from PIL import Image


def load_image(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def list_images(paths):
    return [Path(p) for p in paths]
