"""Multi-label metrics, exact: average precision, F1 at a threshold, bootstrap intervals. All in [0, 1].

Labels are 1 (present), 0 (absent) or -1 (unknown: left out). What is undefined is None, never 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unmix_clip.errors import InputError

CONFIDENCE = 0.95


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """Area under the precision-recall steps, sum over n of (R_n - R_{n-1}) P_n; tied scores count as one step.

    Args:
        scores: (n,), higher = more likely present.
        labels: (n,) in {1, 0, -1}.

    Returns:
        The same as scikit-learn's average_precision_score; None without a positive.
    """
    known = labels >= 0
    order, step_end = _ranking(scores[known])
    positive = labels[known][order] == 1
    if not positive.any():
        return None
    hits = np.cumsum(positive)
    precision = hits[step_end] / (step_end + 1)
    return float(precision[positive].mean())


def _ranking(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the order by falling score, and for each rank the last rank that has the same score."""
    if np.isnan(scores).any():
        raise InputError("the scores contain NaN; expected numbers: check the features that they come from")
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if len(ranked) else np.empty(0, dtype=int)
    return order, np.repeat(last, np.diff(np.append(-1, last)))


def per_class_ap(scores: np.ndarray, labels: np.ndarray) -> list[float | None]:
    """Average precision of every class: scores and labels (n, C)."""
    return [average_precision(s, y) for s, y in zip(scores.T, labels.T, strict=True)]


def mean_defined(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are defined; None where none is."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


@dataclass(frozen=True)
class Operating:
    """Multi-label figures at a threshold, over known labels."""

    cp: float
    """Mean over classes of precision; a class that is never predicted has precision 0."""
    cr: float
    """Mean over classes of recall."""
    cf1: float
    """Harmonic mean of cp and cr."""
    op: float
    """Precision over all (picture, class) pairs."""
    or_: float
    """Recall over all pairs."""
    of1: float
    """Harmonic mean of op and or."""


def operating_point(scores: np.ndarray, labels: np.ndarray, threshold: float | np.ndarray) -> Operating:
    """Return the figures where scores >= threshold count as present; classes without positives are left out.

    Args:
        scores, labels: (n, C).
        threshold: one number, or one a class (C,).
    """
    predicted = (scores >= threshold) & (labels >= 0)
    true = labels == 1
    scored = true.any(0)
    hit = (predicted & true).sum(0)[scored].astype(float)
    said, present = predicted.sum(0)[scored], true.sum(0)[scored]
    cp = float(_ratio(hit, said).mean()) if scored.any() else 0.0
    cr = float(_ratio(hit, present).mean()) if scored.any() else 0.0
    op, or_ = float(_ratio(hit.sum(), said.sum())), float(_ratio(hit.sum(), present.sum()))
    return Operating(cp=cp, cr=cr, cf1=_harmonic(cp, cr), op=op, or_=or_, of1=_harmonic(op, or_))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros_like(np.asarray(part, dtype=float)), where=np.asarray(whole) > 0)


def _harmonic(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b else 0.0


def fit_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the threshold that maximises OF1 on these scores (n, C), among all distinct scores; exact.

    To be fitted on other pictures than those that are evaluated.
    """
    known = labels >= 0
    order, step_end = _ranking(scores[known])
    positive = labels[known][order] == 1
    if not positive.any():
        raise InputError("no positive label to fit a threshold on; expected a split with labels")
    ends = np.unique(step_end)
    f1 = 2 * np.cumsum(positive)[ends] / (ends + 1 + positive.sum())
    return float(scores[known][order][ends[f1.argmax()]])


def top1_in_scene(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """Share of the pictures with an object whose best-scored class is present."""
    shows = (labels == 1).any(1)
    best = scores[shows].argmax(1)
    return float((labels[shows, best] == 1).mean()) if shows.any() else None


def resampling_weights(n: int, resamples: int, seed: int) -> np.ndarray:
    """Return how often each of n pictures is drawn in each resample: (resamples, n) float32."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float32)


def bootstrap_map(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mAP of every resample of the pictures (resamples,); a class without positives in it is left out.

    Args:
        scores, labels: (n, C).
        weights: (resamples, n), see `resampling_weights`.
    """
    total, count = np.zeros(len(weights)), np.zeros(len(weights))
    for s, y in zip(scores.T, labels.T, strict=True):
        known = np.flatnonzero(y >= 0)
        order, step_end = _ranking(s[known])
        drawn = weights[:, known[order]]
        positive = np.flatnonzero(y[known][order] == 1)
        hits = np.cumsum(drawn[:, positive], axis=1, dtype=np.float64)  # (resamples, positives)
        # All positives up to the end of a rank's tie count as hits of that rank.
        last = np.searchsorted(positive, step_end[positive], side="right") - 1
        seen = np.cumsum(drawn, axis=1, dtype=np.float64)[:, step_end[positive]]
        precision = np.divide(hits[:, last], seen, out=np.zeros_like(hits), where=seen > 0)
        positives = hits[:, -1] if len(positive) else np.zeros(len(weights))
        ap = np.divide(
            (drawn[:, positive] * precision).sum(1), positives, out=np.zeros(len(weights)), where=positives > 0
        )
        total += ap
        count += positives > 0
    return np.divide(total, count, out=np.full(len(weights), np.nan), where=count > 0)


def interval(values: np.ndarray) -> list[float] | None:
    """Return the central 95 % of resampled values as [low, high]; None where one is undefined."""
    if np.isnan(values).any():
        return None
    tail = (1 - CONFIDENCE) / 2
    return [float(v) for v in np.quantile(values, [tail, 1 - tail])]
