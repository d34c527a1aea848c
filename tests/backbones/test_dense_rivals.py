"""SCLIP, ClearCLIP, NACLIP, CLIP Surgery, SC-CLIP against slow references, written here from the papers' formulas."""

import copy
import math

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from test_dense_features import random_pixels, slow_resize
from tiny_models import TEXT, VIT, disturb

from unmix_clip.backbones import FrozenClip
from unmix_clip.backbones.dense import DENSE_STRATEGIES
from unmix_clip.backbones.dense.sc_clip import find_anomalies, replace_by_neighbours
from unmix_clip.backbones.dense.self_attention import gaussian_of_distance
from unmix_clip.errors import InputError

SIZES = [(224, 224), (160, 288)]  # native; another, not square
SELF_SELF = ["sclip", "clearclip", "naclip", "clip-surgery"]


@pytest.fixture(scope="module")
def deep(tiny):
    """`deep(12)` -> a tiny ViT with that many blocks."""
    built = {}

    def build(depth):
        if depth not in built:
            model = open_clip.CLIP(24, VIT | {"layers": depth}, TEXT)
            disturb(model)
            base = tiny("ViT")
            built[depth] = FrozenClip(model, base.tokenizer, base.preprocess, name=f"tiny-{depth}", tag="test")
        return built[depth]

    return build


# --- slow references: one picture, one head and one token at a time, in float64 ----------------------------------


def vit_levels(visual, pixels):
    """Tokens (1 + N, E) after 0, 1, ... blocks of an open_clip ViT, all but the last; and the grid."""
    patches = visual.conv1(pixels)[0]
    _, rows, columns = patches.shape
    positions = slow_resize(visual.positional_embedding, visual.grid_size, (rows, columns), prefix=1)
    tokens = [visual.class_embedding] + [patches[:, y, x] for y in range(rows) for x in range(columns)]
    levels = [visual.ln_pre(torch.stack(tokens) + positions)]
    for block in visual.transformer.resblocks[:-1]:
        levels.append(block(levels[-1][None])[0])
    return levels, (rows, columns)


def resnet_tokens(visual, pixels):
    """The attention pool's tokens (1 + N, E), mean first; the grid; and the four stages' maps (E, h, w)."""
    maps = visual.forward_intermediates(pixels, indices=4, intermediates_only=True)["image_intermediates"]
    maps = [each[0] for each in maps]
    _, rows, columns = maps[-1].shape
    locations = torch.stack([maps[-1][:, y, x] for y in range(rows) for x in range(columns)])
    positions = slow_resize(visual.attnpool.positional_embedding, (7, 7), (rows, columns), prefix=1)
    return torch.cat([locations.mean(0, keepdim=True), locations]) + positions, (rows, columns), maps


def linear(weight, bias, tokens):
    return tokens.double() @ weight.double().T + bias.double()


def vit_parts(block, tokens):
    """q, k, v (T, E) of a block's attention."""
    normed, width = block.ln_1(tokens), tokens.shape[1]
    weight, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
    return {
        part: linear(weight[i * width : (i + 1) * width], bias[i * width : (i + 1) * width], normed)
        for i, part in enumerate("qkv")
    }


def resnet_parts(pool, tokens):
    maps = {"q": pool.q_proj, "k": pool.k_proj, "v": pool.v_proj}
    return {part: linear(module.weight, module.bias, tokens) for part, module in maps.items()}


def siglip_parts(pool, tokens):
    width = tokens.shape[1]
    return {
        "k": linear(pool.kv.weight[:width], pool.kv.bias[:width], tokens),
        "v": linear(pool.kv.weight[width:], pool.kv.bias[width:], tokens),
    }


def vit_output(block, mixed):
    scale = getattr(block.ls_1, "gamma", torch.ones(1)).double()
    return scale * linear(block.attn.out_proj.weight, block.attn.out_proj.bias, mixed)


def vit_end(visual, tokens):
    return (visual.ln_post(tokens.float()) @ visual.proj).double()


def softmax(logits):
    powers = (logits - logits.max()).exp()
    return powers / powers.sum()


def attend(itself, values, heads, added=None):
    """Tokens (T, E) compared with themselves, head by head: softmax(x_i . x_j / sqrt(d) + added_ij) of the values."""
    mixed = torch.zeros_like(values)
    for part in torch.arange(values.shape[1]).chunk(heads):
        for i in range(len(values)):
            logits = itself[:, part] @ itself[i, part] / math.sqrt(len(part))
            logits = logits if added is None else logits + added[i]
            mixed[i, part] = softmax(logits) @ values[:, part]
    return mixed


def neighbourhood(grid_hw, prefix):
    """NACLIP's Gaussian, standard deviation 5 cells; a prefix token is nobody's neighbour."""
    cells = [(y, x) for y in range(grid_hw[0]) for x in range(grid_hw[1])]
    added = torch.zeros(prefix + len(cells), prefix + len(cells), dtype=torch.float64)
    for i, (y, x) in enumerate(cells):
        for j, (v, u) in enumerate(cells):
            added[prefix + i, prefix + j] = math.exp(-((y - v) ** 2 + (x - u) ** 2) / (2 * 5**2))
    return added


def mix(name, parts, heads, grid_hw, prefix):
    if name == "sclip":
        return attend(parts["q"], parts["v"], heads) + attend(parts["k"], parts["v"], heads)
    if name == "clearclip":
        return attend(parts["q"], parts["v"], heads)
    if name == "naclip":
        return attend(parts["k"], parts["v"], heads, neighbourhood(grid_hw, prefix))
    return attend(parts["v"], parts["v"], heads)


def slow_vit(name, visual, pixels):
    levels, grid_hw = vit_levels(visual, pixels)
    blocks, heads = visual.transformer.resblocks, visual.transformer.resblocks[0].attn.num_heads
    if name == "clip-surgery":
        first = max(0, len(blocks) - 6)
        tokens = levels[first].double()
        for entering, block in list(zip(levels, blocks, strict=True))[first:]:
            tokens = tokens + vit_output(block, mix(name, vit_parts(block, entering), heads, grid_hw, 1))
    else:
        block = blocks[-1]
        tokens = vit_output(block, mix(name, vit_parts(block, levels[-1]), heads, grid_hw, 1))
        if name == "sclip":
            tokens = levels[-1].double() + tokens
            scale = getattr(block.ls_2, "gamma", torch.ones(1))
            tokens = tokens + scale * block.mlp(block.ln_2(tokens.float()))
    return vit_end(visual, tokens[1:])


def slow_resnet(name, visual, pixels):
    tokens, grid_hw, _ = resnet_tokens(visual, pixels)
    pool = visual.attnpool
    mixed = mix(name, resnet_parts(pool, tokens), pool.num_heads, grid_hw, 1)
    return linear(pool.c_proj.weight, pool.c_proj.bias, mixed)[1:]


def slow_siglip(name, visual, pixels):
    visual.trunk.set_input_size(tuple(pixels.shape[2:]))
    tokens, pool = visual.trunk.forward_features(pixels)[0], visual.trunk.attn_pool
    grid_hw = (pixels.shape[2] // 16, pixels.shape[3] // 16)
    y = linear(pool.proj.weight, pool.proj.bias, mix(name, siglip_parts(pool, tokens), pool.num_heads, grid_hw, 0))
    normed = F.layer_norm(y.float(), y.shape[1:], pool.norm.weight, pool.norm.bias, pool.norm.eps)
    hidden = F.gelu(linear(pool.mlp.fc1.weight, pool.mlp.fc1.bias, normed))
    return y + linear(pool.mlp.fc2.weight, pool.mlp.fc2.bias, hidden)


def slow_anomalies(tokens):
    """Local outlier factor as SC-CLIP has it: my 30th nearest is how much farther than that of my 30 nearest."""
    nearest, reach = [], []
    for i, token in enumerate(tokens):
        others = sorted((distance, j) for j, distance in enumerate(((tokens - token) ** 2).sum(1).tolist()) if j != i)
        nearest.append([j for _, j in others[:30]])
        reach.append(others[29][0])
    factors = [np.mean([reach[i] / reach[j] for j in others]) for i, others in enumerate(nearest)]
    return [i for i, factor in enumerate(factors) if factor > np.quantile(factors, 0.95)]


def slow_replace(tokens, anomalies, grid_hw):
    replaced = tokens.clone()
    for i in anomalies:
        y, x = divmod(i, grid_hw[1])
        around = [(v, u) for v in (y - 1, y, y + 1) for u in (x - 1, x, x + 1)]
        around = [v * grid_hw[1] + u for v, u in around if 0 <= v < grid_hw[0] and 0 <= u < grid_hw[1]]
        if ordinary := [j for j in around if j not in anomalies]:
            replaced[i] = sum(tokens[j] for j in ordinary) / len(ordinary)
    return replaced


def cosine_matrix(tokens):
    unit = torch.stack([token / token.norm() for token in tokens])
    return torch.stack([unit @ one for one in unit])


def slow_average(tokens, cosines):
    """Each token becomes the mean of those it has a cosine of 0.4 or more with, weighted by it."""
    rows = []
    for row in cosines:
        alike = [j for j, cosine in enumerate(row.tolist()) if cosine >= 0.4]
        rows.append(row[alike] @ tokens[alike] / (row[alike].sum() + 1e-6))
    return torch.stack(rows)


def slow_calibrated_attention(parts, heads, cosines):
    by_cosines, mean = [], cosines.mean()  # of the whole picture
    for row in cosines:
        above = [j for j, cosine in enumerate(row.tolist()) if cosine >= mean]
        by_cosines.append(softmax(3 * (row[above] - mean)) @ parts["v"][above])
    return (attend(parts["k"], parts["v"], heads) + torch.stack(by_cosines)) / 2


def slow_sc_clip_vit(visual, pixels, middle, early, fused):
    """SC-CLIP; `middle`, `early`, `fused` say after how many blocks its tokens are taken."""
    levels, grid_hw = vit_levels(visual, pixels)
    levels = [level.double() for level in levels]
    block = visual.transformer.resblocks[-1]
    anomalies = slow_anomalies(levels[-1][1:])
    cosines = cosine_matrix(slow_replace(levels[middle][1:], anomalies, grid_hw))
    early_cosines = cosine_matrix(levels[early][1:])
    for each in (cosines, early_cosines):
        assert 0 < (each < 0.4).sum() < each.numel() - len(each)  # the threshold matters
    summed = sum(levels[i] for i in fused)
    dense = 0
    for tokens, class_token in (
        (slow_average(slow_replace(levels[-1][1:], anomalies, grid_hw), cosines), levels[-1][0]),
        (summed[1:], summed[0]),
    ):
        parts = vit_parts(block, tokens.float())
        mixed = vit_output(block, slow_calibrated_attention(parts, block.attn.num_heads, cosines))
        dense = dense + slow_average(mixed + 0.3 * class_token, early_cosines)
    return vit_end(visual, dense)


def slow_sc_clip_resnet(visual, pixels):
    tokens, (rows, columns), maps = resnet_tokens(visual, pixels)
    tokens, pool = tokens[1:].double(), visual.attnpool
    anomalies = slow_anomalies(tokens)
    stages = []
    for stage in (maps[2], maps[1]):  # the third, the second
        high, wide = stage.shape[1] // rows, stage.shape[2] // columns
        cells = [
            stage[:, y * high : (y + 1) * high, x * wide : (x + 1) * wide].double().mean((1, 2))
            for y in range(rows)
            for x in range(columns)
        ]
        stages.append(torch.stack(cells))
    stages[0] = slow_replace(stages[0], anomalies, (rows, columns))
    cosines, early_cosines = (cosine_matrix(stage - stage.mean(0)) for stage in stages)
    adjusted = slow_average(slow_replace(tokens, anomalies, (rows, columns)), cosines)
    mixed = slow_calibrated_attention(resnet_parts(pool, adjusted), pool.num_heads, cosines)
    return slow_average(linear(pool.c_proj.weight, pool.c_proj.bias, mixed), early_cosines)


def assert_dense(clip, name, pixels, reference, rtol=2e-5):
    """Equal to `rtol` of the reference's size: our float32 against float64."""
    found = clip.encode_dense(pixels, [name])[name].patches[0].double()
    assert found.shape == reference.shape
    torch.testing.assert_close(found, reference.double(), rtol=0, atol=rtol * reference.abs().max().item())


# --- tests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_hw", SIZES)
@pytest.mark.parametrize("name", SELF_SELF)
@pytest.mark.parametrize("kind", ["ViT", "ViT-scaled"])
@torch.no_grad()
def test_a_vits_self_attention_equals_a_slow_reference(tiny, kind, name, size_hw):
    pixels = random_pixels(size_hw)
    assert_dense(tiny(kind), name, pixels, slow_vit(name, tiny(kind).model.visual, pixels))


@torch.no_grad()
def test_clip_surgery_starts_its_second_path_six_blocks_before_the_end(deep):
    pixels = random_pixels((160, 288))
    assert_dense(deep(12), "clip-surgery", pixels, slow_vit("clip-surgery", deep(12).model.visual, pixels))


@pytest.mark.parametrize("size_hw", SIZES)
@pytest.mark.parametrize("name", SELF_SELF)
@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_an_attention_pools_self_attention_equals_a_slow_reference(tiny, stride, name, size_hw):
    clip, pixels = tiny("RN", last_stage_stride=stride), random_pixels(size_hw)
    assert_dense(clip, name, pixels, slow_resnet(name, clip.model.visual, pixels))


@pytest.mark.parametrize("name", ["naclip", "clip-surgery"])
@torch.no_grad()
def test_siglips_pool_attending_to_itself_equals_a_slow_reference(siglip, name):
    pixels = random_pixels((96, 160))
    assert_dense(siglip, name, pixels, slow_siglip(name, copy.deepcopy(siglip.model.visual), pixels))
    assert_dense(siglip, name, (native := random_pixels((224, 224))), slow_siglip(name, siglip.model.visual, native))


@pytest.mark.parametrize("size_hw", SIZES)
@pytest.mark.parametrize(
    ("depth", "middle", "early", "fused"),
    [(12, 9, 4, range(4, 11)), (24, 18, 8, range(8, 21, 2)), (3, 2, 1, [1, 2, 2, 2, 2, 2, 2])],
)
@torch.no_grad()
def test_sc_clip_of_a_vit_equals_a_slow_reference(deep, depth, middle, early, fused, size_hw):
    pixels = random_pixels(size_hw)
    reference = slow_sc_clip_vit(deep(depth).model.visual, pixels, middle, early, fused)
    assert_dense(deep(depth), "sc-clip", pixels, reference)


@pytest.mark.parametrize("size_hw", SIZES)
@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_sc_clip_of_an_attention_pool_equals_a_slow_reference(tiny, stride, size_hw):
    clip, pixels = tiny("RN", last_stage_stride=stride), random_pixels(size_hw)
    # Small differences of big features are rounded more: 1e-4; in float64 the two agree to 1e-9.
    assert_dense(clip, "sc-clip", pixels, slow_sc_clip_resnet(clip.model.visual, pixels), rtol=1e-4)


def test_a_location_unlike_all_others_is_an_anomaly_in_its_own_picture_only():
    locations = torch.randn(2, 60, 8, generator=torch.Generator().manual_seed(0))
    locations[0, 17] += 20
    anomalous = find_anomalies(locations)
    assert anomalous[0, 17]
    assert not anomalous[1, 17]
    assert anomalous.sum(1).tolist() == [3, 3]  # above the 0.95 quantile of 60
    assert find_anomalies(torch.ones(1, 40, 8)).sum() == 0  # all the same
    assert find_anomalies(torch.ones(1, 1, 8)).tolist() == [[False]]


def test_an_anomaly_becomes_the_mean_of_its_ordinary_neighbours_or_stays():
    values = torch.arange(6.0)[None, :, None]  # 0 1 2 / 3 4 5
    anomalous = torch.tensor([[True, True, False, False, False, False]])
    replaced = replace_by_neighbours(values, anomalous, (2, 3))[0, :, 0]
    torch.testing.assert_close(replaced, torch.tensor([3.5, 3.5, 2, 3, 4, 5]))  # (3+4)/2 and (2+3+4+5)/4
    everything = torch.ones(1, 6, dtype=torch.bool)
    torch.testing.assert_close(replace_by_neighbours(values, everything, (2, 3)), values)


def test_the_gaussian_is_that_of_the_distance_on_any_grid():
    gaussian = gaussian_of_distance((2, 3), std=5.0)
    torch.testing.assert_close(gaussian[0, 5].item(), math.exp(-(1 + 4) / 50))  # one row down, two columns right
    assert gaussian.diagonal().tolist() == [1.0] * 6


@pytest.mark.parametrize("kind", ["RN", "ViT", "siglip"])
def test_several_strategies_from_one_pass_equal_each_alone(tiny, siglip, kind):
    clip = siglip if kind == "siglip" else tiny(kind)
    first = {"RN": "layer1", "ViT": "transformer.resblocks.0", "siglip": "trunk.blocks.0"}[kind]
    pixels, calls = random_pixels((160, 224), batch=2), []
    hook = clip.model.visual.get_submodule(first).register_forward_hook(lambda *_: calls.append(1))
    together = clip.encode_dense(pixels, clip.dense_names)
    hook.remove()
    assert len(calls) == 1
    assert list(together) == list(clip.dense_names)
    for name, features in together.items():
        alone = clip.with_options(dense=name).encode_images(pixels)
        assert features.grid_hw == alone.grid_hw
        torch.testing.assert_close(features.patches, alone.patches)
        torch.testing.assert_close(features.pooled, alone.pooled)
        torch.testing.assert_close(features.pooled, clip.encode_images(pixels).pooled)
        # ... and pictures do not see each other.
        torch.testing.assert_close(features.patches[1:], clip.encode_dense(pixels[1:], [name])[name].patches)


def test_tiles_are_put_together_for_every_strategy(tiny):
    clip = tiny("RN", last_stage_stride=1)
    tiles = torch.randn(2, 4, 3, 64, 96)
    for name, features in clip.encode_dense(tiles, clip.dense_names).items():
        assert features.grid_hw == (8, 12)
        third = clip.encode_dense(tiles[1, 2:3], [name])[name].patches  # the lower left one
        found = features.patches[1].reshape(8, 12, -1)[4:, :6]
        torch.testing.assert_close(found, third[0].reshape(4, 6, -1))


@pytest.mark.parametrize("kind", ["RN", "ViT", "ViT-avg"])
@pytest.mark.parametrize("size_hw", [(32, 32), (32, 96)])
def test_small_and_empty_pictures_give_finite_features(tiny, kind, size_hw):
    clip = tiny(kind)
    for pixels in (torch.zeros(1, 3, *size_hw), random_pixels(size_hw)):
        for name, features in clip.encode_dense(pixels, clip.dense_names).items():
            assert features.patches.isfinite().all(), name
            assert features.patches.abs().max() < 100, name


def test_strategies_are_listed_by_family_and_others_are_refused(tiny, siglip):
    assert tiny("ViT").dense_names == tiny("RN").dense_names == tuple(DENSE_STRATEGIES)
    assert siglip.dense_names == ("maskclip", "clip-surgery", "naclip")
    with pytest.raises(InputError, match="'sclip' does not exist for siglip: choose one of maskclip, clip-surgery, n"):
        siglip.encode_dense(random_pixels((32, 32)), ["maskclip", "sclip"])
    with pytest.raises(InputError, match="'sc-clip' does not exist for siglip"):
        siglip.with_options(dense="sc-clip")
    with pytest.raises(InputError, match=r"'magic' does not exist .* maskclip, .*sc-clip"):
        tiny("RN").encode_dense(random_pixels((32, 32)), ["magic"])
