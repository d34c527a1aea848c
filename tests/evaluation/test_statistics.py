"""The bootstrap against resampling by hand."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, jaccard_score

from unmix_clip.errors import InputError
from unmix_clip.evaluation.metrics import mean_defined, per_class_ap
from unmix_clip.evaluation.statistics import (
    bootstrap_map,
    bootstrap_miou,
    interval,
    paired_bootstrap,
    paired_bootstrap_masks,
    per_class_differences,
    resampling_weights,
)


def table(n=30, n_classes=6, seed=0, decimals=1):
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, n_classes)) < 0.15).astype(np.int8)
    scores = np.round(rng.normal(size=labels.shape) + labels, decimals)  # rounded: with ties
    labels[rng.random(labels.shape) < 0.1] = -1
    return scores.astype(np.float32), labels


def naive_map(scores, labels, drawn):
    """Repeat the pictures as drawn and ask scikit-learn, class by class."""
    figures = []
    for s, y in zip(scores[drawn].T, labels[drawn].T, strict=True):
        if (y == 1).any():
            figures.append(average_precision_score(y[y >= 0], s[y >= 0]))
    return np.mean(figures) if figures else np.nan


@pytest.mark.parametrize("seed", range(3))
def test_bootstrap_map_equals_drawing_the_pictures_themselves(seed):
    scores, labels = table(seed=seed)
    weights = resampling_weights(len(scores), 100, seed)
    expected = [naive_map(scores, labels, np.repeat(np.arange(len(row)), row.astype(int))) for row in weights]
    np.testing.assert_allclose(bootstrap_map(scores, labels, weights), expected, atol=1e-9)


def test_drawing_every_picture_once_gives_the_map_itself():
    scores, labels = table()
    weights = np.ones((1, len(scores)), dtype=np.float32)
    assert bootstrap_map(scores, labels, weights)[0] == pytest.approx(mean_defined(per_class_ap(scores, labels)))


def test_a_resample_without_any_positive_is_undefined_and_so_is_the_interval():
    scores, labels = np.array([[0.1], [0.2]]), np.array([[1], [0]])
    maps = bootstrap_map(scores, labels, np.array([[1, 1], [0, 2]], dtype=np.float32))
    assert maps[0] == 0.5
    assert np.isnan(maps[1])
    assert interval(maps) is None


def test_resamples_draw_as_many_pictures_as_there_are_and_depend_on_the_seed_alone():
    weights = resampling_weights(50, 20, seed=4)
    assert (weights.sum(1) == 50).all()
    np.testing.assert_array_equal(weights, resampling_weights(50, 20, seed=4))
    assert (weights != resampling_weights(50, 20, seed=5)).any()
    with pytest.raises(InputError, match="no pictures"):
        resampling_weights(0, 20)


def test_the_interval_holds_the_middle_95_percent():
    assert interval(np.arange(1001.0)) == pytest.approx([25.0, 975.0])


def test_the_interval_covers_the_true_map_about_as_often_as_it_says():
    def draw(n, seed):
        rng = np.random.default_rng(seed)
        labels = (rng.random((n, 3)) < 0.3).astype(np.int8)
        return rng.normal(size=labels.shape) + labels, labels

    scores, labels = draw(100_000, seed=1000)
    true_map = average_precision_score(labels, scores, average="macro")
    intervals = [interval(bootstrap_map(*draw(200, seed), resampling_weights(200, 200, seed))) for seed in range(60)]
    assert sum(low <= true_map <= high for low, high in intervals) >= 52  # 57 expected


def test_a_method_does_not_differ_from_itself():
    scores, labels = table()
    same = paired_bootstrap(scores, scores, labels, resamples=50)
    assert (same.difference, same.ci95, same.p) == (0.0, [0.0, 0.0], 1.0)


def test_a_much_better_method_differs_surely_and_the_sign_follows_the_order():
    rng = np.random.default_rng(0)
    labels = (rng.random((200, 4)) < 0.3).astype(np.int8)
    good, bad = labels + 0.3 * rng.normal(size=labels.shape), rng.normal(size=labels.shape)
    forward, backward = (paired_bootstrap(a, b, labels, resamples=199) for a, b in ((good, bad), (bad, good)))
    assert forward.difference > 0.3
    assert forward.ci95[0] > 0
    assert forward.p == backward.p == pytest.approx(2 / 200)
    assert backward.difference == -forward.difference
    assert backward.ci95 == pytest.approx([-forward.ci95[1], -forward.ci95[0]])


def test_pairing_makes_the_interval_narrower_than_that_of_either_method():
    rng = np.random.default_rng(1)
    labels = (rng.random((150, 4)) < 0.3).astype(np.int8)
    first = labels + rng.normal(size=labels.shape)
    second = first + 0.05 * rng.normal(size=labels.shape)
    paired = paired_bootstrap(first, second, labels, resamples=200).ci95
    single = interval(bootstrap_map(first, labels, resampling_weights(150, 200)))
    assert paired[1] - paired[0] < 0.5 * (single[1] - single[0])


def test_a_comparison_without_positives_is_undefined():
    scores, labels = np.zeros((4, 2)), np.zeros((4, 2), int)
    nothing = paired_bootstrap(scores, scores, labels, resamples=10)
    assert (nothing.difference, nothing.ci95, nothing.p) == (None, None, None)


def counts_of(truths, predictions, values):
    """Pixels right, said and shown of every value in every picture."""
    return np.array(
        [
            [[((t == v) & (p == v)).sum() for v in range(values)], [(p == v).sum() for v in range(values)],
             [(t == v).sum() for v in range(values)]]
            for t, p in zip(truths, predictions, strict=True)
        ]
    )  # fmt: skip


@pytest.mark.parametrize("with_background", [True, False])
def test_resampled_miou_equals_repeating_the_pictures(with_background):
    rng = np.random.default_rng(0)
    truths, predictions = rng.integers(0, 4, (6, 30)), rng.integers(0, 4, (6, 30))
    weights = resampling_weights(6, 5, seed=1)
    found = bootstrap_miou(counts_of(truths, predictions, 4), weights, with_background)
    for weight, miou in zip(weights.astype(int), found, strict=True):
        t, p = (np.repeat(x, weight, axis=0).ravel() for x in (truths, predictions))
        expected = jaccard_score(t, p, average="macro", labels=range(0 if with_background else 1, 4))
        assert miou == pytest.approx(expected)


def test_a_class_that_no_drawn_picture_has_is_left_out_of_that_mean():
    truths, predictions = np.array([[0, 0, 1, 1], [0, 0, 0, 2]]), np.array([[0, 0, 1, 0], [0, 0, 0, 0]])
    weights = np.array([[2, 0], [0, 2], [1, 1]], dtype=np.float32)
    counts = counts_of(truths, predictions, 4)  # the last class is nowhere
    expected = [(2 / 3 + 1 / 2) / 2, (3 / 4 + 0) / 2, (5 / 7 + 1 / 2 + 0) / 3]
    np.testing.assert_allclose(bootstrap_miou(counts, weights), expected)
    np.testing.assert_allclose(bootstrap_miou(counts, weights, with_background=False), [1 / 2, 0, 1 / 4])
    assert np.isnan(bootstrap_miou(0 * counts, weights)).all()
    nothing = paired_bootstrap_masks(0 * counts, 0 * counts)
    assert (nothing.difference, nothing.ci95, nothing.p) == (None, None, None)


def test_masks_of_other_pictures_cannot_be_paired():
    counts = counts_of(np.array([[0, 1], [1, 1]]), np.array([[0, 0], [1, 0]]), 2)
    for other in (counts[:1], counts[::-1]):
        with pytest.raises(InputError, match="expected the same pictures in one order"):
            paired_bootstrap_masks(counts, other)


def test_paired_masks_tell_a_better_method_from_an_equal_one():
    rng = np.random.default_rng(0)
    truths = rng.integers(0, 3, (40, 100))
    worse = np.where(rng.random(truths.shape) < 0.5, truths, rng.integers(0, 3, truths.shape))
    better = np.where(rng.random(truths.shape) < 0.1, truths, worse)
    a, b = (counts_of(truths, p, 3) for p in (better, worse))
    found = paired_bootstrap_masks(a, b)
    assert found.ci95[0] <= found.difference <= found.ci95[1]
    assert found.ci95[0] > 0
    assert found.p == pytest.approx(2 / 1001)
    same = paired_bootstrap_masks(b, b)
    assert (same.difference, same.ci95, same.p) == (0, [0, 0], 1)


def test_per_class_differences_name_what_gains_and_what_loses():
    a, b = {"x": 0.9, "y": 0.2, "z": None, "w": 0.5}, {"x": 0.5, "y": 0.7, "z": 0.1, "w": 0.5}
    found = per_class_differences(a, b)
    assert found == {"gains": [["x", pytest.approx(0.4)]], "losses": [["y", pytest.approx(-0.5)]]}
