"""Partial labels: what is kept is as it was, the share is right, and what is hidden adds nothing."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from unmix_clip.data import load_data
from unmix_clip.data.partial import hide_labels
from unmix_clip.data.samples import Dataset, Sample, label_matrix, take
from unmix_clip.errors import InputError
from unmix_clip.method.losses import asymmetric_loss


@pytest.fixture(scope="module")
def full():
    """400 pictures, 30 names, a tenth of the labels unknown from the start, some pictures without objects."""
    rng = np.random.default_rng(0)
    labels = rng.choice([-1, 0, 1], (400, 30), p=[0.1, 0.8, 0.1]).astype(np.int8)
    labels[:5] = 0
    digests = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(400)]
    samples = [
        Sample(str(i), row, None, None, digest) for i, (row, digest) in enumerate(zip(labels, digests, strict=True))
    ]
    return Dataset("made", tuple(map(str, range(30))), samples, {}, {"difficult": "ignore"})


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_the_share_is_kept_and_kept_labels_are_as_they_were(full, keep):
    before, after = label_matrix(full), label_matrix(hide_labels(full, keep))
    assert (after[after >= 0] == before[after >= 0]).all()
    for value in (0, 1):  # uniform: presences and absences alike, within four standard deviations
        n = (before == value).sum()
        assert (after == value).sum() / n == pytest.approx(keep, abs=4 * (keep * (1 - keep) / n) ** 0.5)
    columns = (after >= 0).sum(0) / (before >= 0).sum(0)
    assert np.abs(columns - keep).max() < 5 * (keep * (1 - keep) / 340) ** 0.5


def test_all_labels_stay_at_a_share_of_one_and_a_larger_share_keeps_those_of_a_smaller(full):
    assert (label_matrix(hide_labels(full, 1)) == label_matrix(full)).all()
    few, many = (label_matrix(hide_labels(full, keep, seed=3)) for keep in (0.2, 0.6))
    assert (many[few >= 0] == few[few >= 0]).all()


def test_single_keeps_one_of_the_positives_of_every_picture_that_has_one(full):
    before, after = label_matrix(full), label_matrix(hide_labels(full, "single"))
    assert not (after == 0).any()
    assert ((after == 1).sum(1) == (before == 1).any(1)).all()
    assert (before[after == 1] == 1).all()
    two = (before == 1).sum(1) == 2
    firsts = (before[two].argmax(1) == after[two].argmax(1)).mean()  # of two, each is kept about as often
    assert firsts == pytest.approx(0.5, abs=4 * (0.25 / two.sum()) ** 0.5)


@pytest.mark.parametrize("keep", [0.5, "single"])
def test_a_subset_in_another_order_keeps_the_same_labels_and_another_seed_others(full, keep):
    rows = [300, 7, 8, 120]
    hidden = label_matrix(hide_labels(full, keep, seed=1))
    assert (label_matrix(hide_labels(take(full, rows), keep, seed=1)) == hidden[rows]).all()
    assert (label_matrix(hide_labels(full, keep, seed=2)) != hidden).any()


def test_hidden_labels_are_named_in_the_rules_and_in_the_spec(full):
    assert hide_labels(full, 0.5, seed=2).rules == {"difficult": "ignore", "labels": "keep 0.5, seed 2"}
    assert full.rules == {"difficult": "ignore"}
    read = load_data("scenes@test?n=4&keep=single")
    assert read.rules["labels"] == "keep single, seed 0"
    assert read.spec.endswith("keep=single")
    assert ((label_matrix(read) == 1).sum(1) == 1).all()


def test_a_hidden_label_adds_nothing_to_the_loss_or_its_gradient(full):
    labels = torch.from_numpy(label_matrix(hide_labels(full, 0.3)))
    logits = torch.randn(labels.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    loss = asymmetric_loss(logits, labels, clip=0, reduction="sum")
    loss.backward()
    assert (logits.grad[labels < 0] == 0).all()
    assert (logits.grad[labels >= 0] != 0).all()
    known = labels >= 0
    alone = asymmetric_loss(logits.detach()[known][:, None], labels[known][:, None], clip=0, reduction="sum")
    assert loss.item() == pytest.approx(alone.item())


@pytest.mark.parametrize("keep", [0, -0.1, 1.5, float("nan"), "one", None])
def test_a_share_that_is_none_is_told(full, keep):
    with pytest.raises(InputError, match=r"keep is .*; expected a share in \(0, 1\], or single"):
        hide_labels(full, keep)


def test_a_negative_seed_and_pictures_without_labels_are_told(full):
    with pytest.raises(InputError, match="seed of the labels is -1"):
        hide_labels(full, 0.5, seed=-1)
    with pytest.raises(InputError, match="made has no labels"):
        hide_labels(replace(full, samples=[replace(full.samples[0], labels=None)]), 0.5)
