"""A study in the embedded world: recipes and rivals on the same scenes, over seeds. Demo and proof share it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unmix_clip.backbones import build_backbone
from unmix_clip.baselines.pixel_probe import train_pixel_probe
from unmix_clip.baselines.training_free import PLAIN, TrainingFree
from unmix_clip.candidates import build_rivals
from unmix_clip.config import TrainConfig
from unmix_clip.data.samples import Dataset
from unmix_clip.data.scenes import class_groups
from unmix_clip.evaluation import statistics
from unmix_clip.evaluation.metrics import mean_defined
from unmix_clip.evaluation.protocols import PROTOCOLS
from unmix_clip.evaluation.recognition import PROTOCOL, evaluate_recognition
from unmix_clip.evaluator import (
    Method,
    Thresholds,
    evaluate_cross_activation,
    evaluate_masks,
    fit_thresholds,
    picture_cells,
    tag_scores,
)
from unmix_clip.jobs import Trained, Workplace, entanglement_of, fit_model, learned_method, provenance
from unmix_clip.vocabulary import load_prompts

FIGURES = ("map", "of1", "top1", "miou_objects", "miou_standard", "cross_activation", "background_activation")
"""What is measured of every method, in the order of the tables."""


@dataclass(frozen=True)
class Measured:
    """All figures of one method with one seed."""

    name: str
    seed: int
    recognition: dict[str, Any]
    segmentation: dict[str, dict[str, Any]]
    """By protocol."""
    activation: dict[str, Any]
    mean_cosine: float | None = None
    """Of the positive class texts in the space that is scored; None where there is no projection."""

    def figures(self) -> dict[str, float]:
        """Return the figures of `FIGURES`."""
        return {
            **{key: self.recognition[key] for key in ("map", "of1", "top1")},
            "miou_objects": self.segmentation["standard-objects"]["miou"],
            "miou_standard": self.segmentation["standard"]["miou"],
            **{key: self.activation[key] for key in ("cross_activation", "background_activation")},
        }


@dataclass(frozen=True)
class Sizes:
    """How many scenes of each split are used."""

    train: int = 4000
    val: int = 1000
    test: int = 2000
    unseen: int = 1000


class Study:
    """The backbone `mini`, scenes of every split and their stored features."""

    def __init__(self, sizes: Sizes, place: Workplace | None = None) -> None:
        self.place = place or Workplace(build_backbone("mini"))
        self.train: Dataset = self.place.load(f"scenes@train?n={sizes.train}")
        self.val = self.place.bench(self.place.load(f"scenes@val?n={sizes.val}"))
        self.test = self.place.bench(self.place.load(f"scenes@test?n={sizes.test}"))
        self.unseen = self.place.bench(self.place.load(f"scenes@unseen?n={sizes.unseen}"))
        self.plain_texts = self.place.texts(load_prompts("plain"), self.train.classes)

    def measure(self, method: Method, thresholds: Thresholds, seed: int = 0) -> Measured:
        """Measure a method on the test scenes with thresholds fitted on validation scenes."""
        bench = self.test
        common = {**provenance(self.place, "", bench.dataset, seed), "method": method.name}
        protocols = [PROTOCOLS["standard"], PROTOCOLS["standard-objects"]]
        masks = evaluate_masks(method, bench, thresholds, protocols)
        tags = {
            **common,
            "task": "recognition",
            "protocol": PROTOCOL,
            **evaluate_recognition(
                tag_scores(method, bench), bench.labels, bench.dataset.classes, thresholds.tag, seed=seed
            ),
        }
        return Measured(
            name=method.name,
            seed=seed,
            recognition=tags,
            segmentation={
                name: {
                    **common,
                    "task": "segmentation",
                    "protocol": f"{name}: {PROTOCOLS[name].note}",
                    **evaluator.result(),
                }
                for name, evaluator in masks.items()
            },
            activation=evaluate_cross_activation(method, bench),
        )

    def rivals(self, names: Sequence[str] = PLAIN) -> list[tuple[TrainingFree, Thresholds]]:
        """Build the training-free rivals, everything of theirs chosen on validation scenes."""
        return [(rival, fit_thresholds(rival, self.val)) for rival in build_rivals(names, self.plain_texts, self.val)]

    def fit(self, config: TrainConfig, seed: int, checkpoint: Path | None = None) -> Trained:
        """Train a recipe with a seed."""
        return fit_model(self.place, replace(config, seed=seed), self.train, self.val, checkpoint=checkpoint)

    def measure_trained(self, trained: Trained, name: str) -> Measured:
        """Measure a trained recipe on the test scenes."""
        config = trained.state.model.config
        method = learned_method(trained.state.model, trained.texts, name)
        measured = self.measure(method, trained.thresholds, config.seed)
        entanglement = entanglement_of(self.train.classes, trained.texts, trained.state.model)
        return replace(measured, mean_cosine=entanglement["after"]["mean_cosine"])

    def unseen_rivals(self, rivals: Sequence[tuple[TrainingFree, Thresholds]]) -> dict[str, dict[str, float]]:
        """Return `unseen_figures` of the rivals; their centres and softmax scales are those of validation scenes."""
        texts = self.place.texts(load_prompts("plain"), self.unseen.dataset.classes)
        scales = {rival.name: rival.scale for rival, _ in rivals}
        asked = build_rivals(list(scales), texts, self.val, fit_scales=False)
        return {rival.name: self.unseen_figures(replace(rival, scale=scales[rival.name])) for rival in asked}

    def unseen_trained(self, trained: Trained) -> dict[str, float]:
        """Return `unseen_figures` of a trained recipe."""
        model = trained.state.model
        texts = self.place.texts(load_prompts(model.config.prompts), self.unseen.dataset.classes)
        return self.unseen_figures(learned_method(model, texts))

    def unseen_figures(self, method: Method) -> dict[str, float]:
        """Return what happens on scenes with unseen names, all names asked.

        mAP of the tags and mIoU over object pixels, each over the seen and over the unseen names.
        """
        names = self.unseen.dataset.classes
        groups = class_groups(names)
        tags = evaluate_recognition(tag_scores(method, self.unseen), self.unseen.labels, names, None, groups)
        ungated = Thresholds(tag=0.0, background=None)  # object pixels need no operating point
        protocol = PROTOCOLS["standard-objects"]
        iou = evaluate_masks(method, self.unseen, ungated, [protocol])[protocol.name].result()["per_class_iou"]
        figures = {"map_seen": tags["map_seen"], "map_unseen": tags["map_unseen"]}
        for group, indices in groups.items():
            figures[f"miou_{group}"] = mean_defined([iou[names[i]] for i in indices]) or 0.0
        return figures

    def pixel_ceiling(self, seed: int = 0) -> Measured:
        """Train and measure the linear head with pixel labels."""
        train = self.place.bench(self.train)
        cells = np.stack([picture_cells(train, i) for i in range(len(self.train.samples))])
        probe = train_pixel_probe(train.store, cells, len(self.train.classes), seed)
        return self.measure(probe, fit_thresholds(probe, self.val), seed)


def spread(measured: Sequence[Measured]) -> dict[str, dict[str, Any]]:
    """Return the spread over seeds of every figure."""
    return {key: statistics.spread([m.figures()[key] for m in measured]) for key in FIGURES}
