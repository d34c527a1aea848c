"""MaskCLIP (arXiv 2112.01071, section 3.2): the last attention is left out, its value path stays.

The values that the last attention would have mixed are features of single locations, and its output projection takes
them to text space. It is also what Unmix-CLIP does ("final spatial pooling removed").
"""

from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor

from unmix_clip.backbones.dense.towers import Trunk, output_projection, project, siglip_pool, to_text_space


def maskclip_modified_resnet(visual: ModifiedResNet, trunk: Trunk) -> Tensor:
    """Each location plus its position embedding through `v_proj`, then `c_proj`: (B, N, D)."""
    return output_projection(visual.attnpool)(project(visual.attnpool, trunk.tokens, "v")[:, 1:])


def maskclip_vision_transformer(visual: VisionTransformer, trunk: Trunk) -> Tensor:
    """The last block becomes out_proj(v(ln_1(token))), without residual and without MLP: (B, N, D)."""
    block = visual.transformer.resblocks[-1]
    values = project(block.attn, block.ln_1(trunk.tokens[:, 1:]), "v")
    # ls_1: the block's own scale of this branch, mostly the identity
    return to_text_space(visual, block.ls_1(output_projection(block.attn)(values)))


def maskclip_siglip(visual: TimmModel, trunk: Trunk) -> Tensor:
    """SigLIP's attention pool takes every token (B, N, E) alone: (B, N, D).

    With one token the softmax is 1, so what is left is the value path: y = proj(v(token)), then y +
    mlp(norm(y)). The pool's MLP stays, unlike in the ViT's last block, because pooled features, hence text
    space, lie behind it.
    """
    batch, locations, width = trunk.tokens.shape
    alone = siglip_pool(visual, trunk.tokens.reshape(batch * locations, 1, width))  # (B * N, D)
    return alone.reshape(batch, locations, -1)
