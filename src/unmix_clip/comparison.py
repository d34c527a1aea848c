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
from unmix_clip.method.model import ClassTexts, TagModel
from unmix_clip.runs import LEARNED, PICTURE_DIGITS, Run, method_name, picture_numbers, require_backbone
from unmix_clip.training import mean_location, mean_pooled
from unmix_clip.vocabulary import Prompts, load_names, load_prompts

FITTING_PICTURES = 2000
"""Most pictures that thresholds are fitted on, drawn by a fixed seed: two numbers need no more."""
SPREAD = {
    "recognition": ("map", "map_11point", "cf1", "of1", "top1"),
    "segmentation": ("miou", "pixel_accuracy"),
}
"""Figures whose spread over seeds is given, by task."""
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
    """Return the method that a run is, see `method_name`."""
    return method_name(run.model.config, run.identity.dense)


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
    if plan.against and plan.task == "segmentation" and plan.protocol.per_image:
        raise InputError(f"--against compares data set figures; protocol {plan.protocol.name} averages per picture")
    _require_seeds_of_one(runs)
    split = [name for names in (plan.groups or {}).values() for name in names]
    dataset = place.load(plan.data, split or None)
    if plan.groups is None and (unseen := class_groups(dataset.classes)) and is_scenes(plan.data):
        plan = replace(plan, groups={k: [dataset.classes[i] for i in rows] for k, rows in unseen.items()})
    plan = replace(plan, protocol=plan.protocol.on(dataset.has_background))
    dense = list(dict.fromkeys(dense for _, dense in wanted.values() if dense)) or ["maskclip"]
    _require_answers(wanted, plan, dataset, runs)
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


def _require_seeds_of_one(runs: Sequence[Run]) -> None:
    """Raise InputError where runs of one method differ in more than their seed: their mean would mean nothing."""
    first: dict[str, Run] = {}
    for run in runs:
        other = first.setdefault(run_name(run), run)
        ours, theirs = ({**r.model.config.to_dict(), "classes": r.classes, "data": r.data} for r in (run, other))
        changed = [key for key in ours if key != "seed" and ours[key] != theirs[key]]
        if changed or (run is not other and ours["seed"] == theirs["seed"]):
            raise InputError(
                f"two runs of {run_name(run)} differ in {', '.join(changed) or 'nothing, not even their seed'}; "
                "expected seeds of one recipe on one data set: compare different ones one after the other"
            )


def _require_answers(
    wanted: Mapping[str, tuple[str, str | None]], plan: Plan, dataset: Dataset, runs: Sequence[Run]
) -> None:
    """Raise InputError before anything is computed where a method cannot be asked, or must not be."""
    unseen = set((plan.groups or {}).get("unseen", ())) & set(dataset.classes)
    background = plan.task == "segmentation" and plan.protocol.background == "names"
    if "linear-probe" in {base for base, _ in wanted.values()} and (unseen or background):
        raise InputError(
            "linear-probe knows only names that it was trained on, and others are asked here: leave it out"
        )
    for run in runs:
        if met := sorted(unseen & set(run.classes)):
            raise InputError(
                f"the run of {run_name(run)} was trained on {met[0]!r}, which is to be unseen here; expected one "
                "that was trained without (train --class-split)"
            )
        if shared := len(run.pictures & picture_numbers(dataset)):
            raise InputError(f"the run of {run_name(run)} was trained on {shared} of the pictures of {dataset.spec}")


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
        prompts, fitting = load_prompts("plain"), self._fitting_bench()
        texts = self._place.texts(prompts, fitting.dataset.classes, self._synonyms())
        (rival,) = build_rivals([name], texts, fitting)
        thresholds = fit_thresholds(rival, fitting, self._plan.protocol)
        if extra := self._background_names():
            asked = [*fitting.dataset.classes, *extra]
            (wider,) = build_rivals([name], self._place.texts(prompts, asked, self._synonyms()), fitting, False)
            rival = replace(wider, scale=rival.scale)
        return Candidate(name, rival, thresholds, None, {"prompts": vars(prompts)})

    def _from_run(self, name: str, run: Run) -> Candidate:
        require_backbone(run, self._place.with_dense(run.identity.dense).backbone)
        method = self._bind(name, run.model, run.prompts, run.synonyms, run.identity.dense)
        thresholds = run.thresholds
        if self._fits_runs:
            fitting = self._fitting_bench()
            texts = self._place.texts(run.prompts, fitting.dataset.classes, run.synonyms or self._synonyms())
            bound = learned_method(run.model, texts, name, run.identity.dense)
            thresholds = fit_thresholds(bound, fitting, self._plan.protocol)
        return Candidate(name, method, thresholds, run.model.config.seed, self._trained_on(run.data, run.model, run))

    @property
    def _fits_runs(self) -> bool:
        """Whether thresholds of runs are fitted here: where asked, or where masks are not made as in their training."""
        protocol = self._plan.protocol
        made_otherwise = protocol.slides or not protocol.tag_gate or protocol.refinement != "none"
        masks = self._plan.task == "segmentation" and protocol.background == "threshold"
        return bool(self._runs) and (self._plan.fit_data is not None or (masks and made_otherwise))

    def _bind(
        self, name: str, model: TagModel, prompts: Prompts, synonyms: Mapping[str, Sequence[str]], dense: str
    ) -> Method:
        """Bind a trained model to the names that are evaluated, and to those of the background where they compete."""
        names = [*self._bench.dataset.classes, *self._background_names()]
        texts = self._place.texts(prompts, names, synonyms or self._synonyms())
        return learned_method(model, texts, name, dense)

    def _trained_on(self, data: str, model: TagModel, made: Run | Trained) -> dict[str, Any]:
        """Return what the result of a learned method carries beside its figures."""
        synonyms = bool(made.synonyms or self._synonyms())
        return {
            "trained_on": data, "config": model.config.to_dict(), "prompts": vars(made.prompts), "synonyms": synonyms
        }  # fmt: skip

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
        trained = fit_model(place, config, training, val)
        model, thresholds = trained.state.model, trained.thresholds
        if self._plan.task == "segmentation":
            thresholds = fit_thresholds(trained.method, val, self._plan.protocol)
        method = self._bind(name, model, trained.prompts, trained.synonyms, dense)
        return Candidate(name, method, thresholds, seed, self._trained_on(training.spec, model, trained))

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
        fitting = self._fittable(fitting)
        require_disjoint(fitting, dataset, "evaluated")
        if training is not None:
            require_disjoint(training, dataset, "evaluated")
            require_disjoint(fitting, training, "trained on")
        protocol = plan.protocol if plan.task == "segmentation" else None
        self._training, self._fitting = training, place.bench(fitting, list(self._bench.stores), protocol)

    def _fittable(self, dataset: Dataset) -> Dataset:
        """Leave out what a run was trained on whose thresholds are fitted, and draw some of very many pictures."""
        trained_on = frozenset().union(*(run.pictures for run in self._runs if self._fits_runs))
        rows = [i for i, s in enumerate(dataset.samples) if int(s.digest[:PICTURE_DIGITS], 16) not in trained_on]
        if not rows:
            raise InputError(f"every picture of {dataset.spec} was trained on: name others to fit on (--fit-data)")
        if len(rows) > FITTING_PICTURES:
            rows = sorted(np.random.default_rng(0).permutation(rows)[:FITTING_PICTURES].tolist())
        if len(rows) < len(dataset.samples):
            self._place.tell(f"thresholds are fitted on {len(rows)} of the {len(dataset.samples)} of {dataset.spec}")
        return take(dataset, rows)

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
        "thresholds": vars(candidate.thresholds),
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
        result["seeds"] = [one.result["seed"] for one in measured]
        result["spread"] = {}
        for key in SPREAD[result["task"]]:
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
