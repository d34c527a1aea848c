"""Where pictures and labels come from: `load_data(spec)` reads any kind of data set into a `Dataset`.

A spec is KIND:PLACE@SPLIT?key=value&key=value. To add a kind: write its reader, add a line to `kinds`
(docs/extending.md shows one from start to end).
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unmix_clip.data.samples import Dataset, Sample
from unmix_clip.errors import InputError

Reader = Callable[[Path, str, Mapping[str, str]], Dataset]
"""(root, split, options as they were given) -> data set."""


@dataclass(frozen=True)
class Kind:
    """A kind of data set."""

    layout: str
    """What is looked for, one line."""
    read: Reader
    options: tuple[str, ...] = ()
    """Keys that may follow the question mark, beside those for every kind."""
    needs_split: bool = True


ANY_OPTIONS = ("keep", "label_seed")
"""keep=0.1 or keep=single: partial labels, see `data/partial.py`."""


def load_data(spec: str, classes: Sequence[str] | None = None) -> Dataset:
    """Read a data set.

    Args:
        spec: KIND:PLACE@SPLIT?options, see `kinds`.
        classes: the class list, for kinds that do not bring their own (`table`, `folder`, `openimages`).

    Raises:
        InputError: an unknown kind or option, or data that are not laid out as expected.
    """
    known = kinds(classes)
    name = "scenes" if is_scenes(spec) else spec.partition(":")[0]
    place = spec.removeprefix(name).removeprefix(":")
    if name not in known or not (place or name == "scenes"):
        raise InputError(f"unknown data {spec!r}; expected one of: {'; '.join(k.layout for k in known.values())}")
    kind = known[name]
    place, options = _options(spec, place, (*kind.options, *ANY_OPTIONS))
    hiding = {key: options.pop(key) for key in ANY_OPTIONS if key in options}
    root, split = _root_and_split(spec, place, kind)
    dataset = kind.read(root, split, options)
    if options and name != "scenes":  # scenes say all of theirs in a fixed order
        dataset = replace(dataset, spec=dataset.spec + "?" + "&".join(f"{k}={v}" for k, v in options.items()))
    return _hide(dataset, hiding) if hiding else dataset


def is_scenes(spec: str) -> bool:
    """Whether a spec names the embedded world."""
    return spec.partition("@")[0].partition("?")[0] == "scenes"


def kinds(classes: Sequence[str] | None = None) -> dict[str, Kind]:
    """Return the kinds of data sets by name."""
    from unmix_clip.data import coco, nuswide, openimages, segmentation, tables, visual_genome, voc

    def voc_of(year: int) -> Reader:
        return lambda root, split, options: voc.load_voc(root, year, split, **options)

    def split_only(load: Callable[..., Dataset], **fixed: Any) -> Reader:
        return lambda root, split, options: load(root, split, **fixed)

    masks = {
        "voc21": split_only(segmentation.load_voc_segmentation, background=True),
        "voc20": split_only(segmentation.load_voc_segmentation, background=False),
        "context60": split_only(segmentation.load_context, background=True),
        "context59": split_only(segmentation.load_context, background=False),
        "coco-object": split_only(segmentation.load_coco_object),
        "coco-stuff": split_only(segmentation.load_coco_stuff),
        "ade20k": split_only(segmentation.load_ade20k),
        "cityscapes": split_only(segmentation.load_cityscapes),
    }
    return {
        "scenes": Kind(SCENES_LAYOUT, _load_scenes, ("n", "seed", "size"), needs_split=False),
        "coco": Kind(coco.LAYOUT, lambda root, split, options: coco.load_coco(root, split, **options), ("crowd",)),
        "voc2007": Kind(voc.LAYOUT, voc_of(2007), ("difficult",)),
        "voc2012": Kind(voc.LAYOUT.replace("2007", "2012"), voc_of(2012), ("difficult",)),
        "nuswide": Kind(nuswide.LAYOUT, split_only(nuswide.load_nuswide)),
        "openimages": Kind(openimages.LAYOUT, split_only(openimages.load_open_images, classes=classes)),
        "vg": Kind(visual_genome.LAYOUT, _load_visual_genome, ("classes",)),
        **{name: Kind(segmentation.LAYOUTS[name], read) for name, read in masks.items()},
        "table": Kind(tables.LAYOUT, lambda root, split, _: tables.load_table(root, split or None, classes), (), False),
        "folder": Kind(FOLDER_LAYOUT, lambda root, split, _: _load_folder(root, classes), (), False),
    }


SCENES_LAYOUT = "scenes[@train|val|test|unseen][?n=500&seed=0&size=128] (the embedded world, no files)"
FOLDER_LAYOUT = "folder:DIR (pictures without labels)"


def _options(spec: str, place: str, known: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Split the options off; a question mark may belong to a path that exists."""
    if os.path.exists(_path(place)):
        return place, {}
    place, _, query = place.partition("?")
    options: dict[str, str] = {}
    for item in filter(None, query.split("&")):
        key, _, value = item.partition("=")
        if key not in known or not value or key in options:
            raise InputError(f"{spec} cannot use {item!r}; expected {'=, '.join(known)}=, each once")
        options[key] = value
    return place, options


def _root_and_split(spec: str, place: str, kind: Kind) -> tuple[Path, str]:
    """Split the place at its last @, unless all of it is a path that exists and no split is needed."""
    root, at, split = place.rpartition("@")
    if not at or (not kind.needs_split and os.path.exists(_path(place))):
        root, split = place, ""
    if kind.needs_split and not (root and split):
        raise InputError(f"{spec} names no split; expected {kind.layout}")
    return _path(root), split


def _path(place: str) -> Path:
    return Path(os.path.expanduser(place))  # Path.expanduser would raise for a ~user who does not exist


def _number(key: str, text: str) -> int:
    if not text.isdecimal():
        raise InputError(f"{key} is {text!r}; expected a whole number")
    return int(text)


def _hide(dataset: Dataset, options: Mapping[str, str]) -> Dataset:
    """Keep a share of the labels, or a single one a picture."""
    from unmix_clip.data.partial import hide_labels

    text = options.get("keep", "1")
    try:
        keep: Any = "single" if text == "single" else float(text)
    except ValueError:
        raise InputError(f"keep is {text!r}; expected a share in (0, 1], or single") from None
    hidden = hide_labels(dataset, keep, _number("label_seed", options.get("label_seed", "0")))
    joined = "&".join(f"{key}={value}" for key, value in options.items())
    return replace(hidden, spec=dataset.spec + ("&" if "?" in dataset.spec else "?") + joined)


def _load_scenes(root: Path, split: str, options: Mapping[str, str]) -> Dataset:
    from unmix_clip.data.scenes import load_scenes

    return load_scenes(split or "test", **{key: _number(key, value) for key, value in options.items()})


def _load_visual_genome(root: Path, split: str, options: Mapping[str, str]) -> Dataset:
    from unmix_clip.data.visual_genome import load_visual_genome

    return load_visual_genome(root, split, _number("classes", options.get("classes", "256")))


def _load_folder(root: Path, classes: Sequence[str] | None) -> Dataset:
    from unmix_clip.data.images import image_digests, list_images, load_image

    if not os.path.isdir(root):
        raise InputError(f"no folder {root}; expected {FOLDER_LAYOUT}")
    paths = list_images([root])
    samples = [
        Sample(str(path.relative_to(root)), None, functools.partial(load_image, path), None, digest)
        for path, digest in zip(paths, image_digests(paths), strict=True)
    ]
    return Dataset(spec=f"folder:{root}", classes=tuple(classes or ()), samples=samples, notes={})
