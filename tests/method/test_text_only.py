"""A text projector driven by the MFI loss alone, on the real text features of CLIP."""

import numpy as np
import pytest
import torch
from support import SHARED, needs_shared

from unmix_clip.errors import InputError
from unmix_clip.evaluation.entanglement import order_correlation, text_entanglement
from unmix_clip.method.text_only import unmix_texts


@pytest.fixture(scope="module")
def coco_texts():
    return torch.from_numpy(np.load(SHARED / "clip_text" / "coco_vit_b32_openai.npy").astype(np.float32))


@needs_shared
def test_the_mfi_loss_alone_reaches_any_chosen_mean_cosine_of_the_real_names(coco_texts):
    targets = [0.79, 0.7, 0.6, 0.45, 0.3, 0.15, 0.05, 0.02]
    names = [f"{i}" for i in range(80)]
    orders = []
    for found in unmix_texts(coco_texts, targets):
        mean = text_entanglement(found.projected.numpy(), names)["mean_cosine"]  # an independent mean
        assert mean == pytest.approx(found.target, abs=1e-3) == pytest.approx(found.mean_cosine, abs=1e-5)
        orders.append(order_correlation(coco_texts.numpy(), found.projected.numpy()))
    assert orders[0] > 0.99
    assert orders == sorted(orders, reverse=True)  # the further apart, the less of the order by meaning is left


@needs_shared
def test_even_texts_at_right_angles_on_average_can_be_had(coco_texts):
    some = coco_texts[:20]  # the fewer the names, the fewer the steps to 0
    found = list(unmix_texts(some, [0.6, 0.3, 0.0]))
    means = [text_entanglement(f.projected.numpy(), [f"{i}" for i in range(20)])["mean_cosine"] for f in found]
    assert means == pytest.approx([0.6, 0.3, 0.0], abs=1e-3)
    assert [f.steps for f in found] == sorted({f.steps for f in found})  # one path downwards, a part of it each


def test_the_path_starts_at_the_texts_themselves():
    texts = torch.randn(8, 32) + 1
    unit = torch.nn.functional.normalize(texts, dim=-1)
    start = text_entanglement(texts.numpy(), list("abcdefgh"))["mean_cosine"]
    found = next(unmix_texts(texts, [start - 0.01]))
    torch.testing.assert_close(found.projected, unit, atol=0.05, rtol=0)


def test_a_seed_gives_the_same_texts_again_and_another_one_others():
    texts = torch.randn(6, 16) + 1
    first, again, other = (next(unmix_texts(texts, [0.2], seed)).projected for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_targets_that_rise_or_cannot_be_reached_are_told():
    texts = torch.randn(6, 16) + 1
    for targets in ([0.1, 0.2], [0.99]):
        with pytest.raises(InputError, match="expected falling ones below"):
            next(unmix_texts(texts, targets))
    with pytest.raises(InputError, match=r"-0\.9 is not reached"):
        next(unmix_texts(torch.randn(6, 4) + 1, [-0.9]))
