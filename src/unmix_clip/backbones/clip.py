"""`FrozenClip`: one adapter over every supported open_clip model; pictures and texts in, features out.

It wraps the model as it is, runs the image tower once for pooled and dense features (`dense/`), and never
changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import open_clip
import PIL.Image
import torch
import torch.nn.functional as F
from open_clip import CLIP, CustomTextCLIP
from torch import Tensor, nn

from unmix_clip.backbones.dense import (
    defined_strategies,
    encode_pixels,
    native_input_hw,
    total_stride,
    tower_family,
)
from unmix_clip.backbones.identity import BackboneIdentity, activation_of, digest_weights
from unmix_clip.backbones.preprocess import TILES, Preprocessing
from unmix_clip.errors import InputError


class Tokenizer(Protocol):
    """Texts -> token ids (T, L) int64; with a method `unknown_words(text)` when its vocabulary is closed."""

    def __call__(self, texts: list[str], /) -> Tensor:
        """Tokenize."""


@dataclass(frozen=True)
class Features:
    """What the image side gives for a batch; float32, not normalised, in the space of the text features."""

    pooled: Tensor  # (B, D), as the model's own encode_image
    patches: Tensor  # (B, N, D), one feature a location, row-major
    grid_hw: tuple[int, int]  # rows and columns of locations, N = rows * columns


class FrozenClip(nn.Module):
    """A CLIP that nothing trains: eval mode, no gradients, `.train()` changes nothing.

    Args:
        model: an `open_clip.CLIP` or `open_clip.CustomTextCLIP`; it is frozen in place.
        tokenizer: the model's own.
        preprocess: how pictures become pixels; its input size must suit the image tower.
        name: the architecture, for the identity.
        tag: where the weights came from, for the identity.
        dense: name of the dense strategy of `encode_images`, one of `dense_names`.
        weights_digest: the digest of the weights where it is known already, else computed.
    """

    model: CLIP | CustomTextCLIP

    def __init__(
        self,
        model: CLIP | CustomTextCLIP,
        tokenizer: Tokenizer,
        preprocess: Preprocessing,
        *,
        name: str,
        tag: str,
        dense: str = "maskclip",
        weights_digest: str | None = None,
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        super().train(False)
        self.tokenizer = tokenizer
        _require_dense([dense], model.visual, name)
        self.preprocess = replace(preprocess, multiple_hw=_multiple_for(preprocess.input_hw, model.visual))
        self.identity = BackboneIdentity(
            name=name,
            tag=tag,
            activation=activation_of(model),
            dense=dense,
            last_stage_stride=last_stage_stride(model.visual),
            preprocessing=self.preprocess,
            weights_digest=weights_digest or digest_weights(model),
            open_clip_version=open_clip.__version__,
        )

    @property
    def embed_dim(self) -> int:
        """Width D of pooled, dense and text features."""
        visual = self.model.visual
        return visual.output_dim if hasattr(visual, "output_dim") else visual.trunk.num_features

    @property
    def input_hw(self) -> tuple[int, int]:
        """Rows and columns of pixels that the model sees at a time."""
        return self.preprocess.input_hw

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Rows and columns of locations that a preprocessed picture gives, all tiles together."""
        return self._grid_of(self.preprocess.canvas_hw)

    @property
    def dense_names(self) -> tuple[str, ...]:
        """The dense strategies that are defined for this family of image towers."""
        return defined_strategies(self.model.visual)

    @property
    def device(self) -> torch.device:
        """Where the weights are; pixels and tokens are brought there."""
        return next(self.model.parameters()).device

    def train(self, mode: bool = True) -> Self:
        """Do nothing: a frozen CLIP stays in eval mode, also inside a module that is trained."""
        return self

    def with_options(self, preprocess: Preprocessing | None = None, dense: str | None = None) -> "FrozenClip":
        """Return the same weights with another preprocessing or dense strategy; no copy, no new digest."""
        return FrozenClip(
            self.model,
            self.tokenizer,
            preprocess or self.preprocess,
            name=self.identity.name,
            tag=self.identity.tag,
            dense=dense or self.identity.dense,
            weights_digest=self.identity.weights_digest,
        )

    def encode_images(self, pixels: Tensor) -> Features:
        """Encode pictures with this backbone's own dense strategy; see `encode_dense`."""
        return self.encode_dense(pixels, [self.identity.dense])[self.identity.dense]

    @torch.no_grad()
    def encode_dense(self, pixels: Tensor, names: Sequence[str]) -> dict[str, Features]:
        """Encode pictures that `preprocess.to_pixels` made by several dense strategies, in one pass of the image tower.

        Args:
            pixels: (B, 3, H, W) float32, normalised, of any size: what is missing to a multiple of the total stride
                is filled up at the bottom and right with the mean colour; or tiles (B, T, 3, H, W), whose dense
                features are put together to one grid and whose pooled feature is the mean of the L2-normalised
                pooled features of the tiles.
            names: strategies, some of `dense_names`.

        Returns:
            The features by strategy; `pooled` is the same in all.

        Raises:
            InputError: pixels of another kind or shape, a strategy that does not exist for this image tower.
        """
        _require_dense(names, self.model.visual, self.identity.name)
        if pixels.ndim == 5:
            return self._encode_tiles(pixels, names)
        if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point():
            raise InputError(
                f"pixels are {pixels.dtype} of shape {tuple(pixels.shape)}, expected float32 (B, 3, H, W): "
                "use preprocess.to_pixels(image) and torch.stack"
            )
        size_hw = (pixels.shape[-2], pixels.shape[-1])
        multiple_hw = _multiple_for(size_hw, self.model.visual)
        missing = [-size % multiple for size, multiple in zip(size_hw, multiple_hw, strict=True)]
        whole = F.pad(pixels.to(self.device), (0, missing[1], 0, missing[0]))  # zero is the mean colour
        encoded = encode_pixels(self.model.visual, whole, names)
        pooled, grid_hw = encoded.pooled.float(), self._grid_of(whole.shape[-2:])
        return {name: Features(pooled, patches.float(), grid_hw) for name, patches in encoded.dense.items()}

    def encode_pictures(self, images: Sequence[PIL.Image.Image], batch_size: int = 16) -> Features:
        """Preprocess and encode pictures, `batch_size` at a time."""
        if not images:
            raise InputError("no pictures to encode: pass at least one")
        parts = [
            self.encode_images(torch.stack([self.preprocess.to_pixels(image) for image in images[i : i + batch_size]]))
            for i in range(0, len(images), batch_size)
        ]
        pooled, patches = (
            torch.cat([part.pooled for part in parts]),
            torch.cat([part.patches for part in parts]),
        )
        return Features(pooled, patches, parts[0].grid_hw)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Encode texts with the model's own tokenizer and encode_text: (T, D) float32, not normalised."""
        if isinstance(texts, str):
            raise InputError(f"encode_texts takes a list of texts, found the single text {texts!r}: pass [{texts!r}]")
        features = [
            self.model.encode_text(self.tokenizer(list(texts[i : i + batch_size])).to(self.device)).float()
            for i in range(0, len(texts), batch_size)
        ]
        return torch.cat(features) if features else torch.empty(0, self.embed_dim, device=self.device)

    def unknown_words(self, text: str) -> list[str]:
        """Return the words of a text that the model was never taught; always empty for an open vocabulary."""
        lookup = getattr(self.tokenizer, "unknown_words", None)
        return lookup(text) if lookup else []

    def unknown_name(self, name: str) -> bool:
        """Whether a class name is outside a closed vocabulary: a word of it, such as "light", is not yet a name."""
        names = getattr(self.tokenizer, "names", None)
        return bool(self.unknown_words(name)) or (names is not None and name not in names)

    def require_known(self, names: Sequence[str]) -> None:
        """Raise InputError that lists the class names which this backbone cannot know."""
        unknown = [name for name in names if self.unknown_name(name)]
        if unknown:
            raise InputError(
                f"the backbone {self.identity.name} does not know {', '.join(map(repr, unknown))}: use names of "
                "its own small vocabulary, or a CLIP with an open one (--backbone RN101:openai)"
            )

    def _encode_tiles(self, pixels: Tensor, names: Sequence[str]) -> dict[str, Features]:
        """(B, T, 3, H, W) -> features of the whole pictures."""
        if pixels.shape[1] != TILES**2:
            raise InputError(f"found {pixels.shape[1]} tiles a picture, expected {TILES**2} ({TILES} x {TILES})")
        return {name: _join_tiles(tiles) for name, tiles in self.encode_dense(pixels.flatten(0, 1), names).items()}

    def _grid_of(self, size_hw: Sequence[int]) -> tuple[int, int]:
        stride_hw = total_stride(self.model.visual)
        return (size_hw[0] // stride_hw[0], size_hw[1] // stride_hw[1])


def last_stage_stride(visual: nn.Module) -> int | None:
    """Return the stride of a ModifiedResNet's last stage, None for other image towers."""
    return int(visual.layer4[0].stride) if tower_family(visual) == "modified_resnet" else None  # type: ignore


def _join_tiles(tiles: Features) -> Features:
    """Features of tiles (B * T) -> features of the whole pictures (B)."""
    rows, columns = tiles.grid_hw
    patches = tiles.patches.unflatten(1, (rows, columns)).unflatten(0, (-1, TILES, TILES))
    patches = patches.transpose(2, 3).flatten(1, 4)  # (B, T rows, h, T columns, w, D) -> (B, N, D)
    pooled = F.normalize(tiles.pooled, dim=-1).unflatten(0, (-1, TILES**2)).mean(dim=1)
    return Features(pooled, patches, (TILES * rows, TILES * columns))


def _require_dense(names: Sequence[str], visual: nn.Module, backbone: str) -> None:
    """Raise InputError unless the image tower is supported and the dense strategies are defined for its family."""
    defined = defined_strategies(visual)
    if not defined:
        raise InputError(
            f"the image tower of {backbone} is not supported: use a ModifiedResNet (RN50, RN101, ...), "
            "a ViT (ViT-B-32, ...) or a SigLIP (ViT-B-16-SigLIP, ...)"
        )
    for name in names:
        if name not in defined:
            raise InputError(
                f"dense strategy {name!r} does not exist for {backbone}: choose one of {', '.join(defined)}"
            )


def _multiple_for(size_hw: tuple[int, int], visual: nn.Module) -> tuple[int, int]:
    """What sizes must be multiples of: the total stride, but a tower's own native size is taken as it is."""
    return (1, 1) if size_hw == native_input_hw(visual) else total_stride(visual)
