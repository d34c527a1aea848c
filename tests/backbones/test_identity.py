"""The identity of a backbone: equal exactly when the same features come out, and differences are named."""

import copy
import json
from dataclasses import replace

import pytest
import torch

from unmix_clip.backbones import BackboneIdentity, require_same
from unmix_clip.backbones.identity import activation_of, digest_weights
from unmix_clip.errors import InputError


def test_digest_changes_with_one_weight_a_name_a_shape_or_a_dtype():
    layer = torch.nn.Linear(3, 4)
    digest = digest_weights(layer)
    assert digest == digest_weights(copy.deepcopy(layer))
    assert len(digest) == 64
    nudged, halved, wrapped = copy.deepcopy(layer), copy.deepcopy(layer).half(), torch.nn.Sequential(layer)
    nudged.weight.data[2, 1] += 1e-7 + nudged.weight.data[2, 1].abs() * 1e-6
    reshaped = torch.nn.Linear(4, 3)
    reshaped.weight.data = layer.weight.data.reshape(3, 4)
    reshaped.bias.data = layer.bias.data
    others = [digest_weights(other) for other in (nudged, halved, wrapped, reshaped)]
    assert len({digest, *others}) == 5


def test_digest_covers_buffers_scalars_and_bfloat16():
    norm = torch.nn.BatchNorm2d(2).bfloat16()
    before = digest_weights(norm)
    norm.num_batches_tracked += 1
    assert digest_weights(norm) != before


def test_activation_is_read_from_the_model_itself(tiny, siglip):
    assert tiny("RN").identity.activation == "gelu+relu"
    assert tiny("ViT").identity.activation == "gelu"
    assert tiny("ViT-quickgelu").identity.activation == "quick_gelu"
    assert siglip.identity.activation == "gelu"
    assert activation_of(torch.nn.GELU(approximate="tanh")) == "gelu_tanh"


def test_quickgelu_and_gelu_of_the_same_weights_are_not_the_same_backbone(tiny):
    gelu, quick = tiny("ViT").identity, tiny("ViT-quickgelu").identity
    assert gelu.weights_digest == quick.weights_digest
    with pytest.raises(InputError, match=r"activation gelu there, quick_gelu here"):
        require_same(gelu, replace(quick, name=gelu.name))


def test_identity_survives_json(tiny):
    identity = tiny("RN").identity
    assert BackboneIdentity.from_dict(json.loads(json.dumps(identity.to_dict()))) == identity
    assert hash(identity)


def test_an_identity_of_another_version_is_refused_with_its_fields(tiny):
    values = tiny("RN").identity.to_dict()
    with pytest.raises(InputError, match="colour"):
        BackboneIdentity.from_dict(values | {"colour": 1})
    del values["preprocessing"]["mean"]
    with pytest.raises(InputError, match="Preprocessing"):
        BackboneIdentity.from_dict(values)


def test_require_same_names_every_difference_with_both_values(tiny):
    identity = tiny("RN").identity
    require_same(identity, replace(identity, open_clip_version="9.9", tag="elsewhere"))
    other = replace(
        identity,
        weights_digest="f" * 64,
        preprocessing=replace(identity.preprocessing, input_hw=(448, 448), mode="pad"),
    )
    with pytest.raises(InputError) as caught:
        require_same(identity, other)
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "weights_digest",
        "f" * 64,
        identity.weights_digest,
        "preprocessing.mode squash there, pad here",
        "448",
    ):
        assert part in message
    assert "activation" not in message


@pytest.mark.parametrize(
    "change", [{"name": "RN101"}, {"dense": "sclip"}, {"last_stage_stride": 1}, {"activation": "quick_gelu+relu"}]
)
def test_every_compared_field_makes_a_different_backbone(tiny, change):
    identity = tiny("RN").identity
    with pytest.raises(InputError, match=next(iter(change))):
        require_same(identity, replace(identity, **change))


def test_stride_option_is_part_of_the_identity_and_leaves_the_weights(tiny):
    coarse, fine = tiny("RN").identity, tiny("RN", last_stage_stride=1).identity
    assert (coarse.last_stage_stride, fine.last_stage_stride) == (2, 1)
    assert coarse.weights_digest == fine.weights_digest
    assert tiny("ViT").identity.last_stage_stride is None
