"""Several methods on one data set: each from the same stored features, each with thresholds fitted elsewhere."""

from collections.abc import Sequence
from typing import Any

from unmix_clip.baselines import training_free
from unmix_clip.baselines.training_free import TrainingFree, build_training_free
from unmix_clip.data.samples import Dataset, match_classes
from unmix_clip.errors import InputError
from unmix_clip.evaluation.protocols import find_protocol
from unmix_clip.evaluator import (
    Bench,
    Method,
    Thresholds,
    evaluate_cross_activation,
    evaluate_masks,
    evaluate_tags,
    fit_scale,
    fit_thresholds,
)
from unmix_clip.jobs import Workplace, default_fitting_split, provenance, require_disjoint, unmix_method
from unmix_clip.method.model import ClassTexts
from unmix_clip.runs import Run, require_backbone
from unmix_clip.training import mean_location, mean_pooled
from unmix_clip.vocabulary import load_prompts

RIVALS = training_free.NAMES
METHODS = ("unmix", *RIVALS)


def build_rivals(
    names: Sequence[str], texts: ClassTexts, fitting: Bench, fit_scales: bool = True
) -> list[TrainingFree]:
    """Build training-free rivals; centres and softmax scales come from the fitting split."""
    means = mean_location(fitting.store), mean_pooled(fitting.store)
    built = [build_training_free(name, texts.positive, *means) for name in names]
    return [fit_scale(rival, fitting) for rival in built] if fit_scales else built


def compare(
    place: Workplace,
    data: str,
    task: str,
    methods: Sequence[str],
    *,
    run: Run | None = None,
    protocol: str = "standard",
    fit_data: str | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Evaluate methods on one data set, each from the same stored features; one result a method."""
    if unknown := [name for name in methods if name not in METHODS]:
        raise InputError(f"unknown method {unknown[0]!r}; expected one of {', '.join(METHODS)}")
    if "unmix" in methods and run is None:
        raise InputError("method unmix needs a trained model: add --model RUN")
    if run is not None:
        require_backbone(run, place.backbone)
    chosen = find_protocol(protocol)
    dataset = place.load(data)
    bench = place.bench(dataset)
    rivals = [name for name in methods if name != "unmix"]
    prompts = run.prompts if run else load_prompts("plain")
    texts = place.texts(prompts, dataset.classes)
    built: dict[str, tuple[Method, Thresholds]] = {}
    fitting = _fitting_bench(place, data, fit_data, dataset) if rivals or fit_data else None
    if run is not None and "unmix" in methods:
        unmix = unmix_method(run.model, texts)
        built["unmix"] = (unmix, fit_thresholds(unmix, fitting) if fitting and fit_data else run.thresholds)
    if fitting:
        for rival in build_rivals(rivals, texts, fitting):
            built[rival.name] = (rival, fit_thresholds(rival, fitting))
    results: list[dict[str, Any]] = []
    for name in methods:
        method, thresholds = built[name]
        common = {**provenance(place, task, dataset, seed), "method": name}
        if run is not None and name == "unmix":
            common |= {"seed": run.model.config.seed, "trained_on": run.data, "config": run.model.config.to_dict()}
        if task == "recognition":
            figures = evaluate_tags(method, bench, thresholds, seed)
            results.append({**common, "protocol": "average precision per class, all images", **figures})
        else:
            figures = evaluate_masks(method, bench, thresholds, [chosen])[chosen.name]
            results.append({**common, "protocol": f"{chosen.name}: {chosen.note}", **figures})
            results[-1]["entanglement"] = evaluate_cross_activation(method, bench)
        if place.failures:
            results[-1]["failures"] = place.failures
    return results


def _fitting_bench(place: Workplace, data: str, fit_data: str | None, dataset: Dataset) -> Bench:
    spec = fit_data or default_fitting_split(data)
    if spec is None:
        raise InputError(
            f"training-free methods fit their thresholds on other pictures than {data}: name them (--fit-data)"
        )
    fitting = match_classes(place.load(spec), dataset)
    require_disjoint(fitting, dataset, "evaluated")
    return place.bench(fitting)
