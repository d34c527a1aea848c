"""Hugging Face CLIPModel folders, against a forward written from transformers' description of the layers."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from unmix_clip.backbones import build_backbone
from unmix_clip.errors import InputError

WIDTH, HEADS = 32, {"text": 2, "vision": 2}
LAYERS = {"text": 1, "vision": 3}  # tiny-ViT, see tiny_models.py


def linear(state, name, x):
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def norm(state, name, x):
    return F.layer_norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"])


def encoder(state, prefix, x, heads, layers, mask, activation):
    for i in range(layers):
        layer = f"{prefix}.encoder.layers.{i}"
        h = norm(state, f"{layer}.layer_norm1", x)
        q, k, v = (
            linear(state, f"{layer}.self_attn.{p}_proj", h).unflatten(-1, (heads, -1)).transpose(1, 2) for p in "qkv"
        )
        weights = torch.softmax(q @ k.transpose(-1, -2) * (WIDTH // heads) ** -0.5 + mask, -1)
        x = x + linear(state, f"{layer}.self_attn.out_proj", (weights @ v).transpose(1, 2).flatten(2))
        h = linear(state, f"{layer}.mlp.fc1", norm(state, f"{layer}.layer_norm2", x))
        x = x + linear(state, f"{layer}.mlp.fc2", activation(h))
    return x


def hf_image(state, pixels, activation):
    patches = (
        F.conv2d(pixels, state["vision_model.embeddings.patch_embedding.weight"], stride=16).flatten(2).transpose(1, 2)
    )
    first = state["vision_model.embeddings.class_embedding"].expand(len(pixels), 1, -1)
    x = torch.cat([first, patches], 1) + state["vision_model.embeddings.position_embedding.weight"]
    x = norm(state, "vision_model.pre_layrnorm", x)
    x = encoder(state, "vision_model", x, HEADS["vision"], LAYERS["vision"], torch.zeros(1), activation)
    return linear(state, "visual_projection", norm(state, "vision_model.post_layernorm", x[:, 0]))


def hf_text(state, tokens, activation):
    x = state["text_model.embeddings.token_embedding.weight"][tokens]
    x = x + state["text_model.embeddings.position_embedding.weight"]
    mask = torch.full((77, 77), float("-inf")).triu(1)
    x = norm(
        state,
        "text_model.final_layer_norm",
        encoder(state, "text_model", x, HEADS["text"], LAYERS["text"], mask, activation),
    )
    return linear(state, "text_projection", x[torch.arange(len(x)), tokens.argmax(1)])


@pytest.fixture
def state():
    shapes = {"logit_scale": (), "visual_projection.weight": (24, WIDTH), "text_projection.weight": (24, WIDTH)}
    shapes |= {
        "text_model.embeddings.token_embedding.weight": (49408, WIDTH),
        "text_model.embeddings.position_embedding.weight": (77, WIDTH),
        "vision_model.embeddings.class_embedding": (WIDTH,),
        "vision_model.embeddings.patch_embedding.weight": (WIDTH, 3, 16, 16),
        "vision_model.embeddings.position_embedding.weight": (197, WIDTH),
    }
    for name in ("text_model.final_layer_norm", "vision_model.pre_layrnorm", "vision_model.post_layernorm"):
        shapes |= {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}
    for tower, count in LAYERS.items():
        for i in range(count):
            layer = f"{tower}_model.encoder.layers.{i}"
            sizes = {f"self_attn.{p}_proj": (WIDTH, WIDTH) for p in ("q", "k", "v", "out")}
            sizes |= {"mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH)}
            for name, shape in sizes.items():
                shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
            for name in ("layer_norm1", "layer_norm2"):
                shapes |= {f"{layer}.{name}.weight": (WIDTH,), f"{layer}.{name}.bias": (WIDTH,)}
    return {name: 0.2 * torch.randn(shape) for name, shape in shapes.items()}


def write(folder, state, config):
    folder.mkdir(exist_ok=True)
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("act", "activation"), [("gelu", F.gelu), ("quick_gelu", lambda x: x * torch.sigmoid(1.702 * x))]
)
def test_a_clipmodel_folder_gives_the_features_of_transformers(act, activation, state, tmp_path):
    config = {"model_type": "clip", "text_config": {"hidden_act": act}, "vision_config": {"hidden_act": act}}
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]  # old versions stored them
    folder = write(tmp_path / "clip", state, config)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    clip = build_backbone(f"tiny-ViT:{folder}")
    assert clip.preprocess.mean == (0.5,) * 3
    pixels, tokens = torch.randn(2, 3, 224, 224), clip.tokenizer(["a photo of a dog", "cup"])
    for found, expected in (
        (clip.encode_images(pixels).pooled, hf_image(state, pixels, activation)),
        (clip.encode_texts(["a photo of a dog", "cup"]), hf_text(state, tokens, activation)),
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * expected.abs().max().item())


def test_folders_of_other_models_and_other_architectures_are_told(state, tmp_path):
    blip = write(tmp_path / "blip", state, {"model_type": "blip"})
    with pytest.raises(InputError, match="type 'blip'; expected 'clip'"):
        build_backbone(f"tiny-ViT:{blip}")
    clip = write(tmp_path / "clip", state, {"model_type": "clip"})
    with pytest.raises(InputError, match="are not those of ViT-B-32"):
        build_backbone(f"ViT-B-32:{clip}")
    odd = write(tmp_path / "odd", state, {"model_type": "clip", "text_config": {"hidden_act": "relu"}})
    with pytest.raises(InputError, match="expected quick_gelu or gelu"):
        build_backbone(f"tiny-ViT:{odd}")
    (clip / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no model\.safetensors and no pytorch_model\.bin"):
        build_backbone(f"tiny-ViT:{clip}")
