"""What a backbone is, exactly: written into every result and checkpoint, compared before they are used.

Two backbones are the same when the same features come out: same architecture, activation, dense strategy,
stride, preprocessing and weights. The digest looks at the weights themselves, so a file may be moved or
renamed.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from unmix_clip.backbones.preprocess import Preprocessing
from unmix_clip.errors import InputError

ACTIVATIONS = {
    "QuickGELU": "quick_gelu",
    "GELU": "gelu",
    "GELUTanh": "gelu_tanh",
    "ReLU": "relu",
    "SiLU": "silu",
}


@dataclass(frozen=True)
class BackboneIdentity:
    """The identity of one frozen CLIP, as it is configured."""

    name: str
    """open_clip's name of the architecture without `-quickgelu` (that is `activation`), or `mini`."""
    tag: str = field(compare=False)
    """Where the weights came from: a tag, `random`, or a path. Not compared: the digest says more."""
    activation: str
    """The activations in both towers, e.g. `quick_gelu+relu`: weights work only with their own."""
    dense: str
    """Name of the dense strategy, e.g. `maskclip`."""
    last_stage_stride: int | None
    """1 or 2 for a ModifiedResNet (1: a grid twice as fine), None for the others."""
    preprocessing: Preprocessing
    """How pictures become pixels, the input size included."""
    weights_digest: str
    """`digest_weights` of the model."""
    open_clip_version: str = field(default="", compare=False)
    """Version that built the model; told, not compared."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        return {**vars(self), "preprocessing": self.preprocessing.to_dict()}

    def compared(self) -> dict[str, Any]:
        """Return the compared fields, those of the preprocessing one by one as `preprocessing.mode` and so on."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.compare}
        preprocessing = values.pop("preprocessing").to_dict()
        return values | {f"preprocessing.{name}": value for name, value in preprocessing.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "BackboneIdentity":
        """Read what `to_dict` gave; raises InputError when fields are missing or unknown."""
        _require_fields(cls, values)
        _require_fields(Preprocessing, values["preprocessing"])
        return cls(**{**values, "preprocessing": Preprocessing(**values["preprocessing"])})


def require_same(expected: BackboneIdentity, actual: BackboneIdentity) -> None:
    """Raise InputError that names every difference when the features of two backbones are not the same.

    Args:
        expected: the backbone that a model, a store or a result was made with.
        actual: the backbone at hand.
    """
    if expected == actual:
        return
    before, now = expected.compared(), actual.compared()
    differences = [f"{name} {before[name]} there, {now[name]} here" for name in before if before[name] != now[name]]
    raise InputError(
        f"this was made with the backbone {expected.name}:{expected.tag}, here is {actual.name}:{actual.tag}: "
        f"{'; '.join(differences)}; use the backbone that it was made with"
    )


def digest_weights(model: nn.Module) -> str:
    """Return the SHA-256 of a model's state dict as hex: sorted names, shapes, dtypes and all bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(_raw_bytes(tensor))
    return digest.hexdigest()


def activation_of(model: nn.Module) -> str:
    """Name the activations that stand in a model, sorted and joined with `+`."""
    found = {type(module).__name__: module for module in model.modules() if type(module).__name__ in ACTIVATIONS}
    names = {
        "gelu_tanh" if getattr(module, "approximate", "none") == "tanh" else ACTIVATIONS[kind]
        for kind, module in found.items()
    }
    return "+".join(sorted(names))


def _require_fields(kind: type[BackboneIdentity] | type[Preprocessing], values: Mapping[str, Any]) -> None:
    expected, found = {item.name for item in fields(kind)}, set(values)
    if expected != found:
        raise InputError(
            f"a saved {kind.__name__} has the fields {sorted(found)}, expected {sorted(expected)}: "
            "it was written by another version of unmix-clip; make it again or use that version"
        )


def _raw_bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
