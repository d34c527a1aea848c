"""`ablate`: what each choice of the method brings, on stored features in one go, with spreads.

One factor is changed at a time from the base recipe (or all combinations with `product`); every variant is trained with
every seed and measured as `study` and `compare` measure. `dense` and `keep` are factors too: the features that are
scored, and the share of the labels that is known.
"""

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from unmix_clip.config import TrainConfig, config_from_dict
from unmix_clip.data.partial import hide_labels
from unmix_clip.data.samples import Dataset, match_classes
from unmix_clip.errors import InputError
from unmix_clip.evaluation.metrics import mean_defined, per_class_ap
from unmix_clip.evaluation.protocols import PROTOCOLS
from unmix_clip.evaluation.statistics import spread
from unmix_clip.evaluator import Bench, evaluate_cross_activation, evaluate_masks, tag_scores
from unmix_clip.jobs import Workplace, entanglement_of, fit_model, provenance, require_disjoint, sibling_split
from unmix_clip.progress import progress_bar

FIGURES = ("map", "miou_objects", "miou_standard", "cross_activation", "mean_cosine", "order_correlation", "seconds")
"""What is measured of every variant; those that need masks are null where there are none."""
DATA_FACTORS = ("dense", "keep")
"""Factors that are no settings of a recipe."""


@dataclass(frozen=True)
class Variant:
    """A configuration with a name."""

    changes: Mapping[str, str]
    """Factor: value, as they were given; empty for the base."""
    config: TrainConfig
    dense: str
    keep: float | str

    @property
    def name(self) -> str:
        """Its changes, as `--set` takes them."""
        return ", ".join(f"{key}={value}" for key, value in self.changes.items()) or "base"


def build_variants(base: TrainConfig, dense: str, grid: Mapping[str, Sequence[str]], product: bool) -> list[Variant]:
    """Return the base and its variants.

    Args:
        base: the recipe.
        dense: the base's dense strategy.
        grid: values by factor, as text.
        product: all combinations instead of one factor at a time.
    """
    if product:
        combinations = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    else:
        combinations = [{key: value} for key, values in grid.items() for value in values]
    return [_variant(base, dense, changes) for changes in ({}, *combinations)]


def _variant(base: TrainConfig, dense: str, changes: Mapping[str, str]) -> Variant:
    settings = {key: value for key, value in changes.items() if key not in DATA_FACTORS}
    keep: float | str = changes.get("keep", "1")
    if keep != "single":
        try:
            keep = float(keep)
        except ValueError:
            raise InputError(f"keep is {keep!r}; expected a share in (0, 1], or single") from None
    config = config_from_dict({**base.to_dict(), **settings})
    return Variant(changes, config, changes.get("dense", dense), keep)


def parse_grid(items: Sequence[str]) -> dict[str, list[str]]:
    """Read `key=a,b,c` items."""
    grid: dict[str, list[str]] = {}
    for item in items:
        key, equals, values = item.partition("=")
        if not equals or not all(values.split(",")) or key in grid:
            raise InputError(f"--grid {item!r}; expected key=value,value, each key once, such as mfi_weight=0,10")
        grid[key] = values.split(",")
    if not grid:
        raise InputError("nothing to change; expected --grid key=value,value, such as --grid mfi_weight=0,10")
    return grid


def ablate(
    place: Workplace,
    base: TrainConfig,
    data: str,
    grid: Mapping[str, Sequence[str]],
    *,
    val: str | None,
    test: str,
    seeds: Sequence[int],
    product: bool = False,
) -> dict[str, Any]:
    """Train and measure every variant with every seed; returns one row a variant, figures with their spread.

    Args:
        place: the backbone.
        base: the recipe that is varied.
        data: training pictures.
        grid: values by factor.
        val: where thresholds are fitted; None = the validation split that belongs to the data.
        test: where figures are taken. For choices, name a validation split here, never the test split.
        seeds: of every variant.
        product: all combinations.
    """
    started = time.monotonic()
    variants = build_variants(base, place.backbone.identity.dense, grid, product)
    dense = list(dict.fromkeys(variant.dense for variant in variants))
    if unknown := set(dense) - set(place.backbone.dense_names):
        raise InputError(f"dense={sorted(unknown)[0]} does not exist; expected {', '.join(place.backbone.dense_names)}")
    training = place.load(data)
    val = val or sibling_split(data)
    if val is None:
        raise InputError(f"thresholds are fitted on other pictures than {data}: name them (--val)")
    fitting, measured_on = (match_classes(place.load(spec), training) for spec in (val, test))
    require_disjoint(fitting, training, "trained on")
    require_disjoint(fitting, measured_on, "evaluated")
    require_disjoint(measured_on, training, "trained on")
    # One pass of the backbone for all dense features; masks are read once for all variants.
    _, *benches = [place.bench(dataset, dense) for dataset in (training, fitting, measured_on)]
    rows = []
    with progress_bar("ablation", len(variants) * len(seeds), "trainings") as bar:
        for variant in variants:
            here = place.with_dense(variant.dense)
            labelled = training if variant.keep == 1.0 else hide_labels(training, variant.keep, 0)
            values: dict[str, list[float | None]] = {key: [] for key in FIGURES}
            for seed in seeds:
                figures = _measure(here, replace(variant.config, seed=seed), labelled, *benches)
                for key in FIGURES:
                    values[key].append(figures[key])
                bar.advance(note=variant.name)
            rows.append(
                {
                    "variant": variant.name,
                    "changes": dict(variant.changes),
                    "figures": {key: spread(of) for key, of in values.items()},
                }
            )
    return {
        **provenance(place, "ablation", measured_on, seeds[0]),
        "protocol": "thresholds fitted on " + fitting.spec + "; masks: standard-objects and standard",
        "method": base.recipe,
        "config": base.to_dict(),
        "trained_on": training.spec,
        "seeds": list(seeds),
        "rows": rows,
        "seconds": time.monotonic() - started,
    }


def _measure(
    place: Workplace, config: TrainConfig, training: Dataset, fitting: Bench, bench: Bench
) -> dict[str, float | None]:
    """Train one variant with one seed and measure it."""
    trained = fit_model(place, config, training, fitting)
    method = trained.method
    entanglement = entanglement_of(training.classes, trained.texts, trained.state.model)
    after = entanglement.get("after", {})
    figures: dict[str, float | None] = {
        "map": mean_defined(per_class_ap(tag_scores(method, bench), bench.labels)),
        "mean_cosine": after.get("mean_cosine"),
        "order_correlation": after.get("order_correlation"),
        "seconds": trained.seconds,
        "miou_objects": None,
        "miou_standard": None,
        "cross_activation": None,
    }
    if bench.has_masks and fitting.has_masks:
        found = evaluate_masks(
            method, bench, trained.thresholds, [PROTOCOLS["standard-objects"], PROTOCOLS["standard"]]
        )
        figures |= {
            "miou_objects": found["standard-objects"].result()["miou"],
            "miou_standard": found["standard"].result()["miou"],
            "cross_activation": evaluate_cross_activation(method, bench)["cross_activation"],
        }
    return figures
