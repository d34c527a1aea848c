"""Hugging Face `CLIPModel` folders as weights: config.json, model.safetensors, and if there preprocessor_config.json.

The layers are those of an open_clip ViT under other names (transformers, models/clip/modeling_clip.py); the three parts
of an attention's input projection stand apart there and together here.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
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


def find_clip_weights(folder: Path) -> Path | None:
    """Return the weights of a `CLIPModel` folder; None where the folder is not one of transformers.

    Raises:
        InputError: a folder of transformers with another model, or without weights.
    """
    if not (folder / "config.json").is_file():
        return None
    config = read_json(folder / "config.json", "Hugging Face model")
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind is None:
        return None
    if kind != "clip":
        raise InputError(f"{folder} holds a Hugging Face model of type {kind!r}; expected 'clip' (a CLIPModel)")
    found = [folder / file for file in FILES if (folder / file).is_file()]
    if not found:
        raise InputError(f"the folder {folder} holds no {' and no '.join(FILES)}: download the whole model")
    return found[0]


def read_settings(folder: Path) -> tuple[bool, dict[str, Any]]:
    """Return whether the model uses QuickGELU (transformers' default), and mean and std of its preprocessing."""
    config = read_json(folder / "config.json", "Hugging Face model")
    activations = {
        (config.get(part) or {}).get("hidden_act", "quick_gelu") for part in ("text_config", "vision_config")
    }
    if len(activations) > 1 or not activations <= {"quick_gelu", "gelu"}:
        raise InputError(f"{folder}/config.json has the activations {sorted(activations)}; expected quick_gelu or gelu")
    preprocess: dict[str, Any] = {}
    if (folder / "preprocessor_config.json").is_file():
        given = read_json(folder / "preprocessor_config.json", "preprocessing")
        preprocess = {key: given[f"image_{key}"] for key in ("mean", "std") if f"image_{key}" in given}
    return activations == {"quick_gelu"}, preprocess


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a `CLIPModel` to those of open_clip's `CLIP`."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith("position_ids"):
            continue  # counts from 0 on, stored by old versions
        for pattern, wanted in NAMES.items():
            name = re.sub(pattern, wanted, name)
        renamed[name] = tensor.T.contiguous() if name in TRANSPOSED else tensor
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
