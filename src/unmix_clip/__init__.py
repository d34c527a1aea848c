"""unmix-clip: measure how a CLIP mixes up classes, unmix it, then tag, localise and segment every object of a picture.

The open implementation of Unmix-CLIP / DCLIP (arXiv 2502.02977).

Letters in shapes, everywhere: B batch, n pictures, C classes, T texts, D width of the backbone, d projected width,
N locations (row-major), H W pixels, h w grid. Size pairs are (rows, columns) and their names end in `_hw`.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from unmix_clip.backbones import build_backbone
    from unmix_clip.config import TrainConfig, load_config
    from unmix_clip.data import load_data
    from unmix_clip.errors import InputError
    from unmix_clip.unmixer import Unmixer

__all__ = ["InputError", "TrainConfig", "Unmixer", "build_backbone", "load_config", "load_data"]

_HOME = {
    "InputError": "errors",
    "TrainConfig": "config",
    "Unmixer": "unmixer",
    "build_backbone": "backbones",
    "load_config": "config",
    "load_data": "data",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562): `import unmix_clip` loads no torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
