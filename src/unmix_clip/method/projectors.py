"""The two projectors, the only trained parameters (arXiv 2502.02977; sizes from the author's public code).

RN101 (D = 512): Linear 512-256 for locations, Linear 512-384 - BatchNorm - ReLU - Linear 384-256 for texts, no biases:
426,752 parameters. RN50 (D = 1024): 1,705,472.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FixedStatisticsNorm(nn.Module):
    """BatchNorm over class texts whose statistics belong to the model, not to the names that are asked.

    In training it normalises with the statistics of the texts it is given, which are always the whole training class
    list, and remembers them. In evaluation it uses the remembered ones, so a class's feature does not depend on which
    other names are asked with it, and the training list gives the very same features in both modes.
    (The author's code trains with statistics off and tests with them on, over whatever names are asked.)
    """

    mean: Tensor
    var: Tensor

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("var", torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each dimension of x (T, width)."""
        if self.training:
            mean, var = x.mean(0), x.var(0, correction=0)
            with torch.no_grad():
                self.mean.copy_(mean)
                self.var.copy_(var)
        else:
            mean, var = self.mean, self.var
        return (x - mean) * torch.rsqrt(var + self.eps) * self.weight + self.bias


class TextProjector(nn.Sequential):
    """Text features (T, D) -> (T, d): `depth` linear layers, [norm] and ReLU between them, no biases."""

    def __init__(self, width: int, hidden: int, out: int, norm: bool, depth: int = 2) -> None:
        widths = [width, *[hidden] * (depth - 1), out]
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(pairwise(widths)):
            if i:
                layers += [FixedStatisticsNorm(before), nn.ReLU()] if norm else [nn.ReLU()]
            layers.append(nn.Linear(before, after, bias=False))
        super().__init__(*layers)


def image_projector(width: int, hidden: int, out: int, depth: int) -> nn.Module:
    """Location features (..., D) -> (..., d): one linear layer as published, or `depth` of them with ReLU between."""
    return nn.Linear(width, out, bias=False) if depth == 1 else TextProjector(width, hidden, out, False, depth)


class Projectors(nn.Module):
    """Both projectors with the constants that centre their inputs; outputs are L2-normalised.

    Args:
        width: D of the backbone.
        out: width d of the shared projected space.
        hidden: hidden width of the text projector.
        text_norm: whether the text projector has its BatchNorm.
        text_depth, image_depth: linear layers of either projector.

    Buffers:
        patch_mean, pooled_mean, text_mean: (D,) subtracted from L2-normalised inputs; zeros where a recipe does not
            centre.
    """

    bias: Tensor
    patch_mean: Tensor
    pooled_mean: Tensor
    text_mean: Tensor

    def __init__(
        self, width: int, out: int, hidden: int, text_norm: bool, *, text_depth: int = 2, image_depth: int = 1
    ) -> None:
        super().__init__()
        self.image = image_projector(width, hidden, out, image_depth)
        self.text = TextProjector(width, hidden, out, text_norm, text_depth)
        self.bias = nn.Parameter(torch.zeros(()))
        self.register_buffer("patch_mean", torch.zeros(width))
        self.register_buffer("pooled_mean", torch.zeros(width))
        self.register_buffer("text_mean", torch.zeros(width))

    def project_patches(self, patches: Tensor) -> Tensor:
        """Project location features (B, N, D) to unit vectors (B, N, d)."""
        unit = F.normalize(patches.float(), dim=-1)
        return F.normalize(self.image(unit - self.patch_mean), dim=-1)

    def project_pooled(self, pooled: Tensor) -> Tensor:
        """Project features of whole pictures (B, D) to unit vectors (B, d), with the image projector."""
        unit = F.normalize(pooled.float(), dim=-1)
        return F.normalize(self.image(unit - self.pooled_mean), dim=-1)

    def project_texts(self, texts: Tensor) -> Tensor:
        """Project text features (T, D) to unit vectors (T, d)."""
        unit = F.normalize(texts.float(), dim=-1)
        return F.normalize(self.text(unit - self.text_mean), dim=-1)

    def trained_parameters(self) -> int:
        """Number of parameters of the two projectors, as the paper counts them (without the scalar bias)."""
        return sum(p.numel() for part in (self.image, self.text) for p in part.parameters())
