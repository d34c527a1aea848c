"""From maps to a mask: leave out classes that the tags deny, take the best, cut off the background.

Evaluation and the product's own masks share these functions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unmix_clip.errors import InputError

CLASSES_AT_ONCE = 32
"""Maps that are held in the picture's own size at a time."""


@dataclass(frozen=True)
class Prediction:
    """The best class of every pixel and how good it is."""

    mask: Tensor  # (H, W) int64, 1 + class index; 0 where no class is allowed
    height: Tensor  # (H, W), value of the best map; -inf where no class is allowed


def best_classes(maps: Tensor, allowed: Tensor | None = None) -> Prediction:
    """Take the highest of the maps (C, H, W) at each pixel, among the allowed classes (C,) bool."""
    chosen = None if allowed is None else torch.nonzero(allowed)[:, 0]
    if chosen is not None and len(chosen) == 0:
        empty = torch.zeros(maps.shape[1:], dtype=torch.int64)
        return Prediction(empty, torch.full(maps.shape[1:], float("-inf")))
    height, index = (maps if chosen is None else maps[chosen]).max(0)
    if bool(height.isnan().any()):
        raise InputError("the maps contain NaN; expected numbers: check the features that they come from")
    return Prediction((index if chosen is None else chosen[index]) + 1, height)


def best_on_pixels(maps: Tensor, to_pixels: Callable[[Tensor], Tensor], allowed: Tensor | None = None) -> Prediction:
    """Return the best class of every pixel; only allowed maps are brought to the picture, which is what costs.

    Args:
        maps: (C, ...) on the grid, or on the grids of several windows.
        to_pixels: brings maps (k, ...) to the picture's pixels (k, H, W), such as `Preprocessing.grid_to_image`; it is
            asked for at most `CLASSES_AT_ONCE`, so that memory does not grow with the number of classes.
        allowed: (C,) bool, classes that may win; None = all.
    """
    chosen = torch.arange(len(maps)) if allowed is None else torch.nonzero(allowed)[:, 0]
    if len(chosen) == 0:
        return best_classes(to_pixels(maps[:1]), torch.zeros(1, dtype=torch.bool))
    best: Prediction | None = None
    for classes in chosen.split(CLASSES_AT_ONCE):
        found = best_classes(to_pixels(maps[classes]))
        found = Prediction(classes[found.mask - 1] + 1, found.height)
        if best is not None:  # of equal heights the lowest class wins, as in one maximum over all
            higher = found.height > best.height
            found = Prediction(
                torch.where(higher, found.mask, best.mask), torch.where(higher, found.height, best.height)
            )
        best = found
    assert best is not None, "at least one class is chosen"
    return best


def cut_background(best: Prediction, threshold: float | None) -> np.ndarray:
    """Return the mask (H, W) int32: 0 where the best map is below `threshold`; None = nothing is background."""
    mask = best.mask if threshold is None else torch.where(best.height >= threshold, best.mask, 0)
    return mask.numpy().astype(np.int32)
