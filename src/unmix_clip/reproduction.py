"""`reproduce`: a recipe over its seeds, each published figure beside ours, with the protocol's traps switched by name.

A recipe's table [reproduce] names the backbone, the training data and the cells of the published table; places of data
are given as KEY=PATH. Everything is checked before anything long starts. Nothing is ever selected on the test split:
thresholds come from a held-out part of the training split or a split named in the recipe, the last epoch is taken.
"""

import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from unmix_clip.backbones import build_backbone
from unmix_clip.backbones.clip import FrozenClip
from unmix_clip.candidates import Plan
from unmix_clip.comparison import SPREAD, compare
from unmix_clip.config import TrainConfig, config_from_dict, read_recipe
from unmix_clip.data import load_data
from unmix_clip.data.images import pictures_unread
from unmix_clip.data.samples import match_classes
from unmix_clip.data.windows import window_boxes
from unmix_clip.errors import InputError
from unmix_clip.evaluation.protocols import find_protocol
from unmix_clip.evaluation.statistics import spread
from unmix_clip.features import default_cache, stored_bytes
from unmix_clip.jobs import Workplace, fit_model, hold_out, provenance
from unmix_clip.runs import Run

TRAPS = {
    "difficult-negative": "VOC objects marked difficult count as absent (the author's code); default: unknown",
    "crowd-positive": "a class shown only as a COCO crowd counts as present (common practice); default: unknown",
    "labels-90": "90 % of the training labels are kept, as many of the author's runs do; default: all",
    "per-image-miou": "mIoU is averaged inside each picture over its foreground classes (the author's code); default: "
    "one confusion matrix over the data set",
}
"""Choices of the published protocols that move figures, off unless named. Selecting the epoch on the test split, which
the author's runs do, is not offered."""
PROBE_PICTURES = 4
"""Pictures that the backbone is timed on in a dry run."""


@dataclass(frozen=True)
class Cell:
    """One figure of a published table."""

    task: str
    data: str
    figure: str
    """Key of the result: `map` or `miou`."""
    source: str
    """Where the published figure stands."""
    published: float | None = None
    """In [0, 1]; None = not known."""
    protocol: str = "standard"
    fit: str | None = None
    """Where the thresholds are fitted; None = on the held-out part of the training data."""

    def __post_init__(self) -> None:
        if self.task not in SPREAD:
            raise InputError(f"a cell has the task {self.task!r}; expected one of {', '.join(SPREAD)}")
        if self.figure not in SPREAD[self.task]:
            expected = ", ".join(SPREAD[self.task])
            raise InputError(f"a cell of {self.task} has the figure {self.figure!r}; expected one of {expected}")


@dataclass(frozen=True)
class Experiment:
    """A recipe with everything around it."""

    name: str
    config: TrainConfig
    backbone: str
    train: str
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]
    image_size: int | None = None
    fit: str | None = None
    """Where thresholds are fitted; None = a held-out tenth of the training pictures."""

    def specs(self) -> list[str]:
        """Return every data set that is needed, each once."""
        needed = [self.train, self.fit, *(cell.data for cell in self.cells), *(cell.fit for cell in self.cells)]
        return list(dict.fromkeys(spec for spec in needed if spec))

    @property
    def needs_no_threshold(self) -> bool:
        """Whether all figures are average precisions."""
        return all(cell.figure in ("map", "map_11point") for cell in self.cells)

    def passes(self, spec: str) -> int:
        """Return how often the backbone sees each picture of a data set: views, or windows of a 4:3 picture."""
        if spec == self.train:
            return self.config.views
        protocols = [find_protocol(cell.protocol) for cell in self.cells if spec in (cell.data, cell.fit)]
        windows = [
            len(window_boxes((p.short_side_px, p.short_side_px * 4 // 3), p.window_px, p.stride_px))
            for p in protocols
            if p.slides
        ]
        return max(windows, default=1)


def load_experiment(
    source: str, places: Mapping[str, str], traps: Sequence[str] = (), backbone: str | None = None
) -> Experiment:
    """Read a recipe's experiment, with the places of data filled in and traps applied.

    Raises:
        InputError: a recipe without [reproduce], an unknown key or trap, a place that is missing or not needed.
    """
    values = read_recipe(source)
    around = dict(values.pop("reproduce", {}))
    if not around:
        raise InputError(f"the recipe {source} has no table [reproduce]; expected an experiment, see docs/reproduce.md")
    if unknown := [trap for trap in traps if trap not in TRAPS]:
        raise InputError(f"unknown trap {unknown[0]!r}; expected some of {', '.join(TRAPS)}")
    cells = [_build(Cell, cell, f"{source} [[reproduce.cells]]") for cell in around.pop("cells", [])]
    seeds = around.get("seeds", [0])
    if not (isinstance(seeds, list) and seeds and all(isinstance(seed, int) for seed in seeds)):
        raise InputError(f"{source} [reproduce] has seeds = {seeds!r}; expected a list of whole numbers")
    around["seeds"] = tuple(seeds)
    config = config_from_dict(values)
    name = str(source) if not str(source).endswith(".toml") else Path(source).stem
    experiment = _build(
        Experiment, {**around, "name": name, "config": config, "cells": tuple(cells)}, f"{source} [reproduce]"
    )
    if backbone:
        experiment = replace(experiment, backbone=backbone)
    keys = {key for spec in experiment.specs() for key in re.findall(r"{(\w+)}", spec)}
    for key in keys ^ set(places):
        problem = "is needed" if key in keys else "is not used"
        expected = " ".join(f"--data {one}=PATH" for one in sorted(keys)) or "no --data"
        raise InputError(f"the place {key!r} {problem} by {name}; expected {expected}")

    def place(spec: str | None, training: bool = False) -> str | None:
        return None if spec is None else _with_traps(spec.format(**places), traps, training)

    return replace(
        experiment,
        train=place(experiment.train, True),
        fit=place(experiment.fit),
        cells=tuple(
            replace(
                cell,
                data=place(cell.data),
                fit=place(cell.fit),
                protocol="paper" if cell.task == "segmentation" and "per-image-miou" in traps else cell.protocol,
            )
            for cell in experiment.cells
        ),
    )


def _build(kind: Any, values: Mapping[str, Any], where: str) -> Any:
    names = {field.name for field in fields(kind)}
    if wrong := set(values) - names:
        raise InputError(f"{where} has the key {sorted(wrong)[0]!r}; expected some of {', '.join(sorted(names))}")
    try:
        return kind(**values)
    except TypeError as error:
        raise InputError(f"{where} is not complete: {error}") from None


def _with_traps(spec: str, traps: Sequence[str], training: bool) -> str:
    """Add to a data spec what the chosen traps mean for its kind."""
    kind = spec.partition(":")[0]
    options = []
    if "difficult-negative" in traps and kind in ("voc2007", "voc2012"):
        options.append("difficult=negative")
    if "crowd-positive" in traps and kind == "coco":
        options.append("crowd=positive")
    if "labels-90" in traps and training:
        options.append("keep=0.9")
    return spec + ("&" if "?" in spec else "?") * bool(options) + "&".join(options)


def check(experiment: Experiment, cache: Path | None, device: str) -> dict[str, Any]:
    """Check paths, counts, weights, disk and time; nothing long is started, no picture is read.

    Returns:
        `checks`: one entry a thing that is needed, its `problem` null where it is fine; `disk_gb`, `free_gb`; and
        `hours` for the features (one pass of the backbone, timed here), null where the backbone cannot be built.
    """
    checks: list[dict[str, Any]] = []
    backbone: FrozenClip | None = None
    try:
        backbone = build_backbone(experiment.backbone, experiment.image_size, device=device)
        checks.append({"what": f"backbone {experiment.backbone}", "found": "loads", "problem": None})
    except InputError as error:
        checks.append({"what": f"backbone {experiment.backbone}", "found": None, "problem": str(error)})
    pictures = 0
    for spec in experiment.specs():
        try:
            with pictures_unread():
                dataset = load_data(spec)
        except InputError as error:
            checks.append({"what": spec, "found": None, "problem": str(error)})
            continue
        notes = "".join(f"; {count} {note}" for note, count in dataset.notes.items())
        found = f"{len(dataset.samples)} pictures, {len(dataset.classes)} classes{notes}"
        checks.append({"what": spec, "found": found, "problem": None})
        pictures += len(dataset.samples) * experiment.passes(spec)
    result: dict[str, Any] = {"checks": checks, "pictures": pictures, "disk_gb": None, "free_gb": None, "hours": None}
    if backbone is not None:
        root = cache or default_cache()
        existing = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
        locations = backbone.grid_hw[0] * backbone.grid_hw[1]
        needed, free = stored_bytes(pictures, locations, backbone.embed_dim), shutil.disk_usage(existing).free
        result |= {
            "disk_gb": needed / 1e9,
            "free_gb": free / 1e9,
            "hours": pictures * _seconds_a_picture(backbone) / 3600,
        }
        if needed > free:
            problem = f"{needed / 1e9:.1f} GB of features, {free / 1e9:.1f} GB free: name another folder (--cache)"
            checks.append({"what": f"disk at {existing}", "found": None, "problem": problem})
    return result


def _seconds_a_picture(backbone: FrozenClip) -> float:
    pixels = torch.zeros(PROBE_PICTURES, 3, *backbone.preprocess.canvas_hw)
    backbone.encode_images(pixels[:1])  # the first pass is slower
    started = time.monotonic()
    backbone.encode_images(pixels)
    return (time.monotonic() - started) / PROBE_PICTURES


def reproduce(
    experiment: Experiment,
    *,
    traps: Sequence[str] = (),
    cache: Path | None = None,
    device: str = "cpu",
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train over the seeds, measure every cell, and put ours beside what was published."""
    started = time.monotonic()
    place = Workplace(build_backbone(experiment.backbone, experiment.image_size, device=device), cache, tell)
    training = place.load(experiment.train)
    if experiment.fit:
        fitting = match_classes(place.load(experiment.fit), training)
    else:
        kept, fitting = hold_out(training, experiment.seeds[0])
        # Average precision needs no threshold, so nothing is lost by training on the whole split, as published.
        training = training if experiment.needs_no_threshold else kept
    val = place.bench(fitting)
    runs: list[Run] = []
    for seed in experiment.seeds:
        trained = fit_model(place, replace(experiment.config, seed=seed), training, val)
        runs.append(trained.as_run(place, training, experiment.backbone))
    cells = []
    for cell in experiment.cells:
        plan = Plan(
            cell.data, cell.task, ["unmix"], find_protocol(cell.protocol), fit_data=cell.fit, seeds=experiment.seeds
        )
        (result,) = compare(place, plan, runs)
        over_seeds = result.get("spread", {}).get(cell.figure) or spread([result[cell.figure]])
        mean = over_seeds["mean"]
        cells.append(
            {
                "data": cell.data,
                "figure": cell.figure,
                "protocol": result["protocol"],
                "data_rules": result["data_rules"],
                "n_images": result["n_images"],
                "published": cell.published,
                "source": cell.source,
                "ours": mean,
                "std": over_seeds["std"],
                "values": over_seeds["values"],
                "difference": None if None in (mean, cell.published) else mean - cell.published,  # type: ignore[operator]
            }
        )
    return {
        **provenance(place, "reproduce", training, experiment.seeds[0]),
        "recipe": experiment.name,
        "protocol": "last epoch, nothing selected on the test split",
        "method": "unmix",
        "config": experiment.config.to_dict(),
        "seeds": list(experiment.seeds),
        "traps": {name: name in traps for name in TRAPS},
        "n_train": len(training.samples),
        "thresholds_from": fitting.spec
        if experiment.fit
        else ("none needed" if experiment.needs_no_threshold else f"a held-out part of {experiment.train}"),
        "cells": cells,
        "seconds": time.monotonic() - started,
    }
