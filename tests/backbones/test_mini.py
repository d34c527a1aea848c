"""The embedded CLIP: what it is, what it knows, and that it still is as good as its log says."""

import json
from importlib import resources

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score

from unmix_clip.backbones import build_backbone
from unmix_clip.backbones.mini import MiniTokenizer, read_config
from unmix_clip.data.scenes import load_scenes
from unmix_clip.data.scenes.captions import ABSENCES, OPENINGS
from unmix_clip.data.scenes.world import load_world
from unmix_clip.errors import InputError


@pytest.fixture(scope="module")
def mini():
    return build_backbone("mini")


def test_its_weights_are_small_and_its_training_is_on_record():
    folder = resources.files("unmix_clip.backbones.mini")
    assert len(folder.joinpath("weights.safetensors").read_bytes()) <= 8 * 2**20
    record = json.loads(folder.joinpath("training.json").read_text())
    assert record["log"][-1]["step"] == record["plan"]["steps"]
    assert record["minutes"] > 0


def test_it_is_an_ordinary_open_clip_model_with_a_fine_grid(mini):
    import open_clip

    assert isinstance(mini.model, open_clip.CLIP)
    assert mini.grid_hw == (8, 8)
    assert build_backbone("mini", 192).grid_hw == (12, 12)


@torch.no_grad()
def test_its_pooled_feature_is_open_clips_own(mini):
    pixels = torch.randn(2, 3, 128, 128)
    expected = mini.model.encode_image(pixels)
    found = mini.encode_images(pixels).pooled
    assert ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max() < 1e-5


def test_it_says_which_word_it_does_not_know(mini):
    assert mini.unknown_words("a photo of a zebra") == ["zebra"]
    with pytest.raises(InputError, match="'zebra'"):
        mini.encode_texts(["a photo of a zebra"])
    with pytest.raises(InputError, match="'bear', 'light'"):  # words of "teddy bear" and "traffic light", no names
        mini.require_known(["dog", "bear", "light"])


def test_it_knows_every_name_and_every_caption_template(mini):
    for name in load_world().classes:
        for template in (*(f"{opening} a {{}}" for opening in OPENINGS), *ABSENCES):
            assert mini.unknown_words(template.format(name)) == []


def test_its_cut_token_table_gives_the_rows_of_clips_tokens():
    config = read_config()
    tokenizer = MiniTokenizer(config["words"], config["names"], config["token_ids"])
    from open_clip.tokenizer import SimpleTokenizer

    texts = ["a photo of a traffic light", "a fork, a knife and a cup"]
    full = SimpleTokenizer(context_length=24)(texts)
    kept = torch.tensor(config["token_ids"])
    assert torch.equal(kept[tokenizer(texts)], full)


@torch.no_grad()
def test_it_recognises_the_scenes_it_was_made_for(mini):
    dataset = load_scenes("test", n=400)
    pictures = F.normalize(mini.encode_pictures([s.load_image() for s in dataset.samples], 64).pooled, dim=-1)
    texts = F.normalize(mini.encode_texts([f"a photo of a {name}" for name in dataset.classes]), dim=-1)
    labels = np.stack([s.labels for s in dataset.samples])
    probabilities = (25 * pictures @ texts.T).softmax(-1).numpy()
    scored = np.flatnonzero(labels.any(0))
    ap = [average_precision_score(labels[:, c], probabilities[:, c]) for c in scored]
    assert np.mean(ap) >= 0.65
    assert labels[np.arange(400), probabilities.argmax(1)].mean() >= 0.83
