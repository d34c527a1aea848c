"""PAMR against the published formula, pixel by pixel."""

import numpy as np
import pytest
import torch

from unmix_clip.errors import InputError
from unmix_clip.evaluation.refinement import refine_pamr


def slow_pamr(maps, image, iterations, dilations):
    channels, height, width = image.shape

    def at(array, y, x):
        return array[:, min(max(y, 0), height - 1), min(max(x, 0), width - 1)]

    steps = [(d * i, d * j) for d in dilations for i in (-1, 0, 1) for j in (-1, 0, 1)]
    weights = np.zeros((height, width, len(steps)))
    for y in range(height):
        for x in range(width):
            window = np.stack([at(image, y + i, x + j) for i, j in steps])  # the pixel itself once a distance
            std = window.std(0, ddof=1)
            logits = [
                -np.inf
                if (i, j) == (0, 0)
                else np.mean([-abs(image[c, y, x] - v[c]) / (1e-8 + 0.1 * std[c]) for c in range(channels)])
                for (i, j), v in zip(steps, window, strict=True)
            ]
            weights[y, x] = np.exp(logits) / np.exp(logits).sum()
    for _ in range(iterations):
        maps = np.stack(
            [
                np.stack(
                    [
                        sum(w * at(maps, y + i, x + j) for w, (i, j) in zip(weights[y, x], steps, strict=True))
                        for x in range(width)
                    ],
                    1,
                )
                for y in range(height)
            ],
            1,
        )
    return maps


def test_pamr_equals_the_published_formula():
    rng = np.random.default_rng(0)
    image, maps = rng.random((3, 7, 6)), rng.standard_normal((2, 7, 6))
    expected = slow_pamr(maps, image, 2, (1, 2))
    found = refine_pamr(torch.from_numpy(maps), torch.from_numpy(image), 2, (1, 2))
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_a_blurred_map_becomes_sharp_at_an_edge_of_the_picture():
    image = torch.zeros(3, 20, 20)
    image[:, :, 10:] = 1
    image += 0.02 * torch.randn(3, 20, 20)
    blurred = torch.sigmoid((torch.arange(20.0) - 9.5) / 4).expand(1, 20, 20)
    sharp = refine_pamr(blurred, image, 10, (1, 2))
    assert sharp[0, :, 10].mean() - sharp[0, :, 9].mean() > 4 * (blurred[0, 0, 10] - blurred[0, 0, 9])


def test_the_scale_of_the_picture_has_no_effect_and_the_maps_given_stay_as_they_were():
    maps, image = torch.rand(2, 12, 9), torch.rand(3, 12, 9)
    kept = maps.clone()
    torch.testing.assert_close(
        refine_pamr(maps, 255 * image, 3, (1, 2)), refine_pamr(maps, image, 3, (1, 2)), atol=1e-5, rtol=0
    )
    assert torch.equal(maps, kept)
    with pytest.raises(InputError, match=r"the maps are \(12, 9\), the picture \(6, 9\)"):
        refine_pamr(maps, image[:, :6])


def test_a_flat_map_stays_as_it_is():
    torch.testing.assert_close(refine_pamr(torch.full((1, 9, 9), 2.5), torch.rand(3, 9, 9)), torch.full((1, 9, 9), 2.5))
