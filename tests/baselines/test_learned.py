"""Learned rivals against their formulas, written out slowly."""

import pytest
import torch
import torch.nn.functional as F

from unmix_clip.backbones import build_backbone
from unmix_clip.baselines.dualcoop import DualCoOp
from unmix_clip.baselines.linear_probe import LinearProbe
from unmix_clip.config import TrainConfig, load_config
from unmix_clip.errors import InputError
from unmix_clip.method.model import ClassTexts
from unmix_clip.texts import encode_classes
from unmix_clip.vocabulary import Prompts

NAMES = ("dog", "traffic light", "wine glass")
PROMPTS = Prompts("a photo of a {}", "a photo without a {}")


@pytest.fixture(scope="module")
def mini():
    return build_backbone("mini")


def test_a_context_that_says_the_template_gives_the_template_s_features(mini):
    texts = encode_classes(mini, PROMPTS, NAMES)
    context = texts.context.embed("a photo of a")
    assert context.shape == (4, texts.context.width)
    torch.testing.assert_close(texts.context(context), texts.positive, rtol=0, atol=2e-6)
    each = context.expand(len(NAMES), -1, -1)
    torch.testing.assert_close(texts.context(each), texts.positive, rtol=0, atol=2e-6)


def test_the_context_of_an_open_vocabulary_ends_with_a_full_stop_as_published():
    clip = build_backbone("RN50:random")
    texts = encode_classes(clip, Prompts("a photo of a {}.", "no {}"), NAMES)
    torch.testing.assert_close(
        texts.context(texts.context.embed("a photo of a")),
        texts.positive,
        rtol=0,
        atol=1e-4 * texts.positive.abs().max(),
    )


def test_a_context_that_leaves_no_room_for_the_name_is_refused(mini):
    texts = encode_classes(mini, PROMPTS, NAMES)
    with pytest.raises(InputError, match="exceed the 24 tokens"):
        texts.context(torch.zeros(22, texts.context.width))


def slow_dualcoop(patches, positive, negative, scale=20.0, gain=5.0):
    """Upstream's forward, one picture, class and location at a time."""
    logits = torch.zeros(len(patches), len(positive), 2)
    for b, picture in enumerate(patches):
        for c in range(len(positive)):
            said, denied = (
                torch.stack([scale * (F.normalize(p, dim=0) @ F.normalize(t[c], dim=0)) for p in picture])
                for t in (positive, negative)
            )
            weight = said.exp() / said.exp().sum()  # those of the positive half, for both
            logits[b, c, 0], logits[b, c, 1] = gain * (weight * denied).sum(), gain * (weight * said).sum()
    return logits


@pytest.mark.parametrize("class_specific", [False, True])
def test_dualcoop_equals_the_published_formula(mini, class_specific):
    config = TrainConfig(model="dualcoop", scale=20.0, gain=5.0, context_tokens=4, class_specific=class_specific)
    texts = encode_classes(mini, PROMPTS, NAMES)
    model = DualCoOp(config, texts.context.width, NAMES)
    queries = model.project_queries(texts)
    patches = torch.randn(2, 5, 128)
    positive, negative = (texts.context(context) for context in (model.positive, model.negative))
    expected = torch.softmax(slow_dualcoop(patches, positive, negative), dim=-1)[..., 1]
    found = torch.sigmoid(model.score(patches, queries).logits)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert model.trained_parameters() == 2 * 4 * texts.context.width * (len(NAMES) if class_specific else 1)


def test_padded_locations_have_no_weight_in_dualcoop(mini):
    texts = encode_classes(mini, PROMPTS, NAMES)
    model = DualCoOp(TrainConfig(model="dualcoop"), texts.context.width, NAMES)
    patches, queries = torch.randn(1, 6, 128), model.project_queries(texts)
    valid = torch.tensor([[True] * 4 + [False] * 2])
    torch.testing.assert_close(model.score(patches, queries, valid).logits, model.score(patches[:, :4], queries).logits)


def test_only_the_contexts_of_dualcoop_get_gradients(mini):
    texts = encode_classes(mini, PROMPTS, NAMES)
    model = DualCoOp(load_config("dualcoop"), texts.context.width, NAMES)
    model.objective(torch.randn(2, 5, 128), texts, torch.tensor([[1, 0, 0], [0, -1, 1]]))["loss"].backward()
    assert model.positive.grad.abs().sum() > 0
    assert model.negative.grad.abs().sum() > 0
    assert all(p.grad is None for p in mini.parameters())


def test_a_linear_probe_scores_pooled_features_and_maps_locations():
    model = LinearProbe(TrainConfig(model="linear-probe", gain=3.0), 8, NAMES)
    patches, pooled = torch.randn(2, 4, 8), torch.randn(2, 8)
    texts = ClassTexts(torch.zeros(2, 8), torch.zeros(2, 8), ("wine glass", "dog"))
    scores = model.score(patches, model.project_queries(texts), None, pooled)
    for b in range(2):
        for c, row in enumerate((2, 0)):
            weight, bias = model.head.weight[row], model.head.bias[row]
            assert scores.logits[b, c].item() == pytest.approx(
                (3 * pooled[b] / pooled[b].norm() @ weight + bias).item(), abs=1e-5
            )
            for n in range(4):
                patch = 3 * patches[b, n] / patches[b, n].norm()
                assert scores.maps[b, n, c].item() == pytest.approx((patch @ weight + bias).item(), abs=1e-5)


def test_models_with_a_vector_a_class_refuse_other_names(mini):
    texts = encode_classes(mini, PROMPTS, ("cat",))
    with pytest.raises(InputError, match="'cat'"):
        LinearProbe(TrainConfig(model="linear-probe"), 128, NAMES).project_queries(texts)
    with pytest.raises(InputError, match="'cat'"):
        DualCoOp(TrainConfig(model="dualcoop", class_specific=True), texts.context.width, NAMES).project_queries(texts)


def test_several_templates_and_synonyms_are_averaged_as_unit_vectors(mini):
    prompts = Prompts(("a photo of a {}", "a {}"), "no {}")
    texts = encode_classes(mini, prompts, ("dog", "cup"), {"cup": ("bowl", "unheard-of word")})
    words = {"dog": ["dog"], "cup": ["cup", "bowl"]}
    for row, name in enumerate(("dog", "cup")):
        every = [mini.encode_texts([t.replace("{}", w)])[0] for w in words[name] for t in prompts.positive]
        expected = torch.stack([v / v.norm() for v in every]).mean(0)
        torch.testing.assert_close(texts.positive[row], expected, rtol=0, atol=1e-6)
