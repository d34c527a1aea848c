"""Several methods on one data set: each from the same stored features, each with thresholds fitted elsewhere.

A method is a training-free rival (`baselines/training_free.py`), a trained RUN, or a learned method that is trained
here over seeds. `METHOD@DENSE` is a learned method on the dense features of another rival: unmixing on top of it.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unmix_clip.baselines import training_free
from unmix_clip.baselines.training_free import TrainingFree, build_training_free, dense_of
from unmix_clip.config import load_config
from unmix_clip.data import is_scenes
from unmix_clip.data.samples import Dataset, match_classes, select_classes, take
from unmix_clip.data.scenes import class_groups
from unmix_clip.errors import InputError
from unmix_clip.evaluation.metrics import mean_defined
from unmix_clip.evaluation.protocols import Protocol
from unmix_clip.evaluation.recognition import evaluate_recognition
from unmix_clip.evaluation.statistics import paired_bootstrap, paired_bootstrap_masks, per_class_differences
from unmix_clip.evaluator import (
    Bench,
    Method,
    Thresholds,
    evaluate_cross_activation,
    evaluate_masks,
    fit_scale,
    fit_thresholds,
    tag_scores,
)
from unmix_clip.jobs import (
    Trained,
    Workplace,
    fit_model,
    hold_out,
    learned_method,
    provenance,
    require_disjoint,
    sibling_split,
)
from unmix_clip.method.model import ClassTexts
from unmix_clip.runs import Run, require_backbone
from unmix_clip.training import mean_location, mean_pooled
from unmix_clip.vocabulary import load_names, load_prompts

LEARNED = {
    "unmix": "default",
    "unmix-paper": "paper",
    "bce-projectors": "bce-projectors",
    "linear-probe": "linear-probe",
    "dualcoop": "dualcoop",
}
"""Methods that are trained, and their recipes."""
FITTING_PICTURES = 2000
"""Most pictures that thresholds are fitted on where no data were named for it."""
RECOGNITION_PROTOCOL = "average precision per class, all images"


@dataclass(frozen=True)
class Plan:
    """What is measured, and how."""

    data: str
    task: str
    methods: Sequence[str]
    protocol: Protocol
    fit_data: str | None = None
    train_data: str | None = None
    seeds: Sequence[int] = (0,)
    """Of learned methods that are trained here."""
    against: str | None = None
    """The method that all others are compared with, picture by picture."""
    groups: Mapping[str, Sequence[str]] | None = None
    """Names by group, such as seen and unseen."""


@dataclass(frozen=True)
class Measured:
    """One method measured: its result, and what a paired comparison needs."""

    result: dict[str, Any]
    evidence: np.ndarray
    """Tag scores (n, C), or pixel counts (n, 3, C + 1)."""


@dataclass(frozen=True)
class Candidate:
    """A method ready to be measured."""

    name: str
    method: Method
    thresholds: Thresholds
    seed: int | None
    """None: nothing random in it."""
    extra: Mapping[str, Any]
    """What its result carries beside the figures."""


def known_methods(dense_names: Iterable[str]) -> list[str]:
    """Return the names of the methods that a backbone with these dense strategies has."""
    defined = set(dense_names)
    return [*LEARNED, *(name for name in training_free.NAMES if (dense_of(name) or "maskclip") in defined)]


def default_methods(dense_names: Iterable[str], runs: Sequence[Run]) -> list[str]:
    """Return what `all` means: the runs, all forms of the plain scores, and the rivals as published."""
    defined = known_methods(dense_names)
    rivals = dict.fromkeys([*training_free.PLAIN, *training_free.PUBLISHED])
    return [*dict.fromkeys(run_name(run) for run in runs), *(name for name in rivals if name in defined)]


def run_name(run: Run) -> str:
    """Return the method that a run is: by its recipe, and by its dense features where they are not maskclip's."""
    names = {recipe: name for name, recipe in LEARNED.items()}
    name = names.get(run.model.config.recipe, "unmix")
    return name if run.identity.dense == "maskclip" else f"{name}@{run.identity.dense}"


def build_rivals(
    names: Sequence[str], texts: ClassTexts, fitting: Bench, fit_scales: bool = True
) -> list[TrainingFree]:
    """Build training-free rivals; centres and softmax scales come from the fitting split."""
    built = []
    for name in names:
        store = fitting.stores[dense_of(name) or next(iter(fitting.stores))]
        rival = build_training_free(name, texts.positive, mean_location(store), mean_pooled(store))
        built.append(fit_scale(rival, fitting) if fit_scales else rival)
    return built


def compare(place: Workplace, plan: Plan, runs: Sequence[Run] = ()) -> list[dict[str, Any]]:
    """Evaluate methods on one data set, each from the same stored features; one result a method.

    Raises:
        InputError: an unknown method, data without labels or masks, splits that overlap.
    """
    wanted = {name: _parse(name, place, runs) for name in plan.methods}
    if plan.against and plan.against not in wanted:
        raise InputError(f"--against {plan.against!r} is not measured; expected one of {', '.join(wanted)}")
    split = [name for names in (plan.groups or {}).values() for name in names]
    dataset = place.load(plan.data, split or None)
    if plan.groups is None and (unseen := class_groups(dataset.classes)) and is_scenes(plan.data):
        plan = replace(plan, groups={k: [dataset.classes[i] for i in rows] for k, rows in unseen.items()})
    plan = replace(plan, protocol=plan.protocol.on(dataset.has_background))
    dense = list(dict.fromkeys(dense for _, dense in wanted.values() if dense)) or ["maskclip"]
    bench = place.bench(dataset, dense, plan.protocol if plan.task == "segmentation" else None)
    maker = _Maker(place, plan, runs, bench, wanted.values())
    measured: dict[str, list[Measured]] = {}
    for name, (base, of_dense) in wanted.items():
        measured[name] = [_measure(place, plan, bench, one) for one in maker.candidates(name, base, of_dense)]
    results = [_over_seeds(several) for several in measured.values()]
    if plan.against:
        for name, result in zip(measured, results, strict=True):
            if name != plan.against:
                result["versus"] = _versus(plan, bench, measured[name][0], measured[plan.against][0])
    for result in results:
        if place.failures:
            result["failures"] = place.failures
    return results


def _parse(name: str, place: Workplace, runs: Sequence[Run]) -> tuple[str, str | None]:
    """Split a method's name into the method and the dense strategy of its locations."""
    base, at, dense = name.partition("@")
    defined = place.backbone.dense_names
    known = known_methods(defined)
    if base not in known or (at and (base not in LEARNED or dense not in defined)):
        raise InputError(
            f"unknown method {name!r} for {place.backbone.identity.name}; expected one of {', '.join(known)}, or a "
            f"learned one on other features, METHOD@DENSE with {', '.join(defined)}"
        )
    if base not in LEARNED:
        return base, dense_of(base)
    of_name = [run for run in runs if run_name(run).partition("@")[0] == base]
    if not at and of_name and len({run.identity.dense for run in of_name}) == 1:
        return base, of_name[0].identity.dense
    return base, dense or "maskclip"


class _Maker:
    """Makes candidates; what several of them share (fitting split, texts, training data) is prepared once."""

    def __init__(
        self,
        place: Workplace,
        plan: Plan,
        runs: Sequence[Run],
        bench: Bench,
        wanted: Iterable[tuple[str, str | None]],
    ) -> None:
        self._place, self._plan, self._runs, self._bench = place, plan, runs, bench
        self._trains = any(base in LEARNED and not self._runs_of(base, dense) for base, dense in wanted)
        self._fitting: Bench | None = None
        self._training: Dataset | None = None

    def candidates(self, name: str, base: str, dense: str | None) -> list[Candidate]:
        """Return the candidates of one method: one, or one a seed."""
        if base not in LEARNED:
            return [self._training_free(name)]
        if runs := self._runs_of(base, dense):
            return [self._from_run(name, run) for run in runs]
        assert dense is not None, "learned methods score locations"
        return [self._trained(name, LEARNED[base], dense, seed) for seed in self._plan.seeds]

    def _runs_of(self, base: str, dense: str | None) -> list[Run]:
        return [r for r in self._runs if run_name(r).partition("@")[0] == base and r.identity.dense == dense]

    def _training_free(self, name: str) -> Candidate:
        prompts = self._runs[0].prompts if self._runs else load_prompts("plain")
        fitting = self._fitting_bench()
        texts = self._place.texts(prompts, fitting.dataset.classes, self._synonyms())
        (rival,) = build_rivals([name], texts, fitting)
        thresholds = fit_thresholds(rival, fitting)
        if extra := self._background_names():
            asked = [*fitting.dataset.classes, *extra]
            (wider,) = build_rivals([name], self._place.texts(prompts, asked, self._synonyms()), fitting, False)
            rival = replace(wider, scale=rival.scale)
        return Candidate(name, rival, thresholds, None, {})

    def _from_run(self, name: str, run: Run) -> Candidate:
        require_backbone(run, self._place.with_dense(run.identity.dense).backbone)
        names = [*self._bench.dataset.classes, *self._background_names()]
        texts = self._place.texts(run.prompts, names, run.synonyms or self._synonyms())
        method = learned_method(run.model, texts, name, run.identity.dense)
        thresholds = fit_thresholds(method, self._fitting_bench()) if self._plan.fit_data else run.thresholds
        config = run.model.config
        return Candidate(name, method, thresholds, config.seed, {"trained_on": run.data, "config": config.to_dict()})

    def _trained(self, name: str, recipe: str, dense: str, seed: int) -> Candidate:
        config = replace(load_config(recipe), seed=seed)
        fitting, place = self._fitting_bench(), self._place.with_dense(dense)
        training = self._training_set()
        val = Bench(
            match_classes(fitting.dataset, training),
            {dense: fitting.stores[dense]},
            fitting.preprocess,
            fitting.windows,
        )
        trained: Trained = fit_model(place, config, training, val)
        names = [*self._bench.dataset.classes, *self._background_names()]
        texts = place.texts(trained.prompts, names, trained.synonyms or self._synonyms())
        method = learned_method(trained.state.model, texts, name, dense)
        return Candidate(
            name, method, trained.thresholds, seed, {"trained_on": training.spec, "config": config.to_dict()}
        )

    def _synonyms(self) -> Mapping[str, Sequence[str]]:
        return self._bench.dataset.synonyms if self._plan.protocol.synonyms else {}

    def _background_names(self) -> list[str]:
        """Names that compete with the classes, where the protocol asks for them."""
        if self._plan.task != "segmentation" or self._plan.protocol.background != "names":
            return []
        classes = set(self._bench.dataset.classes)
        names = [name for name in load_names("background").names if name not in classes]
        known = [name for name in names if not self._place.backbone.unknown_name(name)]
        if not known:
            raise InputError(
                f"{self._place.backbone.identity.name} knows no name for the background; choose another --protocol, "
                "such as standard or sliding"
            )
        return known

    def _training_set(self) -> Dataset:
        self._prepare()
        if self._training is None:
            raise InputError(
                f"learned methods need pictures to train on beside {self._plan.data}: name them (--train-data), or "
                "give trained runs (--model RUN)"
            )
        return self._training

    def _fitting_bench(self) -> Bench:
        self._prepare()
        assert self._fitting is not None, "_prepare sets it"
        return self._fitting

    def _prepare(self) -> None:
        """Load what is fitted and trained on, once; nothing of it is evaluated."""
        if self._fitting is not None:
            return
        place, plan, dataset = self._place, self._plan, self._bench.dataset
        spec = plan.fit_data or sibling_split(plan.data)
        train_spec = (plan.train_data or sibling_split(plan.data, "train")) if self._trains else None
        if spec is None and train_spec is None:
            raise InputError(f"methods fit their thresholds on other pictures than {plan.data}: name them (--fit-data)")
        training = self._trainable(place.load(train_spec)) if train_spec else None
        if training is not None and spec in (None, train_spec):
            training, fitting = hold_out(training, plan.seeds[0])
            fitting = match_classes(fitting, dataset)
        else:
            assert spec is not None, "one of the two is given"
            fitting = match_classes(place.load(spec), dataset)
        if not plan.fit_data and len(fitting.samples) > FITTING_PICTURES:
            rows = np.random.default_rng(0).permutation(len(fitting.samples))[:FITTING_PICTURES]
            fitting = take(fitting, sorted(rows.tolist()))
            place.tell(f"thresholds are fitted on {FITTING_PICTURES} pictures of {fitting.spec}")
        require_disjoint(fitting, dataset, "evaluated")
        if training is not None:
            require_disjoint(training, dataset, "evaluated")
            require_disjoint(fitting, training, "trained on")
        protocol = plan.protocol if plan.task == "segmentation" else None
        self._training, self._fitting = training, place.bench(fitting, list(self._bench.stores), protocol)

    def _trainable(self, dataset: Dataset) -> Dataset:
        """Leave the classes out that are not evaluated, or that are to stay unseen."""
        wanted = (self._plan.groups or {}).get("seen") or self._bench.dataset.classes
        names = [name for name in dataset.classes if name in set(wanted)]
        if not names:
            raise InputError(
                f"{dataset.spec} has no class of {self._bench.dataset.spec}; expected the same kind of data"
            )
        return select_classes(dataset, names)


def _measure(place: Workplace, plan: Plan, bench: Bench, candidate: Candidate) -> Measured:
    """Evaluate one method with one seed."""
    started = time.monotonic()
    dataset, method = bench.dataset, candidate.method
    seed = candidate.seed or 0
    result = {
        **provenance(place, plan.task, dataset, seed),
        "method": candidate.name,
        "dense": method.dense,
        **candidate.extra,
    }
    if plan.task == "recognition":
        evidence = tag_scores(method, bench)
        groups = {
            group: [dataset.classes.index(name) for name in names if name in dataset.classes]
            for group, names in (plan.groups or {}).items()
        }
        figures = evaluate_recognition(evidence, bench.labels, dataset.classes, candidate.thresholds.tag, groups, seed)
        result |= {"protocol": RECOGNITION_PROTOCOL, **figures}
    else:
        protocol = plan.protocol
        (evaluator,) = evaluate_masks(method, bench, candidate.thresholds, [protocol]).values()
        result |= {
            "protocol": f"{protocol.name}: {protocol.note}",
            "protocol_settings": protocol.describe(),
            **evaluator.result(),
            "entanglement": None if bench.windows else evaluate_cross_activation(method, bench),
        }
        evidence = evaluator.picture_counts
    return Measured({**result, "seconds": time.monotonic() - started}, evidence)


def _over_seeds(measured: Sequence[Measured]) -> dict[str, Any]:
    """Return the first seed's result, with mean and standard deviation (n - 1) of the figures of all beside it."""
    result = dict(measured[0].result)
    if len(measured) > 1:
        keys = ("map", "cf1", "of1", "top1") if result["task"] == "recognition" else ("miou", "pixel_accuracy")
        result["seeds"] = [one.result["seed"] for one in measured]
        result["spread"] = {}
        for key in keys:
            values = [one.result[key] for one in measured]
            std = None if None in values else float(np.std(values, ddof=1))
            result["spread"][key] = {"mean": mean_defined(values), "std": std, "values": values}
    return result


def _versus(plan: Plan, bench: Bench, one: Measured, other: Measured) -> dict[str, Any]:
    """Compare two methods on the same pictures; with several seeds, the first of each."""
    if plan.task == "recognition":
        paired, per_class = paired_bootstrap(one.evidence, other.evidence, bench.labels), "per_class_ap"
    else:
        with_background = plan.protocol.with_background
        paired = paired_bootstrap_masks(one.evidence, other.evidence, with_background)
        per_class = "per_class_iou"
    return {
        "method": other.result["method"],
        "difference": paired.difference,
        "ci95": paired.ci95,
        "p": paired.p,
        "per_class": per_class_differences(one.result[per_class], other.result[per_class]),
    }
