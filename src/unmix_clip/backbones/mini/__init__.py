"""`mini`: the project's own small CLIP, an ordinary open_clip model that works offline.

It was pre-trained from nothing by `tools/pretrain_mini.py` with a contrastive caption loss on the embedded world
(`data/scenes`), knows the few dozen words of that world, and says so when it is asked others. Beside this file:
`model.json` (architecture and vocabulary), `weights.safetensors` (16 bit) and `training.json` (how it was trained).
"""

import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load

from unmix_clip.backbones.clip import FrozenClip
from unmix_clip.backbones.dense import keep_last_stage_at_stride_1
from unmix_clip.backbones.preprocess import Preprocessing
from unmix_clip.errors import InputError

INPUT_PX = 128
TOTAL_STRIDE = 16
CONTEXT_LENGTH = 24


def read_config() -> dict[str, Any]:
    """Return `model.json`: `embed_dim`, `vision_cfg`, `text_cfg`, `words`, `names` and `token_ids`."""
    return json.loads(resources.files(__package__).joinpath("model.json").read_text(encoding="utf-8"))


def build_mini(image_size: int | None = None) -> FrozenClip:
    """Load the embedded CLIP.

    Args:
        image_size: side of its square input in pixels, a multiple of 16; None = 128 (a grid of 8 x 8).
    """
    config = read_config()
    model = build_model(config)
    weights = load(resources.files(__package__).joinpath("weights.safetensors").read_bytes())
    model.load_state_dict({name: w.float() if w.is_floating_point() else w for name, w in weights.items()})
    side_px = image_size or INPUT_PX
    preprocess = Preprocessing("squash", (side_px, side_px), OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
    tokenizer = MiniTokenizer(config["words"], config["names"], config["token_ids"])
    return FrozenClip(model, tokenizer, preprocess, name="mini", tag="embedded")


def build_model(config: dict[str, Any]) -> CLIP:
    """Build the untrained model: a ModifiedResNet of total stride 16 and a small text tower."""
    # open_clip sizes the attention pool's position embedding as image_size / 32; ours has twice as many cells a side.
    vision_cfg = CLIPVisionCfg(**config["vision_cfg"], image_size=INPUT_PX * 32 // TOTAL_STRIDE)
    text_cfg = CLIPTextCfg(**config["text_cfg"], context_length=CONTEXT_LENGTH, vocab_size=len(config["token_ids"]))
    model = CLIP(config["embed_dim"], vision_cfg, text_cfg)
    keep_last_stage_at_stride_1(model.visual)
    return model


class MiniTokenizer:
    """CLIP's BPE tokenizer over a token table cut to the rows that the world's captions use.

    Args:
        words: the words that pre-training captions contained.
        names: the class names that they contained.
        token_ids: the rows of CLIP's table that were kept, ascending (so the end token stays the largest).
    """

    def __init__(self, words: Sequence[str], names: Sequence[str], token_ids: Sequence[int]) -> None:
        self.words = frozenset(words)
        self.names = frozenset(names)
        self.token_ids = torch.tensor(token_ids)
        self._bpe = SimpleTokenizer(context_length=CONTEXT_LENGTH)

    def unknown_words(self, text: str) -> list[str]:
        """Return the words of `text` that no pre-training caption contained."""
        return [word for word in re.findall(r"[^\s,.]+", text.lower()) if word not in self.words]

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Return rows of the cut token table (T, 24) int64; raises InputError for a word that mini never saw."""
        for text in texts:
            if unknown := self.unknown_words(text):
                raise InputError(
                    f"the backbone mini does not know the word {unknown[0]!r} (in {text!r}), just "
                    f"the {len(self.words)} of its world; use one of those or a real CLIP (--backbone RN101:openai)"
                )
        return torch.searchsorted(self.token_ids, self._bpe(list(texts)))
