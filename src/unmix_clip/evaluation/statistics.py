"""How sure a mAP is: bootstrap over pictures (Efron and Tibshirani 1993, chapters 13 and 15).

Pictures are drawn with replacement; a resample is how often each was drawn, so that the scores are sorted once and
not once a resample.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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


def bootstrap_miou(counts: np.ndarray, weights: np.ndarray, with_background: bool = True) -> np.ndarray:
    """Return the data set mIoU of every resample of the pictures (resamples,) float64.

    Args:
        counts: (n, 3, K) pixels that are right, said and shown, of each of K values in each picture, background first.
        weights: (resamples, n), see `resampling_weights`.
        with_background: whether the first value is a class. Without it, pixels said to be background still count as
            missed.
    """
    n, _, values = counts.shape
    sums = (weights.astype(np.float64) @ counts.reshape(n, -1).astype(np.float64)).reshape(-1, 3, values)
    hit, said, shown = sums[:, 0], sums[:, 1], sums[:, 2]
    union = said + shown - hit
    iou = np.divide(hit, union, out=np.full(union.shape, np.nan), where=union > 0)[:, 0 if with_background else 1 :]
    scored = (~np.isnan(iou)).sum(1)
    return np.divide(np.nansum(iou, 1), scored, out=np.full(len(iou), np.nan), where=scored > 0)


@dataclass(frozen=True)
class PairedDifference:
    """How much better one method is than another on the same pictures."""

    difference: float | None
    """Figure (mAP or mIoU) of a minus that of b; None where it is undefined."""
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
    map_a, map_b = (mean_defined(per_class_ap(scores, labels)) for scores in (scores_a, scores_b))
    if map_a is None or map_b is None:
        return PairedDifference(None, None, None)
    return _paired(map_a - map_b, bootstrap_map(scores_a, labels, weights) - bootstrap_map(scores_b, labels, weights))


def paired_bootstrap_masks(
    counts_a: np.ndarray,
    counts_b: np.ndarray,
    with_background: bool = True,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PairedDifference:
    """Compare the data set mIoU of two methods on the same resamples; counts as `bootstrap_miou` takes them."""
    if counts_a.shape != counts_b.shape or (counts_a[:, 2] != counts_b[:, 2]).any():
        raise InputError("the two methods were not counted on the same masks; expected the same pictures in one order")
    once = np.ones((1, len(counts_a)))
    (miou_a,), (miou_b,) = (bootstrap_miou(counts, once, with_background) for counts in (counts_a, counts_b))
    if np.isnan(miou_a) or np.isnan(miou_b):
        return PairedDifference(None, None, None)
    weights = resampling_weights(len(counts_a), resamples, seed)
    a, b = (bootstrap_miou(counts, weights, with_background) for counts in (counts_a, counts_b))
    return _paired(float(miou_a - miou_b), a - b)


def _paired(difference: float, resampled: np.ndarray) -> PairedDifference:
    """Put the interval and p of resampled differences (resamples,) beside the difference itself."""
    ci95 = interval(resampled)
    if ci95 is None:
        return PairedDifference(difference, None, None)
    fewer = min((resampled <= 0).sum(), (resampled >= 0).sum())
    return PairedDifference(difference, ci95, float(min(1.0, 2 * (fewer + 1) / (len(resampled) + 1))))


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Return mean and standard deviation (n - 1) of a figure over seeds, and the values; None where undefined."""
    known = [value for value in values if value is not None]
    std = float(np.std(known, ddof=1)) if 1 < len(known) == len(values) else None
    return {"mean": mean_defined(values), "std": std, "values": list(values)}


def per_class_differences(
    a: Mapping[str, float | None], b: Mapping[str, float | None], top: int = 5
) -> dict[str, list[list[Any]]]:
    """Return the classes that `a` gains and loses most against `b`, as [name, difference]; undefined ones left out."""
    pairs = [(name, a[name], b[name]) for name in a if name in b]
    both = sorted((y - x, name) for name, x, y in pairs if x is not None and y is not None)  # losses of `a` last
    return {
        "gains": [[name, -loss] for loss, name in both[:top] if loss < 0],
        "losses": [[name, -loss] for loss, name in both[: -top - 1 : -1] if loss > 0],
    }
