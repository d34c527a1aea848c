"""What a frozen CLIP gives without training: `clip` (one feature a picture) and `maskclip` (one a location).

Each comes in four forms: raw cosines or a softmax over the names asked (the scale is chosen on the fitting split), with
the features as they are or mean-centred (pictures: mean of the fitting split; texts: mean of the names asked). The
softmax and centred forms depend on which other names are asked; the raw ones do not.

MaskCLIP: arXiv 2112.01071. Its tag score here is the mean of the highest 10 % of the locations. `clip` says nothing
about places: its map is the picture's score everywhere.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from unmix_clip.method.scoring import Scores, pool_top

POOL_SHARE = 0.1
SOFTMAX_SCALES = (3.0, 6.0, 12.0, 25.0, 50.0, 100.0)
"""Candidates for the softmax over names; CLIP itself was trained with up to 100."""

NAMES = tuple(
    f"{kind}{centred}{softmax}"
    for kind in ("clip", "maskclip")
    for centred in ("", "-centred")
    for softmax in ("", "-softmax")
)
"""clip, clip-softmax, clip-centred, clip-centred-softmax, and the same for maskclip."""


@dataclass(frozen=True)
class TrainingFree:
    """A training-free score over a list of names."""

    name: str
    texts: Tensor  # (C, D) L2-normalised
    dense: bool
    """Whether locations are scored (`maskclip`) or the picture (`clip`)."""
    scale: float | None = None
    """Scale of the softmax over names; None = raw cosines."""
    mean: Tensor | None = None  # (D,) subtracted from L2-normalised features; None = not centred

    def score(self, patches: Tensor, pooled: Tensor, valid: Tensor | None) -> Scores:
        """Score pictures: patches (B, N, D), pooled (B, D), both L2-normalised, valid (B, N)."""
        features = patches if self.dense else pooled[:, None]  # (B, N or 1, D)
        if self.mean is not None:
            features = F.normalize(features - self.mean, dim=-1)
        maps = features @ self.texts.T  # (B, N or 1, C)
        if self.scale is not None:
            maps = torch.softmax(self.scale * maps, dim=-1)
        if self.dense:
            return Scores(pool_top(maps, valid, POOL_SHARE), maps)
        return Scores(maps[:, 0], maps.expand(-1, patches.shape[1], -1))

    def with_scale(self, scale: float) -> "TrainingFree":
        """Return the same score with another softmax scale."""
        return replace(self, scale=scale)


def build_training_free(name: str, texts: Tensor, mean_patch: Tensor, mean_pooled: Tensor) -> TrainingFree:
    """Build one of `NAMES`.

    Args:
        name: its name.
        texts: (C, D) text features of the names asked.
        mean_patch: (D,) mean L2-normalised location of the fitting split.
        mean_pooled: (D,) mean L2-normalised pooled feature of the fitting split.
    """
    dense, centred, softmax = name.startswith("maskclip"), "-centred" in name, name.endswith("-softmax")
    unit = F.normalize(texts.float(), dim=-1)
    if centred:
        unit = F.normalize(unit - unit.mean(0), dim=-1)
    mean = (mean_patch if dense else mean_pooled) if centred else None
    return TrainingFree(name, unit, dense, SOFTMAX_SCALES[0] if softmax else None, mean)
