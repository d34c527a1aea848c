"""Segmentation: maps to masks, masks to IoU. Masks are int32: 0 background, 1 + class index, IGNORE."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unmix_clip.data.samples import IGNORE
from unmix_clip.errors import InputError
from unmix_clip.evaluation.metrics import mean_defined
from unmix_clip.evaluation.protocols import Protocol

CANDIDATES = 41
"""Background thresholds that are tried, evenly spaced among the quantiles of the best map."""


@dataclass(frozen=True)
class Prediction:
    """The best class of every pixel and how good it is."""

    mask: Tensor  # (H, W) int64, 1 + class index
    height: Tensor  # (H, W), value of the best map; -inf where no class is allowed


def best_classes(maps: Tensor, allowed: Tensor | None = None) -> Prediction:
    """Take the highest of the maps (C, H, W) at each pixel, among the allowed classes (C,) bool."""
    if allowed is None:
        height, index = maps.max(0)
        return Prediction(index + 1, height)
    chosen = torch.nonzero(allowed)[:, 0]
    if len(chosen) == 0:
        empty = torch.zeros(maps.shape[1:], dtype=torch.int64)
        return Prediction(empty, torch.full(maps.shape[1:], float("-inf")))
    height, index = maps[chosen].max(0)
    return Prediction(chosen[index] + 1, height)


def predict_mask(maps: Tensor, present: Tensor, protocol: Protocol, background: float | None) -> np.ndarray:
    """Return the mask (H, W) int32 of one picture.

    Args:
        maps: (C, H, W) on the picture's pixels.
        present: (C,) bool, classes whose tag score reaches the tag threshold.
        protocol: decides about gate and background.
        background: map value under which a pixel is background.
    """
    best = best_classes(maps, present if protocol.tag_gate else None)
    if protocol.background == "ignored" or background is None:
        return best.mask.numpy().astype(np.int32)
    return torch.where(best.height >= background, best.mask, 0).numpy().astype(np.int32)


def confusion_counts(truth: np.ndarray, predicted: np.ndarray, n_classes: int) -> np.ndarray:
    """Count pixels by (truth, prediction): (1 + C, 1 + C) int64; pixels that are IGNORE in truth are left out."""
    if truth.shape != predicted.shape:
        raise InputError(f"the mask is {truth.shape}, the picture {predicted.shape} (rows, columns); expected the same")
    counted = truth != IGNORE
    width = n_classes + 1
    flat = truth[counted].astype(np.int64) * width + predicted[counted]
    return np.bincount(flat, minlength=width * width).reshape(width, width)


def iou_of(confusion: np.ndarray) -> list[float | None]:
    """Intersection over union of every class of a confusion matrix; None for a class that is in neither."""
    hit = np.diag(confusion).astype(float)
    union = confusion.sum(0) + confusion.sum(1) - hit
    return [float(h / u) if u else None for h, u in zip(hit, union, strict=True)]


class SegmentationEvaluator:
    """Accumulates masks under one protocol; `result` gives the figures that interface.md names."""

    def __init__(self, protocol: Protocol, classes: Sequence[str]) -> None:
        self.protocol, self.classes = protocol, tuple(classes)
        self.confusion = np.zeros((len(classes) + 1,) * 2, dtype=np.int64)
        self.picture_means: list[float] = []

    def update(self, truth: np.ndarray, predicted: np.ndarray) -> None:
        """Add one picture: truth and predicted (H, W)."""
        if self.protocol.background == "ignored":
            truth = np.where(truth == 0, IGNORE, truth)
        counts = confusion_counts(truth, predicted, len(self.classes))
        self.confusion += counts
        if self.protocol.averaging != "dataset":
            shown = np.flatnonzero(counts.sum(1))
            ious = [value for value in (iou_of(counts)[i] for i in shown) if value is not None]
            if self.protocol.averaging == "image-positive":
                ious = [value for value in ious if value > 0]
            if ious:
                self.picture_means.append(float(np.mean(ious)))

    def result(self) -> dict[str, Any]:
        """Return mIoU, pixel accuracy and the IoU of every class (background under the name `background`)."""
        ious = iou_of(self.confusion)
        scored = ious if self.protocol.background == "threshold" else ious[1:]
        per_image = self.protocol.averaging != "dataset"
        total = int(self.confusion.sum())
        named = dict(zip(self.classes, ious[1:], strict=True))
        return {
            "miou": mean_defined(self.picture_means if per_image else scored),
            "pixel_accuracy": float(np.trace(self.confusion) / total) if total else None,
            "per_class_iou": {"background": ious[0], **named} if scored is ious else named,
            "background": self.protocol.background,
            "n_classes_scored": sum(value is not None for value in scored),
        }


class BackgroundFit:
    """Finds the background threshold that maximises the mIoU of `standard`, in one pass over a fitting split."""

    def __init__(self, candidates: np.ndarray, n_classes: int) -> None:
        self.candidates = np.unique(candidates)
        self.n_classes = n_classes
        width = n_classes + 1
        # Pixels by truth, best class, and how many of the candidates the best map reaches.
        self.counts = np.zeros((width, width, len(self.candidates) + 1), dtype=np.int64)

    def update(self, truth: np.ndarray, best: Prediction) -> None:
        """Add one picture."""
        reached = np.searchsorted(self.candidates, best.height.numpy(), side="right")
        counted = truth != IGNORE
        index = np.ravel_multi_index((truth[counted], best.mask.numpy()[counted], reached[counted]), self.counts.shape)
        self.counts += np.bincount(index, minlength=self.counts.size).reshape(self.counts.shape)

    def best(self) -> float:
        """Return the best candidate."""
        scores = []
        for j in range(len(self.candidates)):
            confusion = self.counts[:, :, j + 1 :].sum(-1)
            confusion[:, 0] += self.counts[:, :, : j + 1].sum((1, 2))
            scores.append(mean_defined(iou_of(confusion)) or 0.0)
        return float(self.candidates[int(np.argmax(scores))])
