"""NUS-WIDE-81's own layout (Chua et al., CIVR 2009): 81 concepts, pictures from Flickr.

Many of the pictures have gone from Flickr, so every copy is a part of the list: those that are missing are left out and
counted. Line k of every label file is about line k of the list. Pictures without any of the concepts are kept.
"""

import hashlib
import os
from functools import partial
from pathlib import Path

import numpy as np

from unmix_clip.data.counts import count_note
from unmix_clip.data.images import image_digests, load_image
from unmix_clip.data.samples import Dataset, Sample
from unmix_clip.errors import InputError
from unmix_clip.files import read_lines

LAYOUT = (
    "nuswide:ROOT@SPLIT (ROOT/ConceptsList/Concepts81.txt, ROOT/ImageList/{Train,Test}Imagelist.txt, "
    "ROOT/Groundtruth/TrainTestLabels/Labels_CONCEPT_{Train,Test}.txt, ROOT/Flickr or ROOT/images)"
)
SPLITS = {"train": "Train", "test": "Test"}
"""The word for each split in the names of files."""
MISPRINT = ("Labels_lake_Train.txt", "-1130179")
"""One line of the published labels (78,372 of this file) is neither 0 nor 1: unknown."""


def load_nuswide(root: Path, split: str) -> Dataset:
    """Read the split train or test; raises InputError for anything that is missing or malformed, except pictures."""
    if split not in SPLITS:
        raise InputError(f"NUS-WIDE has no split {split!r}; expected one of {', '.join(SPLITS)}")
    if not os.path.isdir(root):
        raise InputError(f"no folder {root}; expected {LAYOUT}")
    names = tuple(read_lines(root / "ConceptsList" / "Concepts81.txt", LAYOUT))
    list_file = root / "ImageList" / f"{SPLITS[split]}Imagelist.txt"
    keys = [line.replace("\\", "/") for line in read_lines(list_file, LAYOUT)]
    pictures = root / "Flickr" if os.path.isdir(root / "Flickr") else root / "images"
    kept = [i for i, key in enumerate(keys) if os.path.isfile(pictures / key)]
    if not kept:
        raise InputError(f"none of the {len(keys)} pictures of {list_file} is in {pictures}; expected {LAYOUT}")
    folder = root / "Groundtruth" / "TrainTestLabels"
    columns = [_read_labels(folder / f"Labels_{name}_{SPLITS[split]}.txt", len(keys)) for name in names]
    labels = np.stack(columns, axis=1)[kept]  # (n, C)
    paths = [pictures / keys[i] for i in kept]
    samples = [
        Sample(keys[i], row, partial(load_image, path), None, _digest(keys[i], digest))
        for i, row, path, digest in zip(kept, labels, paths, image_digests(paths), strict=True)
    ]
    notes = {
        **count_note("nuswide", split, len(samples)),
        "pictures of the list missing from the folder": len(keys) - len(kept),
        "images_without_objects": int((labels < 1).all(1).sum()),
    }
    return Dataset(spec=f"nuswide:{root}@{split}", classes=names, samples=samples, notes=notes)


def _digest(key: str, content: str) -> str:
    """Tell apart the pictures that the data set has twice, some of them in both splits: they are its own."""
    return hashlib.sha256(f"{key} {content}".encode()).hexdigest()


def _read_labels(file: Path, expected: int) -> np.ndarray:
    """Return one concept's labels (n,) int8."""
    values = {"0": 0, "1": 1} | ({MISPRINT[1]: -1} if file.name == MISPRINT[0] else {})
    lines = read_lines(file, LAYOUT)
    if len(lines) != expected:
        raise InputError(f"{file} has {len(lines)} labels for a list of {expected} pictures; expected one for each")
    if odd := [(number, line) for number, line in enumerate(lines, 1) if line not in values]:
        raise InputError(f"{file} line {odd[0][0]} is {odd[0][1][:40]!r}; expected 0 or 1")
    return np.array([values[line] for line in lines], dtype=np.int8)
