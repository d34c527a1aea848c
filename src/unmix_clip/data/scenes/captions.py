"""Captions for pre-training the embedded CLIP: what a person might write under a scene, in a few dozen words.

Captions name all, some or one of the objects, in any order, and now and then what is absent. They are the only
supervision that `mini` ever gets; the words of these templates and of the class names are all the words it knows.
"""

import re
from collections.abc import Sequence

import numpy as np

from unmix_clip.data.scenes.world import load_world

OPENINGS = ("a photo of", "a picture of", "a scene with", "this is", "")
JOINS = ("and", "with", "beside", "near")
ABSENCES = ("a photo without a {}", "not a photo of a {}", "there is no {} in this picture")
ABSENCE_SHARE = 0.06
"""Probability that a caption only says what is absent."""


def known_words() -> tuple[str, ...]:
    """Return every word that a caption can contain, sorted."""
    text = " ".join([*OPENINGS, *JOINS, *ABSENCES, *load_world().classes])
    return tuple(sorted(set(re.findall(r"[a-z]+", text))))


def write_caption(rng: np.random.Generator, names: Sequence[str], most: int) -> str:
    """Write one caption of a picture.

    Args:
        rng: source of randomness.
        names: what the picture shows, at least one name.
        most: largest number of objects that the caption mentions.
    """
    if rng.random() < ABSENCE_SHARE:
        absent = [name for name in load_world().classes if name not in names]
        return ABSENCES[rng.integers(len(ABSENCES))].format(absent[rng.integers(len(absent))])
    told = [names[i] for i in rng.permutation(len(names))[:most]]
    phrase = f"a {told[0]}"
    for i, name in enumerate(told[1:], start=2):
        last = i == len(told)
        phrase += f" {JOINS[rng.integers(len(JOINS))]} a {name}" if last else f", a {name}"
    return f"{OPENINGS[rng.integers(len(OPENINGS))]} {phrase}".strip()
