"""`dualcoop`: learned positive and negative contexts, both towers frozen (Sun et al., arXiv 2206.09541, section 3).

Upstream: sunxm2357/DualCoOp, models/dualcoop.py. Locations are those of the attention pool's value path. A class's two
scores share weights over the locations: softmax of 20 * cosine with the positive text; logit = 5 * 20 * the difference
of the weighted cosines, which is their softmax over (negative, positive).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmix_clip.config import TrainConfig
from unmix_clip.errors import InputError
from unmix_clip.method.model import ClassTexts, Queries, TagModel
from unmix_clip.method.scoring import Scores

INIT_STD = 0.02
"""Of the random contexts, upstream's."""


class DualCoOp(TagModel):
    """Two contexts, for all classes together or for each class.

    Args:
        config: `context_tokens` M, `class_specific`, `scale` and `gain`.
        token_width: E of the text tower's token embeddings.
        classes: the C names that it is trained on.
    """

    def __init__(self, config: TrainConfig, token_width: int, classes: Sequence[str]) -> None:
        super().__init__()
        self.config, self.classes = config, tuple(classes)
        shape = [len(self.classes)] * config.class_specific + [config.context_tokens, token_width]
        self.positive = nn.Parameter(torch.randn(shape) * INIT_STD)
        self.negative = nn.Parameter(torch.randn(shape) * INIT_STD)

    def project_queries(self, texts: ClassTexts) -> Queries:
        """Return the L2-normalised text features of both contexts for the names asked, (C, D) each."""
        if texts.context is None:
            raise ValueError("dualcoop needs the text tower: pass texts of `encode_classes`")
        both: list[Tensor] = [self.positive, self.negative]
        if self.config.class_specific:
            if foreign := [name for name in texts.names if name not in self.classes]:
                raise InputError(
                    f"class-specific contexts know only the names that they were trained on, not {foreign[0]!r}; "
                    "expected some of those, or a model with class_specific=false"
                )
            rows = [self.classes.index(name) for name in texts.names]
            both = [context[rows] for context in both]
        positive, negative = (F.normalize(texts.context(context), dim=-1) for context in both)
        return Queries(positive, negative)

    def score(
        self, patches: Tensor, queries: Queries, valid: Tensor | None = None, pooled: Tensor | None = None
    ) -> Scores:
        """Score pictures: patches (B, N, D); maps are the positive cosine minus the picture's negative score."""
        assert queries.negative is not None, "project_queries gives both"
        scale, unit = self.config.scale, F.normalize(patches.float(), dim=-1)
        positive, negative = (unit @ q.T for q in (queries.positive, queries.negative))  # (B, N, C)
        sharp = scale * positive
        if valid is not None:
            sharp = sharp.masked_fill(~valid[..., None], float("-inf"))
        weights = torch.softmax(sharp, dim=1)
        pooled_negative = (weights * negative).sum(1)
        logits = self.config.gain * scale * ((weights * positive).sum(1) - pooled_negative)
        return Scores(logits, positive - pooled_negative[:, None])
