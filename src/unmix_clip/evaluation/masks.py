"""From maps to a mask: resize, leave out classes that the tags deny, take the best, cut off the background.

Evaluation and the product's own masks share these functions.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unmix_clip.errors import InputError
from unmix_clip.evaluation.protocols import Protocol


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


def resize_maps(maps: Tensor, image_hw: tuple[int, int]) -> Tensor:
    """Bring maps (C, h, w) that cover the whole picture to its pixels (C, H, W): bilinear, centres aligned."""
    if tuple(maps.shape[-2:]) == tuple(image_hw):
        return maps
    return F.interpolate(maps[None], size=tuple(image_hw), mode="bilinear", align_corners=False)[0]


def best_on_pixels(
    maps: Tensor,
    tag_scores: Tensor | None,
    protocol: Protocol,
    image_hw: tuple[int, int],
    tag_threshold: float | Tensor | None = None,
) -> Prediction:
    """Return the best class of every pixel (H, W) under a protocol's gate; only allowed maps are resized.

    Args:
        maps: (C, h, w) or (C, H, W), covering the whole picture.
        tag_scores: (C,); used by protocols with a tag gate.
        protocol: decides about the gate.
        image_hw: rows and columns of the picture.
        tag_threshold: score from which a class counts as present, one or one a class (C,).
    """
    if not protocol.tag_gate:
        return best_classes(resize_maps(maps, image_hw))
    if tag_scores is None or tag_threshold is None:
        raise InputError(f"protocol {protocol.name} keeps absent classes out: it needs tag scores and a tag threshold")
    chosen = torch.nonzero(tag_scores >= tag_threshold)[:, 0]
    if len(chosen) == 0:
        return best_classes(maps.new_zeros(1, *image_hw), torch.zeros(1, dtype=torch.bool))
    best = best_classes(resize_maps(maps[chosen], image_hw))
    return Prediction(chosen[best.mask - 1] + 1, best.height)


def predict_mask(
    maps: Tensor,
    tag_scores: Tensor | None,
    protocol: Protocol,
    image_hw: tuple[int, int],
    *,
    tag_threshold: float | Tensor | None = None,
    background_threshold: float | None = None,
) -> np.ndarray:
    """Return the mask (H, W) int32 of one picture: 0 background, 1 + class index.

    Args:
        maps: (C, h, w) or (C, H, W), covering the whole picture.
        tag_scores: (C,); used by protocols with a tag gate.
        protocol: decides about gate and background.
        image_hw: rows and columns of the picture.
        tag_threshold: score from which a class counts as present, one or one a class (C,).
        background_threshold: map value under which a pixel is background, for protocols with that rule.
    """
    best = best_on_pixels(maps, tag_scores, protocol, image_hw, tag_threshold)
    if protocol.background == "ignored":
        return best.mask.numpy().astype(np.int32)
    if background_threshold is None:
        raise InputError(f"protocol {protocol.name} needs a background threshold, fitted on another split")
    return torch.where(best.height >= background_threshold, best.mask, 0).numpy().astype(np.int32)
