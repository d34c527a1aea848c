"""The training loop on small made-up features: it learns, it is deterministic, it resumes to the very same weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from unmix_clip.config import TrainConfig
from unmix_clip.errors import InputError
from unmix_clip.features import FeatureStore
from unmix_clip.method.model import ClassTexts
from unmix_clip.training import TrainingSet, build_untrained, fit, learning_rate

SMALL = TrainConfig(epochs=6, batch_size=16, lr=1e-2)


def make_data(n=64, classes=5, views=1, seed=0):
    """Locations that show their class's text direction where the class is present; texts share a strong common part."""
    rng = np.random.default_rng(seed)
    own = rng.normal(size=(classes, 24))
    texts = torch.tensor(own + 3 * rng.normal(size=24), dtype=torch.float32)
    labels = (rng.random((n, classes)) < 0.4).astype(np.int8)
    stores = []
    for _ in range(views):
        patches = rng.normal(size=(n, 9, 24)) * 0.3
        for i, c in np.argwhere(labels):
            patches[i, rng.integers(9)] += own[c]
        unit = F.normalize(torch.tensor(patches), dim=-1).numpy().astype(np.float16)
        stores.append(FeatureStore(Path(), unit, unit.mean(1), np.ones((n, 9), dtype=bool), (3, 3)))
    return TrainingSet(stores, labels, ClassTexts(texts, -texts))


def weights(state):
    return torch.cat([tensor.flatten() for tensor in state.model.state_dict().values()])


@pytest.mark.parametrize("score", ["positive", "dual"])
def test_training_lowers_the_loss_and_ranks_present_classes_higher(score):
    data = make_data()
    config = TrainConfig(score=score, epochs=30, batch_size=16, lr=1e-2, gain=30.0 if score == "positive" else 5.0)
    state = fit(config, data)
    assert state.history[-1]["asl"] < 0.7 * state.history[0]["asl"]
    with torch.no_grad():
        patches = torch.from_numpy(data.views[0].patches.astype(np.float32))
        pooled = torch.from_numpy(data.views[0].pooled.astype(np.float32))
        logits = state.model.score(patches, state.model.project_queries(data.texts), pooled=pooled).logits.numpy()
    assert logits[data.labels == 1].mean() > logits[data.labels == 0].mean() + 1


def test_the_mfi_term_lowers_the_similarity_of_the_texts():
    data = make_data()
    means = {}
    for weight in (0.0, 10.0):
        state = fit(TrainConfig(epochs=80, batch_size=16, lr=3e-3, mfi_weight=weight, centre=False), data)
        with torch.no_grad():
            unit = state.model.project_queries(data.texts).positive
        means[weight] = (unit @ unit.T)[~torch.eye(5, dtype=torch.bool)].abs().mean().item()
    assert means[10.0] < 0.5 * means[0.0]


def test_a_seed_gives_the_same_weights_and_another_seed_others():
    data = make_data()
    first, again = weights(fit(SMALL, data)), weights(fit(SMALL, data))
    assert torch.equal(first, again)
    assert not torch.equal(first, weights(fit(TrainConfig(**{**SMALL.to_dict(), "seed": 1}), data)))


def test_a_resumed_run_ends_with_the_very_same_weights(tmp_path):
    data = make_data(views=2)
    config = TrainConfig(**{**SMALL.to_dict(), "views": 2, "text_norm": True})
    whole = fit(config, data)

    class KilledError(Exception):
        pass

    def kill_after_three(model):
        kill_after_three.calls += 1
        if kill_after_three.calls == 4:
            raise KilledError
        return {}

    kill_after_three.calls = 0
    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.raises(KilledError):
        fit(config, data, checkpoint=checkpoint, validate=kill_after_three)
    resumed = fit(config, data, checkpoint=checkpoint, resume=True)
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed.history == whole.history


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    data = make_data()
    checkpoint = tmp_path / "checkpoint.pt"
    fit(SMALL, data, checkpoint=checkpoint)
    with pytest.raises(InputError, match=r"lr 0.01, now 0.1"):
        fit(TrainConfig(**{**SMALL.to_dict(), "lr": 0.1}), data, checkpoint=checkpoint, resume=True)


def test_training_does_not_touch_the_global_random_state():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    fit(SMALL, make_data())
    assert torch.equal(torch.rand(3), expected)


def test_centring_uses_the_mean_of_the_stored_locations_and_texts():
    data = make_data()
    model = build_untrained(SMALL, data)
    patches = data.views[0].patches.astype(np.float64)
    np.testing.assert_allclose(model.patch_mean, patches.reshape(-1, 24).mean(0), atol=1e-6)
    torch.testing.assert_close(model.text_mean, F.normalize(data.texts.positive, dim=-1).mean(0))


def test_the_learning_rate_warms_up_and_falls_to_zero():
    config = TrainConfig(epochs=10, warmup_epochs=1, warmup_lr=1e-5, lr=1e-3)
    rates = [learning_rate(config, step, steps_an_epoch=7) for step in range(70)]
    assert rates[:7] == [1e-5] * 7
    assert rates[7] == pytest.approx(1e-3)
    assert rates[7:] == sorted(rates[7:], reverse=True)
    assert rates[-1] < 1e-5


def test_labels_without_a_positive_and_a_wrong_number_of_views_are_told():
    data = make_data()
    with pytest.raises(InputError, match="at least one positive"):
        fit(SMALL, TrainingSet(data.views, np.zeros_like(data.labels), data.texts))
    with pytest.raises(InputError, match="views = 3"):
        fit(TrainConfig(views=3), data)
