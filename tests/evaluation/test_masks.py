"""From maps to masks: bilinear resizing by hand, gate and background rule pixel by pixel."""

import numpy as np
import pytest
import torch

from unmix_clip.backbones import Preprocessing
from unmix_clip.errors import InputError
from unmix_clip.evaluation.masks import best_classes, best_on_pixels, cut_background
from unmix_clip.evaluator import best_on_picture


def squash(rows, columns):
    """Preprocessing of a square model: the whole picture is squashed."""
    return Preprocessing("squash", (rows, columns), (0.5,) * 3, (0.5,) * 3)


def mask_of(maps, allowed, image_hw, background):
    """The mask of maps (C, h, w) as evaluation and product make it."""
    locations = maps.flatten(1).T
    best = best_on_picture(locations, allowed, squash(64, 64), tuple(maps.shape[1:]), image_hw)
    return cut_background(best, background)


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
    np.testing.assert_allclose(squash(64, 64).grid_to_image(maps, image_hw).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(("gate", "background"), [(0.0, 0.2), (0.0, None), (None, 0.2), (None, None)])
def test_masks_equal_a_loop_over_pixels(gate, background):
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        maps, tags = torch.randn(5, 3, 4, generator=generator), torch.randn(5, generator=generator)
        expected = slow_mask(maps.numpy().astype(float), tags.numpy(), (10, 9), gate, background)
        actual = mask_of(maps, None if gate is None else tags >= gate, (10, 9), background)
        assert actual.dtype == np.int32
        np.testing.assert_array_equal(actual, expected)


def test_a_class_that_the_tags_deny_cannot_win_and_without_any_all_is_background():
    maps = torch.tensor([[[0.9]], [[0.5]], [[0.7]]])
    assert mask_of(maps, torch.tensor([False, True, True]), (2, 2), -5.0).tolist() == [[3, 3], [3, 3]]
    assert mask_of(maps, torch.zeros(3, dtype=torch.bool), (2, 2), -5.0).tolist() == [[0, 0], [0, 0]]


def test_only_allowed_maps_are_brought_to_the_picture():
    brought = []

    def to_pixels(maps):
        brought.append(len(maps))
        return maps

    best = best_on_pixels(torch.randn(6, 2, 2), to_pixels, torch.tensor([True, False, False, True, False, False]))
    assert brought == [2]
    assert set(best.mask.unique().tolist()) <= {1, 4}


def test_the_background_begins_below_its_threshold_not_at_it():
    best = best_classes(torch.tensor([[[0.5, 0.25]]]))
    assert cut_background(best, 0.5).tolist() == [[1, 0]]


def test_best_classes_with_and_without_a_restriction():
    maps = torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(2))
    free, bound = best_classes(maps), best_classes(maps, torch.tensor([True, False, True, False, False, True]))
    np.testing.assert_array_equal(free.mask, maps.argmax(0) + 1)
    np.testing.assert_array_equal(bound.mask, np.array([1, 3, 6])[maps[[0, 2, 5]].argmax(0)])
    np.testing.assert_array_equal(bound.height, maps[[0, 2, 5]].amax(0))
    nothing = best_classes(maps, torch.zeros(6, dtype=torch.bool))
    assert nothing.mask.unique().tolist() == [0]
    assert nothing.height.unique().tolist() == [-np.inf]


def test_maps_with_nan_are_refused():
    with pytest.raises(InputError, match="NaN"):
        best_classes(torch.full((2, 2, 2), float("nan")))
