"""What a frozen CLIP gives without training: `clip` (one feature a picture), and one feature a location by each dense
strategy (`maskclip`, `sclip`, `clearclip`, `naclip`, `sc-clip`, `clip-surgery`; see `backbones/dense`).

Each comes in four forms: raw cosines or a softmax over the names asked (the scale is chosen on the fitting split), with
the features as they are or mean-centred (pictures: mean of the fitting split; texts: mean of the names asked). The
softmax and centred forms depend on which other names are asked; so does `clip-surgery`, whose feature surgery
(arXiv 2304.05653, section 3.3; xmed-lab/CLIP_Surgery, clip/clip.py) subtracts what all names have in common.

Tag scores: mean of the highest 10 % of the locations; `clip` and `clip-surgery` take the picture's own feature, as
published. `clip` says nothing about places: its map is the picture's score everywhere.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from unmix_clip.method.scoring import Scores, pool_top

POOL_SHARE = 0.1
SOFTMAX_SCALES = (3.0, 6.0, 12.0, 25.0, 50.0, 100.0)
"""Candidates for the softmax over names; CLIP itself was trained with up to 100."""
SURGERY_SCALE = 2.0
"""Of the softmax over names that weighs them in feature surgery, upstream's."""
SURGERY = "clip-surgery"
FORMS = ("", "-softmax", "-centred", "-centred-softmax")
DENSE = ("maskclip", SURGERY, "sclip", "clearclip", "naclip", "sc-clip")
"""Dense strategies with a training-free score of their own."""
NAMES = tuple(f"{kind}{form}" for kind in ("clip", *DENSE) for form in FORMS if kind != SURGERY or not form)
"""clip, clip-softmax, clip-centred, clip-centred-softmax, the same for every dense strategy but clip-surgery."""
PLAIN = tuple(f"{kind}{form}" for kind in ("clip", "maskclip") for form in FORMS)
"""All forms of the two plain scores."""
PUBLISHED = ("clip", *DENSE)
"""Every rival as it was published."""


@dataclass(frozen=True)
class TrainingFree:
    """A training-free score over a list of names."""

    name: str
    texts: Tensor  # (C, D) L2-normalised
    dense: str | None
    """The dense strategy whose locations are scored; None = the picture (`clip`)."""
    scale: float | None = None
    """Scale of the softmax over names; None = raw cosines."""
    mean: Tensor | None = None  # (D,) subtracted from L2-normalised features; None = not centred

    def score(self, patches: Tensor, pooled: Tensor, valid: Tensor | None) -> Scores:
        """Score pictures: patches (B, N, D), pooled (B, D), both L2-normalised, valid (B, N)."""
        if self.dense == SURGERY:
            both = operate(torch.cat([pooled[:, None], patches], dim=1) @ self.texts.T, pooled @ self.texts.T)
            return Scores(both[:, 0], both[:, 1:])
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


def operate(cosines: Tensor, pooled_cosines: Tensor) -> Tensor:
    """CLIP Surgery's feature surgery on cosines (B, N, C), with those of the whole picture (B, C) -> (B, N, C).

    Upstream multiplies features and texts element by element, weighs names by how much the picture as a whole shows
    them, subtracts the mean over names and sums over the width; all of it is linear, so it is done on the sums.
    """
    probability = torch.softmax(SURGERY_SCALE * pooled_cosines, dim=-1)
    weights = probability / probability.mean(-1, keepdim=True)
    weighted = cosines * weights[:, None]
    return weighted - weighted.mean(-1, keepdim=True)


def dense_of(name: str) -> str | None:
    """Return the dense strategy that a training-free method scores; None for `clip`'s forms."""
    kind = name.removesuffix("-softmax").removesuffix("-centred")
    return None if kind == "clip" else kind


def build_training_free(name: str, texts: Tensor, mean: Tensor | None) -> TrainingFree:
    """Build one of `NAMES`.

    Args:
        name: its name.
        texts: (C, D) text features of the names asked.
        mean: (D,) mean L2-normalised location of the fitting split by its dense strategy, for `clip` pooled feature;
            only the centred forms need it.
    """
    dense, centred, softmax = dense_of(name), "-centred" in name, name.endswith("-softmax")
    unit = F.normalize(texts.float(), dim=-1)
    if centred:
        unit = F.normalize(unit - unit.mean(0), dim=-1)
    return TrainingFree(name, unit, dense, SOFTMAX_SCALES[0] if softmax else None, mean if centred else None)
