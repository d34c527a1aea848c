"""COCO's own layout: ROOT/SPLIT/*.jpg and ROOT/annotations/instances_SPLIT.json (cocodataset.org, "Data format").

Classes stand in the order of their category ids. A class that a picture shows only as a crowd is unknown (-1) for that
picture: it is there, but no single object is marked. Pictures without objects are kept. In masks, smaller instances lie
on top of larger ones, and crowd regions under all of them are IGNORE.
"""

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from unmix_clip.data.images import image_digest, load_image
from unmix_clip.data.samples import IGNORE, Dataset, Sample
from unmix_clip.errors import InputError
from unmix_clip.files import read_json

LAYOUT = "coco:ROOT@SPLIT (ROOT/SPLIT/*.jpg, ROOT/annotations/instances_SPLIT.json)"
KEYS = {
    "images": {"id", "file_name", "height", "width"},
    "annotations": {"image_id", "category_id", "segmentation", "iscrowd", "area"},
    "categories": {"id", "name"},
}


def load_coco(root: Path, split: str) -> Dataset:
    """Read one split; raises InputError for anything that is missing or malformed."""
    if not root.is_dir():
        raise InputError(f"no folder {root}; expected {LAYOUT}")
    file = root / "annotations" / f"instances_{split}.json"
    if not file.is_file():
        there = sorted(p.name for p in file.parent.glob("instances_*.json")) if file.parent.is_dir() else []
        raise InputError(f"no annotation file {file}; expected {LAYOUT}; found {', '.join(there) or 'none'} there")
    table = _checked(read_json(file, "COCO annotation file"), file)
    categories = sorted(table["categories"], key=lambda c: c["id"])
    index_of = {category["id"]: i for i, category in enumerate(categories)}
    annotations: dict[int, list[dict[str, Any]]] = defaultdict(list)
    known = {image["id"] for image in table["images"]}
    for annotation in table["annotations"]:
        if annotation["category_id"] not in index_of:
            raise InputError(f"{file}: annotation of the unknown category id {annotation['category_id']}")
        if annotation["image_id"] not in known:
            raise InputError(f"{file}: annotation of the unknown image id {annotation['image_id']}")
        annotations[annotation["image_id"]].append(annotation)
    images = sorted(table["images"], key=lambda image: image["id"])
    paths = [root / split / image["file_name"] for image in images]
    if missing := [path for path in paths if not path.is_file()]:
        raise InputError(
            f"{len(missing)} of {len(paths)} pictures are missing, such as {missing[0]}; expected {LAYOUT}"
        )
    with ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(image_digest, paths))
    samples = [
        _sample(image, path, annotations[image["id"]], index_of, digest)
        for image, path, digest in zip(images, paths, digests, strict=True)
    ]
    notes = {
        "crowd_annotations": sum(bool(a["iscrowd"]) for a in table["annotations"]),
        "images_without_objects": sum(not annotations[image["id"]] for image in images),
    }
    names = tuple(category["name"] for category in categories)
    return Dataset(spec=f"coco:{root}@{split}", classes=names, samples=samples, notes=notes)


def _checked(table: Any, file: Path) -> dict[str, list[dict[str, Any]]]:
    """See that the parts that are needed are there."""
    for part, keys in KEYS.items():
        if not isinstance(table, dict) or not isinstance(table.get(part), list):
            raise InputError(f"{file} has no list {part!r}; expected COCO's instances format")
        for i, entry in enumerate(table[part]):
            if not isinstance(entry, dict) or not keys <= entry.keys():
                lacking = sorted(keys - entry.keys()) if isinstance(entry, dict) else sorted(keys)
                raise InputError(f"{file}: {part}[{i}] lacks {', '.join(lacking)}; expected COCO's instances format")
    return table


def _sample(
    image: dict[str, Any], path: Path, annotations: list[dict[str, Any]], index_of: dict[int, int], digest: str
) -> Sample:
    image_hw = (image["height"], image["width"])
    labels = np.zeros(len(index_of), dtype=np.int8)
    for crowd, value in ((True, -1), (False, 1)):  # an instance outweighs a crowd of the same class
        labels[[index_of[a["category_id"]] for a in annotations if bool(a["iscrowd"]) == crowd]] = value

    def load_checked() -> Image.Image:
        picture = load_image(path)
        if (picture.height, picture.width) != image_hw:
            found = (picture.height, picture.width)
            raise InputError(f"{path} is {found} (rows, columns), its annotations say {image_hw}; expected the same")
        return picture

    return Sample(
        key=image["file_name"],
        labels=labels,
        load_image=load_checked,
        load_mask=lambda: draw_mask(annotations, index_of, image_hw),
        digest=digest,
    )


def draw_mask(annotations: list[dict[str, Any]], index_of: dict[int, int], image_hw: tuple[int, int]) -> np.ndarray:
    """Draw instances into one mask (H, W) int32: 0 background, 1 + class index, IGNORE under crowds."""
    mask = np.zeros(image_hw, dtype=np.int32)
    for annotation in sorted(annotations, key=lambda a: (not a["iscrowd"], -a["area"])):
        region = decode_region(annotation["segmentation"], image_hw)
        mask[region] = IGNORE if annotation["iscrowd"] else index_of[annotation["category_id"]] + 1
    return mask


def decode_region(segmentation: Any, image_hw: tuple[int, int]) -> np.ndarray:
    """Decode polygons, or run lengths compressed or not, to a region (H, W) bool."""
    if isinstance(segmentation, list):
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]  # pycocotools refuses shorter ones
        if not polygons:
            return np.zeros(image_hw, dtype=bool)
        encoded = rle.merge(rle.frPyObjects(polygons, *image_hw))
    elif isinstance(segmentation.get("counts"), list):
        encoded = rle.frPyObjects(segmentation, *image_hw)
    else:
        encoded = segmentation
    region = rle.decode(encoded).astype(bool)
    if region.shape != image_hw:
        raise InputError(
            f"a mask of {region.shape} for a picture of {image_hw} (rows, columns); expected the same size"
        )
    return region
