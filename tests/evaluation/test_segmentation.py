"""Every protocol on cases worked out by hand, and the standard one against scikit-learn."""

import json

import numpy as np
import pytest
from sklearn.metrics import jaccard_score

from unmix_clip.errors import InputError
from unmix_clip.evaluation.protocols import PROTOCOLS, Protocol, find_protocol
from unmix_clip.evaluation.segmentation import SegmentationEvaluator

CLASSES = ["fork", "plate", "car"]

# Two pictures of one row. 0 background, 1 fork, 2 plate, 3 car, -1 does not count.
TRUTH = [np.array([[0, 1, 1, 2, -1]]), np.array([[2, 2, 2, 2, 0]])]
PREDICTED = [np.array([[1, 1, 2, 2, 3]]), np.array([[1, 1, 1, 2, 2]])]


def evaluate(protocol, truth=TRUTH, predicted=PREDICTED):
    evaluator = SegmentationEvaluator(PROTOCOLS[protocol], CLASSES)
    for pair in zip(truth, predicted, strict=True):
        evaluator.update(*pair)
    return evaluator.result()


def test_standard_takes_one_matrix_over_the_data_set_with_background():
    # All pixels but the ignored one. fork: hit 1, union 6 (truth 2, predicted 2 + 3); plate: hit 2, union 7 (truth
    # 1 + 4, predicted 2 + 2); background: truth 2, never predicted.
    result = evaluate("standard")
    assert result["per_class_iou"] == {"background": 0.0, "fork": 1 / 6, "plate": 2 / 7, "car": None}
    assert result["miou"] == pytest.approx((0 + 1 / 6 + 2 / 7) / 3)
    assert result["pixel_accuracy"] == pytest.approx(3 / 9)
    assert (result["background"], result["n_classes_scored"]) == ("threshold", 3)


def test_standard_objects_leaves_true_background_out():
    # fork: hit 1, union 5 (truth 2, predicted 1 + 3); plate: hit 2, union 6 (truth 5, predicted 2 + 1).
    result = evaluate("standard-objects")
    assert result["per_class_iou"] == {"fork": 1 / 5, "plate": 2 / 6, "car": None}
    assert result["miou"] == pytest.approx((1 / 5 + 2 / 6) / 2)
    assert result["pixel_accuracy"] == pytest.approx(3 / 7)
    assert (result["background"], result["n_classes_scored"]) == ("ignored", 2)


def test_paper_averages_inside_each_picture_over_the_classes_that_it_shows():
    # First picture: fork 1/2, plate 1/2. Second shows plate alone: 1/4; the false fork there has no part.
    result = evaluate("paper")
    assert result["miou"] == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert result["per_class_iou"] == {"fork": 1 / 2, "plate": (1 / 2 + 1 / 4) / 2, "car": None}
    assert result["n_classes_scored"] == 2


def test_paper_positive_forgets_classes_that_were_missed():
    truth = [*TRUTH, np.array([[1, 2, 2, 3]]), np.array([[3, 3, 3, 3]])]
    predicted = [*PREDICTED, np.array([[2, 2, 2, 3]]), np.array([[1, 1, 1, 1]])]
    # Third: fork 0, plate 2/3, car 1. Fourth: car 0, so that nothing is left of it.
    assert evaluate("paper", truth, predicted)["miou"] == pytest.approx((1 / 2 + 1 / 4 + 5 / 9 + 0) / 4)
    positive = evaluate("paper-positive", truth, predicted)
    assert positive["miou"] == pytest.approx((1 / 2 + 1 / 4 + 5 / 6) / 3)
    assert positive["per_class_iou"]["fork"] == pytest.approx(1 / 2)
    assert positive["per_class_iou"]["car"] == pytest.approx(1)


def test_the_papers_figure_is_more_flattering_than_the_standard_on_the_same_masks():
    assert evaluate("paper-positive")["miou"] >= evaluate("paper")["miou"] > evaluate("standard")["miou"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_result_has_the_keys_of_the_interface_and_survives_json(protocol):
    result = evaluate(protocol)
    assert set(result) == {"miou", "pixel_accuracy", "per_class_iou", "background", "n_classes_scored", "ci95"}
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    empty = SegmentationEvaluator(PROTOCOLS[protocol], CLASSES).result()
    assert (empty["miou"], empty["pixel_accuracy"], empty["n_classes_scored"]) == (None, None, 0)
    assert set(empty["per_class_iou"].values()) == {None}


def test_standard_equals_scikit_learn_over_many_pictures_of_different_sizes():
    rng = np.random.default_rng(0)
    sizes = rng.integers(3, 20, size=(15, 2))
    truth = [rng.integers(-1, 4, size=size).astype(np.int32) for size in sizes]
    predicted = [rng.integers(0, 4, size=size).astype(np.int32) for size in sizes]
    result = evaluate("standard", truth, predicted)
    t, p = (np.concatenate([mask.ravel() for mask in masks]) for masks in (truth, predicted))
    expected = jaccard_score(t[t != -1], p[t != -1], average=None)
    np.testing.assert_allclose(list(result["per_class_iou"].values()), expected, atol=1e-12)


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(InputError, match=r"the mask is \(1, 5\), the picture \(1, 4\)"):
        evaluate("standard", TRUTH[:1], [np.zeros((1, 4), int)])


def test_protocols_are_found_by_name_and_an_unknown_one_names_them_all():
    assert find_protocol("standard").background == "threshold"
    assert all(name == protocol.name for name, protocol in PROTOCOLS.items())
    with pytest.raises(
        InputError, match="standard, standard-objects, sliding, sliding-names, sliding-objects, paper, paper-positive"
    ):
        find_protocol("mmseg")


def test_changes_of_a_protocol_stand_in_its_name():
    changed = find_protocol("sliding,short_side_px=560,refinement=pamr,synonyms=true")
    assert (changed.short_side_px, changed.refinement, changed.synonyms, changed.stride_px) == (560, "pamr", True, 112)
    assert changed.name == "sliding,short_side_px=560,refinement=pamr,synonyms=true"
    for text, told in (
        ("sliding,zoom=2", "no 'zoom'"),
        ("sliding,stride_px=far", "expected int"),
        ("sliding,stride_px=300", "stride of 1 to the window"),
        ("sliding,synonyms=maybe", "bool"),
    ):
        with pytest.raises(InputError, match=told):
            find_protocol(text)


def test_data_without_background_have_none_to_score():
    assert find_protocol("standard").on(has_background=False).background == "ignored"
    assert find_protocol("sliding-names").on(has_background=True).background == "names"


def test_the_papers_protocols_say_that_they_compare_with_nothing():
    assert all("not comparable" in PROTOCOLS[name].note for name in ("paper", "paper-positive"))


def test_a_protocol_with_an_unknown_rule_is_refused():
    with pytest.raises(InputError, match="background is 'guess'; expected one of threshold, names, ignored"):
        Protocol("mine", "guess", True, "dataset")
    with pytest.raises(InputError, match="averaging"):
        Protocol("mine", "ignored", True, "best")
    with pytest.raises(InputError, match="resize"):
        Protocol("mine", "ignored", True, "dataset", resize="nearest")
