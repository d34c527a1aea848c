"""Open Images' image-level labels (V4 to V7, storage.googleapis.com/openimages/web): those that people verified.

Confidence 1 is present, 0 is absent; whatever nobody verified is unknown (-1), and that is most of it. Pictures that
are not in the folder, and those of which nothing is known about the classes, are left out and counted.
"""

import csv
import difflib
import os
from array import array
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from unmix_clip.data.counts import count_note
from unmix_clip.data.images import image_digests, load_image
from unmix_clip.data.samples import Dataset, Sample
from unmix_clip.errors import InputError

LAYOUT = (
    "openimages:ROOT@SPLIT (ROOT/*SPLIT-annotations-human-imagelabels.csv or ...-boxable.csv, "
    "ROOT/*class-descriptions*.csv, ROOT/SPLIT/*.jpg)"
)
SPLITS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}
"""The words for each split in the names of label files (V7 says val)."""
NAMES = (
    "oidv*-{}-annotations-human-imagelabels.csv",
    "{}-annotations-human-imagelabels.csv",
    "{}-annotations-human-imagelabels-boxable.csv",
)
"""Label files, best first."""
COLUMNS = ("ImageID", "Source", "LabelName", "Confidence")


def load_open_images(root: Path, split: str, classes: Sequence[str] | None = None) -> Dataset:
    """Read one split.

    Args:
        root: the folder with the CSV files and a folder of pictures for each split.
        split: train, validation or test.
        classes: names of the descriptions file, in any case; None = all that the labels mention, in that file's order.

    Raises:
        InputError: anything that is missing or malformed, except pictures.
    """
    file = _find_labels(root, split)
    names, column_of = _read_classes(root, "boxable" in file.name, classes)
    folder = root / split
    there = {entry[:-4] for entry in os.listdir(folder) if entry.endswith(".jpg")} if os.path.isdir(folder) else set()
    listed: set[str] = set()
    mentioned: set[int] = set()
    row_of: dict[str, int] = {}
    rows, columns, values = array("q"), array("q"), array("b")
    for key, machine_id, label in _read_rows(file):
        listed.add(key)
        column = column_of.get(machine_id)
        if column is None:
            continue
        mentioned.add(column)
        if label is not None and key in there:
            rows.append(row_of.setdefault(key, len(row_of)))
            columns.append(column)
            values.append(label)
    if not row_of:
        raise InputError(
            f"{file} has verified labels of the classes for none of the {len(there)} pictures in {folder} "
            f"({len(listed & there)} of them are listed); expected {LAYOUT}"
        )
    labels = np.full((len(row_of), len(names)), -1, dtype=np.int8)
    for value in (0, 1):  # of two that contradict each other, as synonyms may, the positive one counts
        chosen = np.asarray(values) == value
        labels[np.asarray(rows)[chosen], np.asarray(columns)[chosen]] = value
    if classes is None:
        kept = sorted(mentioned)
        names, labels = tuple(names[i] for i in kept), labels[:, kept]
    paths = [folder / f"{key}.jpg" for key in row_of]
    samples = [
        Sample(key, row, partial(load_image, path), None, digest)
        for key, row, path, digest in zip(row_of, labels, paths, image_digests(paths), strict=True)
    ]
    notes = {
        **count_note("openimages", split, len(samples)),
        "pictures of the labels missing from the folder": len(listed - there),
        "pictures left out, with no verified label of the classes": len(listed & there) - len(samples),
    }
    return Dataset(f"openimages:{root}@{split}", names, samples, notes, rules={"label_file": file.name})


def _find_labels(root: Path, split: str) -> Path:
    if not os.path.isdir(root):
        raise InputError(f"no folder {root}; expected {LAYOUT}")
    found = {
        name: [f for pattern in NAMES for word in words for f in sorted(root.glob(pattern.format(word)), reverse=True)]
        for name, words in SPLITS.items()
    }
    if not found.get(split):
        there = ", ".join(name for name, files in found.items() if files) or "none"
        raise InputError(f"no labels of the split {split!r} in {root}; expected {LAYOUT}; splits there: {there}")
    return found[split][0]


def _read_classes(root: Path, boxable: bool, wanted: Sequence[str] | None) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the class names, and the class index of every machine id that has one of them as its name."""
    files = sorted(root.glob("*class-descriptions*.csv"))
    if not files:
        raise InputError(f"no class-descriptions*.csv in {root}; expected {LAYOUT}")
    file = max(files, key=lambda f: (("boxable" in f.name) == boxable, f.name))
    described = {row[0]: row[1] for _, row in _read_csv(file, 2) if row[0] != "LabelName"}  # V7 has a header line
    folded = {machine_id: name.casefold() for machine_id, name in described.items()}
    if wanted is None:
        first = {name.casefold(): name for name in reversed(described.values())}
        wanted = [first[name] for name in dict.fromkeys(folded.values())]
    index_of = {name.casefold(): i for i, name in enumerate(wanted)}
    known = set(folded.values())
    if unknown := [name for name in wanted if name.casefold() not in known]:
        near = difflib.get_close_matches(unknown[0].casefold(), known)
        raise InputError(
            f"{len(unknown)} of {len(wanted)} classes are not in {file}, such as {unknown[0]!r}; expected its names"
            + (f", perhaps {near[0]!r}" if near else "")
        )
    if len(index_of) < len(wanted):
        raise InputError(
            f"the class list has {len(wanted) - len(index_of)} names twice; expected each once, in any case"
        )
    return tuple(wanted), {key: index_of[name] for key, name in folded.items() if name in index_of}


def _read_rows(file: Path) -> Iterator[tuple[str, str, int | None]]:
    """Yield (picture, machine id, label) of every row; the label is None where nobody verified it."""
    lines = _read_csv(file, len(COLUMNS))
    header = next(lines, (0, []))[1]
    if missing := [name for name in COLUMNS if name not in header]:
        raise InputError(f"{file} has no column {', '.join(missing)}; expected {', '.join(COLUMNS)}")
    key, source, machine_id, confidence = (header.index(name) for name in COLUMNS)
    for number, row in lines:
        if len(row) != len(header):
            raise InputError(f"{file} row {number} has {len(row)} cells, its header {len(header)}; download it anew")
        try:
            value = float(row[confidence])
        except ValueError:
            value = -1.0
        if not 0 <= value <= 1:
            raise InputError(f"{file} row {number}: Confidence is {row[confidence][:40]!r}; expected 0 to 1")
        yield row[key], row[machine_id], int(value) if value in (0, 1) and row[source] != "machine" else None


def _read_csv(file: Path, n_cells: int) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of a CSV file whose lines have at least `n_cells`."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.reader(handle, strict=True)
            for row in reader:
                if len(row) < n_cells:
                    raise InputError(f"{file} row {reader.line_num} has {len(row)} cells; expected {n_cells} or more")
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file} cannot be read as a table: {error}; expected CSV in UTF-8") from None
