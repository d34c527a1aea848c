"""`predict`: tags, heat-maps and masks of files, written as JSON, CSV, COCO and pictures."""

import csv
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unmix_clip.data.images import list_images, load_image
from unmix_clip.errors import InputError
from unmix_clip.files import make_folder, write_json, write_text, written_whole
from unmix_clip.progress import progress_bar
from unmix_clip.provenance import versions
from unmix_clip.report.figures import overlay, paint_mask, palette
from unmix_clip.unmixer import Maps, Prediction, Unmixer

FORMATS = ("json", "csv", "coco")


def predict_files(
    model: Unmixer,
    paths: Sequence[str],
    out: Path,
    *,
    classes: Sequence[str] | None = None,
    heatmaps: bool = False,
    masks: bool = False,
    formats: Sequence[str] = ("json",),
) -> dict[str, Any]:
    """Predict every picture of some files, folders and globs; returns what predictions.json holds.

    A picture that cannot be read gets a record with the reason and no labels. `scores` and masks are in the picture's
    displayed orientation and original size.
    """
    if unknown := [name for name in formats if name not in FORMATS]:
        raise InputError(f"unknown format {unknown[0]!r}; expected some of {','.join(FORMATS)}")
    started = time.monotonic()
    names = tuple(classes or model.classes)
    model.queries(names)  # a wrong class list is told before any picture is read
    files = list_images(paths)
    make_folder(out)
    need_maps = heatmaps or masks or "coco" in formats
    records: list[dict[str, Any]] = []
    coco: list[dict[str, Any]] = []
    used: set[str] = set()
    with progress_bar("predicting", len(files), "pictures") as bar:
        for index, file in enumerate(files):
            try:
                image = load_image(file)
            except InputError as error:
                records.append({"file": str(file), "labels": [], "failure": str(error)})
            else:
                found = model.predict([image], names, maps=need_maps)[0]
                stem = _unique(file.stem, used)
                records.append(_record(file, image, found, stem, masks))
                if found.maps is not None:
                    _write_pictures(out, stem, image, found, heatmaps, masks, model.background)
                    coco += _coco_annotations(index, found, len(coco))
            bar.advance()
    result = {
        "task": "predict",
        "protocol": "tags from the model's threshold; masks: classes above it, background below its own",
        "method": "unmix",
        "backbone": model.backbone.identity.to_dict(),
        "data": list(paths),
        "n_images": len(files),
        "n_classes": len(names),
        "seed": model.run.model.config.seed,
        "seconds": time.monotonic() - started,
        "trained_on": model.run.data,
        "classes": names,
        "not_trained_on": model.untrained(names),
        "threshold": model.threshold,
        "versions": versions(),
        "images": records,
    }
    if "json" in formats:
        write_json(out / "predictions.json", result)
    if "csv" in formats:
        write_text(out / "predictions.csv", _csv(records))
    if "coco" in formats:
        write_json(out / "predictions_coco.json", _coco(records, coco, names))
    return result


def _record(file: Path, image: Image.Image, found: Prediction, stem: str, masks: bool) -> dict[str, Any]:
    labels = [{"name": name, "score": found.tags.scores[name]} for name in found.tags.labels]
    record = {
        "file": str(file),
        "image_hw": [image.height, image.width],
        "labels": labels,
        "scores": found.tags.scores,
        "failure": None,
    }
    return {**record, "mask": f"masks/{stem}.png"} if masks else record


def _unique(stem: str, used: set[str]) -> str:
    """Return a file stem that no other picture of this run has."""
    name, number = stem, 2
    while name in used:
        name, number = f"{stem}_{number}", number + 1
    used.add(name)
    return name


def _write_pictures(
    out: Path, stem: str, image: Image.Image, found: Prediction, heatmaps: bool, masks: bool, background: float
) -> None:
    maps = found.maps
    assert maps is not None, "maps were asked for"
    if heatmaps:
        folder = make_folder(out / "heatmaps" / stem)
        for name in found.tags.labels:
            heat = maps.heatmap(name)
            _save(Image.fromarray(overlay(image, heat, background)), folder / f"{name.replace('/', '_')}.jpg")
    if masks:
        folder = make_folder(out / "masks")
        indexed = Image.fromarray(maps.mask.astype(np.uint8 if len(maps.classes) < 255 else np.uint16))
        if indexed.mode == "L":
            indexed.putpalette(palette(len(maps.classes)).tobytes())
        _save(indexed, folder / f"{stem}.png")
        _save(paint_mask(image, maps.mask, maps.classes), make_folder(out / "overlays") / f"{stem}.jpg")


def _save(image: Image.Image, path: Path) -> None:
    with written_whole(path) as temporary:
        image.save(temporary, format="JPEG" if path.suffix == ".jpg" else "PNG", quality=90)


def _csv(records: Sequence[dict[str, Any]]) -> str:
    """One row a label found; a picture without labels or that failed has one row."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["file", "name", "score", "failure"])
    for record in records:
        for label in record["labels"] or [{"name": "", "score": ""}]:
            writer.writerow([record["file"], label["name"], label["score"], record["failure"] or ""])
    return buffer.getvalue()


def _coco_annotations(image_id: int, found: Prediction, first_id: int) -> list[dict[str, Any]]:
    """Return one annotation a class of the mask, as run-length encoding."""
    from pycocotools import mask as rle

    maps: Maps | None = found.maps
    assert maps is not None, "maps were asked for"
    annotations: list[dict[str, Any]] = []
    for value in np.setdiff1d(np.unique(maps.mask), [0]):
        encoded = rle.encode(np.asfortranarray(maps.mask == value, dtype=np.uint8))
        annotations.append(
            {
                "id": first_id + len(annotations) + 1,
                "image_id": image_id,
                "category_id": int(value),
                "segmentation": {"size": list(encoded["size"]), "counts": encoded["counts"].decode()},
                "bbox": [float(v) for v in rle.toBbox(encoded)],
                "area": int(rle.area(encoded)),
                "iscrowd": 0,
                "score": found.tags.scores[maps.classes[value - 1]],
            }
        )
    return annotations


def _coco(records: Sequence[dict[str, Any]], annotations: list[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    images = [
        {"id": i, "file_name": record["file"], "height": record["image_hw"][0], "width": record["image_hw"][1]}
        for i, record in enumerate(records)
        if record["failure"] is None
    ]
    categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
    return json.loads(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
