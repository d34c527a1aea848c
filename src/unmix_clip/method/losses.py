"""The losses of Unmix-CLIP: asymmetric loss for the tags, MFI loss for the entanglement.

Asymmetric loss (ASL): Ridnik et al., arXiv 2009.14119, equations 4-7.
MFI loss: arXiv 2502.02977: sum_i (C_ii - 1)^2 + lambda * sum_{i != j} C_ij^2, in the two published readings of C.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def asymmetric_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    gamma_neg: float = 2.0,
    gamma_pos: float = 1.0,
    clip: float = 0.05,
    reduction: str = "batch_mean",
) -> Tensor:
    """Binary cross-entropy that forgets easy negatives.

    Args:
        logits: (B, C), any float.
        labels: (B, C), 1 present, 0 absent, -1 unknown (adds nothing).
        gamma_neg: focusing exponent of negatives.
        gamma_pos: focusing exponent of positives.
        clip: probability margin below which a negative adds nothing, in [0, 1).
        reduction: "batch_mean" (sum over classes, mean over pictures) or "sum".

    Returns:
        A scalar >= 0.
    """
    if reduction not in ("batch_mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}; expected 'batch_mean' or 'sum'")
    positive = (labels == 1).to(logits.dtype)
    negative = (labels == 0).to(logits.dtype)
    p = torch.sigmoid(logits)
    p_shifted = (p - clip).clamp(min=0)
    # log(1 - p_shifted) is finite for every logit while clip > 0; the clamp keeps clip = 0 finite too.
    loss_positive = positive * (1 - p) ** gamma_pos * -F.logsigmoid(logits)
    loss_negative = negative * p_shifted**gamma_neg * -torch.log((1 - p_shifted).clamp(min=1e-8))
    loss = (loss_positive + loss_negative).sum()
    return loss / len(logits) if reduction == "batch_mean" else loss


def correlation_matrix(texts: Tensor, form: str) -> Tensor:
    """Return the matrix C of the MFI loss in one of its two published readings.

    Args:
        texts: (T, d) projected text features, positive and negative prompts together.
        form: "class": (T, T) cosines between texts, whose diagonal is constantly 1;
            "dimension": (d, d) correlations between dimensions over the texts, as in Barlow Twins.
    """
    if form == "class":
        unit = F.normalize(texts, dim=-1)
        return unit @ unit.T
    if form == "dimension":
        standard = (texts - texts.mean(0)) / texts.std(0, correction=0).clamp(min=1e-6)
        return standard.T @ standard / len(texts)
    raise ValueError(f"MFI form is {form!r}; expected 'class' or 'dimension'")


def mfi_loss(texts: Tensor, *, form: str = "class", lam: float = 0.2) -> Tensor:
    """Mutual feature information, scaled so that a weight means the same for 5 names and for 500.

    The published sum grows with the square of the number of rows n of C. Here it is divided by lambda * n * (n - 1), so
    the second term is the MEAN squared off-diagonal entry. `mfi_weight_from_alpha` converts the paper's alpha.

    Args:
        texts: (T, d) projected text features.
        form: see `correlation_matrix`.
        lam: weight of the off-diagonal terms in the published sum, > 0.

    Returns:
        A scalar >= 0; 0 for a single row.
    """
    c = correlation_matrix(texts, form)
    n = len(c)
    diagonal = c.diagonal()
    off_diagonal = c.square().sum() - diagonal.square().sum()
    published = (diagonal - 1).square().sum() + lam * off_diagonal
    return published / (lam * max(n * (n - 1), 1))


def mfi_weight_from_alpha(alpha: float, rows: int, lam: float = 0.2) -> float:
    """Return the weight of `mfi_loss` that equals the paper's alpha on the published sum.

    Args:
        alpha: the paper's weight (7e-5).
        rows: rows of C: 2 K for K classes in class form (positive and negative prompts), d in dimension form.
        lam: the lambda of the published sum.
    """
    return alpha * lam * rows * (rows - 1)
