"""SCLIP, ClearCLIP, NACLIP: in the last attention each part (q, k or v) attends to itself, not q to k.

What a location asks for is then what resembles it, so features stay where they belong.

- SCLIP (arXiv 2312.01597; wangf3014/SCLIP, clip/model.py): softmax(q q') + softmax(k k'), added, not averaged; residual
  and MLP of the last block stay.
- ClearCLIP (arXiv 2407.12442; mc-lan/ClearCLIP, open_clip/transformer.py): softmax(q q'), without residual and MLP.
- NACLIP (arXiv 2404.08181; sinahmr/NACLIP, clip/model.py): softmax(k k' + a Gaussian of the distance between two
  locations, in cells), without residual and MLP.

Logits are scaled by head_dim ** -0.5. The class token takes part as upstream: it is attended to, with a Gaussian of 0.

Ours, since all three were made for ViTs: a ModifiedResNet's attention pool is read as the last block. It has q, k and v
of its own for every token, its mean token stands where the class token does, and it has neither residual nor MLP to
keep or drop. SigLIP's pool has k and v of its tokens but a learned query, so only what needs no q is defined for it;
the pool's MLP stays, because text space lies behind it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor

from unmix_clip.backbones.dense.towers import LastAttention, Trunk, project_heads, to_output, to_text_space


@dataclass(frozen=True)
class SelfAttention:
    """A form of self-self attention, and how each family of towers is read with it."""

    parts: str
    """Which of q, k, v attend to themselves; the results of several are added."""
    neighbour_std: float | None = None
    """Standard deviation, in cells of the grid, of a Gaussian that is added to the logits; None = no Gaussian."""
    keeps_block: bool = False
    """Whether residual and MLP of a ViT's last block stay."""

    def modified_resnet(self, visual: ModifiedResNet, trunk: Trunk) -> Tensor:
        """The attention pool with all its tokens as queries: (B, N, D)."""
        bias = self._bias(trunk, prefix_tokens=1)
        return attend_to_itself(visual.attnpool, trunk.tokens, self.parts, bias)[:, 1:]

    def vision_transformer(self, visual: VisionTransformer, trunk: Trunk) -> Tensor:
        """The last block with this attention: (B, N, D)."""
        block = visual.transformer.resblocks[-1]
        bias = self._bias(trunk, prefix_tokens=1)
        tokens = block.ls_1(attend_to_itself(block.attn, block.ln_1(trunk.tokens), self.parts, bias))
        if self.keeps_block:
            tokens = trunk.tokens + tokens
            tokens = tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
        return to_text_space(visual, tokens[:, 1:])

    def siglip(self, visual: TimmModel, trunk: Trunk) -> Tensor:
        """SigLIP's attention pool with its tokens in the place of its learned query: (B, N, D)."""
        pool = visual.trunk.attn_pool
        mixed = attend_to_itself(pool, trunk.tokens, self.parts, self._bias(trunk, prefix_tokens=0))
        mixed = mixed + pool.mlp(pool.norm(mixed))
        return visual.head(visual.trunk.head(visual.trunk.fc_norm(mixed)))

    def _bias(self, trunk: Trunk, prefix_tokens: int) -> Tensor | None:
        if self.neighbour_std is None:
            return None
        locations = gaussian_of_distance(trunk.grid_hw, self.neighbour_std).to(trunk.tokens)
        return F.pad(locations, (prefix_tokens, 0, prefix_tokens, 0))


SCLIP = SelfAttention("qk", keeps_block=True)
CLEARCLIP = SelfAttention("q")
NACLIP = SelfAttention("k", neighbour_std=5.0)


def attend_to_itself(attention: LastAttention, tokens: Tensor, parts: str, bias: Tensor | None = None) -> Tensor:
    """Mix an attention's values by how much tokens resemble each other, then apply its output projection.

    Args:
        attention: the attention whose linear maps are used.
        tokens: (B, T, E), normalised as the attention expects.
        parts: which of q, k, v attend to themselves; the results of several are added.
        bias: (T, T), added to the logits of every head; None = nothing.

    Returns:
        (B, T, E), for a ModifiedResNet's pool (B, T, D).
    """
    values = project_heads(attention, tokens, "v")
    mixed = torch.zeros_like(values)
    for part in parts:
        itself = project_heads(attention, tokens, part)
        mixed = mixed + F.scaled_dot_product_attention(itself, itself, values, attn_mask=bias)
    return to_output(attention, mixed)


def gaussian_of_distance(grid_hw: tuple[int, int], std: float) -> Tensor:
    """exp(-d^2 / (2 std^2)) of the distance d between any two locations, in cells: (N, N) float32, row-major."""
    rows, columns = (
        torch.exp(-((torch.arange(side)[:, None] - torch.arange(side)) ** 2) / (2 * std**2)) for side in grid_hw
    )  # (h, h), (w, w)
    return torch.kron(rows, columns)
