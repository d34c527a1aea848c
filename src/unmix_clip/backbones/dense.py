"""Dense features in text space: one vector a location, from a CLIP that was trained for one a picture.

A CLIP image tower ends in an attention that mixes all locations into one vector. Left out, the values that
this attention would have mixed are features of single locations, and its output projection takes them to text
space: MaskCLIP (arXiv 2112.01071, section 3.2), also what Unmix-CLIP does ("final spatial pooling removed").
Everything here is a pure function of open_clip's own modules, differentiable, and runs the trunk once for
both outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import AttentionPool2d, ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.layers import AttentionPoolLatent
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn

ImageTower: TypeAlias = ModifiedResNet | VisionTransformer | TimmModel


@dataclass(frozen=True)
class PooledAndDense:
    """What one pass of an image tower gives."""

    pooled: Tensor  # (B, D), the picture's feature, not normalised
    dense: Tensor  # (B, N, D), one feature a location, row-major, not normalised


def resize_position_embedding(
    embedding: Tensor, source_hw: tuple[int, int], target_hw: tuple[int, int], prefix_tokens: int = 0
) -> Tensor:
    """Resize a learned position embedding to another grid; the same grid returns it untouched.

    Bicubic with antialiasing, pixel centres aligned, in float32: what open_clip and timm do when they load
    weights.

    Args:
        embedding: (prefix_tokens + h * w, D) of the source grid; the first rows (class or mean token) are
            kept as they are.
        source_hw: (rows, columns) of the grid that the embedding was learned on.
        target_hw: (rows, columns) wanted.
        prefix_tokens: how many leading rows belong to no location.

    Returns:
        (prefix_tokens + target rows * target columns, D), the dtype of `embedding`.
    """
    if source_hw == target_hw:
        return embedding
    prefix, locations = embedding[:prefix_tokens], embedding[prefix_tokens:]
    grid = locations.float().reshape(*source_hw, -1).permute(2, 0, 1)[None]  # (1, D, h, w)
    grid = F.interpolate(grid, size=target_hw, mode="bicubic", antialias=True, align_corners=False)
    resized = grid[0].flatten(1).T.to(embedding.dtype)  # (target h * w, D)
    return torch.cat([prefix, resized])


def modified_resnet_feature_map(visual: ModifiedResNet, pixels: Tensor) -> Tensor:
    """A ModifiedResNet before its attention pool: pixels (B, 3, H, W) -> feature map (B, E, h, w)."""
    features = visual.stem(pixels)
    for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        features = stage(features)
    return features


def attention_pool(pool: AttentionPool2d, feature_map: Tensor) -> PooledAndDense:
    """Run a CLIP ResNet's attention pool on a grid of any size, and its value path for every location.

    pooled: the mean token asks, all tokens answer, as open_clip's forward does (equal at the native grid).
    dense: each location plus its position embedding through `v_proj`, then `c_proj`; attention left out.

    Args:
        pool: the pool; its position embedding is resized when the grid differs from the one it was built for.
        feature_map: (B, E, h, w), output of `modified_resnet_feature_map`.
    """
    tokens = feature_map.flatten(2).transpose(1, 2)  # (B, N, E)
    tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)  # (B, 1 + N, E)
    side = round((pool.positional_embedding.shape[0] - 1) ** 0.5)  # open_clip builds square pools only
    grid_hw = (feature_map.shape[-2], feature_map.shape[-1])
    positions = resize_position_embedding(pool.positional_embedding, (side, side), grid_hw, prefix_tokens=1)
    tokens = tokens + positions.to(tokens.dtype)

    values = pool.v_proj(tokens)  # (B, 1 + N, E)
    mixed = F.scaled_dot_product_attention(
        _split_heads(pool.q_proj(tokens[:, :1]), pool.num_heads),
        _split_heads(pool.k_proj(tokens), pool.num_heads),
        _split_heads(values, pool.num_heads),
    )  # (B, heads, 1, E / heads)
    return PooledAndDense(pooled=pool.c_proj(mixed.flatten(1)), dense=pool.c_proj(values[:, 1:]))


def keep_last_stage_at_stride_1(visual: ModifiedResNet) -> None:
    """Make a ModifiedResNet's total stride 16 instead of 32, in place: a finer grid from the same weights.

    CLIP's ResNets stride by average pooling, so removing the two pools of the last stage leaves every
    convolution as it was trained. Weights and state-dict names do not change; the position embedding is
    resized to the finer grid.
    """
    block = visual.layer4[0]
    block.avgpool = nn.Identity()
    setattr(block.downsample, "-1", nn.Identity())  # the pool before the shortcut's 1x1 convolution
    block.stride = 1


def vision_transformer_tokens(visual: VisionTransformer, pixels: Tensor) -> Tensor:
    """An open_clip ViT before its last block: pixels (B, 3, H, W) -> tokens (B, 1 + N, E), class token first."""
    patches = visual.conv1(pixels)  # (B, E, h, w)
    grid_hw = (patches.shape[-2], patches.shape[-1])
    class_token = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
    tokens = torch.cat([class_token, patches.flatten(2).transpose(1, 2)], dim=1)  # (B, 1 + N, E)
    positions = resize_position_embedding(visual.positional_embedding, visual.grid_size, grid_hw, prefix_tokens=1)
    tokens = visual.ln_pre(tokens + positions.to(tokens.dtype))
    for block in visual.transformer.resblocks[:-1]:
        tokens = block(tokens)
    return tokens


def vision_transformer_pool(visual: VisionTransformer, tokens: Tensor) -> Tensor:
    """The end of an open_clip ViT: tokens after the last block (B, 1 + N, E) -> pooled (B, D)."""
    if not visual.final_ln_after_pool:
        tokens = visual.ln_post(tokens)
    pooled = tokens[:, 0] if visual.pool_type == "tok" else tokens[:, 1:].mean(dim=1)
    if visual.final_ln_after_pool:
        pooled = visual.ln_post(pooled)
    return _project(visual, pooled)


def siglip_tokens(visual: TimmModel, pixels: Tensor) -> Tensor:
    """A SigLIP tower (timm ViT, no class token) before its attention pool: (B, 3, H, W) -> (B, N, E)."""
    trunk = visual.trunk
    patches = trunk.patch_embed.proj(pixels)  # (B, E, h, w)
    grid_hw = (patches.shape[-2], patches.shape[-1])
    tokens = trunk.patch_embed.norm(patches.flatten(2).transpose(1, 2))  # (B, N, E)
    positions = resize_position_embedding(trunk.pos_embed[0], trunk.patch_embed.grid_size, grid_hw)
    return trunk.norm(trunk.blocks(trunk.norm_pre(tokens + positions.to(tokens.dtype))))


def siglip_pool(visual: TimmModel, tokens: Tensor) -> Tensor:
    """The end of a SigLIP tower, timm's own: a learned query attends to tokens (B, N, E) -> pooled (B, D)."""
    return visual.head(visual.trunk.forward_head(tokens))


def maskclip_vision_transformer(visual: VisionTransformer, tokens: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """MaskCLIP for a ViT: the last block becomes out_proj(v(ln_1(token))), without residual and without MLP.

    Args:
        visual: the tower.
        tokens: (B, 1 + N, E), what enters the last block.
        grid_hw: not needed here; part of the contract, because neighbours matter to other strategies.

    Returns:
        (B, N, E), what `ln_post` and the projection to text space take.
    """
    block = visual.transformer.resblocks[-1]
    attention, width = block.attn, tokens.shape[-1]
    values = F.linear(
        block.ln_1(tokens[:, 1:]), attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :]
    )
    return block.ls_1(attention.out_proj(values))  # ls_1: the block's own scale of this branch, mostly the identity


def maskclip_siglip(visual: TimmModel, tokens: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """MaskCLIP for SigLIP's attention pool: every token (B, N, E) alone goes through the pool -> (B, N, D).

    With one token the softmax is 1, so what is left is the value path: y = proj(v(token)), then y +
    mlp(norm(y)). The pool's MLP stays, unlike in the ViT's last block, because pooled features, hence text
    space, lie behind it.
    """
    batch, locations, width = tokens.shape
    alone = siglip_pool(visual, tokens.reshape(batch * locations, 1, width))  # (B * N, D)
    return alone.reshape(batch, locations, -1)


@dataclass(frozen=True)
class DenseStrategy:
    """One way to get dense features, for each family of towers; None where it is not defined.

    To add a rival (SCLIP, NACLIP, ...): write its function for the families that it is made for, add a line
    below.
    """

    modified_resnet: Callable[[AttentionPool2d, Tensor], PooledAndDense] | None
    vision_transformer: Callable[[VisionTransformer, Tensor, tuple[int, int]], Tensor] | None
    siglip: Callable[[TimmModel, Tensor, tuple[int, int]], Tensor] | None


DENSE_STRATEGIES: dict[str, DenseStrategy] = {
    "maskclip": DenseStrategy(attention_pool, maskclip_vision_transformer, maskclip_siglip),
}


def encode_pixels(visual: ImageTower, pixels: Tensor, strategy: DenseStrategy) -> PooledAndDense:
    """Run an image tower once: pixels (B, 3, H, W) -> pooled (B, D) and dense (B, N, D) features."""
    if isinstance(visual, ModifiedResNet):
        assert strategy.modified_resnet is not None, "FrozenClip checks this"
        return strategy.modified_resnet(visual.attnpool, modified_resnet_feature_map(visual, pixels))
    stride_hw = total_stride(visual)
    grid_hw = (pixels.shape[-2] // stride_hw[0], pixels.shape[-1] // stride_hw[1])
    if isinstance(visual, VisionTransformer):
        assert strategy.vision_transformer is not None, "FrozenClip checks this"
        tokens = vision_transformer_tokens(visual, pixels)
        locations = visual.ln_post(strategy.vision_transformer(visual, tokens, grid_hw))  # (B, N, E)
        pooled = vision_transformer_pool(visual, visual.transformer.resblocks[-1](tokens))
        return PooledAndDense(pooled, _project(visual, locations))
    assert isinstance(visual, TimmModel), "FrozenClip checks this"
    assert strategy.siglip is not None, "FrozenClip checks this"
    tokens = siglip_tokens(visual, pixels)
    return PooledAndDense(siglip_pool(visual, tokens), strategy.siglip(visual, tokens, grid_hw))


def tower_family(visual: nn.Module) -> str | None:
    """Name the family of an image tower, a field of `DenseStrategy`; None when it is not supported."""
    if isinstance(visual, ModifiedResNet):
        return "modified_resnet"
    if isinstance(visual, VisionTransformer):
        plain_attention = isinstance(visual.transformer.resblocks[-1].attn, nn.MultiheadAttention)
        plain_pool = visual.attn_pool is None and visual.pool_type in ("tok", "avg")
        return "vision_transformer" if plain_attention and plain_pool else None
    trunk: Any = getattr(visual, "trunk", None)
    is_siglip = isinstance(trunk, TimmVisionTransformer) and isinstance(trunk.attn_pool, AttentionPoolLatent)
    if is_siglip and trunk.num_prefix_tokens == 0 and trunk.pos_embed is not None and trunk.attn_pool.pos_embed is None:
        return "siglip"
    return None


def total_stride(visual: ImageTower) -> tuple[int, int]:
    """Pixels from one location of the grid to the next, (down, right)."""
    if isinstance(visual, ModifiedResNet):
        stride = 16 * visual.layer4[0].stride
        return (stride, stride)
    patch_hw = visual.patch_size if isinstance(visual, VisionTransformer) else visual.trunk.patch_embed.patch_size
    return (patch_hw[0], patch_hw[1])


def native_input_hw(visual: ImageTower) -> tuple[int, int]:
    """Rows and columns of pixels that an image tower was made for."""
    size = visual.image_size
    return (size[0], size[1]) if isinstance(size, tuple) else (size, size)


def _project(visual: VisionTransformer, features: Tensor) -> Tensor:
    """(..., E) -> (..., D), text space."""
    return features if visual.proj is None else features @ visual.proj


def _split_heads(tokens: Tensor, heads: int) -> Tensor:
    """(B, N, E) -> (B, heads, N, E / heads)."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)
