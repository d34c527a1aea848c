"""Training-free scores: feature surgery against the published loops; the forms against their definitions."""

import pytest
import torch
import torch.nn.functional as F

from unmix_clip.baselines.training_free import NAMES, build_training_free, dense_of


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


def slow_surgery(image_features, text_features):
    """CLIP Surgery's feature surgery element by element: image_features (B, 1 + N, D), the whole picture first."""
    out = torch.zeros(*image_features.shape[:2], len(text_features))
    for b, picture in enumerate(image_features):
        shown = torch.stack([2 * picture[0] @ t for t in text_features])
        probability = shown.exp() / shown.exp().sum()
        for n, feature in enumerate(picture):
            products = torch.stack(
                [feature * t * (p / probability.mean()) for t, p in zip(text_features, probability, strict=True)]
            )
            out[b, n] = (products - products.mean(0)).sum(1)
    return out


def test_clip_surgery_equals_the_published_feature_surgery():
    patches, pooled, texts = unit(2, 5, 7), unit(2, 7), unit(4, 7)
    method = build_training_free("clip-surgery", 3 * texts, None)
    expected = slow_surgery(torch.cat([pooled[:, None], patches], 1), texts)
    scores = method.score(patches, pooled, None)
    torch.testing.assert_close(scores.logits, expected[:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(scores.maps, expected[:, 1:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("naclip")])
def test_every_dense_score_has_the_four_forms(name):
    patches, pooled, texts, mean = unit(2, 20, 7), unit(2, 7), unit(4, 7), unit(7) / 3
    method = build_training_free(name, texts, mean)
    method = method if method.scale is None else method.with_scale(6.0)
    t = texts if "centred" not in name else F.normalize(texts - texts.mean(0), dim=-1)
    p = patches if "centred" not in name else F.normalize(patches - mean, dim=-1)
    maps = torch.einsum("bnd,cd->bnc", p, t)
    maps = torch.softmax(6 * maps, -1) if name.endswith("softmax") else maps
    torch.testing.assert_close(method.score(patches, pooled, None).maps, maps)
    assert method.dense == dense_of(name) == "naclip"
    top = maps.sort(dim=1, descending=True).values[:, :2].mean(1)  # a tenth of 20 locations
    torch.testing.assert_close(method.score(patches, pooled, None).logits, top)
