"""What a data set is to the rest of the program."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

IGNORE = -1
"""Mask value of pixels that count for nothing (255 in files)."""


@dataclass(frozen=True)
class Sample:
    """One picture; the picture and its mask are read when they are asked for."""

    key: str
    labels: np.ndarray | None  # (C,) int8: 1 present, 0 absent, -1 unknown; None = not labelled
    load_image: Callable[[], Image.Image]
    load_mask: Callable[[], np.ndarray] | None  # (H, W) int32: 0 background, 1 + class index, IGNORE
    digest: str


@dataclass(frozen=True)
class Dataset:
    """A list of pictures and the names that their labels and masks are about."""

    spec: str
    classes: tuple[str, ...]
    samples: Sequence[Sample]
    notes: dict[str, int]
