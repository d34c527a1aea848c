"""Scores against loops over single pictures, classes and locations."""

import math

import pytest
import torch

from unmix_clip.method.scoring import Cosines, pool_softmax, pool_top, score_dual, score_positive


@pytest.fixture
def cosines():
    torch.manual_seed(0)
    return torch.rand(3, 10, 4, dtype=torch.float64) * 2 - 1


def slow_softmax_pool(values, scale):
    weights = [math.exp(scale * v) for v in values]
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def test_softmax_pooling_equals_a_loop(cosines):
    pooled = pool_softmax(cosines, scale=20)
    for b in range(3):
        for c in range(4):
            assert pooled[b, c].item() == pytest.approx(slow_softmax_pool(cosines[b, :, c].tolist(), 20))


def test_top_pooling_is_the_mean_of_the_highest_share(cosines):
    pooled = pool_top(cosines, share=0.3)
    for b in range(3):
        for c in range(4):
            assert pooled[b, c].item() == pytest.approx(sum(sorted(cosines[b, :, c].tolist())[-3:]) / 3)


def test_top_pooling_takes_at_least_one_location(cosines):
    torch.testing.assert_close(pool_top(cosines, share=0.001), cosines.max(dim=1).values)


@pytest.mark.parametrize("pool", [pool_softmax, lambda c, v=None: pool_top(c, v, share=0.4)])
def test_padded_locations_change_nothing(cosines, pool):
    valid = torch.ones(3, 10, dtype=torch.bool)
    valid[0, 7:] = False
    valid[2, :5] = False
    pooled = pool(cosines, valid)
    for b in range(3):
        alone = pool(cosines[b : b + 1, valid[b]])
        torch.testing.assert_close(pooled[b : b + 1], alone)


def test_the_dual_logit_is_that_of_the_papers_softmax_over_negative_and_positive(cosines):
    positive, negative = cosines, cosines.flip(0).roll(1, dims=1)
    scores = score_dual(Cosines(positive), Cosines(negative), scale=20, gain=5)
    for b in range(3):
        for c in range(4):
            branches = [5 * 20 * slow_softmax_pool(cos[b, :, c].tolist(), 20) for cos in (negative, positive)]
            largest = max(branches)
            odds = [math.exp(x - largest) for x in branches]
            probability = odds[1] / sum(odds)
            assert torch.sigmoid(scores.logits[b, c]).item() == pytest.approx(probability, rel=1e-9)


def test_the_dual_map_is_the_positive_cosine_less_the_pooled_negative_one(cosines):
    scores = score_dual(Cosines(cosines), Cosines(-cosines))
    expected = cosines[1, 4, 2].item() - slow_softmax_pool((-cosines[1, :, 2]).tolist(), 20)
    assert scores.maps[1, 4, 2].item() == pytest.approx(expected)


def test_the_positive_logit_is_the_gained_distance_from_the_bias(cosines):
    scores = score_positive(Cosines(cosines), torch.tensor(0.25), gain=100, share=0.1)
    torch.testing.assert_close(scores.logits, 100 * (cosines.max(dim=1).values - 0.25))
    assert scores.maps is cosines


def test_the_whole_picture_has_its_share_in_tags_and_none_in_maps(cosines):
    whole = torch.rand(3, 4, dtype=torch.float64)
    mixed = Cosines(cosines, whole, 0.25)
    scores = score_positive(mixed, torch.tensor(0.0), gain=1, share=0.1)
    torch.testing.assert_close(scores.logits, 0.75 * cosines.max(dim=1).values + 0.25 * whole)
    assert scores.maps is cosines
    dual = score_dual(mixed, Cosines(-cosines, -whole, 0.25), scale=20, gain=5)
    expected = 0.75 * slow_softmax_pool(cosines[2, :, 1].tolist(), 20) + 0.25 * whole[2, 1].item()
    negative = 0.75 * slow_softmax_pool((-cosines[2, :, 1]).tolist(), 20) - 0.25 * whole[2, 1].item()
    assert dual.logits[2, 1].item() == pytest.approx(100 * (expected - negative))
