"""Dense features in text space: one vector a location, from a CLIP that was trained for one a picture.

A table of training-free strategies, every one read for each family of towers that it can be read for. All share one
pass of the trunk, patch nothing and keep no state; they differ in what stands in the place of the last attention.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from unmix_clip.backbones.dense.maskclip import maskclip_modified_resnet, maskclip_siglip, maskclip_vision_transformer
from unmix_clip.backbones.dense.sc_clip import sc_clip_levels, sc_clip_modified_resnet, sc_clip_vision_transformer
from unmix_clip.backbones.dense.self_attention import CLEARCLIP, NACLIP, SCLIP
from unmix_clip.backbones.dense.surgery import VALUES, surgery_levels, surgery_vision_transformer
from unmix_clip.backbones.dense.towers import (
    ImageTower,
    Trunk,
    keep_last_stage_at_stride_1,
    native_input_hw,
    pool,
    resize_position_embedding,
    run_trunk,
    total_stride,
    tower_family,
)

__all__ = [
    "DENSE_STRATEGIES",
    "DenseStrategy",
    "PooledAndDense",
    "defined_strategies",
    "encode_pixels",
    "keep_last_stage_at_stride_1",
    "native_input_hw",
    "resize_position_embedding",
    "total_stride",
    "tower_family",
]


@dataclass(frozen=True)
class DenseStrategy:
    """One way to get dense features (B, N, D), for each family of towers; None where it is not defined.

    To add a rival: write its function for the families that it is made for, add a line below.
    """

    modified_resnet: Callable[[ModifiedResNet, Trunk], Tensor] | None
    vision_transformer: Callable[[VisionTransformer, Trunk], Tensor] | None
    siglip: Callable[[TimmModel, Trunk], Tensor] | None
    levels: Callable[[ImageTower], Collection[int]] = lambda visual: ()
    """Which earlier levels of the trunk it reads, see `Trunk.levels`; nothing else is kept."""


@dataclass(frozen=True)
class PooledAndDense:
    """What one pass of an image tower gives."""

    pooled: Tensor  # (B, D), the picture's feature, not normalised
    dense: dict[str, Tensor]  # strategy -> (B, N, D), one feature a location, row-major, not normalised


DENSE_STRATEGIES: dict[str, DenseStrategy] = {
    "maskclip": DenseStrategy(maskclip_modified_resnet, maskclip_vision_transformer, maskclip_siglip),
    "clip-surgery": DenseStrategy(VALUES.modified_resnet, surgery_vision_transformer, VALUES.siglip, surgery_levels),
    "sclip": DenseStrategy(SCLIP.modified_resnet, SCLIP.vision_transformer, None),
    "clearclip": DenseStrategy(CLEARCLIP.modified_resnet, CLEARCLIP.vision_transformer, None),
    "naclip": DenseStrategy(NACLIP.modified_resnet, NACLIP.vision_transformer, NACLIP.siglip),
    "sc-clip": DenseStrategy(sc_clip_modified_resnet, sc_clip_vision_transformer, None, sc_clip_levels),
}


def defined_strategies(visual: nn.Module) -> tuple[str, ...]:
    """Names of the strategies that are defined for an image tower; none when the tower is not supported."""
    family = tower_family(visual)
    return tuple(name for name, strategy in DENSE_STRATEGIES.items() if family and getattr(strategy, family))


def encode_pixels(visual: ImageTower, pixels: Tensor, names: Sequence[str]) -> PooledAndDense:
    """Run an image tower once: pixels (B, 3, H, W) -> pooled and, by each of `defined_strategies`, dense features."""
    strategies = {name: DENSE_STRATEGIES[name] for name in names}
    levels = {level for strategy in strategies.values() for level in strategy.levels(visual)}
    trunk = run_trunk(visual, pixels, levels)
    family = tower_family(visual)
    assert family is not None, "FrozenClip checks this"
    dense = {name: getattr(strategy, family)(visual, trunk) for name, strategy in strategies.items()}
    return PooledAndDense(pool(visual, trunk), dense)
