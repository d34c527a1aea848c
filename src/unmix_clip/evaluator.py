"""One contract for every method: texts and stored features in, tags and masks scored, one named protocol a result.

A method gives `Scores` for a batch of stored features; whatever it is, its operating points are fitted on one split and
its figures taken on another, by the same code.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from unmix_clip.backbones.preprocess import Preprocessing
from unmix_clip.baselines.training_free import SOFTMAX_SCALES, TrainingFree
from unmix_clip.data.samples import Dataset, label_matrix
from unmix_clip.data.windows import WindowedPicture
from unmix_clip.errors import InputError
from unmix_clip.evaluation.background import CANDIDATES, BackgroundFit
from unmix_clip.evaluation.entanglement import CrossActivation, cell_labels
from unmix_clip.evaluation.masks import Prediction, best_on_pixels, cut_background
from unmix_clip.evaluation.metrics import fit_threshold, mean_defined, per_class_ap
from unmix_clip.evaluation.protocols import PROTOCOLS
from unmix_clip.evaluation.protocols import Protocol as SegmentationProtocol
from unmix_clip.evaluation.refinement import refine_pamr
from unmix_clip.evaluation.segmentation import SegmentationEvaluator
from unmix_clip.features import FeatureStore
from unmix_clip.method.model import Queries, TagModel
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

    @property
    def dense(self) -> str | None:
        """The dense strategy of the locations that it scores; None where any will do."""

    def score(self, patches: Tensor, pooled: Tensor, valid: Tensor | None) -> Scores:
        """Score stored features: patches (B, N, D), pooled (B, D), valid (B, N)."""


@dataclass(frozen=True)
class Learned:
    """A trained model over a list of names, as a method."""

    model: TagModel
    queries: Queries
    name: str = "unmix"
    dense: str | None = None

    @torch.no_grad()
    def score(self, patches: Tensor, pooled: Tensor, valid: Tensor | None) -> Scores:
        """Score stored features."""
        return self.model.score(patches, self.queries, valid, pooled)


@dataclass(frozen=True)
class Bench:
    """A data set with its stored features: what any method can be measured on."""

    dataset: Dataset
    stores: Mapping[str, FeatureStore]
    """By dense strategy; the same pictures, or all windows of them in order."""
    preprocess: Preprocessing
    windows: Sequence[WindowedPicture] | None = None
    """Where the windows stand; None = every picture was seen whole."""
    _masks: dict[int, np.ndarray] = field(default_factory=dict, compare=False)

    @property
    def store(self) -> FeatureStore:
        """The first of the stores."""
        return next(iter(self.stores.values()))

    def store_for(self, method: Method) -> FeatureStore:
        """Return the features that a method scores."""
        return self.stores[method.dense] if method.dense else self.store

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
                raise InputError(
                    f"{self.dataset.spec} has no mask of {self.dataset.samples[index].key}; segmentation "
                    "needs one of every picture: take a kind with masks, such as voc21 or coco (docs/data.md)"
                )
            mask = load_mask()
            if mask.size * len(self.dataset.samples) > MASK_CACHE_PIXELS:
                return mask
            self._masks[index] = mask.astype(np.int16)
        return self._masks[index].astype(np.int32)

    def scored(self, method: Method) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (index, logits (C,), maps (N, C)) of every picture.

        In windows, logits are the highest of the picture's windows, and the locations of all windows follow each other.
        """
        rows = self._scored_rows(method)
        if self.windows is None:
            yield from ((index, *row) for index, row in enumerate(rows))
            return
        for index, picture in enumerate(self.windows):
            logits, maps = zip(*islice(rows, len(picture.boxes)), strict=True)
            yield index, torch.stack(logits).amax(0), torch.cat(maps)

    def _scored_rows(self, method: Method) -> Iterator[tuple[Tensor, Tensor]]:
        for _, patches, pooled, valid in self.store_for(method).batches():
            scores = method.score(patches, pooled, valid)
            yield from zip(scores.logits, scores.maps, strict=True)

    def best(
        self, index: int, maps: Tensor, allowed: Tensor | None, truth: np.ndarray, refinement: str = "none"
    ) -> Prediction:
        """Return the best allowed class of every pixel of a picture.

        Args:
            index: of the picture.
            maps: (N, C), of `scored`.
            allowed: (C,) bool; None = all.
            truth: (H, W), its mask: only the size matters.
            refinement: see `Protocol`.
        """
        grids = maps.T.reshape(maps.shape[1], -1, *self.store.grid_hw)  # (C, windows, h, w)
        to_pixels = partial(self._to_pixels, index, (truth.shape[0], truth.shape[1]))
        if refinement == "none":
            return best_on_pixels(grids, to_pixels, allowed)
        image = torch.from_numpy(np.array(self.dataset.samples[index].load_image())).permute(2, 0, 1) / 255
        return best_on_pixels(grids, lambda some: refine_pamr(to_pixels(some), image), allowed)

    def _to_pixels(self, index: int, image_hw: tuple[int, int], grids: Tensor) -> Tensor:
        """(k, windows, h, w) -> (k, H, W)."""
        if self.windows is None:
            return self.preprocess.grid_to_image(grids[:, 0], image_hw)
        picture = self.windows[index]
        sizes = [(bottom - top, right - left) for top, left, bottom, right in picture.boxes]
        return picture.blend(
            [self.preprocess.grid_to_image(grid, size) for grid, size in zip(grids.unbind(1), sizes, strict=True)]
        )


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


def fit_thresholds(method: Method, bench: Bench, protocol: SegmentationProtocol | None = None) -> Thresholds:
    """Fit the operating points of a method on a split that has labels; masks fit the background too.

    The background is fitted to masks as `protocol` makes them (None = `standard`): gated by tags or not, refined or
    not.
    """
    protocol = protocol or PROTOCOLS["standard"]
    tags = tag_scores(method, bench)
    tag = fit_threshold(tags, bench.labels)
    if not bench.has_masks:
        return Thresholds(tag, None)

    def gate(logits: Tensor) -> Tensor:
        return logits >= tag if protocol.tag_gate else torch.ones_like(logits, dtype=torch.bool)

    heights = [
        maps[:, gate(logits)].max(1).values for _, logits, maps in bench.scored(method) if bool(gate(logits).any())
    ]
    candidates = np.quantile(torch.cat(heights).numpy(), np.linspace(0, 1, CANDIDATES))
    fit = BackgroundFit(candidates, len(bench.dataset.classes))
    for index, logits, maps in bench.scored(method):
        truth = bench.mask(index)
        fit.update(truth, bench.best(index, maps, gate(logits), truth, protocol.refinement))
    return Thresholds(tag, fit.best())


def best_on_picture(
    maps: Tensor, allowed: Tensor | None, preprocess: Preprocessing, grid_hw: tuple[int, int], image_hw: Sequence[int]
) -> Prediction:
    """Return the best allowed class of every pixel: maps (N, C) of one picture, allowed (C,) bool or None = all."""
    to_pixels = partial(preprocess.grid_to_image, image_hw=(image_hw[0], image_hw[1]))
    return best_on_pixels(maps.T.reshape(-1, *grid_hw), to_pixels, allowed)


def evaluate_masks(
    method: Method, bench: Bench, thresholds: Thresholds, protocols: Sequence[SegmentationProtocol]
) -> dict[str, SegmentationEvaluator]:
    """Make and count the masks of a method under each protocol, by its name.

    A method that scores more names than the data set has classes scores names of the background behind them.
    """
    if thresholds.background is None and any(p.background == "threshold" for p in protocols):
        raise InputError("no background threshold: the fitting split has no masks; name one with masks (--fit-data)")
    n_classes = len(bench.dataset.classes)
    evaluators = [SegmentationEvaluator(protocol, bench.dataset.classes) for protocol in protocols]
    for index, logits, maps in bench.scored(method):
        truth, gate = bench.mask(index), logits >= thresholds.tag
        gate[n_classes:] = True
        best = {
            kind: bench.best(index, maps, gate if kind[0] else None, truth, kind[1])
            for kind in {(protocol.tag_gate, protocol.refinement) for protocol in protocols}
        }
        for evaluator in evaluators:
            protocol = evaluator.protocol
            threshold = thresholds.background if protocol.background == "threshold" else None
            predicted = cut_background(best[protocol.tag_gate, protocol.refinement], threshold)
            evaluator.update(truth, np.where(predicted > n_classes, 0, predicted))
    return {evaluator.protocol.name: evaluator for evaluator in evaluators}


def evaluate_cross_activation(method: Method, bench: Bench) -> dict[str, Any]:
    """Return how much the queries of a method light up where other classes and the background stand."""
    measure = CrossActivation(len(bench.dataset.classes))
    for index, _, maps in bench.scored(method):
        measure.update(maps[:, : len(bench.dataset.classes)], picture_cells(bench, index))
    return measure.result()


def picture_cells(bench: Bench, index: int) -> np.ndarray:
    """Return the mask value of every location of one picture (N,)."""
    truth = bench.mask(index)
    preprocess = bench.preprocess
    content_hw = preprocess.content_hw((truth.shape[0], truth.shape[1]))
    return cell_labels(truth, bench.store.grid_hw, content_hw, preprocess.canvas_hw)
