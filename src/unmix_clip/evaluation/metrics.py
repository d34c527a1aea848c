"""Multi-label metrics, exact: average precision, precision / recall / F1 at a threshold, top-1. All in [0, 1].

Scores are (n, C), higher = more likely present; labels are 1 (present), 0 (absent) or -1 (unknown: left out). What is
undefined is None, never 0 (a metric library that counts a class without positives as 0 moves the mean by points). The
figures at a threshold are those of the multi-label literature (as in CNN-RNN, arXiv 1604.04573).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unmix_clip.errors import InputError

LABELS = (-1, 0, 1)
CRITERIA = ("of1", "cf1")
"""What a threshold can be fitted to."""


def check_scores(scores: np.ndarray, labels: np.ndarray) -> None:
    """Raise InputError unless scores are numbers, labels are 1, 0 or -1, and both have the same shape."""
    if scores.shape != labels.shape:
        raise InputError(f"scores have shape {scores.shape}, labels {labels.shape}; expected the same")
    if np.isnan(scores).any():
        raise InputError("the scores contain NaN; expected numbers: check the features that they come from")
    if not np.isin(labels, LABELS).all():
        odd = np.setdiff1d(labels, LABELS)[:3].tolist()
        raise InputError(f"labels contain {odd}; expected 1 (present), 0 (absent) or -1 (unknown)")


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """Area under the precision-recall steps, sum over n of (R_n - R_{n-1}) P_n; tied scores count as one step.

    Args:
        scores: (n,), higher = more likely present.
        labels: (n,) in {1, 0, -1}.

    Returns:
        The same as scikit-learn's average_precision_score; None without a positive.
    """
    check_scores(scores, labels)
    return _average_precision(scores, labels)


def per_class_ap(scores: np.ndarray, labels: np.ndarray) -> list[float | None]:
    """Average precision of every class: scores and labels (n, C)."""
    check_scores(scores, labels)
    return [_average_precision(s, y) for s, y in zip(scores.T, labels.T, strict=True)]


def _average_precision(scores: np.ndarray, labels: np.ndarray) -> float | None:
    known = labels >= 0
    order, step_end = rank(scores[known])
    positive = labels[known][order] == 1
    if not positive.any():
        return None
    precision = np.cumsum(positive)[step_end] / (step_end + 1)
    return float(precision[positive].mean())


def eleven_point_ap(scores: np.ndarray, labels: np.ndarray) -> list[float | None]:
    """VOC2007's average precision of every class: mean of the highest precision at recall >= 0, 0.1, ..., 1.

    As the devkit's VOCap (VOC2007 development kit, section 3.4.1), but tied scores count as one step.
    """
    check_scores(scores, labels)
    found: list[float | None] = []
    for s, y in zip(scores.T, labels.T, strict=True):
        known = y >= 0
        order, step_end = rank(s[known])
        positive = y[known][order] == 1
        if not positive.any():
            found.append(None)
            continue
        hits = np.cumsum(positive)[step_end]
        precision, recall = hits / (step_end + 1), hits / positive.sum()
        levels = np.arange(11) / 10
        found.append(float(np.mean([precision[recall >= level - 1e-12].max() for level in levels])))
    return found


def top_k_f1(scores: np.ndarray, labels: np.ndarray, k: int) -> dict[str, float | None]:
    """Precision, recall and F1 over all pairs where the k highest names of every picture count as said.

    As zero-shot multi-label recognition reports them (arXiv 1604.04573; DualCoOp, arXiv 2206.09541, section 4.3). Names
    of unknown label are never said; of tied scores the first names are. A picture that shows none of the names counts:
    all that is said of it is wrong.
    """
    check_scores(scores, labels)
    if k < 1:
        raise InputError(f"top-k with k = {k}; expected at least 1")
    true = labels == 1
    if not true.any():
        return {"precision": None, "recall": None, "f1": None}
    ranked = np.argsort(-np.where(labels >= 0, scores.astype(float), -np.inf), axis=1, kind="stable")[:, :k]
    said = np.zeros(labels.shape, dtype=bool)
    np.put_along_axis(said, ranked, True, axis=1)
    said &= labels >= 0
    hit = float((said & true).sum())
    precision, recall = hit / said.sum(), hit / true.sum()
    return {"precision": precision, "recall": recall, "f1": float(_harmonic(precision, recall))}


def harmonic_mean(a: float | None, b: float | None) -> float | None:
    """Return 2ab / (a + b), 0 where both are 0; None where one is undefined."""
    return None if a is None or b is None else float(_harmonic(a, b))


def rank(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the order (n,) by falling score, and for each rank the last rank that has the same score (n,)."""
    order = np.argsort(-scores.astype(np.result_type(scores, np.float32)), kind="stable")
    ranked = scores[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if len(ranked) else np.empty(0, dtype=int)
    return order, np.repeat(last, np.diff(np.append(-1, last)))


def mean_defined(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are defined; None where none is."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


@dataclass(frozen=True)
class Operating:
    """Multi-label figures at a threshold, over known labels; all None where there is no positive label."""

    cp: float | None
    """Mean over classes with positives of precision; a class that is never predicted has precision 0."""
    cr: float | None
    """Mean over classes with positives of recall."""
    cf1: float | None
    """Harmonic mean of cp and cr (not the mean of the classes' F1)."""
    op: float | None
    """Precision over all (picture, class) pairs, also those of classes without positives; 0 without predictions."""
    or_: float | None
    """Recall over all pairs."""
    of1: float | None
    """Harmonic mean of op and or."""


def operating_point(scores: np.ndarray, labels: np.ndarray, threshold: float | np.ndarray) -> Operating:
    """Return the figures where scores >= threshold count as present.

    Args:
        scores, labels: (n, C).
        threshold: one number, or one a class (C,).
    """
    check_scores(scores, labels)
    if np.ndim(threshold) and np.shape(threshold) != scores.shape[1:]:
        raise InputError(f"{np.size(threshold)} thresholds for {scores.shape[1]} classes; expected one, or one a class")
    predicted = (scores >= threshold) & (labels >= 0)
    true = labels == 1
    scored = true.any(0)
    if not scored.any():
        return Operating(None, None, None, None, None, None)
    hit, said, present = (table.sum(0).astype(float) for table in (predicted & true, predicted, true))
    cp, cr = (float(_ratio(hit, whole)[scored].mean()) for whole in (said, present))
    op, or_ = (float(_ratio(hit.sum(), whole.sum())) for whole in (said, present))
    return Operating(cp=cp, cr=cr, cf1=float(_harmonic(cp, cr)), op=op, or_=or_, of1=float(_harmonic(op, or_)))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part / whole, 0 where the whole is."""
    return np.divide(part, whole, out=np.zeros_like(np.asarray(part, dtype=float)), where=np.asarray(whole) > 0)


def _harmonic(a: float | np.ndarray, b: float | np.ndarray) -> np.ndarray:
    return _ratio(2 * np.multiply(a, b), np.add(a, b))


def fit_threshold(scores: np.ndarray, labels: np.ndarray, kind: str = "of1") -> float:
    """Return the score that, as a threshold for all classes, maximises OF1 or CF1 on these pictures.

    All distinct scores are tried, in O(nC log nC); of equal ones the highest is taken. To be fitted on other pictures
    than those that are evaluated.

    Args:
        scores, labels: (n, C).
        kind: `of1` or `cf1`, as `operating_point` defines them.
    """
    check_scores(scores, labels)
    if kind not in CRITERIA:
        raise InputError(f"cannot fit a threshold to {kind!r}; expected one of {', '.join(CRITERIA)}")
    known = labels >= 0
    order, step_end = rank(scores[known])
    positive = labels[known][order] == 1
    if not positive.any():
        raise InputError("no positive label to fit a threshold on; expected a split with labels")
    if kind == "of1":
        f1 = 2 * np.cumsum(positive) / (np.arange(1, len(positive) + 1) + positive.sum())
    else:
        f1 = _cf1_by_rank(np.nonzero(known)[1][order], positive, labels.shape[1])
    ends = np.unique(step_end)
    return float(scores[known][order][ends[f1[ends].argmax()]])


def _cf1_by_rank(classes: np.ndarray, positive: np.ndarray, n_classes: int) -> np.ndarray:
    """Return CF1 after accepting the first 1, 2, ... pairs: class and truth of each pair by falling score."""
    positives = np.bincount(classes[positive], minlength=n_classes)
    scored = np.count_nonzero(positives)
    by_class = np.argsort(classes, kind="stable")  # inside a class still by falling score
    starts = np.searchsorted(classes[by_class], np.arange(n_classes))
    of_class = classes[by_class]
    hits = np.cumsum(positive[by_class])
    hits = hits - np.append(0, hits)[starts][of_class]
    precision = hits / (np.arange(len(classes)) - starts[of_class] + 1)
    before = np.append(0.0, precision[:-1])
    before[np.arange(len(classes)) == starts[of_class]] = 0  # a class that is not predicted yet has precision 0
    gain = np.empty(len(classes))
    gain[by_class] = precision - before  # all 0 for a class without positives
    cp = np.cumsum(gain) / scored
    cr = np.cumsum(_ratio(positive.astype(float), positives[classes])) / scored
    return _harmonic(cp, cr)


def top1_in_scene(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """Share of the pictures with an object whose best-scored class is present.

    Classes of unknown label are left out; where several share the best score, the share of them that is present counts.
    """
    check_scores(scores, labels)
    shows = (labels == 1).any(1)
    if not shows.any():
        return None
    known = np.where(labels[shows] >= 0, scores[shows].astype(float), -np.inf)
    best = (known == known.max(1, keepdims=True)) & (labels[shows] >= 0)
    return float(((best & (labels[shows] == 1)).sum(1) / best.sum(1)).mean())
