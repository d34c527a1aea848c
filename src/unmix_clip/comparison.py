"""Several methods on one data set: each from the same stored features, each with thresholds fitted elsewhere.

A method is a training-free rival (`baselines/training_free.py`), a trained RUN, or a learned method that is trained
here over seeds. `METHOD@DENSE` is a learned method on the dense features of another rival: unmixing on top of it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unmix_clip.candidates import (
    Candidate,
    CandidateMaker,
    Plan,
    parse_method,
    require_answers,
    require_seeds_of_one,
)
from unmix_clip.data import is_scenes
from unmix_clip.data.scenes import class_groups
from unmix_clip.errors import InputError
from unmix_clip.evaluation.recognition import PROTOCOL, evaluate_recognition
from unmix_clip.evaluation.statistics import paired_bootstrap, paired_bootstrap_masks, per_class_differences, spread
from unmix_clip.evaluator import Bench, evaluate_cross_activation, evaluate_masks, tag_scores
from unmix_clip.jobs import Workplace, provenance
from unmix_clip.runs import Run

SPREAD = {
    "recognition": ("map", "map_11point", "cf1", "of1", "top1"),
    "segmentation": ("miou", "pixel_accuracy"),
}
"""Figures whose spread over seeds is given, by task."""


@dataclass(frozen=True)
class Measured:
    """One method measured: its result, and what a paired comparison needs."""

    result: dict[str, Any]
    evidence: np.ndarray
    """Tag scores (n, C), or pixel counts (n, 3, C + 1)."""


def compare(place: Workplace, plan: Plan, runs: Sequence[Run] = ()) -> list[dict[str, Any]]:
    """Evaluate methods on one data set, each from the same stored features; one result a method.

    Raises:
        InputError: an unknown method, data without labels or masks, splits that overlap.
    """
    wanted = {name: parse_method(name, place, runs) for name in plan.methods}
    if plan.against and plan.against not in wanted:
        raise InputError(f"--against {plan.against!r} is not measured; expected one of {', '.join(wanted)}")
    if plan.against and plan.task == "segmentation" and plan.protocol.per_image:
        raise InputError(f"--against compares data set figures; protocol {plan.protocol.name} averages per picture")
    require_seeds_of_one(runs)
    split = [name for names in (plan.groups or {}).values() for name in names]
    dataset = place.load(plan.data, split or None)
    if plan.groups is None and (unseen := class_groups(dataset.classes)) and is_scenes(plan.data):
        plan = replace(plan, groups={k: [dataset.classes[i] for i in rows] for k, rows in unseen.items()})
    plan = replace(plan, protocol=plan.protocol.on(dataset.has_background))
    dense = list(dict.fromkeys(dense for _, dense in wanted.values() if dense)) or ["maskclip"]
    require_answers(wanted, plan, dataset, runs)
    bench = place.bench(dataset, dense, plan.protocol if plan.task == "segmentation" else None)
    maker = CandidateMaker(place, plan, runs, bench, wanted.values())
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
        result |= {"protocol": PROTOCOL, **figures}
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
        result["spread"] = {key: spread([one.result[key] for one in measured]) for key in SPREAD[result["task"]]}
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
