"""Segmentation: masks to the figures that interface.md names. Masks: 0 background, 1 + class index, IGNORE."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from unmix_clip.data.samples import IGNORE
from unmix_clip.evaluation.confusion import ConfusionMatrix
from unmix_clip.evaluation.metrics import mean_defined
from unmix_clip.evaluation.protocols import Protocol
from unmix_clip.evaluation.statistics import bootstrap_miou, interval, resampling_weights


class SegmentationEvaluator:
    """Accumulates masks under one protocol, a picture at a time; `result` gives the figures that interface.md names."""

    def __init__(self, protocol: Protocol, classes: Sequence[str]) -> None:
        self.protocol, self.classes = protocol, tuple(classes)
        self.confusion = ConfusionMatrix(len(classes) + 1)
        self.picture_means: list[float] = []
        self._pictures: list[np.ndarray] = []
        self._iou_sums = np.zeros(len(classes) + 1)
        self._iou_counts = np.zeros(len(classes) + 1, dtype=np.int64)

    def update(self, truth: np.ndarray, predicted: np.ndarray) -> None:
        """Add one picture: truth and predicted (H, W) int."""
        if not self.protocol.with_background:
            truth = np.where(truth == 0, IGNORE, truth)
        picture = ConfusionMatrix(self.confusion.n_classes)
        picture.update(truth, predicted)
        self.confusion += picture
        counts = picture.counts
        self._pictures.append(np.stack([np.diag(counts), counts.sum(0), counts.sum(1)]).astype(np.int32))
        if not self.protocol.per_image:
            return
        iou = np.array([0.0 if value is None else value for value in picture.iou()])
        scored = picture.counts.sum(1) > 0  # the classes that the picture shows
        if self.protocol.averaging == "image-positive":
            scored &= iou > 0
        if scored.any():
            self.picture_means.append(float(iou[scored].mean()))
            self._iou_sums += np.where(scored, iou, 0)
            self._iou_counts += scored

    @property
    def picture_counts(self) -> np.ndarray:
        """Pixels that are right, said and shown, of every value in every picture (n, 3, C + 1), background first."""
        return np.stack(self._pictures)

    def result(self) -> dict[str, Any]:
        """Return mIoU, pixel accuracy and the IoU of every class (background under the name `background`).

        A class's IoU is taken as the protocol averages: over the data set, or its mean over the pictures scored on it.
        """
        ious = self.confusion.iou()
        if self.protocol.per_image:
            ious = [float(s / n) if n else None for s, n in zip(self._iou_sums, self._iou_counts, strict=True)]
        with_background = self.protocol.with_background
        scored = ious if with_background else ious[1:]
        names = ["background", *self.classes] if with_background else self.classes
        return {
            "miou": mean_defined(self.picture_means if self.protocol.per_image else scored),
            "ci95": self._interval(),
            "pixel_accuracy": self.confusion.pixel_accuracy,
            "per_class_iou": dict(zip(names, scored, strict=True)),
            "background": self.protocol.background,
            "n_classes_scored": sum(value is not None for value in scored),
        }

    def _interval(self, seed: int = 0) -> list[float] | None:
        """Return the central 95 % of the mIoU over resamples of the pictures."""
        if self.protocol.per_image:
            means = np.array(self.picture_means)
            if not len(means):
                return None
            weights = resampling_weights(len(means), seed=seed)
            return interval(weights @ means / len(means))
        if not self._pictures:
            return None
        counts = self.picture_counts
        weights = resampling_weights(len(counts), seed=seed)
        return interval(bootstrap_miou(counts, weights, self.protocol.with_background))
