"""Where a result came from: the versions that every result and checkpoint carries."""

import platform
from importlib.metadata import version


def versions() -> dict[str, str]:
    """Return the versions that decide the numbers."""
    packages = {"unmix_clip": "unmix-clip", "torch": "torch", "open_clip": "open_clip_torch", "numpy": "numpy"}
    return {"python": platform.python_version(), **{key: version(name) for key, name in packages.items()}}
