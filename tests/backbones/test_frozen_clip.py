"""FrozenClip: frozen by type, texts as open_clip encodes them, tiles, sizes, and clear words for wrong input."""

import sys
from dataclasses import replace

import numpy as np
import open_clip
import PIL.Image
import pytest
import torch
import torch.nn.functional as F

from unmix_clip.backbones import FrozenClip
from unmix_clip.backbones.identity import digest_weights
from unmix_clip.errors import InputError


def pictures(count=1, rows=90, columns=140):
    colours = np.random.default_rng(0).integers(0, 256, (count, rows, columns, 3), dtype=np.uint8)
    return [PIL.Image.fromarray(image) for image in colours]


def test_frozen_by_type_even_inside_a_module_that_is_trained(tiny):
    clip = tiny("RN")
    outer = torch.nn.Sequential(clip, torch.nn.BatchNorm1d(3)).train()
    assert outer[1].training
    assert clip.train() is clip
    assert not any(module.training for module in clip.modules())
    assert not any(parameter.requires_grad for parameter in clip.parameters())
    before = clip.identity.weights_digest
    features = clip.encode_images(torch.randn(2, 3, 224, 224, requires_grad=True))
    assert not features.patches.requires_grad
    assert not clip.encode_texts(["a cat"]).requires_grad
    assert digest_weights(clip.model) == before  # no batch statistics moved


@pytest.mark.parametrize("kind", ["RN", "ViT-quickgelu"])
def test_text_features_are_those_of_open_clip_in_any_batch(tiny, kind):
    clip, texts = tiny(kind), ["a photo of a cat", "Not a photo of a dog", "fork", ""]
    with torch.no_grad():
        reference = clip.model.encode_text(open_clip.get_tokenizer("ViT-B-32")(texts))
    assert torch.equal(clip.encode_texts(texts), reference)
    torch.testing.assert_close(clip.encode_texts(texts, batch_size=3), reference)
    assert clip.encode_texts([]).shape == (0, clip.embed_dim)


def test_a_single_text_instead_of_a_list_is_refused(tiny):
    with pytest.raises(InputError, match=r"\['cat'\]"):
        tiny("ViT").encode_texts("cat")


def test_siglip_encodes_pictures_even_where_its_tokenizer_cannot_be_had(siglip, monkeypatch):
    assert siglip.encode_pictures(pictures()).pooled.shape == (1, 768)
    assert siglip.embed_dim == 768
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed
    with pytest.raises(InputError, match=r"ViT-B-16-SigLIP needs a package .*transformers.*pip install"):
        siglip.encode_texts(["a cat"])

    def unreachable(name):
        raise OSError("We couldn't connect to 'https://huggingface.co'\nto load the files")

    monkeypatch.setattr(open_clip, "get_tokenizer", unreachable)
    with pytest.raises(InputError, match="hf download timm/ViT-B-16-SigLIP"):
        siglip.encode_texts(["a cat"])


def test_pictures_are_encoded_as_their_pixels_in_any_batch(tiny):
    clip = tiny("ViT")
    images = pictures(3)
    features = clip.encode_pictures(images, batch_size=2)
    assert features.patches.shape == (3, 14 * 14, clip.embed_dim)
    assert features.grid_hw == clip.grid_hw == (14, 14)
    alone = clip.encode_images(clip.preprocess.to_pixels(images[2])[None])
    torch.testing.assert_close(features.patches[2:], alone.patches)
    with pytest.raises(InputError, match="no pictures"):
        clip.encode_pictures([])


def test_tiles_are_encoded_alone_and_put_together_to_one_grid(tiny):
    base = tiny("RN")
    clip = base.with_options(replace(base.preprocess, mode="tile", input_hw=(64, 96)))
    assert clip.grid_hw == (4, 6)
    image = pictures(2)[1]
    features = clip.encode_pictures([pictures()[0], image])
    assert features.grid_hw == (4, 6)
    assert features.patches.shape == (2, 24, clip.embed_dim)
    tiles = [base.encode_images(tile[None]) for tile in clip.preprocess.to_pixels(image)]
    stitched = torch.empty(4, 6, clip.embed_dim)
    for number, tile in enumerate(tiles):
        top, left = 2 * (number // 2), 3 * (number % 2)
        stitched[top : top + 2, left : left + 3] = tile.patches[0].reshape(2, 3, -1)
    torch.testing.assert_close(features.patches[1].reshape(4, 6, -1), stitched)
    pooled = torch.stack([F.normalize(tile.pooled[0], dim=0) for tile in tiles]).mean(0)
    torch.testing.assert_close(features.pooled[1], pooled)
    with pytest.raises(InputError, match="found 3 tiles"):
        clip.encode_images(torch.randn(1, 3, 3, 64, 96))


def test_sizes_that_are_no_multiple_of_the_stride_are_filled_up_with_the_mean_colour(tiny):
    clip = tiny("RN")
    pixels = torch.randn(1, 3, 80, 64)
    filled = torch.zeros(1, 3, 96, 64)
    filled[:, :, :80] = pixels
    found, expected = clip.encode_images(pixels), clip.encode_images(filled)
    assert found.grid_hw == (3, 2)
    torch.testing.assert_close(found.patches, expected.patches)


def test_a_picture_fills_what_was_asked_and_the_rest_of_the_canvas_is_padding(tiny):
    clip = tiny("RN").with_options(replace(tiny("RN").preprocess, input_hw=(80, 64)))
    assert clip.preprocess.canvas_hw == (96, 64)
    assert clip.preprocess.content_box((50, 70)) == (0, 0, 80, 64)
    assert clip.preprocess.to_pixels(pictures()[0]).shape == (3, 96, 64)
    assert clip.grid_hw == clip.encode_pictures(pictures()).grid_hw == (3, 2)


@pytest.mark.parametrize(
    "pixels", [torch.zeros(3, 224, 224), torch.zeros(1, 1, 224, 224), torch.zeros(1, 3, 224, 224, dtype=torch.uint8)]
)
def test_pixels_of_another_shape_or_kind_are_refused(tiny, pixels):
    with pytest.raises(InputError, match=r"expected float32 \(B, 3, H, W\)"):
        tiny("ViT").encode_images(pixels)


def test_an_unknown_dense_strategy_names_those_that_exist(tiny):
    with pytest.raises(InputError, match=r"'magic' does not exist .* maskclip"):
        tiny("ViT").with_options(dense="magic")


def test_with_options_shares_the_weights(tiny):
    base = tiny("ViT")
    other = base.with_options(replace(base.preprocess, input_hw=(64, 64)))
    assert other.model is base.model
    assert other.identity.weights_digest == base.identity.weights_digest
    assert other.identity != base.identity
    assert other.grid_hw == (4, 4)


def test_an_image_tower_of_another_kind_is_refused(tiny):
    model = torch.nn.Module()
    model.visual = torch.nn.Linear(2, 2)
    with pytest.raises(InputError, match="image tower of X is not supported"):
        FrozenClip(model, tiny("ViT").tokenizer, tiny("ViT").preprocess, name="X", tag="y")


def test_a_closed_vocabulary_refuses_names_it_was_never_taught_and_an_open_one_none(tiny):
    class ClosedTokenizer:
        def __call__(self, texts):
            return torch.zeros(len(texts), 77, dtype=torch.long)

        def unknown_words(self, text):
            return [word for word in text.split() if word not in ("fork", "plate")]

    base = tiny("ViT")
    closed = FrozenClip(base.model, ClosedTokenizer(), base.preprocess, name="closed", tag="test")
    closed.require_known(["fork", "fork plate"])
    assert closed.unknown_words("fork giraffe") == ["giraffe"]
    with pytest.raises(InputError, match=r"closed does not know 'giraffe', 'red fork':"):
        closed.require_known(["giraffe", "fork", "red fork"])
    base.require_known(["giraffe"])
    assert base.unknown_words("giraffe") == []
