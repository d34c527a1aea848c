"""Average precision, F1 and thresholds against scikit-learn, plain loops and brute force."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

from unmix_clip.errors import InputError
from unmix_clip.evaluation.metrics import (
    average_precision,
    eleven_point_ap,
    fit_threshold,
    harmonic_mean,
    mean_defined,
    operating_point,
    per_class_ap,
    top1_in_scene,
    top_k_f1,
)

shapes = st.tuples(st.integers(1, 12), st.integers(1, 5))
# Few distinct values, so that most rankings have ties.
coarse = st.integers(-3, 3).map(lambda k: k / 4)


@st.composite
def scored_tables(draw, shape=shapes, elements=coarse):
    size = draw(shape)
    scores = draw(hnp.arrays(np.float32, size, elements=elements.map(np.float32)))
    return scores, draw(hnp.arrays(np.int8, size, elements=st.sampled_from([-1, 0, 0, 1])))


def random_table(n, n_classes, seed=0, unknown=0.1):
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, n_classes)) < 0.3).astype(np.int8)
    scores = np.round(rng.normal(size=labels.shape) + labels, 1).astype(np.float32)
    labels[rng.random(labels.shape) < unknown] = -1
    return scores, labels


def slow_operating_point(scores, labels, thresholds):
    """The literature's figures, pair by pair; a class without positives has no part in the means over classes."""
    n, n_classes = scores.shape
    precisions, recalls = [], []
    all_hit = all_said = all_present = 0
    for c in range(n_classes):
        hit = said = present = 0
        for i in range(n):
            if labels[i, c] == -1:
                continue
            predicted = scores[i, c] >= thresholds[c]
            said += predicted
            present += labels[i, c] == 1
            hit += predicted and labels[i, c] == 1
        if present:
            precisions.append(hit / said if said else 0.0)
            recalls.append(hit / present)
        all_hit, all_said, all_present = all_hit + hit, all_said + said, all_present + present

    def harmonic(a, b):
        return 2 * a * b / (a + b) if a + b else 0.0

    cp, cr = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    op, or_ = (all_hit / all_said if all_said else 0.0), all_hit / all_present
    return {"cp": cp, "cr": cr, "cf1": harmonic(cp, cr), "op": op, "or_": or_, "of1": harmonic(op, or_)}


@settings(max_examples=200, deadline=None)
@given(scored_tables())
def test_average_precision_equals_scikit_learn_ties_and_unknown_labels_included(table):
    for scores, labels in zip(*(part.T for part in table), strict=True):
        known = labels >= 0
        actual = average_precision(scores, labels)
        if not (labels == 1).any():
            assert actual is None
        else:
            assert actual == pytest.approx(average_precision_score(labels[known], scores[known]), abs=1e-9)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64, np.uint8])
def test_average_precision_equals_scikit_learn_on_many_pictures_and_any_number_type(dtype):
    rng = np.random.default_rng(1)
    labels = (rng.random(5000) < 0.1).astype(np.int8)
    scores = np.clip(100 + 20 * rng.normal(size=5000) + 20 * labels, 0, 255).astype(dtype)
    assert average_precision(scores, labels) == pytest.approx(average_precision_score(labels, scores), abs=1e-9)


def test_map_ignores_classes_without_positives():
    scores = np.array([[0.9, 0.5, 0.1], [0.1, 0.4, 0.9], [0.5, 0.3, 0.2]])
    labels = np.array([[1, 0, -1], [0, 0, 1], [1, -1, 0]])
    assert per_class_ap(scores, labels) == [1.0, None, 1.0]
    assert mean_defined(per_class_ap(scores, labels)) == 1.0
    assert mean_defined([None, None]) is None


def test_average_precision_does_not_depend_on_the_order_of_tied_pictures():
    scores, labels = np.zeros(6), np.array([1, 0, 0, 0, 0, 1])
    assert average_precision(scores, labels) == pytest.approx(1 / 3)
    assert average_precision(scores, labels[::-1].copy()) == pytest.approx(1 / 3)


@pytest.mark.parametrize("measure", [average_precision, lambda s, y: per_class_ap(s[:, None], y[:, None])])
def test_wrong_scores_and_labels_are_refused_in_one_line(measure):
    for scores, labels, message in (
        ([0.1, math.nan], [1, 0], "NaN"),
        ([0.1, 0.2], [1, 2], "labels contain"),
        ([0.1, 0.2], [1, 0, 1], "same"),
    ):
        with pytest.raises(InputError, match=message) as error:
            measure(np.array(scores), np.array(labels))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("per_class", [False, True])
def test_figures_at_a_threshold_equal_a_loop_over_pairs(per_class):
    scores, labels = random_table(40, 7)
    labels[:, 3] = np.where(labels[:, 3] == 1, 0, labels[:, 3])  # a class without positives
    scores[:, 5] = -9  # a class that is never predicted
    thresholds = np.linspace(-0.5, 1, 7) if per_class else np.full(7, 0.5)
    expected = slow_operating_point(scores, labels, thresholds)
    actual = vars(operating_point(scores, labels, thresholds if per_class else 0.5))
    assert actual == pytest.approx(expected, abs=1e-12)


def test_figures_at_a_threshold_equal_scikit_learn_where_all_labels_are_known():
    scores, labels = random_table(60, 5, unknown=0)
    point, predicted = operating_point(scores, labels, 0.25), scores >= 0.25
    for figure, metric, average in (
        ("cp", precision_score, "macro"),
        ("cr", recall_score, "macro"),
        ("op", precision_score, "micro"),
        ("or_", recall_score, "micro"),
    ):
        assert getattr(point, figure) == pytest.approx(metric(labels, predicted, average=average, zero_division=0))


def test_false_alarms_for_a_class_that_no_picture_shows_lower_overall_precision_only():
    scores = np.array([[1.0, 1.0], [1.0, 1.0]])
    point = operating_point(scores, np.array([[1, 0], [1, 0]]), 0.5)
    assert (point.cp, point.cr, point.op, point.or_) == (1.0, 1.0, 0.5, 1.0)


def test_figures_at_a_threshold_are_none_without_positives_and_zero_without_predictions():
    scores = np.array([[0.1, 0.2], [0.3, 0.4]])
    assert set(vars(operating_point(scores, np.zeros((2, 2), int), 0.0)).values()) == {None}
    assert set(vars(operating_point(scores, np.ones((2, 2), int), 9.0)).values()) == {0.0}


def test_a_threshold_for_another_number_of_classes_is_refused():
    scores, labels = random_table(5, 3)
    with pytest.raises(InputError, match="2 thresholds for 3 classes"):
        operating_point(scores, labels, np.array([0.1, 0.2]))


@pytest.mark.parametrize("kind", ["of1", "cf1"])
@settings(max_examples=150, deadline=None)
@given(table=scored_tables())
def test_the_fitted_threshold_is_the_best_of_all_distinct_scores(kind, table):
    scores, labels = table
    if not (labels == 1).any():
        with pytest.raises(InputError, match="no positive label"):
            fit_threshold(scores, labels, kind)
        return
    fitted = fit_threshold(scores, labels, kind)
    known = np.unique(scores[labels >= 0])
    best = max(slow_operating_point(scores, labels, [t] * scores.shape[1])[kind] for t in known)
    assert fitted in known
    assert getattr(operating_point(scores, labels, fitted), kind) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("kind", ["of1", "cf1"])
def test_the_fitted_threshold_is_the_best_on_a_larger_table(kind):
    scores, labels = random_table(300, 9, seed=3)
    figures = {t: getattr(operating_point(scores, labels, t), kind) for t in np.unique(scores).tolist()}
    fitted = fit_threshold(scores, labels, kind)
    assert figures[fitted] == pytest.approx(max(figures.values()), abs=1e-12)


def test_the_two_criteria_choose_differently_where_one_class_dominates():
    scores = np.array([[0.2, 1.0], [0.2, 0.8], [0.2, 0.8], [0.6, 1.0], [0.6, 1.0], [1.0, 0.8]])
    labels = np.array([[1, 0], [0, 0], [1, 0], [0, 0], [1, 0], [1, 1]])
    assert (fit_threshold(scores, labels, "of1"), fit_threshold(scores, labels, "cf1")) == (0.2, 0.8)


def test_an_unknown_criterion_is_refused_with_those_that_exist():
    with pytest.raises(InputError, match="of1, cf1"):
        fit_threshold(*random_table(5, 2), "f2")


def test_top1_counts_pictures_with_an_object_and_leaves_unknown_classes_out():
    scores = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
    labels = np.array([[1, 0], [0, 1], [-1, 1], [0, 0]])  # right, wrong, right among the known, no object
    assert top1_in_scene(scores, labels) == pytest.approx(2 / 3)
    assert top1_in_scene(scores, np.zeros((4, 2), int)) is None


def test_top1_of_a_flat_score_is_chance_and_not_the_luck_of_the_first_class():
    labels = np.array([[1, 0, 0, 0], [0, 0, 1, 1]])
    assert top1_in_scene(np.zeros((2, 4)), labels) == pytest.approx((1 / 4 + 2 / 4) / 2)


def devkit_ap(scores, labels):
    """VOCap of the VOC2007 development kit, for distinct scores."""
    order = np.argsort(-scores)
    tp = np.cumsum(labels[order] == 1)
    recall, precision = tp / tp[-1], tp / np.arange(1, len(tp) + 1)
    total = 0.0
    for t in np.arange(0, 1.1, 0.1):
        above = precision[recall >= t - 1e-12]
        total += (above.max() if len(above) else 0) / 11
    return total


def test_the_11_point_ap_is_the_devkits_and_leaves_unknown_labels_out():
    rng = np.random.default_rng(0)
    scores, labels = rng.standard_normal((50, 4)), rng.choice([-1, 0, 1], (50, 4), p=[0.2, 0.6, 0.2])
    labels[:, 3] = 0
    found = eleven_point_ap(scores, labels)
    for c in range(3):
        known = labels[:, c] >= 0
        assert found[c] == pytest.approx(devkit_ap(scores[known, c], labels[known, c]))
    assert found[3] is None
    assert eleven_point_ap(np.array([[0.9], [0.8], [0.1]]), np.array([[1], [0], [1]])) == [
        pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    ]


def test_top_k_f1_counts_the_k_highest_known_names_of_every_picture():
    scores = np.array([[0.9, 0.8, 0.1, 0.7], [0.1, 0.2, 0.3, 0.9]])
    labels = np.array([[1, 0, 1, -1], [0, 1, 1, 0]])
    # said: a, b of the first (d is unknown); d, c of the second -> 2 of 4 said are right, 2 of 4 shown are found
    assert top_k_f1(scores, labels, 2) == {"precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert top_k_f1(scores, labels, 1) == {"precision": 0.5, "recall": 0.25, "f1": pytest.approx(1 / 3)}
    assert top_k_f1(scores, np.zeros((2, 4), dtype=int), 2)["f1"] is None
    nothing_shown = top_k_f1(np.vstack([scores, scores[:1]]), np.vstack([labels, np.zeros((1, 4), dtype=int)]), 1)
    assert nothing_shown == {"precision": pytest.approx(1 / 3), "recall": 0.25, "f1": pytest.approx(2 / 7)}
    with pytest.raises(InputError, match="k = 0; expected at least 1"):
        top_k_f1(scores, labels, 0)


def test_top_k_f1_equals_scikit_learn_over_all_pairs():
    rng = np.random.default_rng(1)
    scores, labels = rng.standard_normal((40, 9)), rng.integers(0, 2, (40, 9))
    said = scores >= np.sort(scores, axis=1)[:, -3:-2]
    found = top_k_f1(scores, labels, 3)
    assert found["precision"] == pytest.approx(precision_score(labels.ravel(), said.ravel()))
    assert found["recall"] == pytest.approx(recall_score(labels.ravel(), said.ravel()))
    assert found["f1"] == pytest.approx(f1_score(labels.ravel(), said.ravel()))


def test_the_harmonic_mean_is_undefined_where_one_side_is():
    assert harmonic_mean(0.5, 1.0) == pytest.approx(2 / 3)
    assert harmonic_mean(0.0, 0.0) == 0
    assert harmonic_mean(None, 1.0) is None
