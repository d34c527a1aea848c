"""Entanglement: how alike class texts are, and how much the query of one class lights up where others stand.

Cosines are raw: never rescaled, never centred behind the reader's back (the author's code once min-max rescaled them).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unmix_clip.data.samples import IGNORE
from unmix_clip.errors import InputError
from unmix_clip.evaluation.metrics import mean_defined

if TYPE_CHECKING:
    from torch import Tensor


def cosine_matrix(features: np.ndarray) -> np.ndarray:
    """Return the cosines (C, C) float64 between the rows of features (C, D)."""
    if features.ndim != 2 or features.dtype.kind not in "fiu":
        raise InputError(f"text features are {features.dtype} {features.shape}; expected numbers (classes, width)")
    wide = features.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    if not (norms > 0).all() or not np.isfinite(wide).all():
        raise InputError("text features contain a zero or non-finite row; expected one feature a class")
    unit = wide / norms
    return unit @ unit.T


def text_entanglement(features: np.ndarray, classes: Sequence[str], top: int = 20) -> dict[str, Any]:
    """Return mean, spread and extremes of the off-diagonal cosines, and the most confusable pairs.

    Args:
        features: (C, D) text features, not necessarily normalised.
        classes: the C names.
        top: how many pairs to name.
    """
    if features.ndim == 2 and len(features) != len(classes):
        raise InputError(f"{len(features)} text features for {len(classes)} class names; expected one a name")
    if len(classes) < 2:
        raise InputError(f"entanglement needs at least two classes, found {len(classes)}")
    matrix = cosine_matrix(features)
    rows, columns = np.triu_indices(len(classes), k=1)
    pairs = matrix[rows, columns]
    highest = np.argsort(-pairs, kind="stable")[:top]
    return {
        "mean_cosine": float(pairs.mean()),
        "std_cosine": float(pairs.std()),
        "max_cosine": float(pairs.max()),
        "min_cosine": float(pairs.min()),
        "top_pairs": [[classes[rows[i]], classes[columns[i]], float(pairs[i])] for i in highest],
    }


def reduction(before: dict[str, Any], after: dict[str, Any]) -> float | None:
    """Return 1 - after / before of the raw mean off-diagonal cosine.

    Above 1 where the mean became negative; None where it was not positive before: nothing to reduce.
    """
    if before["mean_cosine"] <= 0:
        return None
    return 1 - after["mean_cosine"] / before["mean_cosine"]


def order_correlation(before: np.ndarray, after: np.ndarray) -> float | None:
    """Return Spearman's rank correlation of all pairwise cosines before (C, D) and after (C, d) a projection.

    1: classes are still ordered by meaning as they were; 0: that order is lost. None where one side has no order.
    """
    _require_same_classes(before, after)
    rows, columns = np.triu_indices(len(before), k=1)
    ranks = [_mean_ranks(cosine_matrix(features)[rows, columns]) for features in (before, after)]
    centred = [r - r.mean() for r in ranks]
    norms = [float(np.linalg.norm(c)) for c in centred]
    return float(centred[0] @ centred[1] / (norms[0] * norms[1])) if all(norms) else None


def neighbour_overlap(before: np.ndarray, after: np.ndarray, k: int = 5) -> float:
    """Return the mean share of each class's k nearest classes (by cosine) that a projection keeps."""
    _require_same_classes(before, after)
    k = min(k, len(before) - 1)
    nearest = []
    for features in (before, after):
        cosines = cosine_matrix(features)
        np.fill_diagonal(cosines, -np.inf)
        nearest.append(np.argsort(-cosines, axis=1, kind="stable")[:, :k])
    return float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(*nearest, strict=True)]))


def _require_same_classes(before: np.ndarray, after: np.ndarray) -> None:
    if len(before) != len(after) or len(before) < 2:
        raise InputError(
            f"{len(before)} text features before and {len(after)} after; expected those of the same classes, at least 2"
        )


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of every value, equal ones sharing their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[inverse]


def damage_to_meaning(before: np.ndarray, after: np.ndarray) -> dict[str, float | None]:
    """Return how much of the order of classes by meaning a projection keeps."""
    return {
        "order_correlation": order_correlation(before, after),
        "neighbour_overlap": neighbour_overlap(before, after),
    }


def pairs_after(before: dict[str, Any], after: np.ndarray, classes: Sequence[str]) -> list[list[Any]]:
    """Return the most confusable pairs before as [a, b, cosine before, cosine after]."""
    cosines, index = cosine_matrix(after), {name: i for i, name in enumerate(classes)}
    return [[a, b, cosine, float(cosines[index[a], index[b]])] for a, b, cosine in before["top_pairs"]]


def cell_labels(
    truth: np.ndarray, grid_hw: tuple[int, int], content_hw: tuple[int, int], canvas_hw: tuple[int, int]
) -> np.ndarray:
    """Return the mask value that fills most of each location (N,) int32, row-major; IGNORE where there is no picture.

    A pixel belongs to the location that its centre falls into; of equally frequent values the lowest is taken.

    Args:
        truth: (H, W) mask.
        grid_hw: rows and columns of locations.
        content_hw, canvas_hw: what part of the canvas the picture fills, see `Preprocessing`.
    """
    cells = []
    for side in (0, 1):
        at = (np.arange(truth.shape[side]) + 0.5) * content_hw[side] / truth.shape[side]
        cells.append((at * grid_hw[side] / canvas_hw[side]).astype(np.int64))
    cell = cells[0][:, None] * grid_hw[1] + cells[1][None]  # (H, W)
    lowest = int(IGNORE)
    values = int(truth.max()) - lowest + 1
    counts = np.bincount((cell * values + truth - lowest).ravel(), minlength=grid_hw[0] * grid_hw[1] * values)
    counts = counts.reshape(-1, values)
    return np.where(counts.sum(1) > 0, counts.argmax(1) + lowest, IGNORE).astype(np.int32)


class CrossActivation:
    """How much the query of a class lights up elsewhere than on the class itself. No figure depends on a map's scale.

    Each figure is taken for one class in one picture, then averaged over pictures, then over classes.

    cross_activation: the probability that a location of another object has a higher value in the class's map than a
        location of the class itself (ties count half), 1 - AUC own / others: 0 is perfect, 0.5 is chance.
    background_activation: the same with background locations.
    cross_share: the class's map, stretched to [0, 1] over the picture's locations; mean on others / (mean on others +
        mean on the class). 0.5 = others light up as much. Unlike the first it sees by how much, not how often.

    The paper defines no such figure; these are ours. Locations that are IGNORE count for nothing.
    """

    _KINDS = ("cross_activation", "background_activation", "cross_share")

    def __init__(self, n_classes: int) -> None:
        self._sums = {kind: np.zeros(n_classes) for kind in self._KINDS}
        self._counts = {kind: np.zeros(n_classes, dtype=np.int64) for kind in self._KINDS}
        self._pair_sums = np.zeros((n_classes, n_classes))
        self._pair_counts = np.zeros((n_classes, n_classes), dtype=np.int64)

    def update(self, maps: "Tensor | np.ndarray", cells: np.ndarray) -> None:
        """Add one picture: maps (N, C) and the labels of its locations (N,), see `cell_labels`."""
        values, n_classes = np.asarray(maps), len(self._pair_sums)
        if values.shape != (len(cells), n_classes):
            raise InputError(
                f"maps have shape {values.shape}; expected ({len(cells)} locations, {n_classes} classes), as the labels"
            )
        counted = cells != IGNORE
        values, label = values[counted], cells[counted]
        if np.isnan(values).any():
            raise InputError("the maps contain NaN; expected numbers: check the features that they come from")
        if (label > n_classes).any():
            raise InputError(f"the mask has value {label.max()}; expected 0 (background) to {n_classes}")
        sizes = np.bincount(label, minlength=n_classes + 1)
        present = np.flatnonzero(sizes[1:])  # class indices
        for c in present.tolist():
            others = present[present != c]
            wins = np.bincount(label, _outranked(values[:, c], label == c + 1), minlength=n_classes + 1)
            if len(others):
                self._add("cross_activation", c, wins[others + 1].sum() / sizes[others + 1].sum())
                self._add("cross_share", c, _share(values[:, c], label == c + 1, label > 0))
                self._pair_sums[c, others] += wins[others + 1] / sizes[others + 1]
                self._pair_counts[c, others] += 1
            if sizes[0]:
                self._add("background_activation", c, wins[0] / sizes[0])

    def _add(self, kind: str, c: int, figure: float) -> None:
        self._sums[kind][c] += figure
        self._counts[kind][c] += 1

    def result(self) -> dict[str, Any]:
        """Return the figures (None where never measured) and the number of (picture, class) cases of each kind."""
        per_class = {
            kind: [s / n if n else None for s, n in zip(self._sums[kind], self._counts[kind], strict=True)]
            for kind in self._KINDS
        }
        return {
            **{kind: mean_defined(figures) for kind, figures in per_class.items()},
            "n_cross": int(self._counts["cross_activation"].sum()),
            "n_background": int(self._counts["background_activation"].sum()),
        }

    def matrix(self) -> np.ndarray:
        """Return who lights up where (C, C): row = query, column = the other class whose locations are looked at.

        Each entry is the mean over pictures with both of the probability that the query's map is higher at a location
        of the other class than at one of its own; NaN where the two are never together, and on the diagonal.
        """
        return np.divide(
            self._pair_sums, self._pair_counts, out=np.full_like(self._pair_sums, np.nan), where=self._pair_counts > 0
        )


def _outranked(values: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Share of the own locations (bool mask) that each location exceeds; ties count half: (N,) -> (N,)."""
    ranked = np.sort(values[own])
    below, not_above = (np.searchsorted(ranked, values, side=side) for side in ("left", "right"))
    return (below + not_above) / (2 * len(ranked))


def _share(values: np.ndarray, own: np.ndarray, objects: np.ndarray) -> float:
    """Mean of the stretched map on other objects / (the same + its mean on the own one); 0.5 for a flat map."""
    stretched = values.astype(np.float64) - values.min()  # the division by the range cancels out
    others, itself = stretched[objects & ~own].mean(), stretched[own].mean()
    return float(others / (others + itself)) if others + itself > 0 else 0.5
