"""Augmented views of a training picture, each a pure function of its seed, so that their features can be stored.

RandAugment (arXiv 1909.13719, torchvision's) and Cutout (arXiv 1708.04552) over half of each side: the paper's recipe.
"""

from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import RandAugment

CUTOUT_SIDE = 0.5
"""Side of the square that Cutout blanks, as a share of the picture's sides; its centre may lie at the border."""
CUTOUT_GREY = (124, 116, 104)
"""ImageNet's mean colour, RGB."""


VERSION = 1
"""To be raised when the same seed would give another view."""


def augmentation_version() -> tuple[int, str]:
    """Return what the views depend on beside their seed: this file's version and torchvision's."""
    return VERSION, version("torchvision")


def augment(image: Image.Image, seed: Sequence[int]) -> Image.Image:
    """Return one augmented view, the same for the same picture and seed, whatever else is random."""
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**62)))
        view = RandAugment()(image)
    if rng.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    width, height = view.size
    centre = rng.random(2)
    left, top = (int((at - CUTOUT_SIDE / 2) * length) for at, length in zip(centre, (width, height), strict=True))
    hole = (left, top, left + int(CUTOUT_SIDE * width), top + int(CUTOUT_SIDE * height))
    view = view.copy()
    view.paste(CUTOUT_GREY, hole)
    return view
