"""Visual Genome for recognition: the label files of VG-256, VG-500 and VG-200.

VG-500 is the split of SSGRL (arXiv 1908.07325), whose list files VG-200 uses too. A class that is not named for a
picture counts as absent, though nobody looked for it.
"""

import os
from functools import partial
from pathlib import Path

import numpy as np

from unmix_clip.data.images import image_digests, load_image
from unmix_clip.data.samples import Dataset, Sample
from unmix_clip.errors import InputError
from unmix_clip.files import read_json, read_lines

LAYOUT = (
    "vg:ROOT@SPLIT (ROOT/SPLIT_list_256.txt, ROOT/vg_category_256_labels_index.json, the names in "
    "ROOT/vg_category_256.txt or .json, pictures in ROOT/VG_100K, ROOT/VG_100K_2 or ROOT/images)"
)
SPLITS = ("train", "test")
FOLDERS = ("VG_100K", "VG_100K_2", "images")


def load_visual_genome(root: Path, split: str, n_classes: int = 256) -> Dataset:
    """Read one split.

    Args:
        root: the folder with the label files and the folders of pictures.
        split: train or test.
        n_classes: which label files, by the number in their names.

    Raises:
        InputError: anything that is missing, malformed or contradictory.
    """
    layout = LAYOUT.replace("256", str(n_classes))
    if split not in SPLITS:
        raise InputError(f"Visual Genome has no split {split!r} here; expected one of {', '.join(SPLITS)}")
    if not os.path.isdir(root):
        raise InputError(f"no folder {root}; expected {layout}")
    keys = read_lines(_list_file(root, split, n_classes, layout), layout)
    names = _read_names(root, n_classes, layout)
    file = root / f"vg_category_{n_classes}_labels_index.json"
    table = read_json(file, "Visual Genome label file")
    if not isinstance(table, dict):
        raise InputError(f"{file} is no object; expected {{file name: [class index, ...]}}")
    labels = np.zeros((len(keys), n_classes), dtype=np.int8)
    for row, key in zip(labels, keys, strict=True):
        indices = table.get(key)
        if not isinstance(indices, list) or not all(type(i) is int and 0 <= i < n_classes for i in indices):
            found = f"has {str(indices)[:40]} for" if key in table else "does not name"
            raise InputError(
                f"{file} {found} the picture {key} of the list; expected class indices, 0 to {n_classes - 1}"
            )
        row[indices] = 1
    paths = _find_pictures(root, keys, layout)
    samples = [
        Sample(key, row, partial(load_image, path), None, digest)
        for key, row, path, digest in zip(keys, labels, paths, image_digests(paths), strict=True)
    ]
    notes = {"images_without_objects": int((labels == 0).all(1).sum())}
    spec = f"vg:{root}@{split}"
    return Dataset(spec=spec, classes=names, samples=samples, notes=notes, rules={"vg_classes": str(n_classes)})


def _list_file(root: Path, split: str, n_classes: int, layout: str) -> Path:
    """Return the list of the split: its own, or that of VG-500."""
    for number in (n_classes, 500):
        if os.path.isfile(file := root / f"{split}_list_{number}.txt"):
            return file
    there = sorted(file.name for file in root.glob("*_list_*.txt"))
    raise InputError(
        f"no {split}_list_{n_classes}.txt in {root}; expected {layout}; lists: {', '.join(there) or 'none'}"
    )


def _read_names(root: Path, n_classes: int, layout: str) -> tuple[str, ...]:
    file = root / f"vg_category_{n_classes}.json"
    names = read_json(file, "list of classes") if os.path.isfile(file) else None
    if names is None:
        file = file.with_suffix(".txt")
        names = read_lines(file, layout)
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise InputError(f"{file} is no list of names; expected the classes in the order of their indices")
    if not len(names) == len(set(names)) == n_classes:
        raise InputError(f"{file} has {len(names)} names, {len(set(names))} different; expected {n_classes}, each once")
    return tuple(names)


def _find_pictures(root: Path, keys: list[str], layout: str) -> list[Path]:
    places = [[root / folder / key for folder in FOLDERS] for key in keys]
    found = [next((path for path in paths if os.path.isfile(path)), None) for paths in places]
    if missing := [key for key, path in zip(keys, found, strict=True) if path is None]:
        raise InputError(f"{len(missing)} of {len(keys)} pictures are missing, such as {missing[0]}; expected {layout}")
    return [path for path in found if path is not None]
