"""The projectors: sizes as published, constants that belong to the model, scores that ignore the other names."""

import pytest
import torch
import torch.nn.functional as F

from unmix_clip.config import TrainConfig, load_config
from unmix_clip.method.model import ClassTexts, UnmixModel

RECIPES = {
    "default": load_config("default"),
    "paper": load_config("paper"),
    "positive with text norm": TrainConfig(text_norm=True),
}


def trained_a_little(config, texts, width=32):
    torch.manual_seed(0)
    model = UnmixModel(config, width)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    labels = torch.randint(0, 2, (8, len(texts.positive)))
    patches, pooled = torch.randn(8, 12, width), torch.randn(8, width)
    for _ in range(3):
        optimizer.zero_grad()
        model.objective(patches, texts, labels, pooled=pooled)["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        model.project_queries(texts)
    return model


@pytest.fixture
def texts():
    torch.manual_seed(5)
    return ClassTexts(torch.randn(6, 32), torch.randn(6, 32))


@pytest.mark.parametrize(("width", "parameters"), [(512, 426_752), (1024, 1_705_472)])
def test_the_papers_projectors_have_the_published_number_of_parameters(width, parameters):
    assert UnmixModel(load_config("paper"), width).trained_parameters() == parameters


@pytest.mark.parametrize("config", RECIPES.values(), ids=RECIPES)
@torch.no_grad()
def test_a_class_scores_the_same_whatever_other_names_are_asked(config, texts):
    with torch.enable_grad():
        model = trained_a_little(config, texts)
    model.eval()
    patches, pooled = torch.randn(4, 12, 32), torch.randn(4, 32)
    together = model.score(patches, model.project_queries(texts), pooled=pooled)
    for i in range(6):
        alone = ClassTexts(texts.positive[i : i + 1], texts.negative[i : i + 1])
        scores = model.score(patches, model.project_queries(alone), pooled=pooled)
        torch.testing.assert_close(scores.logits[:, 0], together.logits[:, i], atol=1e-4, rtol=0)  # of about 100
        torch.testing.assert_close(scores.maps[..., 0], together.maps[..., i])


@torch.no_grad()
def test_the_text_norm_gives_the_training_names_the_same_features_in_both_modes(texts):
    with torch.enable_grad():
        model = trained_a_little(RECIPES["paper"], texts)
    in_training = model.train().project_queries(texts)
    in_evaluation = model.eval().project_queries(texts)
    torch.testing.assert_close(in_training.positive, in_evaluation.positive)
    torch.testing.assert_close(in_training.negative, in_evaluation.negative)


def test_the_text_norm_equals_torch_batch_norm_in_training():
    torch.manual_seed(6)
    model = UnmixModel(RECIPES["paper"], 32)
    x = torch.randn(10, 32)
    first, norm, relu, last = model.text
    reference = torch.nn.BatchNorm1d(norm.weight.shape[0]).train()
    torch.testing.assert_close(model.train().text(x), last(relu(reference(first(x)))))


def test_projected_vectors_are_unit_vectors_of_the_projected_width(texts):
    model = UnmixModel(RECIPES["paper"], 32).eval()
    assert model.project_patches(torch.randn(2, 3, 32)).shape == (2, 3, 16)
    torch.testing.assert_close(model.project_texts(texts.positive).norm(dim=-1), torch.ones(6))


def test_scores_equal_a_loop_over_cosines_of_projected_vectors(texts):
    model = UnmixModel(RECIPES["default"], 32).eval()
    model.patch_mean.copy_(torch.randn(32) / 10)
    model.text_mean.copy_(torch.randn(32) / 10)
    patches = torch.randn(2, 5, 32)
    maps = model.score(patches, model.project_queries(texts), pooled=torch.randn(2, 32)).maps
    for b in range(2):
        for n in range(5):
            location = model.image(patches[b, n] / patches[b, n].norm() - model.patch_mean)
            for c in range(6):
                text = model.text(texts.positive[c] / texts.positive[c].norm() - model.text_mean)
                torch.testing.assert_close(maps[b, n, c], F.cosine_similarity(location, text, dim=0))


def test_the_objective_adds_the_weighted_mfi_term(texts):
    torch.manual_seed(7)
    model = UnmixModel(TrainConfig(mfi_weight=3.0), 32)
    terms = model.objective(torch.randn(2, 4, 32), texts, torch.randint(0, 2, (2, 6)), pooled=torch.randn(2, 32))
    torch.testing.assert_close(terms["loss"], terms["asl"] + 3 * terms["mfi"])


def test_a_model_that_uses_the_pooled_feature_says_so_when_it_is_missing(texts):
    model = UnmixModel(RECIPES["default"], 32).eval()
    with pytest.raises(ValueError, match="pass pooled"):
        model.score(torch.randn(2, 5, 32), model.project_queries(texts))
