"""Windows: where they stand, what is cut, and how their maps are put together again."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from unmix_clip.data.samples import Dataset, Sample
from unmix_clip.data.windows import WindowedPicture, cut_windows, window_boxes


def slow_boxes(rows, columns, window, stride):
    """mmsegmentation's slide inference, as its loops say."""
    boxes = []
    grids = [max(side - window + stride - 1, 0) // stride + 1 for side in (rows, columns)]
    for i in range(grids[0]):
        for j in range(grids[1]):
            bottom, right = min(i * stride + window, rows), min(j * stride + window, columns)
            boxes.append((max(bottom - window, 0), max(right - window, 0), bottom, right))
    return tuple(boxes)


@pytest.mark.parametrize("size_hw", [(336, 448), (336, 336), (224, 224), (300, 225), (100, 500), (50, 60)])
def test_windows_stand_where_slide_inference_puts_them(size_hw):
    assert window_boxes(size_hw, 224, 112) == slow_boxes(*size_hw, 224, 112)


def test_maps_are_averaged_where_windows_overlap_and_brought_to_the_picture():
    picture = WindowedPicture((9, 14), (18, 28), slow_boxes(18, 28, 12, 8))
    windows = [torch.randn(3, b - t, r - left) for t, left, b, r in picture.boxes]
    total, count = torch.zeros(3, 18, 28), torch.zeros(18, 28)
    for (t, left, b, r), maps in zip(picture.boxes, windows, strict=True):
        for y in range(t, b):
            for x in range(left, r):
                total[:, y, x] += maps[:, y - t, x - left]
                count[y, x] += 1
    assert count.min() >= 1
    expected = F.interpolate((total / count)[None], (9, 14), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(picture.blend(windows), expected)


def test_every_window_is_a_picture_cut_from_the_resized_one():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8))
    sample = Sample("a", None, lambda: image, None, "digest")
    cut, (picture,) = cut_windows(Dataset("x", (), [sample], {}), 20, 16, 8)
    assert picture.resized_hw == (20, 30)
    resized = np.asarray(image.resize((30, 20), Image.Resampling.BILINEAR))
    assert len(cut.samples) == len(picture.boxes) == 2 * 3
    for window, (top, left, bottom, right) in zip(cut.samples, picture.boxes, strict=True):
        assert np.array_equal(np.asarray(window.load_image()), resized[top:bottom, left:right])
    assert len({window.digest for window in cut.samples}) == 6
