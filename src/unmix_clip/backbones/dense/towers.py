"""What runs an image tower: one pass of its trunk at any input size, its pooling, and the ways into text space.

Three families: CLIP's ModifiedResNet with its attention pool, open_clip's ViT, and SigLIP (timm's ViT with an attention
pool). A CLIP image tower ends in an attention that mixes all locations into one vector. `run_trunk` stops before it;
`pool` is that end as the model was trained; the dense strategies are other ends, made of the same modules. Everything
is a pure function of open_clip's own modules and differentiable.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
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
LastAttention: TypeAlias = AttentionPool2d | nn.MultiheadAttention | AttentionPoolLatent


@dataclass(frozen=True)
class Trunk:
    """What one pass of an image tower leaves for its pooling and for the dense strategies."""

    tokens: Tensor
    """What enters the last block (ViT) or the attention pool: (B, 1 + N, E), the class token (ViT) or the mean of the
    locations (ModifiedResNet) first, then the locations row by row; SigLIP has no such first token: (B, N, E)."""
    grid_hw: tuple[int, int]
    """Rows and columns of locations, N = rows * columns."""
    levels: Mapping[int, Tensor] = field(default_factory=dict)
    """Of the levels asked for: level i is what i blocks of a ViT (B, 1 + N, E) or i stages of a ModifiedResNet
    (B, E_i, h_i, w_i) give."""


def run_trunk(visual: ImageTower, pixels: Tensor, levels: Collection[int] = ()) -> Trunk:
    """Run an image tower up to its last mixing: pixels (B, 3, H, W) -> `Trunk`, with no more levels than asked for."""
    if isinstance(visual, ModifiedResNet):
        return _run_modified_resnet(visual, pixels, levels)
    if isinstance(visual, VisionTransformer):
        return _run_vision_transformer(visual, pixels, levels)
    assert isinstance(visual, TimmModel), "FrozenClip checks this"
    return _run_siglip(visual, pixels)


def pool(visual: ImageTower, trunk: Trunk) -> Tensor:
    """The end of an image tower as the model was trained: pooled (B, D), equal to open_clip's forward."""
    if isinstance(visual, ModifiedResNet):
        # The mean token asks, all tokens answer.
        query, keys, values = (
            project_heads(visual.attnpool, tokens, part)
            for tokens, part in ((trunk.tokens[:, :1], "q"), (trunk.tokens, "k"), (trunk.tokens, "v"))
        )
        return to_output(visual.attnpool, F.scaled_dot_product_attention(query, keys, values))[:, 0]
    if isinstance(visual, TimmModel):
        return siglip_pool(visual, trunk.tokens)
    tokens = visual.transformer.resblocks[-1](trunk.tokens)
    if not visual.final_ln_after_pool:
        tokens = visual.ln_post(tokens)
    pooled = tokens[:, 0] if visual.pool_type == "tok" else tokens[:, 1:].mean(dim=1)
    if visual.final_ln_after_pool:
        pooled = visual.ln_post(pooled)
    return pooled if visual.proj is None else pooled @ visual.proj


def to_text_space(visual: VisionTransformer, tokens: Tensor) -> Tensor:
    """What a ViT does to its class token at the very end, for any tokens: (B, N, E) -> (B, N, D)."""
    tokens = visual.ln_post(tokens)
    return tokens if visual.proj is None else tokens @ visual.proj


def siglip_pool(visual: TimmModel, tokens: Tensor) -> Tensor:
    """The end of a SigLIP tower, timm's own: a learned query attends to tokens (B, N, E) -> pooled (B, D)."""
    return visual.head(visual.trunk.forward_head(tokens))


def project(attention: LastAttention, tokens: Tensor, part: str) -> Tensor:
    """An attention's own linear map of tokens (B, T, E) to `part`, one of q, k, v: (B, T, E).

    SigLIP's pool has no q of its tokens: there a learned vector asks.
    """
    if isinstance(attention, AttentionPool2d):
        return getattr(attention, f"{part}_proj")(tokens)
    weight, bias, parts = (
        (attention.in_proj_weight, attention.in_proj_bias, "qkv")
        if isinstance(attention, nn.MultiheadAttention)
        else (attention.kv.weight, attention.kv.bias, "kv")
    )
    number = parts.index(part)
    return F.linear(tokens, weight.chunk(len(parts))[number], None if bias is None else bias.chunk(len(parts))[number])


def project_heads(attention: LastAttention, tokens: Tensor, part: str) -> Tensor:
    """`project`, head by head, as the attention compares them: (B, T, E) -> (B, heads, T, E / heads)."""
    heads = project(attention, tokens, part).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    return attention.k_norm(heads) if isinstance(attention, AttentionPoolLatent) and part == "k" else heads


def to_output(attention: LastAttention, mixed: Tensor) -> Tensor:
    """Put heads (B, heads, T, E / heads) together and apply the attention's output projection: (B, T, E or D)."""
    return output_projection(attention)(mixed.transpose(1, 2).flatten(2))


def output_projection(attention: LastAttention) -> nn.Module:
    """The linear map that an attention ends in; a ModifiedResNet's leads to text space."""
    if isinstance(attention, AttentionPool2d):
        return attention.c_proj
    return attention.out_proj if isinstance(attention, nn.MultiheadAttention) else attention.proj


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


def _run_modified_resnet(visual: ModifiedResNet, pixels: Tensor, levels: Collection[int]) -> Trunk:
    """The stem and four stages, then the tokens of the attention pool, its position embedding resized to the grid."""
    kept, features = {}, visual.stem(pixels)
    for number, stage in enumerate((visual.layer1, visual.layer2, visual.layer3, visual.layer4), start=1):
        features = stage(features)
        if number in levels:
            kept[number] = features
    grid_hw = (features.shape[-2], features.shape[-1])
    tokens = features.flatten(2).transpose(1, 2)  # (B, N, E)
    tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)  # (B, 1 + N, E)
    embedding = visual.attnpool.positional_embedding
    side = round((embedding.shape[0] - 1) ** 0.5)  # open_clip builds square pools only
    positions = resize_position_embedding(embedding, (side, side), grid_hw, prefix_tokens=1)
    return Trunk(tokens + positions.to(tokens.dtype), grid_hw, kept)


def _run_vision_transformer(visual: VisionTransformer, pixels: Tensor, levels: Collection[int]) -> Trunk:
    """All blocks but the last."""
    patches = visual.conv1(pixels)  # (B, E, h, w)
    grid_hw = (patches.shape[-2], patches.shape[-1])
    class_token = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
    tokens = torch.cat([class_token, patches.flatten(2).transpose(1, 2)], dim=1)  # (B, 1 + N, E)
    positions = resize_position_embedding(visual.positional_embedding, visual.grid_size, grid_hw, prefix_tokens=1)
    tokens = visual.ln_pre(tokens + positions.to(tokens.dtype))
    kept = {0: tokens} if 0 in levels else {}
    for number, block in enumerate(visual.transformer.resblocks[:-1], start=1):
        tokens = block(tokens)
        if number in levels:
            kept[number] = tokens
    return Trunk(tokens, grid_hw, kept)


def _run_siglip(visual: TimmModel, pixels: Tensor) -> Trunk:
    """All of timm's ViT (no class token) but its attention pool."""
    trunk = visual.trunk
    patches = trunk.patch_embed.proj(pixels)  # (B, E, h, w)
    grid_hw = (patches.shape[-2], patches.shape[-1])
    tokens = trunk.patch_embed.norm(patches.flatten(2).transpose(1, 2))  # (B, N, E)
    positions = resize_position_embedding(trunk.pos_embed[0], trunk.patch_embed.grid_size, grid_hw)
    tokens = trunk.norm(trunk.blocks(trunk.norm_pre(tokens + positions.to(tokens.dtype))))
    return Trunk(tokens, grid_hw)
