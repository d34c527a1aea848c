"""From projected locations and texts to a logit per class and picture, and to a map per class.

Two scores (arXiv 2502.02977, and ours). Neither looks at other names: logit and map depend on their class alone.

dual: positive and negative prompt. s = scale * cos(location, text), weights = softmax of s over locations,
    branch = gain * sum(weights * s), each branch with its own weights; probability = softmax over (negative, positive).
positive: only the positive prompt. logit = gain * (mean of the highest cosines - bias), one learned bias.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

PAPER_SCALE = 20.0
"""Multiplies cosines before the softmax over locations (the author's public code)."""
PAPER_GAIN = 5.0
"""Multiplies the pooled score (the author's public code)."""


@dataclass(frozen=True)
class Scores:
    """Scores of a batch of pictures."""

    logits: Tensor  # (B, C); sigmoid gives the probability that the class is present
    maps: Tensor  # (B, N, C); higher = more of the class at that location


def pool_softmax(cosines: Tensor, valid: Tensor | None = None, scale: float = PAPER_SCALE) -> Tensor:
    """Pool cosines (B, N, C) over locations with weights softmax(scale * cosine) -> (B, C).

    `valid` (B, N) bool excludes locations that show padding.
    """
    sharp = cosines * scale
    if valid is not None:
        sharp = sharp.masked_fill(~valid[..., None], float("-inf"))
    return (torch.softmax(sharp, dim=1) * cosines).sum(1)


def pool_top(cosines: Tensor, valid: Tensor | None = None, share: float = 0.1) -> Tensor:
    """Mean of the highest `share` of the (valid) locations, at least one: (B, N, C) -> (B, C)."""
    if valid is None or bool(valid.all()):
        count = max(1, round(share * cosines.shape[1]))
        return cosines.topk(count, dim=1, sorted=False).values.mean(1)
    counts = (share * valid.sum(1)).round().long().clamp(min=1)  # (B,)
    top = cosines.masked_fill(~valid[..., None], float("-inf")).topk(int(counts.max()), dim=1).values  # (B, k, C)
    taken = torch.arange(top.shape[1], device=top.device)[None] < counts[:, None]  # (B, k)
    return torch.where(taken[..., None], top, 0).sum(1) / counts[:, None]


@dataclass(frozen=True)
class Cosines:
    """Cosines of a batch of pictures with the texts of one kind of prompt."""

    locations: Tensor  # (B, N, C)
    whole: Tensor | None = None  # (B, C), of the picture's pooled feature
    whole_share: float = 0.0
    """Weight of `whole` in a picture's score, in [0, 1]; the locations have the rest."""

    def mixed(self, pooled: Tensor) -> Tensor:
        """Mix the pooled cosines of the locations (B, C) with those of the whole picture."""
        return pooled if self.whole is None else (1 - self.whole_share) * pooled + self.whole_share * self.whole


def score_dual(
    positive: Cosines,
    negative: Cosines,
    valid: Tensor | None = None,
    *,
    scale: float = PAPER_SCALE,
    gain: float = PAPER_GAIN,
) -> Scores:
    """The paper's score from the cosines with the positive and the negative texts.

    The logit of softmax over (negative, positive) is the difference of the branches. The map is the positive cosine at
    the location minus the picture's pooled negative one: the positive cosine alone is worse than plain CLIP.
    """
    pooled_positive = positive.mixed(pool_softmax(positive.locations, valid, scale))
    pooled_negative = negative.mixed(pool_softmax(negative.locations, valid, scale))
    return Scores(
        logits=gain * scale * (pooled_positive - pooled_negative),
        maps=positive.locations - pooled_negative[:, None],
    )


def score_positive(
    positive: Cosines, bias: Tensor, valid: Tensor | None = None, *, gain: float = 100.0, share: float = 0.1
) -> Scores:
    """Our score from the cosines with the positive texts alone; the map is the cosine.

    Args:
        positive: the cosines.
        bias: scalar: the pooled cosine at which a class is as likely present as absent.
        valid: (B, N) bool, False at locations that show padding.
        gain: logits per unit of cosine.
        share: share of the locations that count, see `pool_top`.
    """
    pooled = positive.mixed(pool_top(positive.locations, valid, share))
    return Scores(logits=gain * (pooled - bias), maps=positive.locations)
