"""Setting up and training, as functions: a backbone with its data, splits that do not overlap, a trained run."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unmix_clip.backbones.clip import FrozenClip
from unmix_clip.config import TrainConfig
from unmix_clip.data import is_scenes, load_data
from unmix_clip.data.samples import Dataset, label_matrix, match_classes, select_classes, take
from unmix_clip.data.windows import cut_windows
from unmix_clip.errors import InputError
from unmix_clip.evaluation.entanglement import damage_to_meaning, pairs_after, reduction, text_entanglement
from unmix_clip.evaluation.metrics import mean_defined, per_class_ap
from unmix_clip.evaluation.protocols import Protocol
from unmix_clip.evaluator import (
    Bench,
    Learned,
    Thresholds,
    fit_thresholds,
    tag_scores,
)
from unmix_clip.features import FeatureStore, store_dense, store_features
from unmix_clip.method.model import ClassTexts, TagModel, UnmixModel
from unmix_clip.provenance import versions
from unmix_clip.runs import Run, method_name, picture_numbers, save_run
from unmix_clip.texts import encode_classes
from unmix_clip.training import FitState, TrainingSet, fit
from unmix_clip.vocabulary import Prompts, load_prompts

SIBLINGS = {
    "voc2007": {"test": "trainval", "val": "train"},
    "voc2012": {"val": "train"},
    "nuswide": {"test": "train"},
    "vg": {"test": "train"},
    "openimages": {"validation": "train", "test": "train"},
    "ade20k": {"validation": "training"},
}
"""The training split that belongs to a published test split; elsewhere `val...` becomes `train...`."""
HELD_OUT = 0.1
"""Share of the training pictures that is held out for the thresholds where no validation data are named."""


@dataclass
class Workplace:
    """A backbone and what is needed to prepare data for it."""

    backbone: FrozenClip
    cache: Path | None = None
    tell: Callable[[str], None] = print
    """Where notices go that a person should read."""
    skip_broken: bool = False
    """Leave out pictures that cannot be read instead of refusing the data set."""
    failures: list[dict[str, str]] = field(default_factory=list)
    """Pictures that were left out, and why."""

    def load(self, spec: str, classes: Sequence[str] | None = None) -> Dataset:
        """Load a data set, restricted to the names that the backbone knows (a small vocabulary says so)."""
        dataset = load_data(spec, classes)
        if classes and (foreign := [name for name in classes if name not in dataset.classes]):
            raise InputError(
                f"{spec} has no class {foreign[0]!r}; expected some of {', '.join(dataset.classes[:8])}, ..."
            )
        if classes:
            dataset = select_classes(dataset, classes)
        unknown = [name for name in dataset.classes if self.backbone.unknown_name(name)]
        if unknown:
            known = [name for name in dataset.classes if name not in unknown]
            if not known:
                self.backbone.require_known(unknown)
            self.tell(
                f"{self.backbone.identity.name} does not know {len(unknown)} of the {len(dataset.classes)} names of "
                f"{spec} and leaves them out: {', '.join(unknown)}"
            )
            dataset = select_classes(dataset, known)
        for note, count in dataset.notes.items():
            self.tell(f"{spec}: {count} {note.replace('_', ' ')}")
        return self._readable(dataset) if self.skip_broken else dataset

    def _readable(self, dataset: Dataset) -> Dataset:
        """Leave out the pictures that cannot be read."""
        rows = []
        for i, sample in enumerate(dataset.samples):
            try:
                sample.load_image()
            except InputError as error:
                self.failures.append({"file": sample.key, "failure": str(error)})
                self.tell(f"left out: {error}")
            else:
                rows.append(i)
        return take(dataset, rows)

    def with_dense(self, name: str) -> "Workplace":
        """Return the same place with another dense strategy of the backbone."""
        return replace(self, backbone=self.backbone.with_options(dense=name))

    def store(self, dataset: Dataset, view: int = 0, seed: int = 0) -> FeatureStore:
        """Return a data set's features by the backbone's own dense strategy, computed once."""
        return store_features(self.backbone, dataset, cache=self.cache, view=view, seed=seed)

    def bench(self, dataset: Dataset, dense: Sequence[str] = (), protocol: Protocol | None = None) -> Bench:
        """Return a data set ready to measure methods on.

        Args:
            dataset: the pictures.
            dense: dense strategies wanted, all from one pass of the backbone; none = the backbone's own.
            protocol: whether pictures are seen in windows; None = whole.
        """
        names = list(dense) or [self.backbone.identity.dense]
        if protocol is None or not protocol.slides:
            stores = store_dense(self.backbone, dataset, names, cache=self.cache)
            return Bench(dataset, stores, self.backbone.preprocess)
        cut, windows = cut_windows(dataset, protocol.short_side_px, protocol.window_px, protocol.stride_px)
        return Bench(
            dataset, store_dense(self.backbone, cut, names, cache=self.cache), self.backbone.preprocess, windows
        )

    def texts(
        self, prompts: Prompts, names: Sequence[str], synonyms: Mapping[str, Sequence[str]] | None = None
    ) -> ClassTexts:
        """Return the text features of both prompts of some names."""
        return encode_classes(self.backbone, prompts, names, synonyms)


def sibling_split(spec: str, of_scenes: str = "val") -> str | None:
    """Return the split of the same data set that goes with a published test split: to fit on, or to train on.

    Args:
        spec: the split that is evaluated.
        of_scenes: the split of the embedded world, which has one for each purpose.
    """
    if is_scenes(spec):
        if spec.startswith(f"scenes@{of_scenes}"):
            return None
        options = [option for option in spec.partition("?")[2].split("&") if option and not option.startswith("n=")]
        return f"scenes@{of_scenes}" + ("?" + "&".join(options) if options else "")
    kind, _, rest = spec.partition(":")
    place, at, split = rest.rpartition("@")
    split, question, options_text = split.partition("?")
    other = SIBLINGS.get(kind, {}).get(split) or (split.replace("val", "train", 1) if split.startswith("val") else None)
    return f"{kind}:{place}@{other}{question}{options_text}" if at and other and kind != "table" else None


def require_disjoint(fitting: Dataset, other: Dataset, what: str) -> None:
    """Raise InputError if pictures that thresholds are fitted on are also trained on or evaluated."""
    shared = {sample.digest for sample in fitting.samples} & {sample.digest for sample in other.samples}
    if shared:
        raise InputError(
            f"{fitting.spec} and {other.spec} share {len(shared)} pictures: thresholds must be fitted on others than "
            f"those that are {what}; name another split (--val in train, --fit-data in evaluate and compare)"
        )


def hold_out(dataset: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """Split off a share of the pictures, by seed: (training, held out)."""
    order = np.random.default_rng([seed, 7]).permutation(len(dataset.samples))
    count = max(1, round(HELD_OUT * len(order)))
    return take(dataset, sorted(order[count:])), take(dataset, sorted(order[:count]))


def train(
    place: Workplace,
    config: TrainConfig,
    data: str,
    out: Path,
    *,
    backbone_spec: str,
    val: str | None = None,
    classes: Sequence[str] | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Train the projectors on a data set and write the run; returns its metrics."""
    started = time.monotonic()
    if is_scenes(data) and "@" not in data:
        data = data.replace("scenes", "scenes@train", 1)
    dataset = place.load(data, classes)
    if val is None and is_scenes(data):
        val = sibling_split(data)
    if val is None:
        dataset, held_out = hold_out(dataset, config.seed)
        place.tell(f"{len(held_out.samples)} of the training pictures are held out to fit the thresholds")
    else:
        held_out = match_classes(place.load(val), dataset)
        require_disjoint(held_out, dataset, "trained on")
    trained = fit_model(place, config, dataset, place.bench(held_out), checkpoint=out / "checkpoint.pt", resume=resume)
    run = trained.as_run(place, dataset, backbone_spec)
    metrics = {
        **provenance(place, "train", dataset, config.seed),
        "protocol": "thresholds and validation figures on pictures that are not trained on",
        "method": method_name(config, place.backbone.identity.dense),
        "config": config.to_dict(),
        "n_train": len(dataset.samples),
        "validation": held_out.spec,
        "trained_parameters": run.model.trained_parameters(),
        "entanglement": entanglement_of(run.classes, trained.texts, run.model),
        "thresholds": vars(run.thresholds),
        "history": trained.state.history,
        "seconds": time.monotonic() - started,
    }
    save_run(run, out, metrics)
    return metrics


@dataclass(frozen=True)
class Trained:
    """The outcome of one training."""

    state: FitState
    thresholds: Thresholds
    texts: ClassTexts
    prompts: Prompts
    synonyms: Mapping[str, Sequence[str]]
    dense: str
    seconds: float
    """Of the training alone: features and texts were there, thresholds came after."""

    def as_run(self, place: Workplace, dataset: Dataset, backbone_spec: str) -> Run:
        """Return it with everything that it needs to be saved and used."""
        return Run(
            model=self.state.model.requires_grad_(False),
            classes=dataset.classes,
            prompts=self.prompts,
            backbone_spec=backbone_spec,
            identity=place.backbone.identity,
            thresholds=self.thresholds,
            data=dataset.spec,
            width=self.texts.positive.shape[1],
            synonyms=self.synonyms,
            pictures=picture_numbers(dataset),
            token_width=self.texts.context.width if self.texts.context else 0,
        )

    @property
    def method(self) -> Learned:
        """The trained model over its own class list, as a method."""
        return learned_method(self.state.model, self.texts, dense=self.dense)


def fit_model(
    place: Workplace,
    config: TrainConfig,
    dataset: Dataset,
    val: Bench,
    *,
    checkpoint: Path | None = None,
    resume: bool = False,
) -> Trained:
    """Prepare features, train, and fit the thresholds on the validation bench."""
    views = [place.store(dataset, view=view) for view in range(config.views)]
    prompts, dense = load_prompts(config.prompts), place.backbone.identity.dense
    synonyms = dataset.synonyms if config.synonyms else {}
    texts = place.texts(prompts, dataset.classes, synonyms)

    def validate(model: TagModel) -> dict[str, float]:
        ap = per_class_ap(tag_scores(learned_method(model, texts, dense=dense), val), val.labels)
        return {"val_map": mean_defined(ap) or 0.0}

    started = time.monotonic()
    state = fit(
        config,
        TrainingSet(views, label_matrix(dataset), texts),
        checkpoint=checkpoint,
        resume=resume,
        validate=validate,
        source=_fingerprint(place, dataset, val.dataset),
    )
    seconds = time.monotonic() - started
    thresholds = fit_thresholds(learned_method(state.model, texts, dense=dense), val)
    return Trained(state, thresholds, texts, prompts, synonyms, dense, seconds)


def _fingerprint(place: Workplace, dataset: Dataset, val: Dataset) -> str:
    """Return a digest of what a training reads beside its configuration: backbone, names, pictures, labels."""
    parts = [json.dumps(place.backbone.identity.compared(), sort_keys=True), *dataset.classes]
    parts += [sample.digest for part in (dataset, val) for sample in part.samples]
    digest = hashlib.sha256("\n".join(parts).encode())
    digest.update(label_matrix(dataset).tobytes())
    return digest.hexdigest()


@torch.no_grad()
def learned_method(model: TagModel, texts: ClassTexts, name: str = "unmix", dense: str | None = None) -> Learned:
    """Bind a trained model to the texts of a list of names."""
    return Learned(model, model.project_queries(texts), name, dense)


@torch.no_grad()
def entanglement_of(classes: Sequence[str], texts: ClassTexts, model: TagModel | None) -> dict[str, Any]:
    """Return the entanglement of the positive prompts, with a model also after projection."""
    before = text_entanglement(texts.positive.numpy(), classes)
    if not isinstance(model, UnmixModel):
        return before
    return {**before, **entanglement_after(before, texts, model.project_queries(texts).positive, classes)}


def entanglement_after(
    before: dict[str, Any], texts: ClassTexts, projected: torch.Tensor, classes: Sequence[str], top: int = 20
) -> dict[str, Any]:
    """Return what a projection does to the entanglement `before`, and to the order of the classes by meaning."""
    features, plain = projected.numpy(), texts.positive.numpy()
    after = text_entanglement(features, classes, top)
    return {
        "after": {**after, **damage_to_meaning(plain, features)},
        "reduction": reduction(before, after),
        "pairs_before_after": pairs_after(before, features, classes),
    }


def provenance(place: Workplace, task: str, dataset: Dataset, seed: int) -> dict[str, Any]:
    """Return what every result carries beside its figures."""
    return {
        "task": task,
        "backbone": place.backbone.identity.to_dict(),
        "data": dataset.spec,
        "data_rules": dataset.rules,
        "n_images": len(dataset.samples),
        "n_classes": len(dataset.classes),
        "seed": seed,
        "versions": versions(),
    }
