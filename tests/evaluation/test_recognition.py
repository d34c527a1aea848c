"""The recognition result: its keys are those that users script against."""

import json

import numpy as np
import pytest

from unmix_clip.errors import InputError
from unmix_clip.evaluation.metrics import mean_defined, operating_point, per_class_ap
from unmix_clip.evaluation.recognition import evaluate_recognition

KEYS = [
    "map",
    "cf1",
    "of1",
    "cp",
    "cr",
    "op",
    "or",
    "per_class_ap",
    "n_classes_scored",
    "ci95",
    "threshold",
    "top1",
    "map_11point",
]


def table():
    rng = np.random.default_rng(0)
    labels = (rng.random((80, 4)) < 0.4).astype(np.int8)
    scores = (rng.normal(size=labels.shape) + 2 * labels).astype(np.float32)
    labels[:, 3] = 0  # nobody shows the last class
    return scores, labels


def test_the_result_has_the_keys_of_the_interface_and_survives_json():
    scores, labels = table()
    result = evaluate_recognition(scores, labels, ["fork", "plate", "car", "bus"], 1.0, resamples=50)
    assert sorted(result) == sorted(KEYS)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    ap, point = per_class_ap(scores, labels), operating_point(scores, labels, 1.0)
    assert result["per_class_ap"] == dict(zip(["fork", "plate", "car", "bus"], ap, strict=True))
    assert result["per_class_ap"]["bus"] is None
    assert result["n_classes_scored"] == 3
    assert result["map"] == mean_defined(ap)
    assert [result[key] for key in ("cp", "cr", "cf1", "op", "or", "of1")] == list(vars(point).values())
    assert result["ci95"][0] < result["map"] < result["ci95"][1]


def test_without_a_threshold_the_figures_at_one_are_null():
    scores, labels = table()
    result = evaluate_recognition(scores, labels, "abcd", None, resamples=10)
    assert {result[key] for key in ("cf1", "of1", "cp", "cr", "op", "or", "threshold")} == {None}
    assert result["map"] is not None


def test_a_threshold_for_each_class_is_reported_as_a_list():
    scores, labels = table()
    thresholds = np.array([0.5, 1.0, 1.5, 2.0])
    result = evaluate_recognition(scores, labels, "abcd", thresholds, resamples=10)
    assert result["threshold"] == [0.5, 1.0, 1.5, 2.0]
    assert result["of1"] == operating_point(scores, labels, thresholds).of1
    json.dumps(result, allow_nan=False)


def test_groups_add_the_mean_over_their_classes_and_null_where_none_is_scored():
    scores, labels = table()
    groups = {"seen": [0, 2], "unseen": [3]}
    result = evaluate_recognition(scores, labels, "abcd", 0.0, groups, resamples=10)
    ap = per_class_ap(scores, labels)
    assert result["map_seen"] == pytest.approx((ap[0] + ap[2]) / 2)
    assert result["map_unseen"] is None


def test_the_same_seed_gives_the_same_interval():
    scores, labels = table()
    spreads = [evaluate_recognition(scores, labels, "abcd", 0.0, seed=s, resamples=30)["ci95"] for s in (1, 1, 2)]
    assert spreads[0] == spreads[1] != spreads[2]


@pytest.mark.parametrize("shape", [(0, 4), (5, 3), (20,)])
def test_scores_that_do_not_fit_the_class_list_are_refused(shape):
    with pytest.raises(InputError, match="expected \\(pictures, 4 classes\\)"):
        evaluate_recognition(np.zeros(shape), np.zeros(shape, int), "abcd", 0.0)
