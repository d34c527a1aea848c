"""The fitted background threshold against trying every candidate on whole masks."""

import numpy as np
import pytest
import torch

from unmix_clip.errors import InputError
from unmix_clip.evaluation.background import BackgroundFit
from unmix_clip.evaluation.masks import best_on_pixels, cut_background
from unmix_clip.evaluation.protocols import PROTOCOLS
from unmix_clip.evaluation.segmentation import SegmentationEvaluator

STANDARD = PROTOCOLS["standard"]


def best_of(grid, tag, truth, gated=True):
    """The best class of every pixel, gated by a tag threshold of 8."""

    def to_pixels(maps):
        return torch.nn.functional.interpolate(maps[None], size=truth.shape, mode="bilinear")[0]

    return best_on_pixels(grid, to_pixels, tag >= 8.0 if gated else None)


def pictures(n=12, n_classes=5, grid=4, side=13, seed=0):
    """Maps that say something about the masks, tags about the classes, masks with ignored pixels."""
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    maps = torch.randn(n, n_classes, grid, grid, generator=generator)
    pixels = torch.nn.functional.interpolate(maps, size=(side, side)).numpy()
    truths = np.where(pixels.max(1) > 1.0, pixels.argmax(1) + 1, 0).astype(np.int32)
    noise = rng.random(truths.shape)
    truths = np.where(noise < 0.2, rng.integers(-1, n_classes + 1, truths.shape, dtype=np.int32), truths)
    tags = torch.tensor([[float((truth == c + 1).sum()) for c in range(n_classes)] for truth in truths])
    return maps, tags, truths


def miou_of(maps, tags, truths, threshold, gated=True):
    evaluator = SegmentationEvaluator(STANDARD, [f"class {c}" for c in range(tags.shape[1])])
    for grid, tag, truth in zip(maps, tags, truths, strict=True):
        evaluator.update(truth, cut_background(best_of(grid, tag, truth, gated), threshold))
    return evaluator.result()["miou"]


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_each_candidate_scores_what_the_evaluator_gives_with_it(gated, seed):
    maps, tags, truths = pictures(seed=seed)
    # Heights that occur, so that some pixels lie exactly on a candidate.
    candidates = np.append(maps.amax(1).flatten().numpy()[::20], [-9.0, 9.0])
    fit = BackgroundFit(candidates, tags.shape[1])
    for grid, tag, truth in zip(maps, tags, truths, strict=True):
        fit.update(truth, best_of(grid, tag, truth, gated))
    expected = [miou_of(maps, tags, truths, t, gated) for t in fit.candidates.tolist()]
    np.testing.assert_allclose(fit.scores(), expected, atol=1e-12)
    assert miou_of(maps, tags, truths, fit.best(), gated) == pytest.approx(max(expected))


def test_the_lowest_of_the_best_candidates_is_taken_and_beats_no_background():
    maps, tags, truths = pictures(seed=5)
    fit = BackgroundFit(np.linspace(-1, 2, 21), tags.shape[1])
    for grid, tag, truth in zip(maps, tags, truths, strict=True):
        fit.update(truth, best_of(grid, tag, truth))
    scores = {t: miou_of(maps, tags, truths, t) for t in fit.candidates.tolist()}
    assert fit.best() == min(
        t for t, score in scores.items() if score == pytest.approx(max(scores.values()), abs=1e-12)
    )
    assert scores[fit.best()] > miou_of(maps, tags, truths, None) + 0.05


def test_a_mask_of_another_size_or_with_unknown_values_is_refused():
    maps, tags, truths = pictures()
    best = best_of(maps[0], tags[0], truths[0])
    with pytest.raises(InputError, match="expected the same"):
        BackgroundFit(np.array([0.0]), 5).update(truths[0][:5], best)
    with pytest.raises(InputError, match="the mask has values"):
        BackgroundFit(np.array([0.0]), 5).update(np.full((13, 13), 6), best)
