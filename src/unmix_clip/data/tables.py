"""A table of pictures and labels: columns filepath, labels (JSON list or `a|b`), and if wanted split and mask (a PNG).

Paths are relative to the table. An empty label cell is a picture without objects.
"""

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unmix_clip.data.images import image_digests, load_image, load_image_hw
from unmix_clip.data.mask_files import plain_coding, read_mask
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
    if not names:
        raise InputError(f"{file} has no label in any row, so no classes; fill the column labels or give a class list")
    _refuse_duplicates(file, rows)
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
            there = sorted({row["split"] or "(empty)" for _, row in rows})
            raise InputError(f"{file} has no rows of split {split!r}; it has {', '.join(there)}")
    digests = image_digests([_existing(file, number, row["filepath"], "picture") for number, row, _ in named])
    samples = [
        _sample(file, number, row, labels, names, digest)
        for (number, row, labels), digest in zip(named, digests, strict=True)
    ]
    return Dataset(
        spec=f"table:{file}" + (f"@{split}" if split else ""),
        classes=names,
        samples=samples,
        notes={"images_without_objects": sum(not labels for _, _, labels in named)},
    )


def _refuse_duplicates(file: Path, rows: list[tuple[int, dict[str, str]]]) -> None:
    """See that no picture stands twice, in any split: it would be trained on and tested on."""
    seen: dict[str, int] = {}
    for number, row in rows:
        if (first := seen.setdefault(os.path.normpath(row["filepath"]), number)) != number:
            raise InputError(
                f"{file} rows {first} and {number}: {row['filepath']} stands twice; keep one row a picture"
            )


def _read_rows(file: Path) -> list[tuple[int, dict[str, str]]]:
    """Return (line number, row) of every row, with the needed columns."""
    if not os.path.isfile(file):  # Path.is_file would raise for a name that is too long
        raise InputError(f"no table at {file}; expected {LAYOUT}")
    try:
        with file.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle, strict=True)
            header = list(reader.fieldnames or ())
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file} cannot be read as a table: {error}; expected CSV in UTF-8") from None
    if missing := {"filepath", "labels"} - set(header):
        raise InputError(f"{file} has no column {', '.join(sorted(missing))}; expected {LAYOUT}")
    if twice := [name for name in header if header.count(name) > 1]:
        raise InputError(f"{file} has two columns {twice[0]!r}; keep one")
    for number, row in rows:
        if None in row or None in row.values():
            raise InputError(
                f"{file} row {number} has another number of cells than the header; quote cells with commas"
            )
        row.update({name: row[name].strip() for name in ("filepath", "split", "mask") if name in row})
        if not row["filepath"]:
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
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(
                f'{place}: labels {text[:60]!r} are no JSON list ({error}); expected ["a", "b"] or a|b'
            ) from None
        if not all(isinstance(label, str) for label in labels):
            raise InputError(f'{place}: labels {text!r} are not all texts; expected ["a", "b"] or a|b')
    else:
        labels = text.split("|") if text else []
    labels = [label.strip() for label in labels]
    if not all(labels):
        raise InputError(f"{place}: labels {text!r} contain an empty name; expected a name between all separators")
    return labels


def _existing(file: Path, number: int, relative: str, what: str) -> Path:
    path = file.parent / relative
    if not os.path.isfile(path):
        raise InputError(f"{file} row {number}: no {what} at {path}; paths are relative to the table")
    return path


def _sample(
    file: Path, number: int, row: dict[str, str], labels: list[str], names: tuple[str, ...], digest: str
) -> Sample:
    path = file.parent / row["filepath"]
    vector = np.zeros(len(names), dtype=np.int8)
    vector[[names.index(label) for label in labels]] = 1
    mask_path = _existing(file, number, row["mask"], "mask") if row.get("mask") else None

    def load_mask() -> np.ndarray:
        assert mask_path is not None
        return read_mask(mask_path, plain_coding(len(names)), load_image_hw(path))

    return Sample(
        key=row["filepath"],
        labels=vector,
        load_image=lambda: load_image(path),
        load_mask=load_mask if mask_path else None,
        digest=digest,
    )
