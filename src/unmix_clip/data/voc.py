"""PASCAL VOC's own layout, for recognition: VOC2007 and VOC2012 (development kit, section "Classification task").

ImageSets/Main/CLASS_SPLIT.txt says 1 (present), -1 (absent) or 0: all objects of the class that the picture shows are
marked difficult. The development kit's score leaves those pairs out, as `difficult="ignore"` does; others count them as
absent or as present, which moves mAP. Where the class files are missing, the same is derived from Annotations. Masks
are those of SegmentationClass, for the pictures that have one.
"""

import os
import re
import xml.etree.ElementTree as ET
from functools import partial
from pathlib import Path

import numpy as np

from unmix_clip.data.counts import count_note
from unmix_clip.data.images import image_digests, load_image, load_image_hw
from unmix_clip.data.mask_files import CODINGS, read_mask
from unmix_clip.data.samples import Dataset, Sample
from unmix_clip.errors import InputError
from unmix_clip.files import read_lines
from unmix_clip.vocabulary import load_names

LAYOUT = "voc2007:ROOT@SPLIT (ROOT/VOCdevkit/VOC2007/{JPEGImages,Annotations,ImageSets/Main}, or ROOT further inside)"
YEARS = (2007, 2012)
_WORDS = load_names("voc")
CLASSES, SYNONYMS = _WORDS.names, _WORDS.synonyms
"""In VOC's own order and spelling (mask value = 1 + index), and everyday words where VOC's differ."""
DIFFICULT = {"ignore": -1, "negative": 0, "positive": 1}
"""The label of a class that a picture shows only as difficult objects, by rule."""


def load_voc(root: Path, year: int, split: str, *, difficult: str = "ignore") -> Dataset:
    """Read one split.

    Args:
        root: the folder that holds VOCdevkit, VOCdevkit itself, or its VOC2007 / VOC2012.
        year: 2007 or 2012.
        split: train, val, trainval, or for 2007 test.
        difficult: `ignore`, `negative` or `positive`: what a class is that a picture shows only as difficult objects.

    Raises:
        InputError: anything that is missing, malformed or contradictory.
    """
    if year not in YEARS:
        raise InputError(f"there is no VOC of {year} here; expected one of {', '.join(map(str, YEARS))}")
    if difficult not in DIFFICULT:
        raise InputError(f"difficult is {difficult!r}; expected one of {', '.join(DIFFICULT)}")
    folder = find_voc(root, year)
    ids, states = _read_states(folder, split, _layout(year))
    paths = [folder / "JPEGImages" / f"{key}.jpg" for key in ids]
    if missing := [path for path in paths if not os.path.isfile(path)]:
        raise InputError(
            f"{len(missing)} of {len(paths)} pictures are missing, such as {missing[0]}; expected {_layout(year)}"
        )
    labels = np.array([0, DIFFICULT[difficult], 1], dtype=np.int8)[states + 1]
    masks = {file.stem: file for file in (folder / "SegmentationClass").glob("*.png")}
    samples = [
        Sample(
            key=key,
            labels=row,
            load_image=partial(load_image, path),
            load_mask=partial(_load_mask, masks[key], path) if key in masks else None,
            digest=digest,
        )
        for key, row, path, digest in zip(ids, labels, paths, image_digests(paths), strict=True)
    ]
    notes = {
        **count_note(f"voc{year}", split, len(samples)),
        "labels_only_difficult": int((states == 0).sum()),
        "images_with_only_difficult_objects": int(((states == 0).any(1) & (states < 1).all(1)).sum()),
    }
    rules = {"difficult": difficult}
    return Dataset(f"voc{year}:{root}@{split}", CLASSES, samples, notes, rules, synonyms=SYNONYMS)


def find_voc(root: Path, year: int) -> Path:
    """Return the folder VOC2007 (2010, 2012): root, or inside root or its VOCdevkit; InputError where there is none."""
    name = f"VOC{year}"
    places = [root / "VOCdevkit" / name, root / name]
    own_name = Path(os.path.abspath(root)).name.lower()
    if own_name == name.lower() or not re.fullmatch(r"voc\d{4}", own_name):  # never another year's folder
        places.append(root)
    found = [place for place in places if os.path.isdir(place / "ImageSets")]
    if not found:
        raise InputError(f"no {name} in {root}; expected {_layout(year)}")
    return found[0]


def read_objects(file: Path) -> list[tuple[str, bool]]:
    """Return (class, difficult) of every object of an annotation file; parts of objects are none."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities can grow without end
            raise InputError(f"{file} declares a DOCTYPE or ENTITY; expected a plain VOC annotation")
        tree = ET.fromstring(text)
    except OSError as error:
        raise InputError(f"cannot read the annotation {file}: {error.strerror}; expected one a picture") from None
    except (ET.ParseError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not valid XML: {error}; expected a VOC annotation in UTF-8") from None
    objects = []
    for element in tree.findall("object"):
        name = (element.findtext("name") or "").strip()
        flag = (element.findtext("difficult") or "0").strip()
        if name not in CLASSES or flag not in ("0", "1"):
            raise InputError(
                f"{file} has an object {name[:40]!r} with difficult {flag[:40]!r}; expected a class of VOC, and 0 or 1"
            )
        objects.append((name, flag == "1"))
    return objects


def _layout(year: int) -> str:
    return LAYOUT.replace("2007", str(year))


def _read_states(folder: Path, split: str, layout: str) -> tuple[list[str], np.ndarray]:
    """Return the pictures' names and their states (n, C) int64: 1 present, -1 absent, 0 only difficult objects."""
    lists = folder / "ImageSets" / "Main"
    files = {name: lists / f"{name}_{split}.txt" for name in CLASSES}
    whole = lists / f"{split}.txt"
    lacking = [file.name for file in files.values() if not os.path.isfile(file)]
    if lacking and not (len(lacking) == len(CLASSES) and os.path.isfile(whole)):
        there = sorted({file.stem.rsplit("_", 1)[-1] for file in lists.glob("*.txt")})
        raise InputError(
            f"{lists} lacks {len(lacking)} of {len(CLASSES)} class files of {split!r}, such as {lacking[0]}; expected "
            f"{layout}; splits there: {', '.join(there) or 'none'}"
        )
    tables = {} if lacking else {name: _read_class_file(file, layout) for name, file in files.items()}
    ids = read_lines(whole, layout) if os.path.isfile(whole) else list(tables[CLASSES[0]])
    if len(set(ids)) < len(ids):
        raise InputError(f"{whole} lists {len(ids) - len(set(ids))} pictures twice; expected each once")
    for name, table in tables.items():
        if table.keys() != set(ids):
            other = sorted(table.keys() ^ set(ids))
            raise InputError(
                f"{files[name]} and the list of {split!r} differ in {len(other)} of their {len(table)} and {len(ids)} "
                f"pictures, such as {other[0]}; expected the same pictures: unpack the data set anew"
            )
    if lacking:
        return ids, np.stack([_derive_states(folder / "Annotations" / f"{key}.xml") for key in ids])
    return ids, np.array([[tables[name][key] for name in CLASSES] for key in ids])


def _read_class_file(file: Path, layout: str) -> dict[str, int]:
    """Return the state of every picture of one class."""
    states: dict[str, int] = {}
    for number, line in enumerate(read_lines(file, layout), 1):
        key, _, state = line.replace("\t", " ").partition(" ")
        if state.strip() not in ("1", "0", "-1") or key in states:
            raise InputError(f"{file} entry {number} is {line[:60]!r}; expected a picture, once, and 1, 0 or -1")
        states[key] = int(state)
    return states


def _derive_states(annotation: Path) -> np.ndarray:
    """Return what the class files would say of a picture (C,)."""
    states = np.full(len(CLASSES), -1)
    for name, difficult in read_objects(annotation):
        index = CLASSES.index(name)
        states[index] = max(states[index], 0 if difficult else 1)
    return states


def _load_mask(mask: Path, picture: Path) -> np.ndarray:
    return read_mask(mask, CODINGS["voc21"], load_image_hw(picture))
