"""One contract for every method: texts and stored features in, tags and masks scored, one named protocol a result.

A method gives `Scores` for a batch of stored features; whatever it is, its operating points are fitted on one split and
its figures taken on another, by the same code.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from unmix_clip.backbones.preprocess import Preprocessing
from unmix_clip.baselines.training_free import SOFTMAX_SCALES, TrainingFree
from unmix_clip.data.samples import Dataset, label_matrix
from unmix_clip.errors import InputError
from unmix_clip.evaluation.background import CANDIDATES, BackgroundFit
from unmix_clip.evaluation.entanglement import CrossActivation, cell_labels
from unmix_clip.evaluation.masks import Prediction, best_on_pixels, cut_background
from unmix_clip.evaluation.metrics import fit_threshold, mean_defined, per_class_ap
from unmix_clip.evaluation.protocols import Protocol as SegmentationProtocol
from unmix_clip.evaluation.recognition import evaluate_recognition
from unmix_clip.evaluation.segmentation import SegmentationEvaluator
from unmix_clip.features import FeatureStore
from unmix_clip.method.model import Queries, UnmixModel
from unmix_clip.method.scoring import Scores

MASK_CACHE_PIXELS = 100_000_000
"""Masks of a data set are kept in memory up to this many pixels."""


@dataclass(frozen=True)
class Thresholds:
    """Operating points of a method, fitted on pictures that it was neither trained nor evaluated on."""

    tag: float
    """Score from which a class counts as present; maximises OF1."""
    background: float | None
    """Map value under which a location is background; maximises mIoU with background. None: no masks to fit it on."""


class Method(Protocol):
    """Anything that scores pictures for a list of names."""

    @property
    def name(self) -> str:
        """Its name in tables and results."""

    def score(self, patches: Tensor, pooled: Tensor, valid: Tensor | None) -> Scores:
        """Score stored features: patches (B, N, D), pooled (B, D), valid (B, N)."""


@dataclass(frozen=True)
class Unmix:
    """A trained model over a list of names, as a method."""

    model: UnmixModel
    queries: Queries
    name: str = "unmix"

    @torch.no_grad()
    def score(self, patches: Tensor, pooled: Tensor, valid: Tensor | None) -> Scores:
        """Score stored features."""
        return self.model.score(patches, self.queries, valid, pooled)


@dataclass(frozen=True)
class Bench:
    """A data set with its stored features: what any method can be measured on."""

    dataset: Dataset
    store: FeatureStore
    preprocess: Preprocessing
    _masks: dict[int, np.ndarray] = field(default_factory=dict, compare=False)

    @cached_property
    def labels(self) -> np.ndarray:
        """Labels (n, C) int8."""
        return label_matrix(self.dataset)

    @property
    def has_masks(self) -> bool:
        """Whether every picture has a mask."""
        return all(sample.load_mask is not None for sample in self.dataset.samples)

    def mask(self, index: int) -> np.ndarray:
        """Return the mask (H, W) int32 of one picture."""
        if index not in self._masks:
            load_mask = self.dataset.samples[index].load_mask
            if load_mask is None:
                raise InputError(f"{self.dataset.spec} has no masks; segmentation needs them: use coco: or scenes")
            mask = load_mask()
            if mask.size * len(self.dataset.samples) > MASK_CACHE_PIXELS:
                return mask
            self._masks[index] = mask.astype(np.int16)
        return self._masks[index].astype(np.int32)

    def best(self, maps: Tensor, allowed: Tensor | None, truth: np.ndarray) -> Prediction:
        """Return the best allowed class of every pixel of one picture: maps (N, C), truth (H, W)."""
        return best_on_picture(maps, allowed, self.preprocess, self.store.grid_hw, truth.shape)

    def scored(self, method: Method) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (index, logits (C,), maps (N, C)) of every picture."""
        for rows, patches, pooled, valid in self.store.batches():
            scores = method.score(patches, pooled, valid)
            yield from zip(range(rows.start, rows.stop), scores.logits, scores.maps, strict=True)


def tag_scores(method: Method, bench: Bench) -> np.ndarray:
    """Return the tag scores (n, C) float32 of all pictures."""
    return torch.stack([logits for _, logits, _ in bench.scored(method)]).numpy()


def fit_scale(method: TrainingFree, bench: Bench) -> TrainingFree:
    """Choose the softmax scale of a training-free score by its mAP on the fitting split."""
    if method.scale is None:
        return method
    candidates = [method.with_scale(scale) for scale in SOFTMAX_SCALES]
    maps = [mean_defined(per_class_ap(tag_scores(candidate, bench), bench.labels)) or 0.0 for candidate in candidates]
    return candidates[int(np.argmax(maps))]


def fit_thresholds(method: Method, bench: Bench) -> Thresholds:
    """Fit the operating points of a method on a split that has labels; masks fit the background too."""
    tags = tag_scores(method, bench)
    tag = fit_threshold(tags, bench.labels)
    if not bench.has_masks:
        return Thresholds(tag, None)
    heights = [
        maps[:, logits >= tag].max(1).values for _, logits, maps in bench.scored(method) if bool((logits >= tag).any())
    ]
    candidates = np.quantile(torch.cat(heights).numpy(), np.linspace(0, 1, CANDIDATES))
    fit = BackgroundFit(candidates, len(bench.dataset.classes))
    for index, logits, maps in bench.scored(method):
        truth = bench.mask(index)
        fit.update(truth, bench.best(maps, logits >= tag, truth))
    return Thresholds(tag, fit.best())


def best_on_picture(
    maps: Tensor, allowed: Tensor | None, preprocess: Preprocessing, grid_hw: tuple[int, int], image_hw: Sequence[int]
) -> Prediction:
    """Return the best allowed class of every pixel: maps (N, C) of one picture, allowed (C,) bool or None = all."""
    to_pixels = partial(preprocess.grid_to_image, image_hw=(image_hw[0], image_hw[1]))
    return best_on_pixels(maps.T.reshape(-1, *grid_hw), to_pixels, allowed)


def evaluate_tags(
    method: Method,
    bench: Bench,
    thresholds: Thresholds | None,
    seed: int = 0,
    groups: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Any]:
    """Return the recognition figures of a method on a bench; each group of class indices adds `map_NAME`."""
    started = time.monotonic()
    threshold = None if thresholds is None else thresholds.tag
    figures = evaluate_recognition(
        tag_scores(method, bench), bench.labels, bench.dataset.classes, threshold, groups, seed
    )
    return {**figures, "seconds": time.monotonic() - started}


def evaluate_masks(
    method: Method, bench: Bench, thresholds: Thresholds, protocols: Sequence[SegmentationProtocol]
) -> dict[str, dict[str, Any]]:
    """Return the segmentation figures of a method under each protocol, by its name."""
    started = time.monotonic()
    if thresholds.background is None and any(p.background == "threshold" for p in protocols):
        raise InputError("no background threshold: the fitting split has no masks; name one with masks (--fit-data)")
    evaluators = [SegmentationEvaluator(protocol, bench.dataset.classes) for protocol in protocols]
    for index, logits, maps in bench.scored(method):
        truth = bench.mask(index)
        best = {
            gate: bench.best(maps, logits >= thresholds.tag if gate else None, truth)
            for gate in {protocol.tag_gate for protocol in protocols}
        }
        for evaluator in evaluators:
            protocol = evaluator.protocol
            threshold = thresholds.background if protocol.background == "threshold" else None
            evaluator.update(truth, cut_background(best[protocol.tag_gate], threshold))
    seconds = time.monotonic() - started
    return {e.protocol.name: {**e.result(), "seconds": seconds} for e in evaluators}


def evaluate_cross_activation(method: Method, bench: Bench) -> dict[str, Any]:
    """Return how much the queries of a method light up where other classes and the background stand."""
    measure = CrossActivation(len(bench.dataset.classes))
    for index, _, maps in bench.scored(method):
        measure.update(maps, picture_cells(bench, index))
    return measure.result()


def picture_cells(bench: Bench, index: int) -> np.ndarray:
    """Return the mask value of every location of one picture (N,)."""
    truth = bench.mask(index)
    preprocess = bench.preprocess
    content_hw = preprocess.content_hw((truth.shape[0], truth.shape[1]))
    return cell_labels(truth, bench.store.grid_hw, content_hw, preprocess.canvas_hw)
