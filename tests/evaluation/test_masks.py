"""From maps to masks: bilinear resizing by hand, gate and background rule pixel by pixel."""

import numpy as np
import pytest
import torch

from unmix_clip.errors import InputError
from unmix_clip.evaluation.masks import best_classes, predict_mask, resize_maps
from unmix_clip.evaluation.protocols import PROTOCOLS

STANDARD, OBJECTS = PROTOCOLS["standard"], PROTOCOLS["standard-objects"]


def slow_bilinear(grid, height, width):
    """Each pixel centre in units of cells, the four neighbours weighted; beyond the outer centres values are kept."""
    rows, columns = grid.shape
    out = np.empty((height, width))
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * rows / height - 0.5, 0), rows - 1)
            x = min(max((j + 0.5) * columns / width - 0.5, 0), columns - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            a, b = y - top, x - left
            upper = grid[top, left] * (1 - b) + grid[top, right] * b
            out[i, j] = upper * (1 - a) + (grid[bottom, left] * (1 - b) + grid[bottom, right] * b) * a
    return out


def slow_mask(maps, tags, image_hw, tag_threshold, background):
    """Pixel by pixel; None = no gate, no background rule."""
    pixels = np.stack([slow_bilinear(grid, *image_hw) for grid in maps])
    mask = np.zeros(image_hw, dtype=np.int32)
    for i, j in np.ndindex(*image_hw):
        best, value = 0, -np.inf
        for c in range(len(maps)):
            allowed = tag_threshold is None or tags[c] >= tag_threshold
            if allowed and pixels[c, i, j] > value:
                best, value = c + 1, pixels[c, i, j]
        mask[i, j] = best if background is None or value >= background else 0
    return mask


@pytest.mark.parametrize("image_hw", [(8, 12), (7, 5), (3, 4), (30, 31)])
def test_maps_are_resized_bilinearly_with_pixel_centres_aligned(image_hw):
    maps = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = [slow_bilinear(grid.numpy(), *image_hw) for grid in maps]
    np.testing.assert_allclose(resize_maps(maps, image_hw).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("protocol", [STANDARD, OBJECTS])
def test_masks_equal_a_loop_over_pixels(protocol):
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        maps, tags = torch.randn(5, 3, 4, generator=generator), torch.randn(5, generator=generator)
        gate, background = (0.0, 0.2) if protocol is STANDARD else (None, None)
        expected = slow_mask(maps.numpy().astype(float), tags.numpy(), (10, 9), gate, background)
        actual = predict_mask(maps, tags, protocol, (10, 9), tag_threshold=0.0, background_threshold=0.2)
        assert actual.dtype == np.int32
        np.testing.assert_array_equal(actual, expected)


def test_maps_of_the_pictures_own_size_are_taken_as_they_are():
    maps = torch.tensor([[[0.9, 0.1]], [[0.2, 0.3]]])
    assert predict_mask(maps, None, OBJECTS, (1, 2)).tolist() == [[1, 2]]


def test_a_class_that_the_tags_deny_cannot_win_and_without_any_all_is_background():
    maps, tags = torch.tensor([[[0.9]], [[0.5]], [[0.7]]]), torch.tensor([-1.0, 2.0, 0.0])
    options = {"background_threshold": -5.0}
    assert predict_mask(maps, tags, STANDARD, (2, 2), tag_threshold=0.0, **options).tolist() == [[3, 3], [3, 3]]
    assert predict_mask(maps, tags, STANDARD, (2, 2), tag_threshold=9.0, **options).tolist() == [[0, 0], [0, 0]]


def test_a_tag_threshold_can_be_given_for_each_class():
    maps, tags = torch.tensor([[[0.9]], [[0.5]]]), torch.tensor([1.0, 1.0])
    thresholds = torch.tensor([1.5, 0.5])
    mask = predict_mask(maps, tags, STANDARD, (1, 1), tag_threshold=thresholds, background_threshold=0.0)
    assert mask.tolist() == [[2]]


def test_the_background_begins_below_its_threshold_not_at_it():
    maps, tags = torch.tensor([[[0.5, 0.25]]]), torch.ones(1)
    mask = predict_mask(maps, tags, STANDARD, (1, 2), tag_threshold=0.0, background_threshold=0.5)
    assert mask.tolist() == [[1, 0]]


def test_best_classes_with_and_without_a_restriction():
    maps = torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(2))
    free, bound = best_classes(maps), best_classes(maps, torch.tensor([True, False, True, False, False, True]))
    np.testing.assert_array_equal(free.mask, maps.argmax(0) + 1)
    np.testing.assert_array_equal(bound.mask, np.array([1, 3, 6])[maps[[0, 2, 5]].argmax(0)])
    np.testing.assert_array_equal(bound.height, maps[[0, 2, 5]].amax(0))
    nothing = best_classes(maps, torch.zeros(6, dtype=torch.bool))
    assert nothing.mask.unique().tolist() == [0]
    assert nothing.height.unique().tolist() == [-np.inf]


def test_missing_thresholds_and_maps_with_nan_are_refused():
    maps, tags = torch.zeros(2, 2, 2), torch.zeros(2)
    with pytest.raises(InputError, match="tag threshold"):
        predict_mask(maps, tags, STANDARD, (2, 2), background_threshold=0.0)
    with pytest.raises(InputError, match="background threshold"):
        predict_mask(maps, tags, STANDARD, (2, 2), tag_threshold=0.0)
    with pytest.raises(InputError, match="NaN"):
        predict_mask(maps * float("nan"), tags, OBJECTS, (2, 2))
