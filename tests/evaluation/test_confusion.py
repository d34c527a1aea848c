"""The confusion matrix against a loop over pixels and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

from unmix_clip.errors import InputError
from unmix_clip.evaluation.confusion import ConfusionMatrix


def masks(n=6, n_classes=4, hw=(9, 7), seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(-1, n_classes, size=(n, *hw)).astype(np.int32)
    return truth, np.where(rng.random(truth.shape) < 0.6, np.maximum(truth, 0), rng.integers(0, n_classes, truth.shape))


def counted(truth, predicted, n_classes=4):
    matrix = ConfusionMatrix(n_classes)
    for pair in zip(truth, predicted, strict=True):
        matrix.update(*pair)
    return matrix


def test_counts_equal_a_loop_over_pixels():
    truth, predicted = masks()
    expected = np.zeros((4, 4), dtype=np.int64)
    for t, p in zip(truth.ravel().tolist(), predicted.ravel().tolist(), strict=True):
        if t != -1:
            expected[t, p] += 1
    matrix = counted(truth, predicted)
    np.testing.assert_array_equal(matrix.counts, expected)
    assert matrix.counts.dtype == np.int64


def test_counts_iou_and_accuracy_equal_scikit_learn():
    truth, predicted = masks(seed=1)
    matrix, known = counted(truth, predicted), truth != -1
    np.testing.assert_array_equal(matrix.counts, confusion_matrix(truth[known], predicted[known], labels=range(4)))
    iou = jaccard_score(truth[known], predicted[known], average=None)
    np.testing.assert_allclose(matrix.iou(), iou, atol=1e-12)
    assert matrix.miou == pytest.approx(iou.mean())
    assert matrix.pixel_accuracy == pytest.approx(accuracy_score(truth[known], predicted[known]))


def test_two_halves_added_equal_the_whole_and_stay_as_they_were():
    truth, predicted = masks()
    first, second = counted(truth[:2], predicted[:2]), counted(truth[2:], predicted[2:])
    before = first.counts.copy()
    np.testing.assert_array_equal((first + second).counts, counted(truth, predicted).counts)
    np.testing.assert_array_equal(first.counts, before)
    with pytest.raises(InputError, match="cannot be added"):
        first + ConfusionMatrix(5)


def test_iou_is_none_for_a_class_in_neither_and_zero_for_one_that_is_only_predicted():
    matrix = ConfusionMatrix(4)
    matrix.update(np.array([[1, 1]]), np.array([[1, 2]]))
    assert matrix.iou() == [None, 0.5, 0.0, None]
    assert matrix.miou == 0.25


def test_without_counted_pixels_everything_is_none():
    matrix = ConfusionMatrix(2)
    matrix.update(np.full((3, 3), -1), np.zeros((3, 3), int))
    assert (matrix.iou(), matrix.miou, matrix.pixel_accuracy) == ([None, None], None, None)


def test_ignored_pixels_do_not_count_whatever_is_predicted_there():
    truth = np.array([[-1, 1], [2, -1]])
    for rest in (0, 1, 2):
        matrix = ConfusionMatrix(3)
        matrix.update(truth, np.array([[rest, 1], [2, rest]]))
        assert matrix.iou() == [None, 1.0, 1.0]


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [
        (np.zeros((4, 4), int), np.zeros((4, 5), int), "expected the same"),
        (np.full((2, 2), 255, np.uint8), np.zeros((2, 2), int), "the mask has values 255 to 255"),
        (np.full((2, 2), -2), np.zeros((2, 2), int), "the mask has values -2"),
        (np.zeros((2, 2), int), np.full((2, 2), 3), "the prediction has values 3 to 3"),
    ],
)
def test_masks_of_another_size_or_with_unknown_values_are_refused_in_one_line(truth, predicted, message):
    with pytest.raises(InputError, match=message) as error:
        ConfusionMatrix(3).update(truth, predicted)
    assert "\n" not in str(error.value)
