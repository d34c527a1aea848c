"""Whole or partial: how many pictures the published splits have (`counts.toml`)."""

import tomllib
from functools import cache
from importlib import resources


@cache
def _table() -> dict[str, dict[str, int]]:
    return tomllib.loads(resources.files(__package__).joinpath("counts.toml").read_text(encoding="utf-8"))


def published_count(kind: str, split: str) -> int | None:
    """Return how many pictures the published split has; None where none is known."""
    return _table().get(kind, {}).get(split)


def count_note(kind: str, split: str, found: int) -> dict[str, int]:
    """Return a note for `Dataset.notes` that names a partial copy as such; {} for a whole or unknown one."""
    expected = published_count(kind, split)
    return {} if expected in (None, found) else {f"of {expected} pictures, not the published split": found}
