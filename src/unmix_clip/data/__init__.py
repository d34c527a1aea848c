"""Where pictures and labels come from: `load_data(spec)` reads any kind of data set into a `Dataset`."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from unmix_clip.data.samples import Dataset, Sample
from unmix_clip.errors import InputError

SCENES_LAYOUT = "scenes[@train|val|test|unseen][?n=500&seed=0&size=128] (the embedded world, no files)"
FOLDER_LAYOUT = "folder:DIR (pictures without labels)"


def load_data(spec: str, classes: Sequence[str] | None = None) -> Dataset:
    """Read a data set.

    Args:
        spec: KIND:PLACE@SPLIT, see `kinds`.
        classes: the class list, for kinds that do not bring their own (`table`, `folder`).

    Raises:
        InputError: an unknown kind, or data that are not laid out as expected.
    """
    kind, colon, place = spec.partition(":")
    if is_scenes(spec):
        return _load_scenes(spec.removeprefix("scenes"), classes)
    loaders = kinds()
    if kind not in loaders or not colon or not place:
        layouts = "; ".join(layout for layout, _ in loaders.values())
        raise InputError(f"unknown data {spec!r}; expected one of: {layouts}")
    return loaders[kind][1](place, classes)


def is_scenes(spec: str) -> bool:
    """Whether a spec names the embedded world."""
    return spec.partition("@")[0].partition("?")[0] == "scenes"


def kinds() -> dict[str, tuple[str, Callable[[str, Sequence[str] | None], Dataset]]]:
    """Return the kinds of data sets by name: the layout looked for, and the reader of what follows the colon."""
    from unmix_clip.data import coco, tables

    return {
        "scenes": (SCENES_LAYOUT, _load_scenes),
        "coco": (coco.LAYOUT, _load_coco),
        "table": (tables.LAYOUT, _load_table),
        "folder": (FOLDER_LAYOUT, _load_folder),
    }


def _path(place: str) -> Path:
    return Path(os.path.expanduser(place))  # Path.expanduser would raise for a ~user who does not exist


def _load_scenes(rest: str, classes: Sequence[str] | None) -> Dataset:
    from unmix_clip.data.scenes import load_scenes

    split, _, query = rest.removeprefix("@").partition("?")
    options: dict[str, int] = {}
    for item in filter(None, query.split("&")):
        key, _, value = item.partition("=")
        if key not in ("n", "seed", "size") or not value.isdecimal() or key in options:
            raise InputError(f"scenes cannot use {item!r}; expected n=, seed= or size=, each once, with a whole number")
        options[key] = int(value)
    return load_scenes(split or "test", **options)


def _load_coco(place: str, classes: Sequence[str] | None) -> Dataset:
    from unmix_clip.data.coco import LAYOUT, load_coco

    root, at, split = place.rpartition("@")
    if not at or not split:
        raise InputError(f"coco:{place} names no split; expected {LAYOUT}")
    return load_coco(_path(root), split)


def _load_table(place: str, classes: Sequence[str] | None) -> Dataset:
    from unmix_clip.data.tables import load_table

    file, at, split = place.rpartition("@")
    if not at or os.path.isfile(_path(place)):  # an @ may also belong to the path
        return load_table(_path(place), None, classes)
    return load_table(_path(file), split, classes)


def _load_folder(place: str, classes: Sequence[str] | None) -> Dataset:
    from unmix_clip.data.images import image_digests, list_images, load_image

    root = _path(place)
    if not os.path.isdir(root):
        raise InputError(f"no folder {place}; expected {FOLDER_LAYOUT}")
    paths = list_images([root])
    samples = [
        Sample(str(path.relative_to(root)), None, partial(load_image, path), None, digest)
        for path, digest in zip(paths, image_digests(paths), strict=True)
    ]
    return Dataset(spec=f"folder:{place}", classes=tuple(classes or ()), samples=samples, notes={})
