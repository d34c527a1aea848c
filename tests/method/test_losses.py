"""The losses against slow references written from the published formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

from unmix_clip.config import load_config
from unmix_clip.method.losses import asymmetric_loss, correlation_matrix, mfi_loss, mfi_weight_from_alpha
from unmix_clip.method.model import ClassTexts, UnmixModel


def slow_asymmetric(logits, labels, gamma_neg, gamma_pos, clip):
    total = 0.0
    for row, targets in zip(logits.tolist(), labels.tolist(), strict=True):
        for z, y in zip(row, targets, strict=True):
            p = 1 / (1 + math.exp(-z))
            if y == 1:
                total += -((1 - p) ** gamma_pos) * math.log(p)
            elif y == 0:
                shifted = max(p - clip, 0)
                total += -(shifted**gamma_neg) * math.log(1 - shifted)
    return total


@pytest.mark.parametrize(("gamma_neg", "gamma_pos", "clip"), [(2, 1, 0.05), (4, 0, 0.0), (0, 0, 0.0)])
def test_asymmetric_loss_equals_a_loop_over_the_published_formula(gamma_neg, gamma_pos, clip):
    torch.manual_seed(0)
    logits = 3 * torch.randn(5, 7, dtype=torch.float64)
    labels = torch.randint(-1, 2, (5, 7))
    expected = slow_asymmetric(logits, labels, gamma_neg, gamma_pos, clip)
    options = {"gamma_neg": gamma_neg, "gamma_pos": gamma_pos, "clip": clip}
    assert asymmetric_loss(logits, labels, reduction="sum", **options).item() == pytest.approx(expected, rel=1e-9)
    assert asymmetric_loss(logits, labels, **options).item() == pytest.approx(expected / 5, rel=1e-9)


def test_asymmetric_loss_without_focusing_is_binary_cross_entropy():
    torch.manual_seed(1)
    logits, labels = torch.randn(4, 6), torch.randint(0, 2, (4, 6))
    expected = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum")
    actual = asymmetric_loss(logits, labels, gamma_neg=0, gamma_pos=0, clip=0, reduction="sum")
    torch.testing.assert_close(actual, expected)


def test_asymmetric_loss_and_its_gradient_stay_finite_for_extreme_logits():
    logits = torch.tensor([[200.0, -200.0, 200.0, -200.0]], requires_grad=True)
    loss = asymmetric_loss(logits, torch.tensor([[0, 1, 1, 0]]), clip=0.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_unknown_labels_add_neither_loss_nor_gradient():
    logits = torch.randn(3, 4, requires_grad=True)
    asymmetric_loss(logits, torch.full((3, 4), -1)).backward()
    assert logits.grad.abs().max() == 0


def slow_mfi(texts, form, lam):
    if form == "class":
        rows = [row / row.norm() for row in texts]
    else:
        columns = [texts[:, k] for k in range(texts.shape[1])]
        rows = [(c - c.mean()) / c.std(correction=0) / math.sqrt(len(c)) for c in columns]
    total = 0.0
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            c = float(a @ b)
            total += (c - 1) ** 2 if i == j else lam * c**2
    return total, len(rows)


@pytest.mark.parametrize("form", ["class", "dimension"])
def test_mfi_equals_the_published_sum_over_lambda_times_the_number_of_pairs(form):
    torch.manual_seed(2)
    texts = torch.randn(9, 5, dtype=torch.float64)
    total, n = slow_mfi(texts, form, 0.2)
    assert mfi_loss(texts, form=form, lam=0.2).item() == pytest.approx(total / (0.2 * n * (n - 1)), rel=1e-9)


@pytest.mark.parametrize("form", ["class", "dimension"])
def test_the_weight_converts_to_the_papers_alpha(form):
    torch.manual_seed(3)
    texts = torch.randn(12, 6, dtype=torch.float64)
    total, rows = slow_mfi(texts, form, 0.2)
    weight = mfi_weight_from_alpha(7e-5, rows)
    assert weight * mfi_loss(texts, form=form).item() == pytest.approx(7e-5 * total, rel=1e-9)


def test_the_recipe_paper_converts_alpha_for_the_names_at_hand():
    torch.manual_seed(5)
    model = UnmixModel(load_config("paper"), 16)
    texts = ClassTexts(torch.randn(80, 16), torch.randn(80, 16))
    terms = model.objective(torch.randn(2, 4, 16), texts, torch.zeros(2, 80))
    added = (terms["loss"] - terms["asl"]).item()
    assert added == pytest.approx(7e-5 * 0.2 * 160 * 159 * terms["mfi"].item(), rel=1e-3)


def test_the_class_form_means_the_same_for_few_and_for_many_names():
    def texts_with_cosine(n, cosine):
        gram = torch.full((n, n), cosine, dtype=torch.float64)
        gram.fill_diagonal_(1)
        return torch.linalg.cholesky(gram)

    few, many = (mfi_loss(texts_with_cosine(n, 0.7)).item() for n in (5, 500))
    assert few == pytest.approx(0.49, rel=1e-9)
    assert many == pytest.approx(few, rel=1e-9)


def test_the_diagonal_of_the_class_form_is_constantly_one():
    torch.manual_seed(4)
    diagonal = correlation_matrix(torch.randn(6, 3, dtype=torch.float64), "class").diagonal()
    torch.testing.assert_close(diagonal, torch.ones(6, dtype=torch.float64))


def test_an_unknown_form_or_reduction_is_refused():
    with pytest.raises(ValueError, match="'class' or 'dimension'"):
        mfi_loss(torch.randn(3, 3), form="rows")
    with pytest.raises(ValueError, match="'batch_mean' or 'sum'"):
        asymmetric_loss(torch.zeros(1, 1), torch.zeros(1, 1), reduction="mean")
