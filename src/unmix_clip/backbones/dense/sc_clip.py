"""SC-CLIP (arXiv 2411.15869; SuleBai/SC-CLIP, clip/model.py): a ViT calibrates itself with its earlier blocks.

Four steps, over locations only:
1. Anomalies: tokens that enter the last block and stand apart (local outlier factor, highest 5 %) are replaced by the
   mean of those of their 8 neighbours that are no anomalies.
2. Adjustment: cosines of a middle block's locations say which belong together. Tokens become their mean, weighted by
   the cosines from 0.4 up; the last attention is half k-k attention, half a softmax of these cosines.
3. The last block has no residual and no MLP, but a share of the class token is added.
4. Fusion: the same attention reads the sum of several earlier blocks. Both results are averaged by the cosines of an
   early block, as in step 2, and added.

Upstream fixes the block numbers for 12 blocks; other depths take the blocks at the same share of the depth. It handles
one picture at a time and square grids; here every picture of a batch has its own anomalies and any grid is right. Fewer
than 31 locations have as many neighbours in step 1 as there are others.

Ours, since it was made for ViTs: in a ModifiedResNet the stages are the blocks (the third of four is at the same share
of the depth as the middle block, the second is the early one), averaged to the grid. They end in a ReLU, so nearly all
cosines are above 0.4: the mean location of the picture is subtracted first. The attention pool is the last block, its
tokens without the mean token are what enters it. It has no residual stream, so there is no class token to add in step
3, and stages have other widths than the pool takes, so there is nothing to fuse in step 4. SigLIP is left out: it
has no class token, and a final norm stands between its blocks and its pool.
"""

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import Tensor

from unmix_clip.backbones.dense.towers import (
    ImageTower,
    LastAttention,
    Trunk,
    output_projection,
    project,
    project_heads,
    to_text_space,
)

# Upstream's settings; blocks count from 1.
BLOCKS = 12  # of the ViT that the block numbers are meant for
MIDDLE, EARLY, FUSED = 9, 4, range(4, 11)
NEIGHBOURS, ANOMALOUS = 30, 0.05  # of the outlier factor; share of the locations that it calls anomalous
LEAST_COSINE = 0.4  # below it two locations have nothing to do with each other
SHARPNESS = 3.0  # of the softmax of cosines
CLASS_SHARE = 0.3
TINY = 1e-6


def sc_clip_levels(visual: ImageTower) -> set[int]:
    """Levels that SC-CLIP reads."""
    if isinstance(visual, ModifiedResNet):
        return {_level(MIDDLE, 4), _level(EARLY, 4)}
    depth = len(visual.transformer.resblocks)
    return {_level(block, depth) for block in (MIDDLE, EARLY, *FUSED)}


def sc_clip_vision_transformer(visual: VisionTransformer, trunk: Trunk) -> Tensor:
    """The calibrated last block of a ViT: (B, N, D)."""
    block, depth = visual.transformer.resblocks[-1], len(visual.transformer.resblocks)
    locations = trunk.tokens[:, 1:]
    anomalous = find_anomalies(locations)
    middle = replace_by_neighbours(trunk.levels[_level(MIDDLE, depth)][:, 1:], anomalous, trunk.grid_hw)
    cosines, early_cosines = _cosines(middle), _cosines(trunk.levels[_level(EARLY, depth)][:, 1:])

    def calibrate(tokens: Tensor, class_token: Tensor) -> Tensor:
        mixed = block.ls_1(_attend(block.attn, block.ln_1(tokens), cosines))
        return aggregate(mixed + CLASS_SHARE * class_token, early_cosines)

    adjusted = aggregate(replace_by_neighbours(locations, anomalous, trunk.grid_hw), cosines)
    fused = torch.stack([trunk.levels[_level(number, depth)] for number in FUSED]).sum(dim=0)
    return to_text_space(visual, calibrate(adjusted, trunk.tokens[:, :1]) + calibrate(fused[:, 1:], fused[:, :1]))


def sc_clip_modified_resnet(visual: ModifiedResNet, trunk: Trunk) -> Tensor:
    """Steps 1 and 2 in a ModifiedResNet's attention pool: (B, N, D)."""
    locations = trunk.tokens[:, 1:]
    anomalous = find_anomalies(locations)
    middle, early = (
        F.adaptive_avg_pool2d(trunk.levels[_level(number, 4)], trunk.grid_hw).flatten(2).transpose(1, 2)
        for number in (MIDDLE, EARLY)
    )  # (B, N, E of the stage)
    middle = replace_by_neighbours(middle, anomalous, trunk.grid_hw)
    cosines, early_cosines = (_cosines(level - level.mean(dim=1, keepdim=True)) for level in (middle, early))
    adjusted = aggregate(replace_by_neighbours(locations, anomalous, trunk.grid_hw), cosines)
    return aggregate(_attend(visual.attnpool, adjusted, cosines), early_cosines)


def find_anomalies(locations: Tensor) -> Tensor:
    """Which locations stand apart from those they resemble most: (B, N, E) -> (B, N) bool.

    Upstream's local outlier factor: the squared distance to the k-th nearest, divided by the same of each of the k
    nearest, averaged. (The usual one takes the neighbours' reach into account; upstream's does not.)
    """
    count = locations.shape[1]
    neighbours = min(NEIGHBOURS, count - 1)
    if neighbours == 0:
        return torch.zeros(locations.shape[:2], dtype=torch.bool, device=locations.device)
    points = locations.float()
    distances = torch.cdist(points, points).square()  # (B, N, N)
    distances.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    nearest = distances.topk(neighbours, largest=False)
    reach = nearest.values[..., -1].clamp(min=TINY)  # (B, N)
    reach_of_nearest = reach.gather(1, nearest.indices.flatten(1)).view_as(nearest.values)  # (B, N, k)
    factor = (reach[..., None] / reach_of_nearest).mean(dim=-1)
    return factor > factor.quantile(1 - ANOMALOUS, dim=1, keepdim=True)


def replace_by_neighbours(locations: Tensor, anomalous: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Replace anomalous locations by the mean of their ordinary neighbours on the grid, where they have any.

    Args:
        locations: (B, N, E), row-major.
        anomalous: (B, N) bool.
        grid_hw: rows and columns of locations.
    """
    grid = locations.transpose(1, 2).unflatten(2, grid_hw)  # (B, E, h, w)
    ordinary = (~anomalous).to(grid.dtype).unflatten(1, grid_hw)[:, None]  # (B, 1, h, w)
    total, count = (F.avg_pool2d(each, 3, 1, 1, divisor_override=1) for each in (grid * ordinary, ordinary))
    replaced = torch.where((ordinary == 0) & (count > 0), total / count.clamp(min=1), grid)
    return replaced.flatten(2).transpose(1, 2)


def aggregate(features: Tensor, cosines: Tensor) -> Tensor:
    """Mean of features (B, N, E), weighted by those of the cosines (B, N, N) that are not below 0.4."""
    weights = cosines.masked_fill(cosines < LEAST_COSINE, 0)
    return weights @ features / (weights.sum(dim=-1, keepdim=True) + TINY)


def _attend(attention: LastAttention, tokens: Tensor, cosines: Tensor) -> Tensor:
    """Half k-k attention, half a softmax of the cosines from their mean up, the same for every head: (B, N, E or D)."""
    above = cosines - cosines.mean(dim=(1, 2), keepdim=True)
    itself = torch.eye(len(above[0]), dtype=torch.bool, device=above.device)
    weights = (SHARPNESS * above).masked_fill((above < 0) & ~itself, -torch.inf).softmax(dim=-1)
    keys, values = project_heads(attention, tokens, "k"), project_heads(attention, tokens, "v")
    by_keys = F.scaled_dot_product_attention(keys, keys, values).transpose(1, 2).flatten(2)  # (B, N, E)
    return output_projection(attention)((by_keys + weights @ project(attention, tokens, "v")) / 2)


def _cosines(features: Tensor) -> Tensor:
    """(B, N, E) -> (B, N, N); a location's own is 1 even where the features are 0."""
    unit = F.normalize(features, dim=-1)
    cosines = unit @ unit.transpose(1, 2)
    cosines.diagonal(dim1=1, dim2=2).fill_(1)
    return cosines


def _level(block: int, depth: int) -> int:
    """The level at the same share of `depth` blocks as `block` of upstream's 12; the last block has not run yet."""
    return min(-(-block * depth // BLOCKS), depth - 1)
