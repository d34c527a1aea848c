"""Frozen CLIPs: `build_backbone(spec)` gives the image, patch and text features of an open_clip model.

Importing this package is light; torch and open_clip come with the first name that is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unmix_clip.backbones.clip import Features, FrozenClip
    from unmix_clip.backbones.identity import BackboneIdentity, require_same
    from unmix_clip.backbones.preprocess import Preprocessing
    from unmix_clip.backbones.registry import BackboneListing, build_backbone, list_backbones

__all__ = [
    "BackboneIdentity",
    "BackboneListing",
    "Features",
    "FrozenClip",
    "Preprocessing",
    "build_backbone",
    "list_backbones",
    "require_same",
]

_HOME = {
    "BackboneIdentity": "identity",
    "BackboneListing": "registry",
    "Features": "clip",
    "FrozenClip": "clip",
    "Preprocessing": "preprocess",
    "build_backbone": "registry",
    "list_backbones": "registry",
    "require_same": "identity",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first used (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
