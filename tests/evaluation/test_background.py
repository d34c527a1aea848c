"""The fitted background threshold against trying every candidate on whole masks."""

import numpy as np
import pytest
import torch

from unmix_clip.errors import InputError
from unmix_clip.evaluation.background import BackgroundFit, fit_background_threshold
from unmix_clip.evaluation.masks import best_on_pixels, predict_mask
from unmix_clip.evaluation.protocols import PROTOCOLS, Protocol
from unmix_clip.evaluation.segmentation import SegmentationEvaluator

STANDARD = PROTOCOLS["standard"]
UNGATED = Protocol("ungated", "threshold", tag_gate=False, averaging="dataset")


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


def miou_of(maps, tags, truths, threshold, protocol=STANDARD, tag_threshold=8.0):
    evaluator = SegmentationEvaluator(protocol, [f"class {c}" for c in range(tags.shape[1])])
    for grid, tag, truth in zip(maps, tags, truths, strict=True):
        evaluator.update_maps(grid, tag, truth, tag_threshold=tag_threshold, background_threshold=threshold)
    return evaluator.result()["miou"]


@pytest.mark.parametrize("protocol", [STANDARD, UNGATED])
@pytest.mark.parametrize("seed", range(3))
def test_each_candidate_scores_what_the_evaluator_gives_with_it(protocol, seed):
    maps, tags, truths = pictures(seed=seed)
    # Heights that occur, so that some pixels lie exactly on a candidate.
    candidates = np.append(maps.amax(1).flatten().numpy()[::20], [-9.0, 9.0])
    fit = BackgroundFit(candidates, tags.shape[1])
    for grid, tag, truth in zip(maps, tags, truths, strict=True):
        fit.update(truth, best_on_pixels(grid, tag, protocol, truth.shape, 8.0))
    expected = [miou_of(maps, tags, truths, t, protocol) for t in fit.candidates.tolist()]
    np.testing.assert_allclose(fit.scores(), expected, atol=1e-12)
    assert miou_of(maps, tags, truths, fit.best(), protocol) == pytest.approx(max(expected))


def test_the_fit_takes_the_best_quantile_of_the_allowed_maps():
    maps, tags, truths = pictures(seed=5)
    fitted = fit_background_threshold(maps, tags, truths, tag_threshold=8.0, candidates=21)
    heights = [grid[tag >= 8.0].amax(0).flatten() for grid, tag in zip(maps, tags, strict=True) if (tag >= 8.0).any()]
    quantiles = np.quantile(torch.cat(heights).numpy(), np.linspace(0, 1, 21)).astype(np.float32)
    scores = {t: miou_of(maps, tags, truths, t) for t in quantiles.tolist()}
    assert scores[fitted] == pytest.approx(max(scores.values()))
    assert fitted == min(t for t, score in scores.items() if score == pytest.approx(max(scores.values()), abs=1e-12))


def test_a_better_background_threshold_than_none_is_found():
    maps, tags, truths = pictures()
    fitted = fit_background_threshold(maps, tags, truths, tag_threshold=8.0)
    assert miou_of(maps, tags, truths, fitted) > miou_of(maps, tags, truths, -99.0) + 0.05


def test_masks_with_the_fitted_threshold_hold_background_and_objects():
    maps, tags, truths = pictures()
    fitted = fit_background_threshold(maps, tags, truths, tag_threshold=8.0)
    values = [
        predict_mask(m, t, STANDARD, (13, 13), tag_threshold=8.0, background_threshold=fitted)
        for m, t in zip(maps, tags, strict=True)
    ]
    assert len(np.unique(values)) > 2


def test_a_split_where_no_class_is_allowed_and_a_mask_of_another_size_are_refused():
    maps, tags, truths = pictures()
    with pytest.raises(InputError, match="no class reaches the tag threshold"):
        fit_background_threshold(maps, tags, truths, tag_threshold=1e9)
    best = best_on_pixels(maps[0], tags[0], STANDARD, (13, 13), 8.0)
    with pytest.raises(InputError, match="expected the same"):
        BackgroundFit(np.array([0.0]), 5).update(truths[0][:5], best)
    with pytest.raises(InputError, match="the mask has values"):
        BackgroundFit(np.array([0.0]), 5).update(np.full((13, 13), 6), best)
