"""From a picture to a model's pixels, and from its grid back to the picture. Nothing is ever cropped away.

open_clip's own inference transform takes a centre crop for most models, which loses the objects at the
border. Here: `squash` resizes to the input size whatever the aspect ratio; `pad` keeps the ratio and fills up
at the bottom and right with the mean colour; `tile` squashes to twice the input size and looks at 2 x 2 tiles
(finer, four times the work).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from unmix_clip.errors import InputError

MODES = ("squash", "pad", "tile")
TILES = 2  # tiles along each side in mode `tile`
RESAMPLING = {
    "bicubic": PIL.Image.Resampling.BICUBIC,
    "bilinear": PIL.Image.Resampling.BILINEAR,
    "nearest": PIL.Image.Resampling.NEAREST,
}


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the pixels of one backbone."""

    mode: str
    """`squash`, `pad` or `tile`."""
    input_hw: tuple[int, int]
    """Rows and columns of pixels that the model sees at a time (of one tile in mode `tile`)."""
    mean: tuple[float, float, float]
    """Mean colour of the model's training pictures, RGB in [0, 1]."""
    std: tuple[float, float, float]
    """Standard deviation of the colours, RGB in [0, 1]."""
    interpolation: str = "bicubic"
    """How pictures are resized: `bicubic`, `bilinear` or `nearest`, antialiased by Pillow."""
    multiple_hw: tuple[int, int] = (1, 1)
    """The model needs rows and columns that are multiples of these: the canvas is filled up with the mean colour."""

    def __post_init__(self) -> None:
        for field in ("input_hw", "mean", "std", "multiple_hw"):  # lists come from JSON
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if self.mode not in MODES:
            raise InputError(f"preprocessing mode {self.mode!r} is unknown: choose one of {', '.join(MODES)}")
        if self.interpolation not in RESAMPLING:
            raise InputError(f"interpolation {self.interpolation!r} is unknown: choose one of {', '.join(RESAMPLING)}")
        if len(self.input_hw) != 2 or min(self.input_hw) < 1:
            raise InputError(f"input size {self.input_hw} is not a pair of positive numbers (rows, columns)")

    @property
    def canvas_hw(self) -> tuple[int, int]:
        """Rows and columns of pixels that the picture is drawn on: the input size, or all tiles together."""
        tiles = TILES if self.mode == "tile" else 1
        sizes = zip(self.input_hw, self.multiple_hw, strict=True)
        rows, columns = (tiles * (size + -size % multiple) for size, multiple in sizes)
        return (rows, columns)

    def content_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the canvas that a picture of this size fills; what is left is padding."""
        if self.mode == "tile":
            return self.canvas_hw
        if self.mode == "squash":
            return self.input_hw
        scale = min(size / image for size, image in zip(self.input_hw, image_hw, strict=True))
        rows, columns = (max(1, round(scale * image)) for image in image_hw)
        return (rows, columns)

    def content_box(self, image_hw: tuple[int, int]) -> tuple[int, int, int, int]:
        """Where the picture stands on the canvas: (top, left, bottom, right) in pixels, the last two exclusive.

        It stands in the top left corner, so that its first patch is whole and at most one row and one column
        is mixed.
        """
        return (0, 0, *self.content_hw(image_hw))

    def to_pixels(self, image: PIL.Image.Image) -> Tensor:
        """Return the normalised pixels (3, H, W) float32; in mode `tile` (T, 3, H, W), tiles row by row."""
        rows, columns = self.content_hw((image.height, image.width))
        resized = image.convert("RGB").resize((columns, rows), RESAMPLING[self.interpolation])
        colours = torch.from_numpy(np.array(resized, dtype=np.uint8)).permute(2, 0, 1).float() / 255
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        canvas = torch.zeros(3, *self.canvas_hw)  # zero is the mean colour
        canvas[:, :rows, :columns] = (colours - mean) / std
        if self.mode != "tile":
            return canvas
        tiles = canvas.unflatten(2, (TILES, -1)).unflatten(1, (TILES, -1))  # (3, T rows, H, T columns, W)
        return tiles.permute(1, 3, 0, 2, 4).flatten(0, 1).contiguous()  # (T, 3, H, W)

    def valid_patches(self, image_hw: tuple[int, int], grid_hw: tuple[int, int]) -> Tensor:
        """Which locations show the picture and not padding: (N,) bool, row-major, never all False.

        A location counts when its centre lies on the picture, so at least half of it, along each side, is
        picture.
        """
        rows, columns = self._valid_hw(image_hw, grid_hw)
        valid = torch.zeros(grid_hw, dtype=torch.bool)
        valid[:rows, :columns] = True
        return valid.flatten()

    def grid_to_image(self, maps: Tensor, image_hw: tuple[int, int]) -> Tensor:
        """Bring maps on the grid (C, h, w) back to the picture (C, H, W): bilinear, the padding cut away.

        Padded locations have no influence: beyond the centre of the last valid location its value is kept.
        """
        grid_hw = (maps.shape[-2], maps.shape[-1])
        valid_hw, content_hw = self._valid_hw(image_hw, grid_hw), self.content_hw(image_hw)
        across = [
            _bilinear_weights(image_hw[side], content_hw[side] * grid_hw[side] / self.canvas_hw[side], valid_hw[side])
            for side in (0, 1)
        ]
        rows, columns = (weights.to(maps) for weights in across)  # (H, valid h), (W, valid w)
        return rows @ maps[:, : valid_hw[0], : valid_hw[1]] @ columns.T

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    def _valid_hw(self, image_hw: tuple[int, int], grid_hw: tuple[int, int]) -> tuple[int, int]:
        """How many rows and columns of locations have their centre on the picture, at least one."""
        content_hw = self.content_hw(image_hw)
        rows, columns = (
            max(
                1,
                sum(
                    (cell + 0.5) * self.canvas_hw[side] / grid_hw[side] < content_hw[side]
                    for cell in range(grid_hw[side])
                ),
            )
            for side in (0, 1)
        )
        return (rows, columns)


def _bilinear_weights(length: int, extent: float, cells: int) -> Tensor:
    """Weights (length, cells) that interpolate along one side, centres aligned, values kept at the ends.

    Args:
        length: pixels wanted.
        extent: how many cells of the grid these pixels cover; may end inside a cell.
        cells: how many cells there are to take values from.
    """
    position = ((torch.arange(length, dtype=torch.float64) + 0.5) * (extent / length) - 0.5).clamp(0, cells - 1)
    left = position.floor().long()
    right = (left + 1).clamp(max=cells - 1)
    share = (position - left).unsqueeze(1)  # (length, 1), weight of the right neighbour
    identity = torch.eye(cells, dtype=torch.float64)
    return identity[left] * (1 - share) + identity[right] * share
