"""Multi-label recognition: tag scores against labels, to the result that interface.md names."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unmix_clip.errors import InputError
from unmix_clip.evaluation.metrics import (
    eleven_point_ap,
    harmonic_mean,
    mean_defined,
    operating_point,
    per_class_ap,
    top1_in_scene,
    top_k_f1,
)
from unmix_clip.evaluation.statistics import RESAMPLES, bootstrap_map, interval, resampling_weights

PROTOCOL = "average precision per class, all images"
"""What stands beside every result."""
TOP_K = (3, 5)
"""Highest names of a picture that count as said where classes are seen and unseen, the literature's."""


def evaluate_recognition(
    scores: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    threshold: float | np.ndarray | None,
    groups: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Return the recognition figures of one method.

    Args:
        scores: (n, C) float.
        labels: (n, C) in {1, 0, -1}.
        classes: the C names.
        threshold: fitted on other pictures, one or one a class (C,); None = the figures at a threshold are null.
        groups: class indices by group name; each adds `map_NAME`, several their harmonic mean.
        seed: seeds the bootstrap over pictures.
        resamples: of the bootstrap.
    """
    if scores.ndim != 2 or scores.shape[1] != len(classes) or not len(scores):
        raise InputError(f"scores have shape {scores.shape}; expected (pictures, {len(classes)} classes), at least one")
    ap = per_class_ap(scores, labels)
    point = None if threshold is None else operating_point(scores, labels, threshold)
    spread = interval(bootstrap_map(scores, labels, resampling_weights(len(scores), resamples, seed)))
    result: dict[str, Any] = {
        "map": mean_defined(ap),
        "ci95": spread,
        "map_11point": mean_defined(eleven_point_ap(scores, labels)),
        **{key: None if point is None else getattr(point, key) for key in ("cf1", "of1", "cp", "cr", "op")},
        "or": None if point is None else point.or_,
        "threshold": threshold.tolist() if isinstance(threshold, np.ndarray) else threshold,
        "top1": top1_in_scene(scores, labels),
        "per_class_ap": dict(zip(classes, ap, strict=True)),
        "n_classes_scored": sum(value is not None for value in ap),
    }
    for name, indices in (groups or {}).items():
        result[f"map_{name}"] = mean_defined([ap[i] for i in indices])
    if groups and {"seen", "unseen"} <= groups.keys():
        result["map_harmonic"] = harmonic_mean(result["map_seen"], result["map_unseen"])
        for k in TOP_K:
            result[f"f1_top{k}"] = top_k_f1(scores, labels, k)  # all names asked together (generalised)
            unseen = list(groups["unseen"])
            result[f"f1_top{k}_unseen"] = top_k_f1(scores[:, unseen], labels[:, unseen], k)  # only the unseen asked
    return result
