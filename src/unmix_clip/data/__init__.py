"""Where pictures and labels come from: `load_data(spec)` reads any kind of data set into a `Dataset`."""

from collections.abc import Callable, Sequence
from typing import Any

from unmix_clip.data.samples import Dataset
from unmix_clip.errors import InputError


def _scenes(rest: str, classes: Sequence[str] | None) -> Dataset:
    from unmix_clip.data.scenes import load_scenes

    split, _, query = rest.partition("?")
    options: dict[str, Any] = {}
    for item in filter(None, query.split("&")):
        key, _, value = item.partition("=")
        if key not in ("n", "seed", "size") or not value.isdigit():
            raise InputError(f"scenes has no option {item!r}; expected n=, seed= or size= with a whole number")
        options[key] = int(value)
    return load_scenes(split or "test", **options)


def load_data(spec: str, classes: Sequence[str] | None = None) -> Dataset:
    """Read a data set."""
    if spec.startswith("scenes"):
        return _scenes(spec[6:].removeprefix("@"), classes)
    raise InputError("soon")


KINDS: dict[str, Callable[..., Dataset]] = {}
