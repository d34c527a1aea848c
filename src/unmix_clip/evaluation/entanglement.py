"""Entanglement: how alike class texts are, and how much the query of one class lights up where others stand.

Cosines are raw: never rescaled, never centred behind the reader's back.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unmix_clip.data.samples import IGNORE
from unmix_clip.errors import InputError


def cosine_matrix(features: np.ndarray) -> np.ndarray:
    """Return the cosines (C, C) float64 between the rows of features (C, D)."""
    if features.ndim != 2:
        raise InputError(f"text features have shape {features.shape}; expected (classes, width)")
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
    if len(features) != len(classes):
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


def reduction(before: dict[str, Any], after: dict[str, Any]) -> float:
    """Return 1 - after / before of the raw mean off-diagonal cosine; above 1 where the mean became negative."""
    return 1 - after["mean_cosine"] / before["mean_cosine"]


def cell_labels(
    truth: np.ndarray, grid_hw: tuple[int, int], content_hw: tuple[int, int], canvas_hw: tuple[int, int]
) -> np.ndarray:
    """Return the mask value that fills most of each location (N,) int32, row-major; IGNORE where there is no picture.

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
    """How often the query of a class lights up more elsewhere than on the class itself.

    For each picture and class in it: the share of (own location, other location) pairs in which the class's map is
    higher at the other one (ties count half), that is 1 - AUC; averaged over pictures, then over classes. "Other" is a
    location of another object (`cross_activation`) or of the background (`background_activation`). It compares ranks
    inside one map of one picture, so the scale of a score does not matter.
    """

    def __init__(self, n_classes: int) -> None:
        self.sums = np.zeros((2, n_classes))
        self.counts = np.zeros((2, n_classes), dtype=np.int64)
        self.pair_sums = np.zeros((n_classes, n_classes))
        self.pair_counts = np.zeros((n_classes, n_classes), dtype=np.int64)

    def update(self, maps: Tensor, cells: np.ndarray) -> None:
        """Add one picture: maps (N, C) and the labels of its locations (N,), see `cell_labels`."""
        present = [int(value) for value in np.unique(cells) if value > 0]
        where = {value: torch.from_numpy(np.flatnonzero(cells == value)) for value in (0, *present)}
        for value in present:
            c = value - 1
            own = maps[where[value], c]
            others = [other for other in present if other != value]
            if others:
                wins = {other: _outranks(maps[where[other], c], own) for other in others}
                for other, share in wins.items():
                    self.pair_sums[c, other - 1] += share
                    self.pair_counts[c, other - 1] += 1
                sizes = np.array([len(where[other]) for other in others])
                self._add(0, c, float(np.average(list(wins.values()), weights=sizes)))
            if len(where[0]):
                self._add(1, c, _outranks(maps[where[0], c], own))

    def _add(self, kind: int, c: int, share: float) -> None:
        self.sums[kind, c] += share
        self.counts[kind, c] += 1

    def result(self) -> dict[str, Any]:
        """Return both figures (None where never measured) and the number of (picture, class) cases of each."""
        means = [
            float((sums[counts > 0] / counts[counts > 0]).mean()) if counts.any() else None
            for sums, counts in zip(self.sums, self.counts, strict=True)
        ]
        return {
            "cross_activation": means[0],
            "background_activation": means[1],
            "n_cross": int(self.counts[0].sum()),
            "n_background": int(self.counts[1].sum()),
        }

    def matrix(self) -> np.ndarray:
        """Return by (query, other class) how often the query outranks itself there (C, C); NaN where never together."""
        return np.divide(
            self.pair_sums, self.pair_counts, out=np.full_like(self.pair_sums, np.nan), where=self.pair_counts > 0
        )


def _outranks(other: Tensor, own: Tensor) -> float:
    """Share of the pairs (other, own) in which `other` is higher; ties count half."""
    difference = other[:, None] - own[None]
    return float((difference > 0).double().mean() + 0.5 * (difference == 0).double().mean())
