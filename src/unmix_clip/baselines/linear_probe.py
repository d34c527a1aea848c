"""`linear-probe`: a linear classifier a class on the frozen picture feature, as Radford et al. (arXiv 2103.00020, 3.2).

Trained by the same loop, loss and thresholds as the projectors. It has no texts: it knows just the names that it was
trained on. Its map is the same classifier on every location, as class activation maps are (arXiv 1512.04150).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmix_clip.config import TrainConfig
from unmix_clip.errors import InputError
from unmix_clip.method.model import ClassTexts, Queries, TagModel
from unmix_clip.method.scoring import Scores


class LinearProbe(TagModel):
    """Linear classifiers of pooled features.

    Args:
        config: `gain` scales the L2-normalised features.
        width: D of the backbone.
        classes: the C names.
    """

    def __init__(self, config: TrainConfig, width: int, classes: Sequence[str]) -> None:
        super().__init__()
        self.config, self.classes = config, tuple(classes)
        self.head = nn.Linear(width, len(self.classes))

    def project_queries(self, texts: ClassTexts) -> Queries:
        """Return the classifiers of the names asked, their bias as the last column (C, D + 1)."""
        if foreign := [name for name in texts.names if name not in self.classes]:
            raise InputError(
                f"a linear probe knows only the names that it was trained on, not {foreign[0]!r}; expected some of "
                f"{', '.join(self.classes[:8])}, ..."
            )
        rows = [self.classes.index(name) for name in texts.names]
        return Queries(torch.cat([self.head.weight, self.head.bias[:, None]], dim=1)[rows], None)

    def score(
        self, patches: Tensor, queries: Queries, valid: Tensor | None = None, pooled: Tensor | None = None
    ) -> Scores:
        """Score pictures: patches (B, N, D), pooled (B, D)."""
        if pooled is None:
            raise ValueError("a linear probe scores pooled features: pass pooled (B, D)")
        weight, bias = queries.positive[:, :-1], queries.positive[:, -1]
        logits, maps = (
            F.linear(self.config.gain * F.normalize(x.float(), dim=-1), weight, bias) for x in (pooled, patches)
        )
        return Scores(logits, maps)
