"""Readers of the data sets with pixel labels that open-vocabulary segmentation is compared on, in their own layouts.

Where a data set is usually converted first, the layout is mmsegmentation's ("Prepare datasets"), which the rivals use.
All masks are read once while loading: a wrong one is told before anything is computed, and a picture's labels are the
classes that its mask shows. COCO-Object comes in two forms that differ: drawn from the instances JSON, with crowds
ignored, or as `instanceTrainIds` files, made from COCO-Stuff by GroupViT's cvt_coco_object.py, where unlabelled pixels
are background. `Dataset.rules` says which was read.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from unmix_clip.data.coco import load_coco
from unmix_clip.data.counts import count_note
from unmix_clip.data.images import image_digests, load_image, load_image_hw
from unmix_clip.data.mask_files import CODINGS, Coding, read_mask
from unmix_clip.data.samples import IGNORE, Dataset, Sample
from unmix_clip.data.voc import find_voc
from unmix_clip.errors import InputError
from unmix_clip.files import read_lines
from unmix_clip.vocabulary import load_names

_VOC = "ROOT/VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation/SPLIT.txt}"
_CONTEXT = "ROOT/VOCdevkit/VOC2010/{JPEGImages,SegmentationClassContext,ImageSets/SegmentationContext/SPLIT.txt}"
LAYOUTS = {
    "voc21": f"voc21:ROOT@SPLIT ({_VOC}, or ROOT further inside)",
    "voc20": f"voc20:ROOT@SPLIT ({_VOC}, or ROOT further inside; background ignored)",
    "context60": f"context60:ROOT@SPLIT ({_CONTEXT}, or ROOT further inside)",
    "context59": f"context59:ROOT@SPLIT ({_CONTEXT}, or ROOT further inside; background ignored)",
    "coco-object": "coco-object:ROOT@SPLIT (ROOT/SPLIT/*.jpg with ROOT/annotations/instances_SPLIT.json, or "
    "ROOT/images/SPLIT/*.jpg with ROOT/annotations/SPLIT/*_instanceTrainIds.png)",
    "coco-stuff": "coco-stuff:ROOT@SPLIT (ROOT/images/SPLIT/*.jpg or ROOT/SPLIT/*.jpg; "
    "ROOT/annotations/SPLIT/*_labelTrainIds.png or ROOT/stuffthingmaps/SPLIT/*.png)",
    "ade20k": "ade20k:ROOT@training|validation (ROOT/ADEChallengeData2016/{images,annotations}/SPLIT, or ROOT inside)",
    "cityscapes": "cityscapes:ROOT@SPLIT (ROOT/leftImg8bit/SPLIT/CITY/*_leftImg8bit.png; "
    "ROOT/gtFine/SPLIT/CITY/*_gtFine_labelTrainIds.png or *_gtFine_labelIds.png)",
}
"""What is looked for, by kind."""
NAMES_AND_COUNTS = {
    **dict.fromkeys(("voc21", "voc20"), ("voc", "voc2012-segmentation")),
    **dict.fromkeys(("context60", "context59"), ("context59", "context")),
    "coco-object": ("coco", "coco"),
    "coco-stuff": ("coco_stuff", "coco"),
    "ade20k": ("ade20k", "ade20k"),
    "cityscapes": ("cityscapes", "cityscapes"),
}
"""The class list and the entry of counts.toml, by kind."""


def load_voc_segmentation(root: Path, split: str, *, background: bool) -> Dataset:
    """Read VOC2012's masks; with `background` it is a class of its own (voc21), else its pixels are IGNORE (voc20).

    Raises:
        InputError: anything that is missing or malformed, here and in the other readers.
    """
    kind = "voc21" if background else "voc20"
    return _load_listed(kind, root, split, 2012, "SegmentationClass", "Segmentation")


def load_context(root: Path, split: str, *, background: bool) -> Dataset:
    """Read PASCAL Context in mmsegmentation's form; with `background` (context60) or without (context59)."""
    kind = "context60" if background else "context59"
    return _load_listed(kind, root, split, 2010, "SegmentationClassContext", "SegmentationContext")


def load_coco_object(root: Path, split: str) -> Dataset:
    """Read the 80 classes of COCO and background, from instanceTrainIds files if there are any, else from the JSON."""
    kind = "coco-object"
    if masks := _files(root / "annotations" / split, "_instanceTrainIds.png"):
        pictures = _files(_find_split(kind, split, root / "images", root), ".jpg")
        return _assemble(kind, root, split, pictures, masks, CODINGS[kind])
    file = root / "annotations" / f"instances_{split}.json"
    if not os.path.isfile(file):
        there = sorted(p.stem.removeprefix("instances_") for p in file.parent.glob("instances_*.json"))
        raise _no_split(kind, split, root, there)
    listed = load_names("coco")
    dataset = load_coco(root, split)
    require_same_names(listed.names, dataset.classes, file)
    return replace(
        dataset,
        spec=f"{kind}:{root}@{split}",
        notes={**count_note("coco", split, len(dataset.samples)), **dataset.notes},
        rules={**dataset.rules, "masks": "drawn from instances JSON, smaller on top, crowds ignored"},
        synonyms=listed.synonyms,
    )


def load_coco_stuff(root: Path, split: str) -> Dataset:
    """Read COCO-Stuff's 171 classes, from labelTrainIds files if there are any, else from stuffthingmaps."""
    kind = "coco-stuff"
    pictures = _files(_find_split(kind, split, root / "images", root), ".jpg")
    form = "labelTrainIds"
    if not (masks := _files(root / "annotations" / split, "_labelTrainIds.png")):
        form, masks = "stuffthingmaps", _files(root / "stuffthingmaps" / split, ".png")
    return _assemble(kind, root, split, pictures, masks, CODINGS[f"{kind} {form}"])


def load_ade20k(root: Path, split: str) -> Dataset:
    """Read SceneParsing's 150 classes of ADE20K; pixels of no class are IGNORE."""
    kind = "ade20k"
    inside = root / "ADEChallengeData2016"
    folder = inside if os.path.isdir(inside) else root
    pictures = _files(_find_split(kind, split, folder / "images"), ".jpg")
    info = folder / "objectInfo150.txt"
    if os.path.isfile(info):
        names = load_names("ade20k").names
        rows = [line.split("\t")[-1] for line in read_lines(info, LAYOUTS[kind])[1:]]  # a name and other words for it
        words = [[word.strip() for word in row.split(",")] for row in rows]
        found = [names[i] if i < len(names) and names[i] in row else row[0] for i, row in enumerate(words)]
        require_same_names(names, found, info)
    return _assemble(kind, root, split, pictures, _files(folder / "annotations" / split, ".png"), CODINGS[kind])


def load_cityscapes(root: Path, split: str) -> Dataset:
    """Read Cityscapes' 19 classes, from labelTrainIds files if there are any, else from labelIds."""
    kind = "cityscapes"
    pictures = _files(_find_split(kind, split, root / "leftImg8bit"), "_leftImg8bit.png", "*/")
    for form in ("labelTrainIds", "labelIds"):
        if masks := _files(root / "gtFine" / split, f"_gtFine_{form}.png", "*/"):
            break
    return _assemble(kind, root, split, pictures, masks, CODINGS[f"{kind} {form}"])


def require_same_names(expected: Sequence[str], found: Sequence[str], where: str | Path) -> None:
    """See that a class list beside the data is ours; raises InputError that names the first difference."""
    if tuple(expected) == tuple(found):
        return
    pairs = enumerate(zip(expected, found, strict=False), 1)
    differing = [f"number {i} is {other!r}, expected {own!r}" for i, (own, other) in pairs if own != other]
    raise InputError(
        f"{where} lists {len(found)} classes, expected {len(expected)}"
        f"{': ' + differing[0] if differing else ''}; this is another data set or another version of it"
    )


def _load_listed(kind: str, root: Path, split: str, year: int, masks: str, lists: str) -> Dataset:
    """Read a data set in the layout of VOC's development kit, whose splits are lists of names."""
    try:
        folder = find_voc(root, year)
    except InputError:
        raise InputError(f"no VOC{year} in {root}; expected {LAYOUTS[kind]}") from None
    file = folder / "ImageSets" / lists / f"{split}.txt"
    if not os.path.isfile(file):
        raise _no_split(kind, split, root, sorted(p.stem for p in file.parent.glob("*.txt")))
    keys = read_lines(file, LAYOUTS[kind])
    if twice := len(keys) - len(set(keys)):
        raise InputError(f"{file} lists {twice} pictures twice; expected each once")
    pictures = {key: folder / "JPEGImages" / f"{key}.jpg" for key in keys}
    of_masks = {key: folder / masks / f"{key}.png" for key in keys}
    for what, paths in (("pictures", pictures), ("masks", of_masks)):
        if missing := [path for path in paths.values() if not os.path.isfile(path)]:
            raise InputError(
                f"{len(missing)} of {len(paths)} {what} are missing, such as {missing[0]}; expected {LAYOUTS[kind]}"
            )
    return _assemble(kind, root, split, pictures, of_masks, CODINGS[kind])


def _find_split(kind: str, split: str, *parents: Path) -> Path:
    """Return the first folder PARENT/SPLIT that there is."""
    for parent in parents:
        if os.path.isdir(parent / split):
            return parent / split
    inside = [p for parent in parents if os.path.isdir(parent) for p in parent.iterdir() if p.is_dir()]
    raise _no_split(kind, split, parents[0], sorted({path.name for path in inside}))


def _no_split(kind: str, split: str, place: Path, there: Sequence[str]) -> InputError:
    found = ", ".join(there) or "nothing"
    return InputError(f"no split {split!r} in {place}; expected {LAYOUTS[kind]}; there: {found}")


def _files(folder: Path, suffix: str, below: str = "") -> dict[str, Path]:
    """Return the files by name without the suffix, in order; hidden ones are left out."""
    found = folder.glob(f"{below}*{suffix}") if os.path.isdir(folder) else ()
    return {p.name.removesuffix(suffix): p for p in sorted(found) if not p.name.startswith(".")}


def _assemble(
    kind: str, root: Path, split: str, pictures: Mapping[str, Path], masks: Mapping[str, Path], coding: Coding
) -> Dataset:
    """Pair pictures and masks, read all masks, and return the data set."""
    for own, of_own, other, of_other in (("picture", pictures, "mask", masks), ("mask", masks, "picture", pictures)):
        if lacking := sorted(of_own.keys() - of_other.keys()):
            raise InputError(
                f"{len(lacking)} of {len(of_own)} {own}s have no {other}, such as {of_own[lacking[0]]}; expected "
                f"{LAYOUTS[kind]}: complete the download, or remove what stands alone"
            )
    if not pictures:
        raise InputError(f"no pictures of {split!r} in {root}; expected {LAYOUTS[kind]}")
    class_list, counted = NAMES_AND_COUNTS[kind]
    listed = load_names(class_list)

    def build_sample(key: str, digest: str) -> Sample:
        image_hw = load_image_hw(pictures[key])
        load_mask = partial(read_mask, masks[key], coding, image_hw)
        labels = np.zeros(len(listed.names), dtype=np.int8)
        present = np.unique(load_mask())
        labels[present[present > 0] - 1] = 1
        return Sample(pictures[key].name, labels, partial(load_image, pictures[key]), load_mask, digest, image_hw)

    with ThreadPoolExecutor() as pool:
        samples = list(pool.map(build_sample, pictures, image_digests(list(pictures.values()))))
    empty = sum(not sample.labels.any() for sample in samples if sample.labels is not None)
    if empty == len(samples):
        raise InputError(f"no mask of {split!r} in {root} shows a class; choose a split whose masks are published")
    zero = {IGNORE: {"zero": "ignored"}, 0: {"zero": "background"}}.get(int(coding.mapping[0]), {})
    return Dataset(
        spec=f"{kind}:{root}@{split}",
        classes=listed.names,
        samples=samples,
        notes={**count_note(counted, split, len(samples)), "images_without_objects": empty},
        rules={"masks": coding.rule, **zero},
        synonyms=listed.synonyms,
        has_background=bool((coding.mapping == 0).any()),
    )
