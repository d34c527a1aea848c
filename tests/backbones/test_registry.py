"""Backbones by name: every kind of spec, nearest names, local files, the hub's cache and its absence."""

import json
import pickle
import sys
import time
import types

import huggingface_hub.constants
import open_clip
import pytest
import torch
from open_clip import pretrained
from safetensors.torch import save_file

from unmix_clip.backbones import build_backbone, list_backbones, registry
from unmix_clip.errors import InputError

PUBLISHED = {
    "url": "",
    "hf_hub": "some-org/tiny-vit/",
    "mean": (0.1, 0.2, 0.3),
    "std": (0.4, 0.5, 0.6),
    "interpolation": "bilinear",
    "quick_gelu": True,
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A published tiny-ViT:openai, an empty hub cache, and no hub."""
    monkeypatch.setitem(
        pretrained._PRETRAINED, "tiny-ViT", {"openai": PUBLISHED, "plain": PUBLISHED | {"quick_gelu": False}}
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    return tmp_path / "hub"


def place_in_cache(hub, state):
    repository = hub / "models--some-org--tiny-vit"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    save_file(state, repository / "snapshots" / "abc" / "open_clip_model.safetensors")


def weights_of(spec):
    return {name: tensor.contiguous() for name, tensor in build_backbone(spec).model.state_dict().items()}


def pooled_of(clip):
    return clip.encode_images(torch.linspace(-1, 1, 3 * 224 * 224).reshape(1, 3, 224, 224)).pooled


def one_line(caught):
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- specs -------------------------------------------------------------------------------------------------------


def test_random_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = build_backbone("tiny-RN:random").identity
    state = torch.get_rng_state()
    second = build_backbone("tiny-RN:random").identity
    assert torch.equal(state, torch.get_rng_state())
    assert first == second
    other = build_backbone("tiny-RN:random", seed=5).identity
    assert other.weights_digest != first.weights_digest
    assert (first.tag, other.tag) == ("random", "random-5")
    assert build_backbone("tiny-RN:random-5").identity == other


def test_open_clips_spelling_with_a_slash_is_accepted():
    assert registry._parse("ViT-B/32:random")[0] == "ViT-B-32"


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("RN5O:openai", ["'RN5O:openai' is unknown", "nearest are RN50", "NAME:PATH"]),
        ("ViT-B32:openai", ["nearest are", "ViT-B-32"]),
        ("minni", ["unknown", "mini"]),
        ("", ["unknown", "expected mini"]),
        ("RN50", ["does not say which weights", "NAME:TAG", "openai"]),
        ("RN50:", ["does not say which weights"]),
        ("RN50:opnai", ["no weights 'opnai'", "nearest are openai", "published: random, openai"]),
        ("RN50:/no/such/file.safetensors", ["no file or folder /no/such/file.safetensors", "NAME:PATH"]),
        ("coca_ViT-B-32:random", ["not supported", "CoCa"]),
        ("EVA02-B-16:random", ["not supported", "eva02"]),
        ("roberta-ViT-B-32:random", ["not supported", "text tower"]),
    ],
)
def test_a_spec_that_means_nothing_is_answered_with_what_would(spec, parts):
    with pytest.raises(InputError) as caught:
        build_backbone(spec)
    for part in parts:
        assert part in one_line(caught)


def test_mini_takes_the_same_options(tiny, monkeypatch):
    fake = types.ModuleType("mini")
    fake.build_mini = lambda image_size: tiny("RN", last_stage_stride=1)
    monkeypatch.setitem(sys.modules, "unmix_clip.backbones.mini", fake)
    clip = build_backbone("mini", 64, mode="tile")
    assert (clip.input_hw, clip.grid_hw, clip.identity.last_stage_stride) == ((64, 64), (8, 8), 1)
    assert build_backbone("mini", last_stage_stride=1).input_hw == (224, 224)
    with pytest.raises(InputError, match="mini has its last stage at stride 1: last_stage_stride 2"):
        build_backbone("mini", last_stage_stride=2)


def test_options_reach_the_backbone():
    clip = build_backbone("tiny-RN:random", (64, 96), mode="pad", last_stage_stride=1)
    assert (clip.input_hw, clip.grid_hw) == ((64, 96), (4, 6))
    assert (clip.preprocess.mode, clip.identity.last_stage_stride) == ("pad", 1)
    assert build_backbone("tiny-RN:random", 96).input_hw == (96, 96)
    assert build_backbone("tiny-RN:random", last_stage_stride=2).grid_hw == (7, 7)


def test_a_stride_that_a_tower_cannot_have_is_refused():
    with pytest.raises(InputError, match="tiny-ViT:random has no last stage"):
        build_backbone("tiny-ViT:random", last_stage_stride=1)
    with pytest.raises(InputError, match="last stage at stride 2: last_stage_stride 3"):
        build_backbone("tiny-RN:random", last_stage_stride=3)


def test_an_image_size_off_the_grid_gets_a_grid_that_covers_it():
    assert build_backbone("tiny-RN:random", 230).grid_hw == (8, 8)


def test_colours_are_openais_or_siglips_as_published():
    assert registry._shared_preprocess("RN50")["mean"] == open_clip.OPENAI_DATASET_MEAN
    assert registry._shared_preprocess("ViT-B-16-SigLIP")["mean"] == (0.5, 0.5, 0.5)
    assert registry._shared_preprocess("ViT-B-16-SigLIP")["interpolation"] == "bicubic"


# --- activation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tag", "quick_gelu"),
    [
        ("ViT-B-32", "openai", True),
        ("ViT-B-32-quickgelu", "openai", True),
        ("RN50", "openai", True),
        ("ViT-B-32", "laion2b_s34b_b79k", False),
        ("ViT-B-32", "laion400m_e32", True),
        ("ViT-B-16", "laion2b_s34b_b88k", False),
        ("ViT-B-16-SigLIP", "webli", False),
    ],
)
def test_the_weights_decide_about_quickgelu_and_not_the_name(monkeypatch, name, tag, quick_gelu):
    monkeypatch.setattr(registry, "fetch_published", lambda name, tag: None)
    assert registry._source_of(name, open_clip.get_model_config(name), tag, 0).quick_gelu is quick_gelu


def test_openai_weights_from_the_cache_are_built_with_quickgelu_and_their_colours(hub):
    place_in_cache(hub, weights_of("tiny-ViT-quickgelu:random"))
    quick, gelu = build_backbone("tiny-ViT-quickgelu:random"), build_backbone("tiny-ViT:random")
    openai, plain = build_backbone("tiny-ViT:openai"), build_backbone("tiny-ViT:plain")
    assert torch.equal(pooled_of(openai), pooled_of(quick))
    assert torch.equal(pooled_of(plain), pooled_of(gelu))
    assert not torch.allclose(pooled_of(openai), pooled_of(plain), atol=1e-4)
    assert openai.identity.activation == "quick_gelu"
    assert (openai.preprocess.mean, openai.preprocess.interpolation) == ((0.1, 0.2, 0.3), "bilinear")


# --- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["w.safetensors", "w.pt", "wrapped.pth", "open_clip_model.safetensors"])
def test_a_local_checkpoint_gives_the_same_backbone_as_its_source(tmp_path, file):
    state = weights_of("tiny-RN:random-3")
    if file.endswith(".safetensors"):
        save_file(state, tmp_path / file)
    else:  # as open_clip's own training saves it
        torch.save(
            {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}} if "wrap" in file else state,
            tmp_path / file,
        )
    path = tmp_path if file.startswith("open_clip") else tmp_path / file
    clip = build_backbone(f"tiny-RN:{path}")
    assert clip.identity == build_backbone("tiny-RN:random-3").identity
    assert clip.identity.tag == str(path)


def test_a_hub_folder_brings_its_own_activation_and_colours(tmp_path):
    save_file(weights_of("tiny-ViT:random"), tmp_path / "open_clip_model.safetensors")
    settings = {"model_cfg": {"quick_gelu": True}, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(settings))
    identity = build_backbone(f"tiny-ViT:{tmp_path}").identity
    assert identity.activation == "quick_gelu"
    assert identity.preprocessing.mean == (0.5, 0.5, 0.5)
    (tmp_path / "open_clip_config.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        build_backbone(f"tiny-ViT:{tmp_path}")


class Intruder:
    def __reduce__(self):
        return (exec, ("import builtins; builtins.intruded = True",))


def test_a_file_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    import builtins

    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"a": Intruder()}))
    torch.save({"a": torch.zeros(1), "b": Intruder()}, tmp_path / "evil2.pt")
    for file in ("evil.pt", "evil2.pt"):
        with pytest.raises(InputError, match="weights_only=True") as caught:
            build_backbone(f"tiny-RN:{tmp_path / file}")
        assert "safetensors" in one_line(caught)
    assert not hasattr(builtins, "intruded")


def test_a_torchscript_archive_is_refused(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "jit.pt")
    with pytest.raises(InputError, match="is a TorchScript archive"):
        build_backbone(f"tiny-RN:{tmp_path / 'jit.pt'}")


def test_damaged_empty_foreign_and_misfit_files_are_told_apart(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00")
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 no zip")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "notes.txt").write_text("hello")
    save_file(weights_of("tiny-ViT:random"), tmp_path / "vit.safetensors")
    (tmp_path / "empty").mkdir()
    for file, part in {
        "cut.safetensors": "not a readable safetensors file",
        "cut.pt": "damaged",
        "list.pt": "no named tensors",
        "notes.txt": "no checkpoint format",
        "vit.safetensors": "not those of tiny-RN",
        "empty": "holds no open_clip_model.safetensors",
    }.items():
        with pytest.raises(InputError) as caught:
            build_backbone(f"tiny-RN:{tmp_path / file}")
        assert part in one_line(caught), file


# --- the hub -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offline", [True, False])
def test_an_unreachable_hub_is_told_fast_in_one_line_with_the_file_to_place(hub, monkeypatch, offline):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    start = time.monotonic()
    with pytest.raises(InputError) as caught:
        build_backbone("tiny-ViT:openai")
    assert time.monotonic() - start < 8
    message = one_line(caught)
    assert ("HF_HUB_OFFLINE is set" if offline else "http://127.0.0.1:9") in message
    for part in ("open_clip_model.safetensors", "some-org/tiny-vit", str(hub), "tiny-ViT-quickgelu:PATH"):
        assert part in message


def test_a_download_that_fails_midway_is_told_the_same_way(hub, monkeypatch):
    from unmix_clip.backbones import weights

    def fail(published):
        raise FileNotFoundError("Failed to download file:\nconnection reset")

    monkeypatch.setattr(weights, "_why_unreachable", lambda: None)
    monkeypatch.setattr(weights, "download_pretrained", fail)
    with pytest.raises(InputError, match="connection reset") as caught:
        build_backbone("tiny-ViT:plain")
    assert "tiny-ViT:PATH" in one_line(caught)


def test_cached_weights_are_used_without_asking_the_network(hub, monkeypatch):
    from unmix_clip.backbones import weights

    place_in_cache(hub, weights_of("tiny-ViT:random"))
    monkeypatch.setattr(weights, "_why_unreachable", lambda: pytest.fail("asked the network"))
    assert build_backbone("tiny-ViT:plain").identity.tag == "plain"


def test_the_list_says_what_is_supported_and_what_is_cached(hub, monkeypatch):
    place_in_cache(hub, weights_of("tiny-ViT:random"))
    listed = {listing.name: listing for listing in list_backbones()}
    assert listed["mini"].supported
    for name in (
        "RN50",
        "RN101",
        "RN50x4",
        "ViT-B-32",
        "ViT-B-16",
        "ViT-L-14",
        "ViT-L-14-336-quickgelu",
        "ViT-B-16-SigLIP",
    ):
        assert listed[name].supported, name
    assert "openai" in listed["RN50"].tags
    assert not listed["RN50"].cached
    assert listed["tiny-ViT"].cached["openai"].name == "open_clip_model.safetensors"
    assert not listed["coca_ViT-B-32"].supported
    assert listed["coca_ViT-B-32"].reason
