"""Windows over pictures: each becomes a picture of its own, so that the store and every method take them as such.

The rule is mmsegmentation's slide inference (mmseg/models/segmentors/encoder_decoder.py): the picture is resized to a
shorter side, windows step by the stride from the top left, and the last of each row and column is moved back to end at
the border. A picture smaller than a window is one window.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from unmix_clip.data.samples import Dataset, Sample

Box = tuple[int, int, int, int]
"""(top, left, bottom, right) in pixels of the resized picture, the last two exclusive."""


@dataclass(frozen=True)
class WindowedPicture:
    """Where the windows of one picture stand."""

    image_hw: tuple[int, int]
    """Of the picture as it is."""
    resized_hw: tuple[int, int]
    """Of the picture that the windows are cut from."""
    boxes: tuple[Box, ...]

    def blend(self, windows: Sequence[Tensor]) -> Tensor:
        """Average maps (k, box rows, box columns) of the windows where they overlap -> (k, H, W) of the picture."""
        total = torch.zeros(len(windows[0]), *self.resized_hw)
        count = torch.zeros(self.resized_hw)
        for (top, left, bottom, right), maps in zip(self.boxes, windows, strict=True):
            total[:, top:bottom, left:right] += maps
            count[top:bottom, left:right] += 1
        return F.interpolate((total / count)[None], size=self.image_hw, mode="bilinear", align_corners=False)[0]


def window_boxes(resized_hw: tuple[int, int], window_px: int, stride_px: int) -> tuple[Box, ...]:
    """Return the windows of a picture, row by row; together they cover it."""
    starts = []
    for side in resized_hw:
        steps = max(0, -(-(side - window_px) // stride_px)) + 1
        starts.append([max(0, min(i * stride_px, side - window_px)) for i in range(steps)])
    rows, columns = resized_hw
    return tuple(
        (top, left, min(top + window_px, rows), min(left + window_px, columns))
        for top in starts[0]
        for left in starts[1]
    )


def cut_windows(
    dataset: Dataset, short_side_px: int, window_px: int, stride_px: int
) -> tuple[Dataset, list[WindowedPicture]]:
    """Return all windows of all pictures as one data set without labels, and where they stand.

    Args:
        dataset: the pictures.
        short_side_px, window_px, stride_px: see `evaluation.protocols.Protocol`.
    """
    pictures, samples = [], []
    for sample in dataset.samples:
        rows, columns = sample.image_hw or sample.load_image().size[::-1]
        scale = short_side_px / min(rows, columns)
        resized_hw = (max(1, round(rows * scale)), max(1, round(columns * scale)))
        boxes = window_boxes(resized_hw, window_px, stride_px)
        pictures.append(WindowedPicture((rows, columns), resized_hw, boxes))
        samples += [_window(sample, resized_hw, box) for box in boxes]
    spec = f"{dataset.spec} in windows of {window_px} px, stride {stride_px}, short side {short_side_px}"
    return replace(dataset, spec=spec, samples=samples, notes={}), pictures


def _window(sample: Sample, resized_hw: tuple[int, int], box: Box) -> Sample:
    top, left, bottom, right = box

    def load_image() -> Image.Image:
        return _resized(sample.load_image, resized_hw).crop((left, top, right, bottom))

    digest = hashlib.sha256(f"{sample.digest} {resized_hw} {box}".encode()).hexdigest()
    return Sample(f"{sample.key}#{top},{left}", None, load_image, None, digest)


@lru_cache(maxsize=2)  # the windows of a picture are read one after the other
def _resized(load_image: Callable[[], Image.Image], resized_hw: tuple[int, int]) -> Image.Image:
    rows, columns = resized_hw
    return load_image().resize((columns, rows), Image.Resampling.BILINEAR)
