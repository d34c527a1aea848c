"""A table of pictures and labels: columns filepath, labels (JSON list or `a|b`), and if wanted split and mask (a PNG).

Paths are relative to the table. An empty label cell is a picture without objects.
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unmix_clip.data.images import image_digest, load_image, load_mask_png
from unmix_clip.data.samples import Dataset, Sample
from unmix_clip.errors import InputError

LAYOUT = "table:FILE.csv[@SPLIT] (columns filepath, labels: JSON list or a|b; split and mask optional)"


def load_table(file: Path, split: str | None = None, classes: Sequence[str] | None = None) -> Dataset:
    """Read a table.

    Args:
        file: CSV with a header line.
        split: only rows with this value in the column `split`.
        classes: the class list; None = all labels of the table, sorted.
    """
    rows = _read_rows(file)
    named = [(number, row, parse_labels(row["labels"], f"{file} row {number}")) for number, row in rows]
    if classes is None:
        classes = sorted({label for _, _, labels in named for label in labels})
    names = tuple(classes)
    for number, _, labels in named:
        if outside := [label for label in labels if label not in names]:
            raise InputError(
                f"{file} row {number}: label {outside[0]!r} is not in the class list ({', '.join(names[:8])}"
                f"{', ...' if len(names) > 8 else ''}); correct the label or the list"
            )
    if split is not None:
        if "split" not in rows[0][1]:
            raise InputError(f"{file} has no column split; expected one to select {split!r}, or no @{split}")
        named = [entry for entry in named if entry[1]["split"] == split]
        if not named:
            there = sorted({row["split"] for _, row in rows})
            raise InputError(f"{file} has no rows of split {split!r}; it has {', '.join(there)}")
    seen: dict[str, int] = {}
    for number, row, _ in named:
        if (first := seen.setdefault(row["filepath"], number)) != number:
            raise InputError(
                f"{file} rows {first} and {number}: {row['filepath']} stands twice; keep one row a picture"
            )
    samples = [_sample(file, number, row, labels, names) for number, row, labels in named]
    return Dataset(
        spec=f"table:{file}" + (f"@{split}" if split else ""),
        classes=names,
        samples=samples,
        notes={"images_without_objects": sum(not labels for _, _, labels in named)},
    )


def _read_rows(file: Path) -> list[tuple[int, dict[str, str]]]:
    """Return (line number, row) of every row, with the needed columns."""
    if not file.is_file():
        raise InputError(f"no table at {file}; expected {LAYOUT}")
    with file.open(newline="", encoding="utf-8-sig") as handle:
        reader = csv.DictReader(handle)
        missing = {"filepath", "labels"} - set(reader.fieldnames or ())
        if missing:
            raise InputError(f"{file} has no column {', '.join(sorted(missing))}; expected {LAYOUT}")
        rows = [(number, row) for number, row in enumerate(reader, start=2)]
    for number, row in rows:
        if None in row or None in row.values():
            raise InputError(
                f"{file} row {number} has another number of cells than the header; quote cells with commas"
            )
        if not row["filepath"].strip():
            raise InputError(f"{file} row {number} has an empty filepath; expected a picture")
    if not rows:
        raise InputError(f"{file} has no rows; expected one a picture")
    return rows


def parse_labels(cell: str, place: str) -> list[str]:
    """Return the labels of a cell: a JSON list of texts, or names separated by `|`."""
    text = cell.strip()
    if text.startswith("["):
        try:
            labels = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(
                f'{place}: labels {text!r} are no JSON list ({error}); expected ["a", "b"] or a|b'
            ) from None
        if not all(isinstance(label, str) for label in labels):
            raise InputError(f'{place}: labels {text!r} are not all texts; expected ["a", "b"] or a|b')
    else:
        labels = text.split("|") if text else []
    labels = [label.strip() for label in labels]
    if not all(labels):
        raise InputError(f"{place}: labels {text!r} contain an empty name; expected a name between all separators")
    return labels


def _sample(file: Path, number: int, row: dict[str, str], labels: list[str], names: tuple[str, ...]) -> Sample:
    path = file.parent / row["filepath"].strip()
    if not path.is_file():
        raise InputError(f"{file} row {number}: no picture at {path}; paths are relative to the table")
    vector = np.zeros(len(names), dtype=np.int8)
    vector[[names.index(label) for label in labels]] = 1
    mask = (row.get("mask") or "").strip()

    def load_mask() -> np.ndarray:
        picture = load_image(path)
        return load_mask_png(file.parent / mask, (picture.height, picture.width), len(names))

    return Sample(
        key=row["filepath"],
        labels=vector,
        load_image=lambda: load_image(path),
        load_mask=load_mask if mask else None,
        digest=image_digest(path),
    )
