"""Maps that follow the picture's edges: Pixel-Adaptive Mask Refinement (Araslanov and Roth, arXiv 2005.08104).

Upstream: visinf/1-stage-wseg, models/mods/pamr.py. Every pixel becomes the mean of its neighbours, weighted by how
alike their colours are, several times over.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from unmix_clip.errors import InputError

ITERATIONS = 10
DILATIONS = (8, 16)
"""Distances of the 8 neighbours in pixels; both as the training-free rivals use them (SCLIP, arXiv 2312.01597)."""
SHARPNESS = 0.1
"""Of the local standard deviation that a colour difference is divided by, upstream's."""


def refine_pamr(
    maps: Tensor, image: Tensor, iterations: int = ITERATIONS, dilations: tuple[int, ...] = DILATIONS
) -> Tensor:
    """Refine maps (C, H, W) to the edges of a picture (3, H, W) float -> (C, H, W); the border is replicated.

    A colour difference is divided by the picture's own spread around the pixel: the scale of `image` has no effect.
    """
    if maps.shape[1:] != image.shape[1:]:
        raise InputError(
            f"the maps are {tuple(maps.shape[1:])}, the picture {tuple(image.shape[1:])} (rows, columns); "
            "expected the same: bring the maps to the picture first"
        )
    around = torch.stack(list(_neighbours(image, dilations)), dim=1)  # (3, K, H, W)
    spread = torch.cat([around, image[:, None].expand(-1, len(dilations), -1, -1)], dim=1).std(1, keepdim=True)
    likeness = -(image[:, None] - around).abs() / (1e-8 + SHARPNESS * spread)
    weights = torch.softmax(likeness.mean(0), dim=0)  # (K, H, W)
    for _ in range(iterations):
        mean = torch.zeros_like(maps)
        for weight, neighbour in zip(weights, _neighbours(maps, dilations), strict=True):
            mean.addcmul_(weight, neighbour)  # one neighbour at a time: a stack of all takes K times the memory
        maps = mean
    return maps


def _neighbours(x: Tensor, dilations: tuple[int, ...]) -> Iterator[Tensor]:
    """Yield x (C, H, W) shifted to each of the 8 neighbours at each distance."""
    height, width = x.shape[-2:]
    for d in dilations:
        padded = F.pad(x[None], [d] * 4, mode="replicate")[0]
        for top in (0, d, 2 * d):
            for left in (0, d, 2 * d):
                if (top, left) != (d, d):
                    yield padded[:, top : top + height, left : left + width]
