"""Backbones by name: `mini`, `NAME:TAG`, `NAME:random`, `NAME:PATH` -> a `FrozenClip`.

The names, tags, configurations and weights are open_clip's; this file only looks them up and refuses what it
cannot do.
"""

import difflib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip import CLIP, CustomTextCLIP
from open_clip.factory import get_model_config
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.transform import PreprocessCfg
from torch import Tensor

from unmix_clip.backbones.clip import FrozenClip
from unmix_clip.backbones.dense import keep_last_stage_at_stride_1, native_input_hw
from unmix_clip.backbones.huggingface import find_clip_weights, read_settings, require_architecture
from unmix_clip.backbones.preprocess import Preprocessing
from unmix_clip.backbones.weights import (
    TORCH_SUFFIXES,
    fetch_published,
    find_cached,
    load_weights,
    locate_file,
)
from unmix_clip.errors import InputError

SPEC_HELP = "expected mini, NAME:TAG (RN101:openai), NAME:random or NAME:PATH"


@dataclass(frozen=True)
class BackboneListing:
    """What is known about a backbone without building it or asking the network."""

    name: str
    supported: bool
    reason: str  # why it is not supported, else ""
    tags: tuple[str, ...]  # published weights
    cached: Mapping[str, Path]  # tag -> file, for weights that are on this machine


@dataclass(frozen=True)
class _Source:
    """What a spec says about the weights: their tag, their file (None: random), and their settings."""

    tag: str
    file: Path | None
    quick_gelu: bool
    preprocess: Mapping[str, Any]
    seed: int = 0


def build_backbone(
    spec: str,
    image_size: int | tuple[int, int] | None = None,
    *,
    mode: str = "squash",
    dense: str = "maskclip",
    last_stage_stride: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> FrozenClip:
    """Build a frozen CLIP.

    Args:
        spec: `mini`, `NAME:TAG`, `NAME:random`, `NAME:random-SEED` or `NAME:PATH` (a checkpoint or a folder
            with one).
        image_size: input size in pixels, a number or (rows, columns); None is the size that the model was
            made for.
        mode: `squash`, `pad` or `tile`, see `preprocess.py`.
        dense: dense strategy, a key of `DENSE_STRATEGIES`.
        last_stage_stride: 1 for a grid twice as fine, 2 as published, None leaves it; ModifiedResNet only.
        seed: for `NAME:random`; the global random state is neither used nor changed.
        device: where to put the model.

    Raises:
        InputError: unknown name or tag (nearest ones offered), unreachable hub, unusable file, size that does
            not fit.
    """
    if spec == "mini":
        from unmix_clip.backbones.mini import build_mini  # the only import that needs the embedded weights

        clip = build_mini(None)
    else:
        clip = _build_from_open_clip(spec, seed, last_stage_stride)
    _require_device(device)
    stride = clip.identity.last_stage_stride
    if last_stage_stride not in (None, stride):
        fixed = "has no last stage" if stride is None else f"has its last stage at stride {stride}"
        raise InputError(f"{spec} {fixed}: last_stage_stride {last_stage_stride} is not possible, leave it out")
    size_hw = (image_size, image_size) if isinstance(image_size, int) else image_size
    preprocess = replace(clip.preprocess, mode=mode, input_hw=size_hw or clip.input_hw)
    return clip.with_options(preprocess, dense).to(device)


def _require_device(device: str | torch.device) -> None:
    """Raise InputError unless this machine has the device."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"device {str(device)!r} cannot be used here ({reason}); expected cpu, or cuda with a GPU"
        ) from None


def list_backbones() -> list[BackboneListing]:
    """List mini and every architecture that open_clip knows, with the weights that are in the local cache."""
    listings = [BackboneListing("mini", True, "", (), {})]
    for name in open_clip.list_models():
        reason = _why_unsupported(get_model_config(name))
        tags = tuple(list_pretrained_tags_by_model(name))
        found = {tag: find_cached(get_pretrained_cfg(name, tag)) for tag in tags}
        cached = {tag: path for tag, path in found.items() if path is not None}
        listings.append(BackboneListing(name, not reason, reason, tags, cached))
    return listings


class OpenClipTokenizer:
    """The tokenizer that open_clip pairs with a model, loaded at the first text: images need none.

    Some (SigLIP's, CLIPA's) come from the hub through the package `transformers`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._tokenize: Any = None

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Tokenize texts: (T, L) int64."""
        if self._tokenize is None:
            self._tokenize = self._load()
        return self._tokenize(list(texts))

    def _load(self) -> Any:
        source = get_model_config(self.name)["text_cfg"].get("hf_tokenizer_name")
        try:
            return open_clip.get_tokenizer(self.name)
        except ImportError as error:
            raise InputError(
                f"the tokenizer of {self.name} needs a package that is missing ({error}): "
                "pip install transformers sentencepiece"
            ) from error
        except (OSError, ValueError) as error:
            raise InputError(
                f"the tokenizer of {self.name} is not on this machine and cannot be downloaded: "
                f"run `hf download {source}` where there is a network and copy the hub cache here (HF_HOME)"
            ) from error


def _build_from_open_clip(spec: str, seed: int, last_stage_stride: int | None) -> FrozenClip:
    name, config, rest = _parse(spec)
    source = _source_of(name, config, rest, seed)
    config["quick_gelu"] = source.quick_gelu
    model = _build_model(config, source.seed)
    if source.file:
        load_weights(model, source.file, name)
    if last_stage_stride == 1 and isinstance(config["vision_cfg"].get("layers"), list):
        keep_last_stage_at_stride_1(model.visual)
    preprocess = Preprocessing(
        mode="squash",
        input_hw=native_input_hw(model.visual),
        mean=source.preprocess["mean"],
        std=source.preprocess["std"],
        interpolation=source.preprocess["interpolation"],
    )
    # The activation has a field of its own: ViT-B-32:openai and ViT-B-32-quickgelu:openai are the same.
    architecture = name.removesuffix("-quickgelu")
    return FrozenClip(model, OpenClipTokenizer(name), preprocess, name=architecture, tag=source.tag)


def _parse(spec: str) -> tuple[str, dict[str, Any], str]:
    """Split a spec into open_clip's name, its configuration, and what stands behind the colon."""
    given, colon, rest = spec.partition(":")
    name, known = given.replace("/", "-"), open_clip.list_models()
    if name not in known:
        supported = [other for other in known if not _why_unsupported(get_model_config(other))]
        raise InputError(f"backbone {spec!r} is unknown{_nearest(name, ['mini', *supported])}; {SPEC_HELP}")
    if not colon or not rest:
        raise InputError(f"backbone {spec!r} does not say which weights: {SPEC_HELP}; for {name}: {_tags_of(name)}")
    config = get_model_config(name)
    if reason := _why_unsupported(config):
        raise InputError(f"backbone {name} is not supported: {reason}")
    return name, config, rest


def _source_of(name: str, config: Mapping[str, Any], rest: str, seed: int) -> _Source:
    """Find out what the part of a spec behind the colon means."""
    quick_gelu = bool(config.get("quick_gelu", False))
    if random := re.fullmatch(r"random(?:-(\d+))?", rest):
        seed = int(random[1] or seed)
        tag = f"random-{seed}" if seed else "random"
        return _Source(tag, None, quick_gelu, _shared_preprocess(name), seed)
    if published := get_pretrained_cfg(name, rest):
        # The weights decide about the activation, not the name: OpenAI's need QuickGELU under every name.
        quick_gelu = bool(published.get("quick_gelu", quick_gelu))
        return _Source(rest, fetch_published(name, rest), quick_gelu, published)
    path = Path(rest).expanduser()
    if not path.exists():
        if os.sep in rest or path.suffix in (".safetensors", *TORCH_SUFFIXES):
            raise InputError(f"there is no file or folder {rest} for the backbone {name}: {SPEC_HELP}")
        tags = list_pretrained_tags_by_model(name)
        raise InputError(
            f"{name} has no weights {rest!r}{_nearest(rest, ['random', *tags])}; published: {_tags_of(name)}"
        )
    if (file := find_clip_weights(path)) is not None:
        require_architecture(file.parent, name)
        quick_gelu, preprocess = read_settings(file.parent)
        return _Source(rest, file, quick_gelu, {**_shared_preprocess(name), **preprocess})
    settings = _read_folder_settings(path)
    preprocess = {**_shared_preprocess(name), **settings.get("preprocess_cfg", {})}
    if "model_cfg" in settings:
        quick_gelu = bool(settings["model_cfg"].get("quick_gelu", False))
    return _Source(rest, locate_file(path), quick_gelu, preprocess)


def _build_model(config: dict[str, Any], seed: int) -> CLIP | CustomTextCLIP:
    """Build an untrained model from a configuration, from `seed` alone."""
    model_class = CustomTextCLIP if config.pop("custom_text", False) else CLIP
    if "timm_model_name" in config["vision_cfg"]:
        config["vision_cfg"]["timm_model_pretrained"] = False
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs too
        return model_class(**config)


def _shared_preprocess(name: str) -> dict[str, Any]:
    """Mean, std, interpolation that all published weights of an architecture share; else OpenAI's."""
    default = PreprocessCfg()
    settings: dict[str, Any] = {}
    for key in ("mean", "std", "interpolation"):
        published = {get_pretrained_cfg(name, tag)[key] for tag in list_pretrained_tags_by_model(name)}
        settings[key] = published.pop() if len(published) == 1 else getattr(default, key)
    return settings


def _read_folder_settings(path: Path) -> dict[str, Any]:
    """Read open_clip_config.json beside a checkpoint in a folder; {} where there is none."""
    file = path / "open_clip_config.json"
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error}): copy it again or remove it") from error


def _why_unsupported(config: Mapping[str, Any]) -> str:
    """Say why an architecture cannot be used, from its configuration alone; "" when it can."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "multimodal_cfg" in config:
        return "it is a CoCa, whose pooling leaves no features of single locations"
    if "hf_model_name" in text:
        return "its text tower is a transformers model, not one of open_clip's"
    if "timm_model_name" in vision and not (vision.get("timm_pool") == "map" and "siglip" in vision["timm_model_name"]):
        return f"dense features are not defined for its image tower {vision['timm_model_name']}"
    return ""


def _tags_of(name: str) -> str:
    return ", ".join(["random", *list_pretrained_tags_by_model(name)])


def _nearest(word: str, choices: Sequence[str]) -> str:
    """Offer the nearest of some choices, as a part of a sentence."""
    lowered = {choice.lower(): choice for choice in choices}
    near = [lowered[match] for match in difflib.get_close_matches(word.lower(), lowered, n=3, cutoff=0.5)]
    return f", the nearest are {', '.join(near)}" if near else ""
