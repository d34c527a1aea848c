"""Learned prompts: context vectors in place of a template's words, through the frozen text tower, with gradients.

As CoOp (arXiv 2109.01134) and DualCoOp (arXiv 2206.09541, models/dualcoop.py) do: start token, context vectors, the
name's tokens and a full stop (left out for a closed vocabulary without one), end token.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from open_clip.transformer import text_global_pool
from torch import Tensor

from unmix_clip.backbones.clip import FrozenClip
from unmix_clip.errors import InputError


class ContextEncoder:
    """Text features of some names as a function of context vectors.

    Args:
        backbone: the frozen CLIP; only its text tower is used.
        names: the C classes.
    """

    def __init__(self, backbone: FrozenClip, names: Sequence[str]) -> None:
        self._backbone, self._names = backbone, list(names)

    @property
    def width(self) -> int:
        """Width E of the tower's token embeddings."""
        return int(self._tower.token_embedding.weight.shape[1])

    def embed(self, text: str) -> Tensor:
        """Return the token embeddings (M, E) of a text without start and end: a context that says these words."""
        ids = self._backbone.tokenizer([text])[0]
        end = int(ids.argmax())
        return self._tower.token_embedding(ids[1:end].to(self._backbone.device)).detach().cpu()

    def __call__(self, context: Tensor) -> Tensor:
        """Return text features (C, D) of every name behind context vectors (M, E), or (C, M, E) one set a name.

        Raises:
            InputError: context and longest name together exceed the tower's context length.
        """
        tower, tokens = self._tower, self._tokens
        count, device = context.shape[-2], self._backbone.device
        room = tokens.shape[1] - count
        if int(tokens.argmax(1).max()) >= room:
            raise InputError(
                f"{count} context tokens and the longest name exceed the {tokens.shape[1]} tokens of this text tower; "
                "expected fewer (--set context_tokens=4)"
            )
        shared = context if context.ndim == 3 else context.expand(len(tokens), -1, -1)
        words = tower.token_embedding(tokens[:, :room])
        x = torch.cat([words[:, :1], shared.to(device), words[:, 1:]], dim=1) + tower.positional_embedding
        x = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask))  # (C, L, E)
        # Ids in the places where the tokens stand now, so that the end token is found by the tower's own rule.
        filler = tokens[:, 1:2].expand(-1, count)
        moved = torch.cat([tokens[:, :1], filler, tokens[:, 1:room]], dim=1)
        pool = getattr(tower, "text_pool_type", None) or tower.pool_type
        pooled = text_global_pool(x, moved, pool, eos_token_id=getattr(tower, "text_eos_id", None))
        projection = tower.text_projection
        if projection is None:
            return pooled.cpu()
        return (projection(pooled) if isinstance(projection, torch.nn.Linear) else pooled @ projection).float().cpu()

    @property
    def _tower(self) -> Any:
        """The part of the model that holds the text tower's parts."""
        model: Any = self._backbone.model
        return getattr(model, "text", model)

    @cached_property
    def _tokens(self) -> Tensor:
        closed = getattr(self._backbone.tokenizer, "names", None) is not None
        texts = self._names if closed else [f"{name}." for name in self._names]
        return self._backbone.tokenizer(texts).to(self._backbone.device)
