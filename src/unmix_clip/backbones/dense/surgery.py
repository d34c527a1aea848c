"""CLIP Surgery (arXiv 2304.05653; xmed-lab/CLIP_Surgery, clip/clip_surgery_model.py): architecture surgery.

In the last six blocks of a ViT a second path runs beside the model's own: it starts with the tokens that enter the
first of them, and each block adds its v-v attention of the *original* path's tokens, never its MLP. In a ModifiedResNet
the attention pool itself becomes v-v attention. Class and mean token take part, logits are scaled by head_dim ** -0.5.

Upstream's attention also has a setting for ResNets (v normalised, scale times 8) that its attention pool does not
switch on; it is left out here too. SigLIP is ours: its pool's v-v attention, MLP behind kept. Feature surgery, the
other half of the paper, works on scores: `baselines/training_free.py`.
"""

from open_clip.transformer import VisionTransformer
from torch import Tensor

from unmix_clip.backbones.dense.self_attention import SelfAttention, attend_to_itself
from unmix_clip.backbones.dense.towers import ImageTower, Trunk, to_text_space

BLOCKS = 6  # of the second path, upstream's; a ViT with fewer has it from the start
VALUES = SelfAttention("v")


def surgery_levels(visual: ImageTower) -> range:
    """Levels that the second path reads: what enters each of the last blocks of a ViT."""
    if not isinstance(visual, VisionTransformer):
        return range(0)
    depth = len(visual.transformer.resblocks)
    return range(max(0, depth - BLOCKS), depth)


def surgery_vision_transformer(visual: VisionTransformer, trunk: Trunk) -> Tensor:
    """The second path of a ViT: (B, N, D)."""
    levels = surgery_levels(visual)
    tokens = trunk.levels[levels[0]]
    for level in levels:
        block = visual.transformer.resblocks[level]
        tokens = tokens + block.ls_1(attend_to_itself(block.attn, block.ln_1(trunk.levels[level]), VALUES.parts))
    return to_text_space(visual, tokens[:, 1:])
