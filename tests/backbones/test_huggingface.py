"""Hugging Face CLIPModel folders, against a forward written from transformers' description of the layers."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from unmix_clip.backbones import build_backbone
from unmix_clip.backbones.huggingface import require_architecture
from unmix_clip.errors import InputError

WIDTH, HEADS = 32, {"text": 2, "vision": 2}
LAYERS = {"text": 1, "vision": 3}  # tiny-ViT, see tiny_models.py
TOWER = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 2}


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


def config_of(act="quick_gelu", **vision):
    """The config.json of tiny-ViT; what is left out is as in transformers."""
    towers = {f"{tower}_config": {**TOWER, "num_hidden_layers": n, "hidden_act": act} for tower, n in LAYERS.items()}
    towers["vision_config"] |= {"patch_size": 16, **vision}
    return {"model_type": "clip", "projection_dim": 24, **towers}


def write(folder, state, config):
    folder.mkdir(exist_ok=True)
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("act", "activation"), [("gelu", F.gelu), ("quick_gelu", lambda x: x * torch.sigmoid(1.702 * x))]
)
def test_a_clipmodel_folder_gives_the_features_of_transformers(act, activation, state, tmp_path):
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]  # old versions stored them
    folder = write(tmp_path / "clip", state, config_of(act))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    clip = build_backbone(f"tiny-ViT:{folder}")
    assert clip.preprocess.mean == (0.5,) * 3
    pixels, tokens = torch.randn(2, 3, 224, 224), clip.tokenizer(["a photo of a dog", "cup"])
    for found, expected in (
        (clip.encode_images(pixels).pooled, hf_image(state, pixels, activation)),
        (clip.encode_texts(["a photo of a dog", "cup"]), hf_text(state, tokens, activation)),
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * expected.abs().max().item())


@pytest.fixture
def pooled(tmp_path):
    """Features of one picture by the backbone that a spec names."""
    pixels = torch.randn(1, 3, 224, 224)
    return lambda spec: build_backbone(spec).encode_images(pixels).pooled


def test_a_torch_file_half_precision_and_the_file_itself_give_the_same_features(state, pooled, tmp_path):
    state = {name: tensor.half() for name, tensor in state.items()}
    folder = write(tmp_path / "clip", state, config_of())
    expected = pooled(f"tiny-ViT:{folder}")
    assert torch.equal(pooled(f"tiny-ViT:{folder}/model.safetensors"), expected)  # the activation is the config's too
    torch.save(state, folder / "pytorch_model.bin")
    assert torch.equal(pooled(f"tiny-ViT:{folder}/pytorch_model.bin"), expected)
    (folder / "model.safetensors").unlink()
    assert torch.equal(pooled(f"tiny-ViT:{folder}"), expected)
    assert build_backbone(f"tiny-ViT:{folder}").identity.activation == "quick_gelu"
    assert not torch.allclose(pooled(f"tiny-ViT:{write(tmp_path / 'gelu', state, config_of('gelu'))}"), expected)


def test_a_config_in_the_way_of_old_versions_is_read(state, pooled, tmp_path):
    config = config_of("gelu")
    old = config | {f"{part}_dict": config[part] for part in ("text_config", "vision_config")}
    old |= {"text_config": None, "vision_config": {"hidden_size": 1}}  # what stands under _dict wins
    expected = pooled(f"tiny-ViT:{write(tmp_path / 'new', state, config)}")
    assert torch.equal(pooled(f"tiny-ViT:{write(tmp_path / 'old', state, old)}"), expected)


def test_open_clips_own_weights_beside_a_config_of_transformers_are_used(pooled, tmp_path):
    model = build_backbone("tiny-ViT:random-5").model
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config_of()))
    assert torch.equal(pooled(f"tiny-ViT:{tmp_path}"), pooled("tiny-ViT:random-5"))


def refusal(spec):
    with pytest.raises(InputError) as caught:
        build_backbone(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_of_another_architecture_is_told_with_the_one_that_it_is(state, tmp_path):
    # The number of heads shows in no shape: without the config, wrong features would come out in silence.
    heads = write(tmp_path / "heads", state, config_of(num_attention_heads=4))
    message = refusal(f"tiny-ViT:{heads}")
    assert "vision_config.num_attention_heads 4 (expected 2)" in message
    assert "no architecture that fits" in message
    base = write(tmp_path / "base", state, {"model_type": "clip"})  # all as transformers' defaults: ViT-B-32
    message = refusal(f"ViT-L-14:{base}")
    assert "vision_config.hidden_size 768 (expected 1024)" in message
    assert "projection_dim 512 (expected 768)" in message
    assert message.endswith("; name ViT-B-32")
    for name in ("RN50", "ViT-L-14-CLIPA"):
        assert f"no plain ViT like {name}; name ViT-B-32" in refusal(f"{name}:{base}")
    assert "are not those of ViT-B-32" in refusal(f"ViT-B-32:{base}")  # the config fits, the tensors do not


@pytest.mark.parametrize(
    ("name", "towers"),
    [  # (width, layers, heads, mlp) of image and text, patch, projection: as the model cards' config.json have them
        ("ViT-B-16", ((768, 12, 12, 3072), (512, 12, 8, 2048), 16, 512)),
        ("ViT-L-14", ((1024, 24, 16, 4096), (768, 12, 12, 3072), 14, 768)),
        ("ViT-H-14", ((1280, 32, 16, 5120), (1024, 24, 16, 4096), 14, 1024)),
        ("ViT-bigG-14", ((1664, 48, 16, 8192), (1280, 32, 20, 5120), 14, 1280)),
    ],
)
def test_the_published_architectures_are_known_by_their_config(name, towers, tmp_path):
    vision, text, patch, projection = towers
    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    config = {"projection_dim": projection, "text_config": dict(zip(keys, text, strict=True))}
    config["vision_config"] = dict(zip(keys, vision, strict=True)) | {"patch_size": patch}
    (tmp_path / "config.json").write_text(json.dumps(config))
    require_architecture(tmp_path, name)
    with pytest.raises(InputError, match=f"; name {name}$"):
        require_architecture(tmp_path, "ViT-B-32")


def test_folders_of_other_models_and_without_weights_are_told(state, tmp_path):
    for kind in ("blip", "siglip"):
        folder = write(tmp_path / kind, state, {"model_type": kind})
        assert f"of type '{kind}'; expected 'clip'" in refusal(f"tiny-ViT:{folder}")
    odd = write(tmp_path / "odd", state, config_of("relu"))
    assert "expected quick_gelu or gelu" in refusal(f"tiny-ViT:{odd}")
    (odd / "model.safetensors").unlink()
    assert "no model.safetensors and no pytorch_model.bin" in refusal(f"tiny-ViT:{odd}")
