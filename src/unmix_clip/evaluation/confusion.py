"""Pixels counted by (truth, prediction), exactly: int64, because 2^31 pixels are only 5,242 pictures of 640 x 640."""

import numpy as np

from unmix_clip.data.samples import IGNORE
from unmix_clip.errors import InputError
from unmix_clip.evaluation.metrics import mean_defined


def counted_pixels(truth: np.ndarray, prediction: np.ndarray, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return truth and prediction of the pixels that are not IGNORE in truth, both (pixels,) int64.

    Raises InputError unless both are (H, W) of the same size with values in 0 .. n_classes - 1.
    """
    if truth.shape != prediction.shape:
        raise InputError(
            f"the mask is {truth.shape}, the picture {prediction.shape} (rows, columns); expected the same"
        )
    counted = truth != IGNORE
    true, said = truth[counted].astype(np.int64), prediction[counted].astype(np.int64)
    for what, values in (("mask", true), ("prediction", said)):
        if len(values) and not 0 <= values.min() <= values.max() < n_classes:
            raise InputError(
                f"the {what} has values {values.min()} to {values.max()}; expected 0 (background) to {n_classes - 1}, "
                f"and {IGNORE} in the mask where a pixel counts for nothing"
            )
    return true, said


class ConfusionMatrix:
    """Counts of (truth, prediction) over any number of masks.

    Args:
        n_classes: values that a mask may have, the background (0) included.
    """

    def __init__(self, n_classes: int) -> None:
        self.counts = np.zeros((n_classes, n_classes), dtype=np.int64)  # rows truth, columns prediction

    @property
    def n_classes(self) -> int:
        """Values that a mask may have, the background included."""
        return len(self.counts)

    def update(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Add the pixels of one picture: both (H, W) in 0 .. n_classes - 1; IGNORE in truth is left out."""
        rows, columns = counted_pixels(truth, prediction, self.n_classes)
        flat = np.bincount(rows * self.n_classes + columns, minlength=self.n_classes**2)
        self.counts += flat.reshape(self.counts.shape)

    def __add__(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        """Return the counts of both, as if one had seen all pictures."""
        if self.n_classes != other.n_classes:
            raise InputError(f"confusion matrices of {self.n_classes} and {other.n_classes} classes cannot be added")
        both = ConfusionMatrix(self.n_classes)
        both.counts = self.counts + other.counts
        return both

    def iou(self) -> list[float | None]:
        """Intersection over union of every class; None for a class that is in neither truth nor prediction."""
        hit = np.diag(self.counts)
        union = self.counts.sum(0) + self.counts.sum(1) - hit
        return [float(h / u) if u else None for h, u in zip(hit, union, strict=True)]

    @property
    def miou(self) -> float | None:
        """Mean of the defined IoUs, the background's included."""
        return mean_defined(self.iou())

    @property
    def pixel_accuracy(self) -> float | None:
        """Share of the counted pixels that are right; None without pixels."""
        total = int(self.counts.sum())
        return float(np.trace(self.counts) / total) if total else None
