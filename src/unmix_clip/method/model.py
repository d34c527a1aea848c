"""The model: projectors plus the way they score, from stored backbone features to logits and maps."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from unmix_clip.config import TrainConfig
from unmix_clip.method.losses import asymmetric_loss, mfi_loss, mfi_weight_from_alpha
from unmix_clip.method.projectors import Projectors
from unmix_clip.method.scoring import Cosines, Scores, score_dual, score_positive


class ContextEncoder(Protocol):
    """Text features of some names as a function of learned context vectors."""

    @property
    def width(self) -> int:
        """Width E of the token embeddings."""

    def embed(self, text: str, /) -> Tensor:
        """Return the token embeddings (M, E) of a text: the context that says these words."""

    def __call__(self, context: Tensor, /) -> Tensor:
        """Return text features (C, D), with gradients, behind context vectors (M, E) or (C, M, E)."""


@dataclass(frozen=True)
class ClassTexts:
    """Text features of a list of classes, as the backbone gives them."""

    positive: Tensor  # (C, D)
    negative: Tensor  # (C, D)
    names: tuple[str, ...] = ()
    context: ContextEncoder | None = None
    """Text features of the names behind learned context vectors; None where only stored features are at hand."""


@dataclass(frozen=True)
class Queries:
    """Projected, L2-normalised class texts, ready to be compared with projected locations."""

    positive: Tensor  # (C, d)
    negative: Tensor | None  # (C, d); None where the score uses the positive prompt alone


class TagModel(nn.Module):
    """What the training loop, the evaluators and a RUN need of a model: the projectors, and learned rivals."""

    config: TrainConfig
    even_height: float = 0.0
    """The map value at which a class is as likely there as not: where background begins when nothing was fitted."""

    def project_queries(self, texts: ClassTexts) -> Queries:
        """Bind the model to a list of names."""
        raise NotImplementedError

    def score(
        self, patches: Tensor, queries: Queries, valid: Tensor | None = None, pooled: Tensor | None = None
    ) -> Scores:
        """Score pictures.

        Args:
            patches: (B, N, D) dense features of the backbone.
            queries: from `project_queries`.
            valid: (B, N) bool, False where a location shows padding; None = all valid.
            pooled: (B, D) the backbone's feature of the whole picture, for models that use it.
        """
        raise NotImplementedError

    def objective(
        self,
        patches: Tensor,
        texts: ClassTexts,
        labels: Tensor,
        valid: Tensor | None = None,
        pooled: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the named terms of the loss and their weighted sum `loss`; labels: (B, C) in {1, 0, -1}."""
        asl = self.tag_loss(self.project_queries(texts), patches, labels, valid, pooled)
        return {"asl": asl, "loss": asl}

    def tag_loss(
        self, queries: Queries, patches: Tensor, labels: Tensor, valid: Tensor | None, pooled: Tensor | None
    ) -> Tensor:
        """Return the asymmetric loss of the tags."""
        config = self.config
        return asymmetric_loss(
            self.score(patches, queries, valid, pooled).logits,
            labels,
            gamma_neg=config.asl_gamma_neg,
            gamma_pos=config.asl_gamma_pos,
            clip=config.asl_clip,
            reduction=config.asl_reduction,
        )

    def trained_parameters(self) -> int:
        """Number of parameters that are trained."""
        return sum(p.numel() for p in self.parameters())


class UnmixModel(Projectors, TagModel):
    """Projectors built, scored and penalised as a configuration says."""

    def __init__(self, config: TrainConfig, width: int) -> None:
        super().__init__(
            width,
            round(config.out_ratio * width),
            round(config.hidden_ratio * width),
            config.text_norm,
            text_depth=config.text_depth,
            image_depth=config.image_depth,
        )
        self.config = config

    @property
    def even_height(self) -> float:  # type: ignore[override]
        """The learned bias; 0 with the dual score."""
        return float(self.bias) if self.config.score == "positive" else 0.0

    def project_queries(self, texts: ClassTexts) -> Queries:
        """Project class texts; positive and negative prompts share one pass, as the text norm needs in training."""
        if self.config.score == "positive":
            return Queries(self.project_texts(texts.positive), None)
        positive, negative = self.project_texts(torch.cat([texts.positive, texts.negative])).chunk(2)
        return Queries(positive, negative)

    def score(
        self, patches: Tensor, queries: Queries, valid: Tensor | None = None, pooled: Tensor | None = None
    ) -> Scores:
        """Score pictures; `pooled` is needed where `pooled_share` is above 0."""
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
        """Add the MFI loss of the projected texts to the loss of the tags."""
        config, queries = self.config, self.project_queries(texts)
        asl = self.tag_loss(queries, patches, labels, valid, pooled)
        both = [queries.positive] if queries.negative is None else [queries.positive, queries.negative]
        projected = torch.cat(both)
        mfi = mfi_loss(projected, form=config.mfi_form, lam=config.mfi_lambda)
        weight = config.mfi_weight
        if config.mfi_alpha:
            rows = len(projected) if config.mfi_form == "class" else projected.shape[1]
            weight = mfi_weight_from_alpha(config.mfi_alpha, rows, config.mfi_lambda)
        return {"asl": asl, "mfi": mfi, "loss": asl + weight * mfi}
