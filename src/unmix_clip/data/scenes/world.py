"""What the embedded world contains: names, glyphs, themes and companions, read once from `world.toml`."""

import hashlib
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.metadata import version


@dataclass(frozen=True)
class World:
    """The contents of `world.toml`."""

    classes: tuple[str, ...]
    """Every name that pre-training pictures and captions contain."""
    unseen: tuple[str, ...]
    """The names of `classes` that projector training never meets."""
    glyphs: dict[str, tuple[str, ...]]
    """The glyphs (FONT.NAME) that depict a class; one is drawn at random."""
    themes: dict[str, tuple[str, ...]]
    companions: dict[str, tuple[str, ...]]

    @property
    def seen(self) -> tuple[str, ...]:
        """The names of the splits train, val and test, in class order."""
        return tuple(name for name in self.classes if name not in self.unseen)


@cache
def world_digest() -> str:
    """Return a digest of what the pictures depend on beside the code: world.toml and the fonts' versions."""
    text = resources.files(__package__).joinpath("world.toml").read_bytes()
    fonts = [version(f"fonticon-{name}") for name in ("materialdesignicons7", "fontawesome6")]
    return hashlib.sha256(text + " ".join(fonts).encode()).hexdigest()


@cache
def load_world() -> World:
    """Read the world's definition."""
    text = resources.files(__package__).joinpath("world.toml").read_text(encoding="utf-8")
    table = tomllib.loads(text)

    def tuples(section: str) -> dict[str, tuple[str, ...]]:
        return {name: tuple(values) for name, values in table[section].items()}

    return World(
        classes=tuple(table["glyphs"]),
        unseen=tuple(table["unseen"]),
        glyphs=tuples("glyphs"),
        themes=tuples("themes"),
        companions=tuples("companions"),
    )
