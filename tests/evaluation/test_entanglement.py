"""Cosines against real CLIP text features and plain loops; cross-activation against scikit-learn's ROC AUC."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from unmix_clip.errors import InputError
from unmix_clip.evaluation.entanglement import (
    CrossActivation,
    cell_labels,
    cosine_matrix,
    neighbour_overlap,
    order_correlation,
    pairs_after,
    reduction,
    text_entanglement,
)

SHARED = Path(__file__).parents[3] / "shared"


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared, which only the project's machines have")
@pytest.mark.parametrize(
    ("features", "names", "n_classes", "mean"),
    [
        ("coco_vit_b32_openai.npy", "coco_names.txt", 80, 0.7990),
        ("lvis_v1_vit_b32_openai.npy", "lvis_v1_names.txt", 1203, 0.7426),
    ],
)
def test_real_clip_text_features_have_the_known_mean_cosine(features, names, n_classes, mean):
    folder = SHARED / "data" / "clip_text"
    classes = (folder / names).read_text().splitlines()
    result = text_entanglement(np.load(folder / features), classes)
    assert len(classes) == n_classes
    assert round(result["mean_cosine"], 4) == mean
    assert len(result["top_pairs"]) == 20
    assert result["top_pairs"][0][2] == result["max_cosine"]


def test_entanglement_equals_a_loop_over_pairs():
    features = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32) + 0.5
    classes = [f"class {i}" for i in range(7)]
    pairs = {}
    for i in range(7):
        for j in range(i + 1, 7):
            a, b = features[i].tolist(), features[j].tolist()
            dot = sum(x * y for x, y in zip(a, b, strict=True))
            pairs[i, j] = dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    values = list(pairs.values())
    mean = sum(values) / len(values)
    result = text_entanglement(features, classes, top=4)
    assert result["mean_cosine"] == pytest.approx(mean)
    assert result["std_cosine"] == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in values) / len(values)))
    assert (result["max_cosine"], result["min_cosine"]) == pytest.approx((max(values), min(values)))
    best = sorted(pairs, key=pairs.get, reverse=True)[:4]
    assert [pair[:2] for pair in result["top_pairs"]] == [[classes[i], classes[j]] for i, j in best]
    json.dumps(result, allow_nan=False)


def test_cosines_are_raw_even_where_they_are_negative():
    features = np.array([[1.0, 0.0], [-2.0, 0.0], [0.0, 3.0]])
    np.testing.assert_allclose(cosine_matrix(features), [[1, -1, 0], [-1, 1, 0], [0, 0, 1]], atol=1e-12)
    result = text_entanglement(features, "abc")
    assert result["mean_cosine"] == pytest.approx(-1 / 3)
    assert result["top_pairs"][0] == ["a", "c", 0.0]


def test_reduction_is_the_share_of_the_mean_cosine_that_went_away():
    assert reduction({"mean_cosine": 0.8}, {"mean_cosine": 0.2}) == pytest.approx(0.75)
    assert reduction({"mean_cosine": 0.5}, {"mean_cosine": -0.1}) == pytest.approx(1.2)
    assert reduction({"mean_cosine": -0.1}, {"mean_cosine": 0.1}) is None
    assert reduction({"mean_cosine": 0.0}, {"mean_cosine": 0.1}) is None


@pytest.mark.parametrize(
    ("features", "classes", "message"),
    [
        (np.ones(4), "abcd", "expected numbers"),
        (np.ones((2, 3, 4)), "ab", "expected numbers"),
        (np.array([["a"], ["b"]]), "ab", "expected numbers"),
        (np.ones((3, 4)), "ab", "3 text features for 2 class names"),
        (np.ones((1, 4)), "a", "at least two classes"),
        (np.array([[1.0, 0], [0, 0]]), "ab", "zero or non-finite"),
        (np.array([[1.0, 0], [np.nan, 0]]), "ab", "zero or non-finite"),
    ],
)
def test_features_that_do_not_fit_are_refused_in_one_line(features, classes, message):
    with pytest.raises(InputError, match=message) as error:
        text_entanglement(features, list(classes))
    assert "\n" not in str(error.value)


def slow_cross_activation(pictures, n_classes):
    """Per picture and class scikit-learn's AUC of own against other locations; mean per class, then over classes."""
    cross, background, pairs = ({} for _ in range(3))
    for maps, cells in pictures:
        for c in range(n_classes):
            own = maps[cells == c + 1, c]
            if not len(own):
                continue

            def outranked(where, own=own, c=c, maps=maps):
                truth = np.repeat([1, 0], [len(own), where.sum()])
                return 1 - roc_auc_score(truth, np.concatenate([own, maps[where, c]]))

            if (others := (cells > 0) & (cells != c + 1)).any():
                cross.setdefault(c, []).append(outranked(others))
            if (cells == 0).any():
                background.setdefault(c, []).append(outranked(cells == 0))
            for other in set(cells[others].tolist()):
                pairs.setdefault((c, other - 1), []).append(outranked(cells == other))
    means = [np.mean([np.mean(values) for values in table.values()]) for table in (cross, background)]
    return means, {pair: np.mean(values) for pair, values in pairs.items()}


def pictures(n=25, n_classes=5, locations=30, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(n):
        shown = rng.choice(n_classes - 1, size=rng.integers(0, 4), replace=False) + 1  # the last one never
        cells = rng.choice([-1, 0, *shown], size=locations).astype(np.int32)
        own = cells[:, None] == np.arange(1, n_classes + 1)
        yield np.round(rng.normal(size=own.shape) + own, 1).astype(np.float32), cells  # rounded: with ties


def measured(given, n_classes=5):
    measure = CrossActivation(n_classes)
    for maps, cells in given:
        measure.update(maps, cells)
    return measure


def test_cross_activation_equals_one_minus_scikit_learns_auc():
    given = list(pictures())
    (cross, background), pairs = slow_cross_activation(given, 5)
    measure = measured((torch.from_numpy(maps), cells) for maps, cells in given)
    result, matrix = measure.result(), measure.matrix()
    assert result["cross_activation"] == pytest.approx(cross, abs=1e-9)
    assert result["background_activation"] == pytest.approx(background, abs=1e-9)
    assert pairs
    for i in range(5):
        for j in range(5):
            if (i, j) in pairs:
                assert matrix[i, j] == pytest.approx(pairs[i, j], abs=1e-9)
            else:
                assert np.isnan(matrix[i, j])  # never together, and every class with itself
    json.dumps(result, allow_nan=False)


def test_cross_activation_does_not_depend_on_the_scale_of_the_maps():
    given = list(pictures())
    plain = measured(given)
    scaled = measured((7 * maps.astype(np.float64) - 3, cells) for maps, cells in given)
    assert scaled.result() == pytest.approx(plain.result(), abs=1e-6)  # also the share


def test_ignored_locations_have_no_part():
    rng = np.random.default_rng(3)
    given = list(pictures(seed=1))
    noisy = []
    for maps, cells in given:
        other = maps.copy()
        other[cells == -1] = 100 * rng.normal(size=other[cells == -1].shape)
        noisy.append((other, cells))
    assert measured(noisy).result() == measured(given).result()


def test_a_map_on_its_own_class_alone_is_perfect_and_one_on_the_others_the_worst():
    cells = np.array([1, 1, 2, 2, 0, 0])
    right = np.stack([cells == 1, cells == 2], axis=1).astype(np.float32)
    good, bad, flat = (measured([(maps, cells)], 2).result() for maps in (right, right[:, ::-1], 0 * right))
    assert (good["cross_activation"], good["cross_share"], good["background_activation"]) == (0, 0, 0)
    assert (bad["cross_activation"], bad["cross_share"], bad["background_activation"]) == (1, 1, 0.5)
    assert (flat["cross_activation"], flat["cross_share"], flat["background_activation"]) == (0.5, 0.5, 0.5)
    assert (good["n_cross"], good["n_background"]) == (2, 2)


def test_the_share_is_the_height_on_others_against_the_height_on_the_class():
    maps = np.array([[0.8, 0.0], [0.2, 0.0], [0.0, 0.0]])  # stretched: own 1, other 0.25, background 0
    cells = np.array([1, 2, 0])
    measure = measured([(maps, cells)], 2)
    assert measure.result()["cross_share"] == pytest.approx((0.2 / (0.8 + 0.2) + 0.5) / 2)


def test_what_was_never_seen_is_none():
    alone = measured([(np.random.default_rng(0).normal(size=(4, 2)), np.array([1, 1, -1, 1]))], 2).result()
    assert alone == {
        "cross_activation": None,
        "background_activation": None,
        "cross_share": None,
        "n_cross": 0,
        "n_background": 0,
    }


def test_classes_weigh_the_same_however_often_they_are_shown():
    # Three pictures with classes 1 and 2: both maps are high on class 1. One with 1 and 3: both are high on class 3.
    first, second = np.array([[1.0, 1, 0], [0, 0, 0]]), np.array([[0.0, 0, 0], [1, 0, 1]])
    given = [(first, np.array([1, 2]))] * 3 + [(second, np.array([1, 3]))]
    result = measured(given, 3).result()
    assert result["cross_activation"] == pytest.approx(((0 + 0 + 0 + 1) / 4 + (1 + 1 + 1) / 3 + 0) / 3)
    assert result["n_cross"] == 8


@pytest.mark.parametrize(
    ("maps", "cells", "message"),
    [
        (np.zeros((4, 3)), np.zeros(4, int), "expected \\(4 locations, 2 classes\\)"),
        (np.zeros((5, 2)), np.zeros(4, int), "expected \\(4 locations, 2 classes\\)"),
        (np.full((4, 2), np.nan), np.zeros(4, int), "NaN"),
        (np.zeros((4, 2)), np.full(4, 3), "the mask has value 3"),
    ],
)
def test_maps_that_do_not_fit_the_locations_are_refused(maps, cells, message):
    with pytest.raises(InputError, match=message):
        CrossActivation(2).update(maps, cells)


def slow_cells(truth, grid_hw, content_hw, canvas_hw):
    votes = [[{} for _ in range(grid_hw[1])] for _ in range(grid_hw[0])]
    for i, j in np.ndindex(*truth.shape):
        y = (i + 0.5) / truth.shape[0] * content_hw[0] / canvas_hw[0] * grid_hw[0]
        x = (j + 0.5) / truth.shape[1] * content_hw[1] / canvas_hw[1] * grid_hw[1]
        cell = votes[int(y)][int(x)]
        cell[truth[i, j]] = cell.get(truth[i, j], 0) + 1
    return [max(sorted(cell), key=cell.get) if cell else -1 for row in votes for cell in row]


@pytest.mark.parametrize(
    ("truth_hw", "grid_hw", "content_hw", "canvas_hw"),
    [
        ((16, 16), (4, 4), (64, 64), (64, 64)),  # whole cells
        ((17, 23), (4, 6), (64, 64), (64, 64)),  # squashed
        ((20, 10), (4, 4), (64, 32), (64, 64)),  # padded on the right
        ((10, 30), (5, 4), (21, 64), (64, 64)),  # padded below, inside a cell
    ],
)
def test_a_location_takes_the_value_that_fills_most_of_it(truth_hw, grid_hw, content_hw, canvas_hw):
    truth = np.random.default_rng(0).integers(-1, 4, size=truth_hw).astype(np.int32)
    expected = slow_cells(truth, grid_hw, content_hw, canvas_hw)
    actual = cell_labels(truth, grid_hw, content_hw, canvas_hw)
    assert actual.dtype == np.int32
    assert actual.tolist() == expected


def test_locations_of_a_hand_drawn_mask():
    truth = np.array([[1, 1, 0, 0], [1, 0, 0, 2], [3, 3, -1, -1], [3, 3, -1, 2]])
    assert cell_labels(truth, (2, 2), (8, 8), (8, 8)).tolist() == [1, 0, 3, -1]
    assert cell_labels(truth, (2, 2), (8, 4), (8, 8)).tolist() == [0, -1, 3, -1]


def test_the_order_of_classes_is_compared_by_ranks_as_scipy_does():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    before = rng.standard_normal((12, 6))
    after = before[:, :4] + 0.5 * rng.standard_normal((12, 4))
    pairs = [(i, j) for i in range(12) for j in range(i + 1, 12)]

    def cosines(x):
        return [x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]) for i, j in pairs]

    expected = spearmanr(cosines(before), cosines(after)).statistic
    assert order_correlation(before, after) == pytest.approx(expected, abs=1e-9)
    assert order_correlation(before, 3 * before) == pytest.approx(1)
    assert order_correlation(before, np.eye(12)) is None  # all cosines are 0: no order is left


def test_equal_cosines_share_their_mean_rank_as_scipy_has_it():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(1)
    before, after = rng.choice([-1.0, 1.0], (9, 4)), rng.choice([-1.0, 1.0], (9, 4))  # cosines are exact: -1, -0.5, ...
    rows, columns = np.triu_indices(9, k=1)
    pairs = [(x @ x.T / 4)[rows, columns] for x in (before, after)]
    assert len(np.unique(pairs[0])) < 6
    assert order_correlation(before, after) == pytest.approx(spearmanr(*pairs).statistic, abs=1e-12)


@pytest.mark.parametrize("measure", [order_correlation, neighbour_overlap])
def test_the_order_of_other_classes_or_of_one_class_is_refused(measure):
    for before, after in ((np.eye(3), np.eye(4)), (np.eye(4), np.eye(3)), (np.eye(1), np.eye(1))):
        with pytest.raises(InputError, match="expected those of the same classes, at least 2"):
            measure(before, after)


def test_kept_neighbours_equal_a_loop_over_classes():
    rng = np.random.default_rng(2)
    before = rng.standard_normal((15, 6))
    after = before[:, :4] + 0.5 * rng.standard_normal((15, 4))

    def nearest(x, i):
        others = [j for j in range(15) if j != i]
        return set(sorted(others, key=lambda j: -(x[i] @ x[j]) / np.linalg.norm(x[j]))[:5])

    expected = sum(len(nearest(before, i) & nearest(after, i)) for i in range(15)) / (15 * 5)
    assert 0.2 < expected < 0.9
    assert neighbour_overlap(before, after) == pytest.approx(expected)


def test_the_nearest_names_that_are_kept_are_counted():
    before = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]])
    swapped = before[[0, 2, 1, 3]]
    assert neighbour_overlap(before, before, k=1) == 1
    assert neighbour_overlap(before, swapped, k=1) == 0
    assert neighbour_overlap(before, swapped, k=9) == 1  # all others are neighbours


def test_confusable_pairs_are_followed_through_the_projection():
    features = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    before = text_entanglement(features, ["a", "b", "c"], top=2)
    found = pairs_after(before, np.array([[1.0, 0, 0], [0, 1, 0], [0, 1, 0]]), ["a", "b", "c"])
    assert found == [["a", "b", pytest.approx(0.8), 0], ["b", "c", pytest.approx(0.6), pytest.approx(1)]]
