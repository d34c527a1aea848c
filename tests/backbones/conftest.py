"""Models for the backbone tests: tiny ones of every family, and a few real ones, all with random weights."""

import json
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
from tiny_models import TEXT, TINY_CONFIGS, disturb

from unmix_clip.backbones import FrozenClip, Preprocessing, build_backbone
from unmix_clip.backbones.registry import OpenClipTokenizer


@pytest.fixture(scope="session", autouse=True)
def tiny_configs(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Make the tiny architectures known to open_clip, by its own way of adding some."""
    folder: Path = tmp_path_factory.mktemp("model_configs")
    for name, config in TINY_CONFIGS.items():
        (folder / f"{name}.json").write_text(json.dumps({"embed_dim": 24, "text_cfg": TEXT} | config))
    open_clip.add_model_config(folder)


@pytest.fixture(scope="session")
def tiny(tiny_configs: None) -> Callable[..., FrozenClip]:
    """`tiny("RN")` -> a tiny backbone with disturbed weights, built once."""
    built: dict[tuple[str, int | None], FrozenClip] = {}

    def build(family: str, last_stage_stride: int | None = None) -> FrozenClip:
        key = (family, last_stage_stride)
        if key not in built:
            clip = build_backbone(f"tiny-{family}:random", last_stage_stride=last_stage_stride)
            disturb(clip.model)
            built[key] = FrozenClip(clip.model, clip.tokenizer, clip.preprocess, name=f"tiny-{family}", tag="test")
        return built[key]

    return build


@pytest.fixture(scope="session")
def siglip() -> FrozenClip:
    """ViT-B-16-SigLIP's image tower with 2 of its 12 blocks, beside a tiny text tower."""
    vision = open_clip.get_model_config("ViT-B-16-SigLIP")["vision_cfg"]
    model = open_clip.CustomTextCLIP(768, vision, TEXT | {"width": 32})
    model.visual.trunk.blocks = model.visual.trunk.blocks[:2]
    disturb(model)
    half = (0.5, 0.5, 0.5)
    return FrozenClip(
        model,
        OpenClipTokenizer("ViT-B-16-SigLIP"),
        Preprocessing("squash", (224, 224), half, half),
        name="siglip",
        tag="test",
    )
