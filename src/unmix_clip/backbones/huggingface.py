"""Hugging Face `CLIPModel` folders as weights: config.json, model.safetensors, and if there preprocessor_config.json.

The layers are those of an open_clip ViT under other names (transformers, models/clip/modeling_clip.py); the three parts
of an attention's input projection stand apart there and together here.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.factory import get_model_config
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from torch import Tensor

from unmix_clip.errors import InputError
from unmix_clip.files import read_json

FILES = ("model.safetensors", "pytorch_model.bin")
"""How transformers names its weights, the safe format first."""
NAMES = {
    r"text_model\.embeddings\.token_embedding\.": "token_embedding.",
    r"text_model\.embeddings\.position_embedding\.weight": "positional_embedding",
    r"text_model\.final_layer_norm\.": "ln_final.",
    r"text_model\.encoder\.layers\.": "transformer.resblocks.",
    r"vision_model\.embeddings\.class_embedding": "visual.class_embedding",
    r"vision_model\.embeddings\.patch_embedding\.": "visual.conv1.",
    r"vision_model\.embeddings\.position_embedding\.weight": "visual.positional_embedding",
    r"vision_model\.pre_layrnorm\.": "visual.ln_pre.",  # transformers' own spelling
    r"vision_model\.post_layernorm\.": "visual.ln_post.",
    r"vision_model\.encoder\.layers\.": "visual.transformer.resblocks.",
    r"text_projection\.weight": "text_projection",
    r"visual_projection\.weight": "visual.proj",
    r"self_attn\.": "attn.",
    r"layer_norm(\d)\.": r"ln_\1.",
    r"mlp\.fc1\.": "mlp.c_fc.",
    r"mlp\.fc2\.": "mlp.c_proj.",
}
"""From transformers' names to open_clip's, as patterns."""
TRANSPOSED = ("text_projection", "visual.proj")
"""Matrices that open_clip multiplies from the right."""
TOWER = {"num_hidden_layers": 12, "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu"}
TEXT = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
VISION = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "image_size": 224, "patch_size": 32}
DEFAULTS: dict[str, dict[str, Any]] = {
    "text_config": {**TOWER, **TEXT, "vocab_size": 49408, "max_position_embeddings": 77},
    "vision_config": {**TOWER, **VISION},
}
"""What a config.json leaves out (transformers, models/clip/configuration_clip.py)."""
PLAIN = {
    "vision_cfg": {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size"},
    "text_cfg": {"layers", "width", "heads", "mlp_ratio", "context_length", "vocab_size"},
}
"""Options of open_clip's towers that a `CLIPModel` has as well; any other makes an architecture that it cannot be."""


def find_clip_weights(path: Path) -> Path | None:
    """Return the weights of the `CLIPModel` folder that a path is or lies in; None where it is none of transformers.

    Raises:
        InputError: a folder of transformers with another model, or without weights.
    """
    folder = path if path.is_dir() else path.parent
    if not (folder / "config.json").is_file() or (path != folder and path.name not in FILES):
        return None
    kind = _read_config(folder).get("model_type")
    if kind is None:
        return None
    found = [path] if path != folder else [folder / file for file in FILES if (folder / file).is_file()]
    if not found and any(folder.glob("open_clip_*.*")):
        return None  # open_clip's own weights of the same model, as some repositories have both
    if kind != "clip":
        raise InputError(f"{folder} holds a Hugging Face model of type {kind!r}; expected 'clip' (a CLIPModel)")
    if not found:
        raise InputError(f"the folder {folder} holds no {' and no '.join(FILES)}: download the whole model")
    return found[0]


def read_settings(folder: Path) -> tuple[bool, dict[str, Any]]:
    """Return whether the model uses QuickGELU (transformers' default), and mean and std of its preprocessing."""
    activations = {_tower(_read_config(folder), part)["hidden_act"] for part in DEFAULTS}
    if len(activations) > 1 or not activations <= {"quick_gelu", "gelu"}:
        raise InputError(f"{folder}/config.json has the activations {sorted(activations)}; expected quick_gelu or gelu")
    preprocess: dict[str, Any] = {}
    if (folder / "preprocessor_config.json").is_file():
        given = read_json(folder / "preprocessor_config.json", "preprocessing")
        preprocess = {key: given[f"image_{key}"] for key in ("mean", "std") if f"image_{key}" in given}
    return activations == {"quick_gelu"}, preprocess


def require_architecture(folder: Path, name: str) -> None:
    """Raise InputError unless config.json describes open_clip's architecture `name`: shapes do not tell the heads."""
    config = _read_config(folder)
    found = {"projection_dim": config.get("projection_dim", 512)}
    for part in DEFAULTS:
        tower = _tower(config, part)
        found |= {f"{part}.{key}": tower[key] for key in DEFAULTS[part] if key != "hidden_act"}
    expected = _described(get_model_config(name))
    if found == expected:
        return
    what = (
        f"no plain ViT like {name}"
        if not expected
        else ", ".join(f"{key} {found[key]} (expected {expected[key]})" for key in found if found[key] != expected[key])
    )
    names = [other for other in open_clip.list_models() if found == _described(get_model_config(other))]
    fitting = [other for other in names if not other.endswith("-quickgelu")]  # the activation is config.json's
    remedy = f"name {' or '.join(fitting)}" if fitting else "open_clip has no architecture that fits"
    raise InputError(f"the weights in {folder} are of another architecture than {name}: {what}; {remedy}")


def _read_config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "config.json", "Hugging Face model")
    return config if isinstance(config, dict) else {}


def _tower(config: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Return the settings of one tower; `text_config_dict`, which old versions wrote beside `text_config`, wins."""
    return {**DEFAULTS[part], **(config.get(part) or {}), **(config.get(f"{part}_dict") or {})}


def _described(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a config.json would say of an open_clip architecture; {} where a `CLIPModel` cannot be one."""
    if config.get("custom_text") or any(set(config[part]) - options for part, options in PLAIN.items()):
        return {}
    if not isinstance(config["vision_cfg"]["layers"], int):
        return {}
    vision, text = CLIPVisionCfg(**config["vision_cfg"]), CLIPTextCfg(**config["text_cfg"])
    heads = {"text_config": text.heads, "vision_config": vision.width // vision.head_width}
    described: dict[str, Any] = {"projection_dim": config["embed_dim"]}
    for part, tower in (("text_config", text), ("vision_config", vision)):
        described |= {
            f"{part}.hidden_size": tower.width,
            f"{part}.intermediate_size": int(tower.width * tower.mlp_ratio),
            f"{part}.num_hidden_layers": tower.layers,
            f"{part}.num_attention_heads": heads[part],
            f"{part}.layer_norm_eps": TOWER["layer_norm_eps"],
        }
    return described | {
        "text_config.vocab_size": text.vocab_size,
        "text_config.max_position_embeddings": text.context_length,
        "vision_config.image_size": vision.image_size,
        "vision_config.patch_size": vision.patch_size,
    }


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a `CLIPModel` to those of open_clip's `CLIP`."""
    renamed: dict[str, Tensor] = {}
    for given, tensor in state.items():
        if given.endswith("position_ids"):
            continue  # counts from 0 on, stored by old versions
        name = given
        for pattern, wanted in NAMES.items():
            name = re.sub(pattern, wanted, name)
        renamed[name] = tensor.T.contiguous() if name in TRANSPOSED and name != given else tensor
    return _joined(renamed)


def _joined(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put q, k and v of every attention into one input projection."""
    joined: dict[str, Tensor] = {}
    for name, tensor in state.items():
        part = re.fullmatch(r"(.*\.attn\.)([qkv])_proj\.(weight|bias)", name)
        if part is None:
            joined[name] = tensor
        elif part[2] == "q":
            parts = [state.get(f"{part[1]}{letter}_proj.{part[3]}") for letter in "qkv"]
            if any(each is None for each in parts):
                raise InputError(f"the weights have {name} without its k and v; expected a whole CLIPModel")
            joined[f"{part[1]}in_proj_{part[3]}"] = torch.cat(parts)  # type: ignore[arg-type]
    return joined
