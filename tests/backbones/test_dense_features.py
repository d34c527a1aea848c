"""Pooled and dense features against open_clip's own forward and against slow references written here."""

import copy
import math

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from tiny_models import TINY_CONFIGS, disturb

from unmix_clip.backbones import FrozenClip, build_backbone
from unmix_clip.backbones.dense import encode_pixels, keep_last_stage_at_stride_1, resize_position_embedding

SIZES = [(224, 224), (336, 336), (448, 448), (160, 288)]
SIZES_STRIDE_32 = [(224, 224), (320, 320), (448, 448), (160, 288)]


def random_pixels(size_hw, batch=1):
    return torch.randn(batch, 3, *size_hw, generator=torch.Generator().manual_seed(1))


# --- slow references ---------------------------------------------------------------------------------------------


def keys_cubic(x):
    """The cubic convolution kernel with a = -1/2 (Keys 1981), which antialiased bicubic resizing uses."""
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def cubic_weights(source, target):
    weights = np.zeros((target, source))
    scale = source / target
    stretch = max(scale, 1.0)  # a wider kernel when there are fewer cells than before: antialiasing
    for i in range(target):
        centre = (i + 0.5) * scale
        for j in range(source):
            weights[i, j] = keys_cubic((j + 0.5 - centre) / stretch)
        weights[i] /= weights[i].sum()
    return weights


def slow_resize(embedding, source_hw, target_hw, prefix):
    """(prefix + h * w, D) on another grid, by explicit weights along both sides."""
    if source_hw == target_hw:
        return embedding
    grid = embedding[prefix:].double().numpy().reshape(*source_hw, -1)
    rows, columns = (cubic_weights(*pair) for pair in zip(source_hw, target_hw, strict=True))
    resized = np.einsum("yh,xw,hwd->yxd", rows, columns, grid).reshape(target_hw[0] * target_hw[1], -1)
    return torch.cat([embedding[:prefix], torch.from_numpy(resized).float()])


def slow_resnet(visual, pixels, stride):
    """Pooled and dense features of a ModifiedResNet: attention head by head, dense features location by location."""
    final_map = visual.forward_intermediates(pixels, indices=1, intermediates_only=True)["image_intermediates"][0]
    _, _, rows, columns = final_map.shape
    assert (rows, columns) == (pixels.shape[2] // stride, pixels.shape[3] // stride)
    pool = visual.attnpool
    side = int(math.sqrt(len(pool.positional_embedding)))
    positions = slow_resize(pool.positional_embedding, (side, side), (rows, columns), prefix=1)
    pooled, dense = [], []
    for picture in final_map:
        locations = torch.stack([picture[:, y, x] for y in range(rows) for x in range(columns)])
        tokens = torch.cat([locations.mean(0, keepdim=True), locations]) + positions
        query = pool.q_proj.weight @ tokens[0] + pool.q_proj.bias
        keys = tokens @ pool.k_proj.weight.T + pool.k_proj.bias
        values = tokens @ pool.v_proj.weight.T + pool.v_proj.bias
        heads = []
        for part in torch.arange(len(query)).chunk(pool.num_heads):
            weights = (keys[:, part] @ query[part] / math.sqrt(len(part))).softmax(0)
            heads.append(weights @ values[:, part])
        pooled.append(pool.c_proj.weight @ torch.cat(heads) + pool.c_proj.bias)
        dense.append(
            torch.stack([pool.c_proj.weight @ values[1 + i] + pool.c_proj.bias for i in range(rows * columns)])
        )
    return torch.stack(pooled), torch.stack(dense)


def slow_vit(visual, config, pixels):
    """Pooled features of an open_clip ViT *built for* this size, dense ones token by token from its weights."""
    size_hw = tuple(pixels.shape[2:])
    settings = {k: v for k, v in config.items() if k not in ("image_size", "head_width")}
    other = open_clip.transformer.VisionTransformer(
        image_size=size_hw,
        heads=config["width"] // config["head_width"],
        mlp_ratio=4.0,
        output_dim=visual.output_dim,
        act_layer=type(visual.transformer.resblocks[0].mlp.gelu),
        **settings,
    ).eval()
    state = visual.state_dict()
    state["positional_embedding"] = slow_resize(
        state["positional_embedding"], visual.grid_size, other.grid_size, prefix=1
    )
    other.load_state_dict(state)
    before_last = other.forward_intermediates(pixels, indices=[config["layers"] - 2], output_fmt="NLC")
    block, width = other.transformer.resblocks[-1], config["width"]
    value_weight, value_bias = block.attn.in_proj_weight[2 * width :], block.attn.in_proj_bias[2 * width :]
    scale = getattr(block.ls_1, "gamma", torch.ones(width))
    dense = []
    for token in before_last["image_intermediates"][0][0]:
        value = value_weight @ block.ln_1(token) + value_bias
        out = scale * (block.attn.out_proj.weight @ value + block.attn.out_proj.bias)
        dense.append(
            F.layer_norm(out, (width,), other.ln_post.weight, other.ln_post.bias, other.ln_post.eps) @ other.proj
        )
    return other(pixels), torch.stack(dense)[None]


def slow_siglip(visual, pixels):
    """Pooled features of timm's model after its own set_input_size, dense ones token by token from its weights."""
    other = copy.deepcopy(visual)
    other.trunk.set_input_size(tuple(pixels.shape[2:]))
    pool = other.trunk.attn_pool
    dense = []
    for token in other.trunk.forward_features(pixels)[0]:
        width = len(token)
        value = pool.kv.weight[width:] @ token + pool.kv.bias[width:]  # kv holds the keys first
        y = pool.proj.weight @ value + pool.proj.bias
        normed = F.layer_norm(y, (width,), pool.norm.weight, pool.norm.bias, pool.norm.eps)
        hidden = F.gelu(pool.mlp.fc1.weight @ normed + pool.mlp.fc1.bias)
        dense.append(y + pool.mlp.fc2.weight @ hidden + pool.mlp.fc2.bias)
    return other(pixels), torch.stack(dense)[None]


def assert_features_close(features, pooled, dense, rtol=2e-5):
    """Equal to `rtol` of the reference's size: sums of thousands of products in float32 differ in their order."""
    for ours, reference in ((features.pooled, pooled), (features.patches, dense)):
        assert ours.shape == reference.shape
        torch.testing.assert_close(ours, reference, rtol=0, atol=rtol * reference.abs().max().item())


# --- tests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target_hw", [(14, 14), (10, 9), (5, 3), (7, 12)])
def test_position_embeddings_are_resized_bicubically_and_prefix_tokens_stay(target_hw):
    embedding = torch.randn(1 + 49, 6)
    resized = resize_position_embedding(embedding, (7, 7), target_hw, prefix_tokens=1)
    torch.testing.assert_close(resized, slow_resize(embedding, (7, 7), target_hw, 1), rtol=0, atol=1e-5)


def test_position_embeddings_of_the_native_grid_are_returned_untouched():
    embedding = torch.randn(50, 6)
    assert resize_position_embedding(embedding, (7, 7), (7, 7), prefix_tokens=1) is embedding


@pytest.mark.parametrize("size_hw", SIZES_STRIDE_32)
@torch.no_grad()
def test_modified_resnet_features_equal_a_slow_reference_at_any_size(tiny, size_hw):
    clip, pixels = tiny("RN"), random_pixels(size_hw, batch=2)
    features = clip.encode_images(pixels)
    assert features.grid_hw == (size_hw[0] // 32, size_hw[1] // 32)
    assert_features_close(features, *slow_resnet(clip.model.visual, pixels, stride=32))


@pytest.mark.parametrize("size_hw", SIZES)
@torch.no_grad()
def test_modified_resnet_with_last_stage_at_stride_1_has_a_grid_twice_as_fine(tiny, size_hw):
    clip, pixels = tiny("RN", last_stage_stride=1), random_pixels(size_hw)
    features = clip.encode_images(pixels)
    assert features.grid_hw == (size_hw[0] // 16, size_hw[1] // 16)
    assert_features_close(features, *slow_resnet(clip.model.visual, pixels, stride=16))


@torch.no_grad()
def test_last_stage_at_stride_1_only_leaves_the_averaging_out(tiny):
    coarse, fine = tiny("RN").model.visual, copy.deepcopy(tiny("RN").model.visual)
    keep_last_stage_at_stride_1(fine)
    assert coarse.state_dict().keys() == fine.state_dict().keys()
    entering = torch.randn(1, coarse.layer4[0].conv1.in_channels, 6, 6)
    block = coarse.layer4[0]
    # The same block by hand: with stride 1 nothing is pooled, and pooling then gives the input of the stride 2 sums.
    branch = block.bn3(block.conv3(block.act2(block.bn2(block.conv2(block.act1(block.bn1(block.conv1(entering))))))))
    shortcut = block.downsample[2](block.downsample[1](entering))
    torch.testing.assert_close(fine.layer4[0](entering), F.relu(branch + shortcut))
    pooled = F.relu(F.avg_pool2d(branch, 2) + F.avg_pool2d(shortcut, 2))
    torch.testing.assert_close(coarse.layer4[0](entering), pooled, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size_hw", SIZES)
@pytest.mark.parametrize("kind", ["ViT", "ViT-quickgelu", "ViT-avg", "ViT-scaled"])
@torch.no_grad()
def test_vit_features_equal_open_clip_built_for_that_size_and_a_slow_reference(tiny, kind, size_hw):
    clip, pixels = tiny(kind), random_pixels(size_hw)
    features = clip.encode_images(pixels)
    assert features.grid_hw == (size_hw[0] // 16, size_hw[1] // 16)
    assert_features_close(features, *slow_vit(clip.model.visual, TINY_CONFIGS[f"tiny-{kind}"]["vision_cfg"], pixels))


@pytest.mark.parametrize("size_hw", SIZES)
@torch.no_grad()
def test_siglip_features_equal_timm_set_to_that_size_and_a_slow_reference(siglip, size_hw):
    pixels = random_pixels(size_hw)
    features = siglip.encode_images(pixels)
    assert features.grid_hw == (size_hw[0] // 16, size_hw[1] // 16)
    assert_features_close(features, *slow_siglip(siglip.model.visual, pixels))


@pytest.mark.parametrize("kind", ["RN", "ViT", "ViT-quickgelu", "ViT-avg", "ViT-scaled", "siglip"])
@torch.no_grad()
def test_pooled_features_equal_open_clips_encode_image_at_the_native_size(tiny, siglip, kind):
    clip = siglip if kind == "siglip" else tiny(kind)
    pixels = random_pixels((224, 224), batch=2)
    torch.testing.assert_close(clip.encode_images(pixels).pooled, clip.model.encode_image(pixels), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["RN50", "ViT-B-32", "ViT-B-32-quickgelu", "ViT-B-16-SigLIP"])
@torch.no_grad()
def test_real_architectures_agree_with_open_clip_and_the_slow_references(name):
    config = open_clip.get_model_config(name)
    clip = build_backbone(f"{name}:random")
    disturb(clip.model)
    pixels = random_pixels((224, 224))
    features = clip.encode_images(pixels)
    # A big random network gives big numbers: 1e-5 of their size.
    reference = clip.model.encode_image(pixels)
    torch.testing.assert_close(features.pooled, reference, rtol=0, atol=1e-5 * max(1.0, reference.abs().max().item()))
    wide, visual = random_pixels((224, 288)), clip.model.visual
    if name == "RN50":
        slow = slow_resnet(visual, wide, stride=32)
    elif "SigLIP" in name:
        slow = slow_siglip(visual, wide)
    else:
        slow = slow_vit(visual, {"head_width": 64} | config["vision_cfg"], wide)
    assert_features_close(clip.encode_images(wide), *slow, rtol=1e-4)


def test_the_image_tower_is_differentiable_down_to_a_resized_position_embedding(tiny):
    visual = copy.deepcopy(tiny("RN").model.visual).requires_grad_(True)
    out = encode_pixels(visual, random_pixels((96, 160), batch=2), ["maskclip"])
    (out.pooled.square().sum() + out.dense["maskclip"].square().sum()).backward()
    for parameter in (visual.attnpool.positional_embedding, visual.conv1.weight, visual.attnpool.q_proj.weight):
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


def test_the_image_tower_runs_once_for_pooled_and_dense_features(tiny, siglip):
    for clip, module in (
        (tiny("RN"), lambda visual: visual.layer4),
        (tiny("ViT"), lambda visual: visual.transformer.resblocks[-2]),
        (siglip, lambda visual: visual.trunk.blocks[-1]),
    ):
        calls = []
        handle = module(clip.model.visual).register_forward_hook(lambda *_, calls=calls: calls.append(1))
        clip.encode_images(random_pixels((224, 224)))
        handle.remove()
        assert len(calls) == 1


def test_features_are_float32_and_need_no_gradient(tiny):
    features = tiny("ViT").encode_images(random_pixels((224, 224)).double().float())
    assert isinstance(tiny("ViT"), FrozenClip)
    assert features.pooled.dtype == features.patches.dtype == torch.float32
    assert not features.pooled.requires_grad
