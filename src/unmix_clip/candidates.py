"""Which methods there are, and how each is made ready to be measured: from a run, trained here, or without training.

Nothing of what a method is fitted or trained on is evaluated; `comparison.py` measures.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from unmix_clip.baselines import training_free
from unmix_clip.baselines.training_free import TrainingFree, build_training_free, dense_of
from unmix_clip.config import load_config
from unmix_clip.data.samples import Dataset, match_classes, select_classes, take
from unmix_clip.errors import InputError
from unmix_clip.evaluation.protocols import Protocol
from unmix_clip.evaluator import Bench, Method, Thresholds, fit_scale, fit_thresholds
from unmix_clip.jobs import (
    Trained,
    Workplace,
    fit_model,
    hold_out,
    learned_method,
    require_disjoint,
    sibling_split,
)
from unmix_clip.method.model import ClassTexts, TagModel
from unmix_clip.runs import LEARNED, Run, method_name, picture_number, picture_numbers, require_backbone
from unmix_clip.training import mean_location, mean_pooled
from unmix_clip.vocabulary import Prompts, load_names, load_prompts

FITTING_PICTURES = 2000
"""Most pictures that thresholds are fitted on, drawn by a fixed seed: two numbers need no more."""
RIVAL_PROMPTS = "plain"
"""Prompts of training-free rivals, whatever runs stand beside them."""


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
        mean = None
        if "-centred" in name:
            dense = dense_of(name)
            mean = mean_location(fitting.stores[dense]) if dense else mean_pooled(fitting.store)
        rival = build_training_free(name, texts.positive, mean)
        built.append(fit_scale(rival, fitting) if fit_scales else rival)
    return built


def parse_method(name: str, place: Workplace, runs: Sequence[Run]) -> tuple[str, str | None]:
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


def require_seeds_of_one(runs: Sequence[Run]) -> None:
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


def require_answers(
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


class CandidateMaker:
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
        (rival,) = build_rivals([name], self._rival_texts[0], self._fitting)
        thresholds = fit_thresholds(rival, self._fitting, self._plan.protocol)
        if self._background_names:
            (wider,) = build_rivals([name], self._rival_texts[1], self._fitting, False)
            rival = replace(wider, scale=rival.scale)
        return Candidate(name, rival, thresholds, None, {"prompts": vars(load_prompts(RIVAL_PROMPTS))})

    @cached_property
    def _rival_texts(self) -> tuple[ClassTexts, ClassTexts]:
        """Texts that all rivals share: of the classes, and with names of the background behind them."""
        prompts, classes = load_prompts(RIVAL_PROMPTS), self._bench.dataset.classes
        plain = self._place.texts(prompts, classes, self._synonyms)
        if not self._background_names:
            return plain, plain
        return plain, self._place.texts(prompts, [*classes, *self._background_names], self._synonyms)

    def _from_run(self, name: str, run: Run) -> Candidate:
        require_backbone(run, self._place.with_dense(run.identity.dense).backbone)
        method = self._bind(name, run.model, run.prompts, run.synonyms, run.identity.dense)
        thresholds = run.thresholds
        if self._fits_runs:
            texts = self._place.texts(run.prompts, self._bench.dataset.classes, run.synonyms or self._synonyms)
            bound = learned_method(run.model, texts, name, run.identity.dense)
            thresholds = fit_thresholds(bound, self._fitting, self._plan.protocol)
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
        names = [*self._bench.dataset.classes, *self._background_names]
        texts = self._place.texts(prompts, names, synonyms or self._synonyms)
        return learned_method(model, texts, name, dense)

    def _trained_on(self, data: str, model: TagModel, made: Run | Trained) -> dict[str, Any]:
        """Return what the result of a learned method carries beside its figures."""
        synonyms = bool(made.synonyms or self._synonyms)
        return {
            "trained_on": data, "config": model.config.to_dict(), "prompts": vars(made.prompts), "synonyms": synonyms
        }  # fmt: skip

    def _trained(self, name: str, recipe: str, dense: str, seed: int) -> Candidate:
        config = replace(load_config(recipe), seed=seed)
        training, val = self._training
        trained = fit_model(self._place.with_dense(dense), config, training, val)
        model, thresholds = trained.state.model, trained.thresholds
        if self._plan.task == "segmentation":
            thresholds = fit_thresholds(trained.method, val, self._plan.protocol)
        method = self._bind(name, model, trained.prompts, trained.synonyms, dense)
        return Candidate(name, method, thresholds, seed, self._trained_on(training.spec, model, trained))

    @property
    def _synonyms(self) -> Mapping[str, Sequence[str]]:
        return self._bench.dataset.synonyms if self._plan.protocol.synonyms else {}

    @cached_property
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

    @property
    def _fitting(self) -> Bench:
        """Where thresholds are fitted."""
        return self._split[0]

    @cached_property
    def _training(self) -> tuple[Dataset, Bench]:
        """What is trained on, and where its thresholds are fitted: the fitting bench, with the classes trained on."""
        fitting, training = self._split
        if training is None:
            raise InputError(
                f"learned methods need pictures to train on beside {self._plan.data}: name them (--train-data), or "
                "give trained runs (--model RUN)"
            )
        return training, replace(fitting, dataset=match_classes(fitting.dataset, training), _masks={})

    @cached_property
    def _split(self) -> tuple[Bench, Dataset | None]:
        """Load what is fitted and what is trained on; nothing of either is evaluated."""
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
        return place.bench(fitting, list(self._bench.stores), protocol), training

    def _fittable(self, dataset: Dataset) -> Dataset:
        """Leave out what a run was trained on whose thresholds are fitted, and draw some of very many pictures."""
        trained_on = frozenset().union(*(run.pictures for run in self._runs if self._fits_runs))
        rows = [i for i, s in enumerate(dataset.samples) if picture_number(s) not in trained_on]
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
