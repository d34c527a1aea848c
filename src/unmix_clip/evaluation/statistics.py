"""How sure a mAP is: bootstrap over pictures (Efron and Tibshirani 1993, chapters 13 and 15).

Pictures are drawn with replacement; a resample is how often each was drawn, so that the scores are sorted once and
not once a resample.
"""

from dataclasses import dataclass

import numpy as np

from unmix_clip.errors import InputError
from unmix_clip.evaluation.metrics import check_scores, mean_defined, per_class_ap, rank

CONFIDENCE = 0.95
RESAMPLES = 1000


def resampling_weights(n: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Return how often each of n pictures is drawn in each resample: (resamples, n) float32, whole numbers."""
    if n == 0:
        raise InputError("no pictures to resample; expected at least one")
    rng = np.random.default_rng(seed)
    return rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float32)


def bootstrap_map(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mAP of every resample of the pictures (resamples,) float64.

    A class without positives in a resample is left out of that mean; NaN where that leaves none.

    Args:
        scores, labels: (n, C).
        weights: (resamples, n), see `resampling_weights`.
    """
    check_scores(scores, labels)
    total, scored = np.zeros(len(weights)), np.zeros(len(weights))
    for s, y in zip(scores.T, labels.T, strict=True):
        if (y == 1).any():
            ap = _weighted_ap(s, y, weights)
            total += np.nan_to_num(ap)
            scored += ~np.isnan(ap)
    return np.divide(total, scored, out=np.full(len(weights), np.nan), where=scored > 0)


def _weighted_ap(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average precision of one class that has positives, in every resample (resamples,); NaN without positives."""
    known = np.flatnonzero(labels >= 0)
    order, step_end = rank(scores[known])
    positive = np.flatnonzero(labels[known][order] == 1)  # ranks
    # Only steps that end with a positive on them add area: P steps of `seen` pictures, `hits` of them positive.
    steps, first = np.unique(step_end[positive], return_index=True)
    drawn = np.take(weights, known[order[: steps[-1] + 1]], axis=1)
    seen = np.add.reduceat(drawn, np.append(0, steps[:-1] + 1), axis=1).cumsum(1, dtype=np.float64)  # (resamples, P)
    hits = np.add.reduceat(drawn[:, positive], first, axis=1)
    found = hits.cumsum(1, dtype=np.float64)
    precision = np.divide(found, seen, out=np.zeros_like(found), where=seen > 0)
    positives = found[:, -1]
    area = (hits * precision).sum(1)
    return np.divide(area, positives, out=np.full(len(weights), np.nan), where=positives > 0)


def interval(values: np.ndarray) -> list[float] | None:
    """Return the central 95 % of resampled values as [low, high]; None where one is undefined."""
    if not len(values) or np.isnan(values).any():
        return None
    tail = (1 - CONFIDENCE) / 2
    return [float(v) for v in np.quantile(values, [tail, 1 - tail])]


@dataclass(frozen=True)
class PairedDifference:
    """How much better one method is than another on the same pictures."""

    difference: float | None
    """mAP of a minus mAP of b; None without positive labels."""
    ci95: list[float] | None
    """Central 95 % of the resampled differences, [low, high]."""
    p: float | None
    """Two-sided: twice the smaller share of resamples in which the difference is at most or at least 0, counting the
    data themselves as one more on that side, so never 0 and at least 2 / (resamples + 1)."""


def paired_bootstrap(
    scores_a: np.ndarray, scores_b: np.ndarray, labels: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> PairedDifference:
    """Compare the mAP of two methods on the same resamples of the same pictures.

    Args:
        scores_a, scores_b: (n, C) of either method.
        labels: (n, C) in {1, 0, -1}.
        resamples: how many.
        seed: of the draws.
    """
    weights = resampling_weights(len(labels), resamples, seed)
    maps = [mean_defined(per_class_ap(scores, labels)) for scores in (scores_a, scores_b)]
    if maps[0] is None or maps[1] is None:
        return PairedDifference(None, None, None)
    differences = bootstrap_map(scores_a, labels, weights) - bootstrap_map(scores_b, labels, weights)
    ci95 = interval(differences)
    if ci95 is None:
        return PairedDifference(maps[0] - maps[1], None, None)
    fewer = min((differences <= 0).sum(), (differences >= 0).sum())
    return PairedDifference(maps[0] - maps[1], ci95, float(min(1.0, 2 * (fewer + 1) / (resamples + 1))))
