"""COCO's own layout: ROOT/SPLIT/*.jpg and ROOT/annotations/instances_SPLIT.json (cocodataset.org, "Data format").

Classes stand in the order of their category ids. A class that a picture shows only as a crowd is unknown (-1) for that
picture (it is there, but no single object is marked) unless `crowd` says otherwise. Pictures without objects are kept.
In masks, smaller instances lie on top of larger ones, and crowd regions under all of them are IGNORE.
"""

import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from unmix_clip.data.counts import count_note
from unmix_clip.data.images import image_digests, load_image, load_image_hw
from unmix_clip.data.samples import IGNORE, Dataset, Sample
from unmix_clip.errors import InputError
from unmix_clip.files import read_json
from unmix_clip.vocabulary import load_names

LAYOUT = "coco:ROOT@SPLIT (ROOT/SPLIT/*.jpg, ROOT/annotations/instances_SPLIT.json)"
KEYS: dict[str, dict[str, tuple[type, ...]]] = {
    "images": {"id": (int,), "file_name": (str,), "height": (int,), "width": (int,)},
    "annotations": {
        "image_id": (int,),
        "category_id": (int,),
        "segmentation": (list, dict),
        "iscrowd": (int,),
        "area": (int, float),
    },
    "categories": {"id": (int,), "name": (str,)},
}
"""The parts of the file that are read, and the types of their entries."""
CROWD = {"unknown": -1, "positive": 1, "negative": 0}
"""The label of a class that a picture shows only as a crowd, by rule."""
UNIQUE = (("images", "id"), ("images", "file_name"), ("categories", "id"), ("categories", "name"))


def load_coco(root: Path, split: str, *, crowd: str = "unknown") -> Dataset:
    """Read one split.

    Args:
        root: the folder with annotations/ and a folder of pictures for each split.
        split: the folder of the pictures, such as val2017.
        crowd: `unknown`, `positive` or `negative`: what a class is that a picture shows only as a crowd.

    Raises:
        InputError: anything that is missing or malformed.
    """
    if crowd not in CROWD:
        raise InputError(f"crowd is {crowd!r}; expected one of {', '.join(CROWD)}")
    if not os.path.isdir(root):  # Path.is_dir would raise for a name that is too long
        raise InputError(f"no folder {root}; expected {LAYOUT}")
    file = root / "annotations" / f"instances_{split}.json"
    if not os.path.isfile(file):
        there = sorted(p.name for p in file.parent.glob("instances_*.json")) if file.parent.is_dir() else []
        raise InputError(f"no annotation file {file}; expected {LAYOUT}; found {', '.join(there) or 'none'} there")
    table = _checked(read_json(file, "COCO annotation file"), file)
    categories = sorted(table["categories"], key=lambda c: c["id"])
    index_of = {category["id"]: i for i, category in enumerate(categories)}
    annotations: dict[int, list[dict[str, Any]]] = defaultdict(list)
    known = {image["id"] for image in table["images"]}
    for i, annotation in enumerate(table["annotations"]):
        for key, part, ids in (("category_id", "categories", index_of), ("image_id", "images", known)):
            if annotation[key] not in ids:
                raise InputError(f"{file}: annotations[{i}] has {key} {annotation[key]}; expected an id of {part!r}")
        annotations[annotation["image_id"]].append(annotation)
    images = sorted(table["images"], key=lambda image: image["id"])
    paths = [root / split / image["file_name"] for image in images]
    if missing := [path for path in paths if not os.path.isfile(path)]:
        raise InputError(
            f"{len(missing)} of {len(paths)} pictures are missing, such as {missing[0]}; expected {LAYOUT}"
        )
    samples = [
        _sample(image, path, annotations[image["id"]], index_of, digest, CROWD[crowd])
        for image, path, digest in zip(images, paths, image_digests(paths), strict=True)
    ]
    notes = {
        **count_note("coco", split, len(samples)),
        "annotations": len(table["annotations"]),
        "crowd_annotations": sum(bool(a["iscrowd"]) for a in table["annotations"]),
        "images_without_objects": sum(not annotations[image["id"]] for image in images),
    }
    names = tuple(category["name"] for category in categories)
    synonyms = {name: words for name, words in load_names("coco").synonyms.items() if name in names}
    return Dataset(f"coco:{root}@{split}", names, samples, notes, {"crowd": crowd}, synonyms)


def _checked(table: Any, file: Path) -> dict[str, list[dict[str, Any]]]:
    """See that the parts that are needed are there, of the right types, and that names and ids are unique."""
    for part, keys in KEYS.items():
        entries = table.get(part) if isinstance(table, dict) else None
        if not isinstance(entries, list):
            raise InputError(f"{file} has no list {part!r}; expected COCO's instances format")
        for i, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise InputError(f"{file}: {part}[{i}] is no object; expected COCO's instances format")
            for key, types in keys.items():
                if not isinstance(entry.get(key), types):
                    found = f"is {str(entry[key])[:40]!r}" if key in entry else "is missing"
                    wanted = " or ".join(kind.__name__ for kind in types)
                    raise InputError(f"{file}: {part}[{i}].{key} {found}; expected {wanted}, as in COCO's format")
    for part, key in UNIQUE:
        first_with: dict[Any, int] = {}
        for i, entry in enumerate(table[part]):
            if (first := first_with.setdefault(entry[key], i)) != i:
                raise InputError(f"{file}: {part}[{first}] and [{i}] share the {key} {entry[key]!r}; expected it once")
    for i, category in enumerate(table["categories"]):
        if not category["name"].strip():
            raise InputError(f"{file}: categories[{i}].name is empty; expected a name")
    if not table["images"] or not table["categories"]:
        raise InputError(f"{file} lists no {'categories' if table['images'] else 'images'}; expected at least one")
    return table


def _sample(
    image: dict[str, Any],
    path: Path,
    annotations: list[dict[str, Any]],
    index_of: dict[int, int],
    digest: str,
    crowd_label: int,
) -> Sample:
    told_hw = (image["height"], image["width"])
    labels = np.zeros(len(index_of), dtype=np.int8)
    for crowd, value in ((True, crowd_label), (False, 1)):  # an instance outweighs a crowd of the same class
        labels[[index_of[a["category_id"]] for a in annotations if bool(a["iscrowd"]) == crowd]] = value

    def check(found_hw: tuple[int, int]) -> None:
        if found_hw != told_hw:
            raise InputError(
                f"{path} is {found_hw} (rows, columns), its annotations say {told_hw}; expected the same size"
            )

    def load_checked() -> Image.Image:
        picture = load_image(path)
        check((picture.height, picture.width))
        return picture

    def load_mask() -> np.ndarray:
        check(load_image_hw(path))  # polygons alone would fit a picture of any size
        return draw_mask(annotations, index_of, told_hw)

    return Sample(
        key=image["file_name"],
        labels=labels,
        load_image=load_checked,
        load_mask=load_mask,
        digest=digest,
        image_hw=told_hw,
    )


def draw_mask(annotations: list[dict[str, Any]], index_of: dict[int, int], image_hw: tuple[int, int]) -> np.ndarray:
    """Draw instances into one mask (H, W) int32: 0 background, 1 + class index, IGNORE under crowds."""
    mask = np.zeros(image_hw, dtype=np.int32)
    for annotation in sorted(annotations, key=lambda a: (not a["iscrowd"], -a["area"])):
        region = decode_region(annotation["segmentation"], image_hw)
        mask[region] = IGNORE if annotation["iscrowd"] else index_of[annotation["category_id"]] + 1
    return mask


def decode_region(segmentation: Any, image_hw: tuple[int, int]) -> np.ndarray:
    """Decode polygons, or run lengths compressed or not, to a region (H, W) bool; raises InputError for broken ones."""
    try:
        if isinstance(segmentation, list):
            return _decode_polygons(segmentation, image_hw)
        return _decode_runs(segmentation["counts"], tuple(segmentation["size"]), image_hw)
    except InputError:
        raise
    except (ValueError, TypeError, LookupError, OverflowError) as error:
        raise InputError(
            f"broken segmentation {str(segmentation)[:60]}... ({type(error).__name__}: {error}); "
            "expected polygons [[x, y, ...], ...] or run lengths {size, counts}"
        ) from None


def _decode_polygons(polygons: list[list[float]], image_hw: tuple[int, int]) -> np.ndarray:
    reach = 2 * max(image_hw)  # pycocotools walks along every edge, and takes whatever memory that needs
    for polygon in polygons:
        points = np.asarray(polygon, dtype=np.float64)
        if points.ndim != 1 or len(points) % 2:
            raise InputError(f"a polygon has {len(polygon)} numbers; expected pairs x, y")
        if not (np.abs(points) <= reach).all():
            raise InputError(
                f"a polygon lies far outside its picture of {image_hw} (rows, columns); expected it inside"
            )
    polygons = [polygon for polygon in polygons if len(polygon) >= 6]  # fewer than 3 points have no area
    if not polygons:
        return np.zeros(image_hw, dtype=bool)
    return rle.decode(rle.merge(rle.frPyObjects(polygons, *image_hw))).astype(bool)


def _decode_runs(counts: Any, size: tuple[int, ...], image_hw: tuple[int, int]) -> np.ndarray:
    if size != image_hw:
        raise InputError(f"a mask of {size} for a picture of {image_hw} (rows, columns); expected the same size")
    # pycocotools returns whatever lies in memory for the pixels that too short runs leave out, so it is not asked.
    runs = np.asarray(counts if isinstance(counts, list) else _read_runs(counts), dtype=np.int64)
    if (runs < 0).any() or runs.sum() != image_hw[0] * image_hw[1]:
        raise InputError(f"a mask has runs of {runs.sum()} pixels for a picture of {image_hw}; expected all of them")
    values = np.repeat(np.arange(len(runs)) % 2 == 1, runs)  # background first, column after column
    return values.reshape(image_hw, order="F")


def _read_runs(text: str | bytes) -> list[int]:
    """Read COCO's compressed run lengths: 5 bits a character from "0" on, 0x20 = more follow, 0x10 = negative.

    From the fourth on, each is the difference to the one two before it.
    """
    runs: list[int] = []
    value = shift = 0
    for byte in text.encode("ascii") if isinstance(text, str) else text:
        bits = byte - 48
        if not 0 <= bits < 64:
            raise ValueError(f"the character {chr(byte)!r} in compressed run lengths")
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            value -= (bits & 0x10) << (shift - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("compressed run lengths that end too early")
    return runs
