"""The model: projectors plus the way they score, from stored backbone features to logits and maps."""

from dataclasses import dataclass

import torch
from torch import Tensor

from unmix_clip.config import TrainConfig
from unmix_clip.method.losses import asymmetric_loss, mfi_loss, mfi_weight_from_alpha
from unmix_clip.method.projectors import Projectors
from unmix_clip.method.scoring import Cosines, Scores, score_dual, score_positive


@dataclass(frozen=True)
class ClassTexts:
    """Text features of a list of classes, as the backbone gives them."""

    positive: Tensor  # (C, D)
    negative: Tensor  # (C, D)


@dataclass(frozen=True)
class Queries:
    """Projected, L2-normalised class texts, ready to be compared with projected locations."""

    positive: Tensor  # (C, d)
    negative: Tensor | None  # (C, d); None where the score uses the positive prompt alone


class UnmixModel(Projectors):
    """Projectors built, scored and penalised as a configuration says."""

    def __init__(self, config: TrainConfig, width: int) -> None:
        super().__init__(width, round(config.out_ratio * width), round(config.hidden_ratio * width), config.text_norm)
        self.config = config

    def project_queries(self, texts: ClassTexts) -> Queries:
        """Project class texts; positive and negative prompts share one pass, as the text norm needs in training."""
        if self.config.score == "positive":
            return Queries(self.project_texts(texts.positive), None)
        positive, negative = self.project_texts(torch.cat([texts.positive, texts.negative])).chunk(2)
        return Queries(positive, negative)

    def score(
        self, patches: Tensor, queries: Queries, valid: Tensor | None = None, pooled: Tensor | None = None
    ) -> Scores:
        """Score pictures.

        Args:
            patches: (B, N, D) dense features of the backbone.
            queries: from `project_queries`.
            valid: (B, N) bool, False where a location shows padding; None = all valid.
            pooled: (B, D) the backbone's feature of the whole picture; needed where `pooled_share` is above 0.
        """
        config = self.config
        locations = self.project_patches(patches)  # (B, N, d)
        whole = None
        if config.pooled_share:
            if pooled is None:
                raise ValueError("the model scores pictures with their pooled feature too: pass pooled (B, D)")
            whole = self.project_pooled(pooled)  # (B, d)

        def cosines(texts: Tensor) -> Cosines:
            return Cosines(locations @ texts.T, None if whole is None else whole @ texts.T, config.pooled_share)

        positive = cosines(queries.positive)
        if queries.negative is None:
            return score_positive(positive, self.bias, valid, gain=config.gain, share=config.pool_share)
        return score_dual(positive, cosines(queries.negative), valid, scale=config.scale, gain=config.gain)

    def objective(
        self,
        patches: Tensor,
        texts: ClassTexts,
        labels: Tensor,
        valid: Tensor | None = None,
        pooled: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the named terms of the loss and their weighted sum `loss`; labels: (B, C) in {1, 0, -1}."""
        config = self.config
        queries = self.project_queries(texts)
        asl = asymmetric_loss(
            self.score(patches, queries, valid, pooled).logits,
            labels,
            gamma_neg=config.asl_gamma_neg,
            gamma_pos=config.asl_gamma_pos,
            clip=config.asl_clip,
            reduction=config.asl_reduction,
        )
        both = [queries.positive] if queries.negative is None else [queries.positive, queries.negative]
        projected = torch.cat(both)
        mfi = mfi_loss(projected, form=config.mfi_form, lam=config.mfi_lambda)
        weight = config.mfi_weight
        if config.mfi_alpha:
            rows = len(projected) if config.mfi_form == "class" else projected.shape[1]
            weight = mfi_weight_from_alpha(config.mfi_alpha, rows, config.mfi_lambda)
        return {"asl": asl, "mfi": mfi, "loss": asl + weight * mfi}
