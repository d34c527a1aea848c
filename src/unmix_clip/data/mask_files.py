"""Mask files of the segmentation data sets: what their values mean, and the one function that reads them.

A mask file holds numbers: indices into a palette, or greys. Each data set numbers its classes in its own way, sometimes
in two; a `Coding` says how, and any value outside it is an error, because a mask in another coding gives wrong scores
without any other sign.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from unmix_clip.data.images import DECODER_ERRORS
from unmix_clip.data.samples import IGNORE
from unmix_clip.errors import InputError

PNG_IGNORE = 255
"""Mask value of files that counts for nothing (VOC, ADE20K, Cityscapes, ...)."""
UNEXPECTED = -2
"""What a coding makes of values that no file should have."""


@dataclass(frozen=True)
class Coding:
    """How a kind of mask file numbers its classes."""

    mapping: np.ndarray
    """(256,) or (65536,) int32: from a file's value to 0 background, 1 + class index, IGNORE or UNEXPECTED."""
    rule: str
    """What the files are, for `Dataset.rules`."""
    mend: str
    """What unexpected values may come from, and what to do then."""


def build_mapping(
    values: Sequence[int], *, background: Iterable[int] = (), ignored: Iterable[int] = (PNG_IGNORE,)
) -> np.ndarray:
    """Return a mapping (256,) int32.

    Args:
        values: the file's value of every class, in class order.
        background: values that become 0.
        ignored: values that become IGNORE.
    """
    mapping = np.full(256, UNEXPECTED, dtype=np.int32)
    mapping[list(ignored)] = IGNORE
    mapping[list(background)] = 0
    mapping[list(values)] = np.arange(1, len(values) + 1)
    return mapping


def plain_coding(n_classes: int) -> Coding:
    """Return the coding of masks that number a class list from 1 on: 0 background, 255 ignored."""
    if n_classes >= PNG_IGNORE:
        raise InputError(f"masks of {n_classes} classes do not fit into 8 bits; expected fewer than {PNG_IGNORE}")
    mend = "0 is the background, a class's value is its place in the class list, from 1 on"
    return Coding(build_mapping(range(1, n_classes + 1), background=(0,)), "class numbers, 255 ignored", mend)


def read_mask(path: str | Path, coding: Coding, expected_hw: tuple[int, int]) -> np.ndarray:
    """Read a mask (H, W) int32: 0 background, 1 + class index, IGNORE.

    Raises:
        InputError: colours instead of numbers, another size than the picture's, values that the coding does not have.
    """
    try:
        with Image.open(path, formats=("PNG",)) as file:
            if (found_hw := (file.height, file.width)) != expected_hw:  # before decoding
                raise InputError(
                    f"the mask {path} is {found_hw}, its picture {expected_hw} (rows, columns); expected the same"
                )
            if len(file.getbands()) > 1:
                raise InputError(
                    f"the mask {path} has colours ({file.mode}); expected numbers, as a palette or as greys: take the "
                    "original file, colours do not say the class"
                )
            values = np.asarray(file.convert("L") if file.mode == "1" else file)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"no mask at {path}; check the path") from None
    except (*DECODER_ERRORS, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read the mask {path}: {error}; expected a PNG file") from None
    found = np.flatnonzero(np.bincount(values.ravel()))
    expected = np.flatnonzero(coding.mapping != UNEXPECTED)
    if len(wrong := np.setdiff1d(found, expected)):
        raise InputError(f"the mask {path} has {_say(wrong)}; expected {_say(expected)}: {coding.mend}")
    return coding.mapping[values]


def _say(values: np.ndarray) -> str:
    """Return "the values 0-20, 255" of sorted values."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    spans = [f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs]
    return "the values " + ", ".join(spans)


_VOC = ("palette of SegmentationClass, 255 ignored", "take the masks of SegmentationClass as they were unpacked")
_CONTEXT = (
    "SegmentationClassContext, 59 classes by name",
    "larger ones are the 459 classes of the full labels, 255 comes from masks that start at 0 without 'other': convert "
    "the full labels with mmsegmentation's pascal_context.py",
)
_COCO_UNUSED = frozenset((11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90))
"""Category ids less one that no picture of COCO has (nightrome/cocostuff, labels.txt: street sign, hat, shoe, ...)."""
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Cityscapes' label ids of the train ids 0 to 18 (cityscapesScripts, helpers/labels.py); 34 ids are in use."""

CODINGS = {
    "voc21": Coding(build_mapping(range(1, 21), background=(0,)), *_VOC),
    "voc20": Coding(build_mapping(range(1, 21), ignored=(0, PNG_IGNORE)), *_VOC),
    "context60": Coding(build_mapping(range(1, 60), background=(0,), ignored=()), *_CONTEXT),
    "context59": Coding(build_mapping(range(1, 60), ignored=(0,)), *_CONTEXT),
    "coco-object": Coding(
        build_mapping(range(1, 81), background=(0,)),
        "instanceTrainIds, made of COCO-Stuff: stuff and unlabelled pixels are background",
        "larger ones are stuff: make these files with cvt_coco_object.py of GroupViT or its successors",
    ),
    "coco-stuff labelTrainIds": Coding(
        build_mapping(range(171)),
        "labelTrainIds, 255 ignored",
        "171 to 181 look like the original ids: put those masks into stuffthingmaps/SPLIT",
    ),
    "coco-stuff stuffthingmaps": Coding(
        build_mapping([value for value in range(182) if value not in _COCO_UNUSED]),
        "stuffthingmaps, 255 ignored",
        "these files hold category id - 1: take stuffthingmaps_trainval2017 as it was unpacked",
    ),
    "ade20k": Coding(
        build_mapping(range(1, 151), ignored=(0,)),
        "SceneParsing, 150 classes",
        "255 comes from masks that start at 0 without 'other', larger ones from the full ADE20K: take the masks of "
        "ADEChallengeData2016 as they were unpacked",
    ),
    "cityscapes labelTrainIds": Coding(
        build_mapping(range(19)),
        "labelTrainIds, 255 ignored",
        "19 to 33 look like labelIds: name such files *_gtFine_labelIds.png",
    ),
    "cityscapes labelIds": Coding(
        build_mapping(_CITYSCAPES_IDS, ignored=range(34)),
        "labelIds, 19 of them scored, the others ignored",
        "255 looks like labelTrainIds: name such files *_gtFine_labelTrainIds.png",
    ),
}
"""The codings of the kinds of data sets; those of kinds with several by what the files are called."""
