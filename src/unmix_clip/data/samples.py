"""What a data set is to the rest of the program."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from unmix_clip.errors import InputError

IGNORE = -1
"""Mask value of pixels that count for nothing (255 in files)."""


@dataclass(frozen=True)
class Sample:
    """One picture; the picture and its mask are read when they are asked for."""

    key: str
    labels: np.ndarray | None  # (C,) int8: 1 present, 0 absent, -1 unknown; None = not labelled
    load_image: Callable[[], Image.Image]
    load_mask: Callable[[], np.ndarray] | None  # (H, W) int32: 0 background, 1 + class index, IGNORE
    digest: str
    image_hw: tuple[int, int] | None = None
    """Rows and columns of the picture where they are known without reading it."""


@dataclass(frozen=True)
class Dataset:
    """A list of pictures and the names that their labels and masks are about."""

    spec: str
    classes: tuple[str, ...]
    samples: Sequence[Sample]
    notes: dict[str, int]
    """What a person should know of it, as "what": how many."""
    rules: dict[str, str] = field(default_factory=dict)
    """The rules of reading that move figures, by name: {"difficult": "ignore"}; they go into every result."""
    synonyms: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Other words for some of the classes, by class; averaged where a recipe or a protocol asks for them."""
    has_background: bool = True
    """Whether masks have background pixels (0); False where every pixel has a class or is IGNORE."""


def label_matrix(dataset: Dataset) -> np.ndarray:
    """Return the labels of all pictures (n, C) int8; raises InputError where the data set has none."""
    rows = [sample.labels for sample in dataset.samples]
    if not rows or any(row is None for row in rows):
        raise InputError(f"{dataset.spec} has no labels; expected a data set with labels, such as coco: or table:")
    return np.stack(rows)  # type: ignore[arg-type]


def select_classes(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """Return the same pictures with the given names only, in data set order; pixels of the others become IGNORE."""
    kept = [i for i, name in enumerate(dataset.classes) if name in set(names)]
    if len(kept) == len(dataset.classes):
        return dataset
    new_value = np.full(len(dataset.classes) + 1, IGNORE, dtype=np.int32)
    new_value[0] = 0
    new_value[[i + 1 for i in kept]] = np.arange(1, len(kept) + 1)

    def select(sample: Sample) -> Sample:
        load_mask = sample.load_mask

        def load_selected() -> np.ndarray:
            mask = load_mask()  # type: ignore[misc]
            return np.where(mask == IGNORE, IGNORE, new_value[mask])

        return replace(
            sample,
            labels=None if sample.labels is None else sample.labels[kept],
            load_mask=None if load_mask is None else load_selected,
        )

    classes = tuple(dataset.classes[i] for i in kept)
    return replace(dataset, classes=classes, samples=[select(sample) for sample in dataset.samples])


def match_classes(dataset: Dataset, wanted: Dataset) -> Dataset:
    """Bring a data set's labels and masks to the class list of another; names that it lacks are unknown there."""
    if dataset.classes == wanted.classes:
        return dataset
    if not set(dataset.classes) & set(wanted.classes):
        raise InputError(
            f"{dataset.spec} and {wanted.spec} have no class name in common; expected the same kind of data"
        )
    dataset = select_classes(dataset, wanted.classes)
    column = [dataset.classes.index(name) if name in dataset.classes else -1 for name in wanted.classes]
    value = np.array([0, *(wanted.classes.index(name) + 1 for name in dataset.classes)], dtype=np.int32)

    def bring(sample: Sample) -> Sample:
        labels, load_mask = sample.labels, sample.load_mask
        if labels is not None:
            labels = np.array([labels[i] if i >= 0 else -1 for i in column], dtype=np.int8)
        if load_mask is None:
            return replace(sample, labels=labels)

        def load_brought() -> np.ndarray:
            mask = load_mask()
            return np.where(mask < 0, mask, value[np.maximum(mask, 0)])

        return replace(sample, labels=labels, load_mask=load_brought)

    return replace(dataset, classes=wanted.classes, samples=[bring(sample) for sample in dataset.samples])


def take(dataset: Dataset, rows: Sequence[int]) -> Dataset:
    """Return some of the pictures, in the given order."""
    return replace(dataset, samples=[dataset.samples[i] for i in rows])
