"""The embedded world: scenes with exact labels and masks, generated from a seed; no files, no downloads.

Splits `train`, `val` and `test` show the world's seen names and differ in their random numbers only. Every picture of
`unseen` shows at least one name that is missing from those three, beside names of any kind.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from unmix_clip.data.samples import Dataset, Sample
from unmix_clip.data.scenes.compose import compose_scene, draw_names, scene_rng
from unmix_clip.data.scenes.world import load_world, world_digest
from unmix_clip.errors import InputError

SPLIT_SIZES = {"train": 4000, "val": 1000, "test": 2000, "unseen": 1000}
SIZE_PX = 128
GENERATOR_VERSION = 1
"""To be raised when the same seed would draw another picture: features that were stored are then computed again."""


def load_scenes(split: str = "test", *, n: int | None = None, seed: int = 0, size: int = SIZE_PX) -> Dataset:
    """Return one split of the world.

    Args:
        split: `train`, `val`, `test` or `unseen`.
        n: number of scenes, the first n of the split; None = `SPLIT_SIZES`.
        seed: another seed is another world of the same kind.
        size: side of the pictures in pixels.
    """
    if split not in SPLIT_SIZES:
        raise InputError(f"scenes has no split {split!r}; expected one of {', '.join(SPLIT_SIZES)}")
    n = SPLIT_SIZES[split] if n is None else n
    if n < 1 or size < 32 or seed < 0:
        raise InputError(f"scenes got n={n}, size={size}, seed={seed}; expected n >= 1, size >= 32 and seed >= 0")
    world = load_world()
    classes = world.classes if split == "unseen" else world.seen
    samples = [_sample(split, index, seed, size, classes) for index in range(n)]
    spec = f"scenes@{split}?n={n}&seed={seed}&size={size}"
    return Dataset(spec=spec, classes=classes, samples=samples, notes={})


def class_groups(classes: Sequence[str]) -> dict[str, list[int]]:
    """Return the indices of the world's seen and unseen names in a class list; {} where it has no unseen ones."""
    unseen = [i for i, name in enumerate(classes) if name in load_world().unseen]
    return {"seen": [i for i in range(len(classes)) if i not in unseen], "unseen": unseen} if unseen else {}


def _sample(split: str, index: int, seed: int, size: int, classes: tuple[str, ...]) -> Sample:
    """Describe one scene; it is drawn when its picture or mask is asked for."""

    def draw() -> tuple[np.random.Generator, list[str]]:
        rng = scene_rng(seed, split, index)
        world = load_world()
        allowed = world.classes if split == "unseen" else world.seen
        return rng, draw_names(rng, allowed, world.unseen if split == "unseen" else allowed, most=5)

    def load_image() -> Image.Image:
        return Image.fromarray(compose_scene(*draw(), size).pixels)

    def load_mask() -> np.ndarray:
        scene = compose_scene(*draw(), size)
        class_of = np.array([0, *(classes.index(name) + 1 for name in scene.names)], dtype=np.int32)
        return class_of[scene.mask]

    labels = np.zeros(len(classes), dtype=np.int8)
    labels[[classes.index(name) for name in draw()[1]]] = 1
    recipe = f"scenes {GENERATOR_VERSION} {world_digest()} {split} {index} {seed} {size}"
    return Sample(
        key=f"{split}/{index:06d}",
        labels=labels,
        load_image=load_image,
        load_mask=load_mask,
        digest=hashlib.sha256(recipe.encode()).hexdigest(),
        image_hw=(size, size),
    )
