"""Captions for pre-training the embedded CLIP: what a person might write under a scene, in a few dozen words.

As on the web, a caption mostly names what stands out and leaves the rest unsaid: half of them tell one object, the
largest as a rule; a fifth tell all. Now and then one says what is absent. Captions are the only supervision that `mini`
ever gets; the words of these templates and of the class names are all the words it knows.
"""

import re

import numpy as np

from unmix_clip.data.scenes.compose import Scene
from unmix_clip.data.scenes.world import load_world

OPENINGS = ("a photo of", "a picture of", "a scene with", "this is", "")
JOINS = ("and", "with", "beside", "near")
ABSENCES = ("a photo without a {}", "not a photo of a {}", "there is no {} in this picture")
TOLD = (0.5, 0.3, 0.2)
"""Probability that a caption tells one object, two, or all."""
SALIENCE_NOISE = 0.35
"""Standard deviation of the noise on the logarithm of an object's visible area, by which objects are ordered."""
ABSENCE_SHARE = 0.06
"""Probability that a caption only says what is absent."""


def known_words() -> tuple[str, ...]:
    """Return every word that a caption can contain, sorted."""
    text = " ".join([*OPENINGS, *JOINS, *ABSENCES, *load_world().classes])
    return tuple(sorted(set(re.findall(r"[a-z]+", text))))


def write_caption(rng: np.random.Generator, scene: Scene) -> str:
    """Write one caption of a scene."""
    names = scene.names
    if rng.random() < ABSENCE_SHARE:
        absent = [name for name in load_world().classes if name not in names]
        return ABSENCES[rng.integers(len(ABSENCES))].format(absent[rng.integers(len(absent))])
    areas = np.bincount(scene.mask.ravel(), minlength=len(names) + 1)[1:]
    salience = np.log(areas + 1.0) + rng.normal(0, SALIENCE_NOISE, len(names))
    count = (1, 2, len(names))[rng.choice(3, p=TOLD)]
    told = [names[i] for i in np.argsort(-salience)[:count]]
    phrase = f"a {told[0]}"
    for i, name in enumerate(told[1:], start=2):
        last = i == len(told)
        phrase += f" {JOINS[rng.integers(len(JOINS))]} a {name}" if last else f", a {name}"
    return f"{OPENINGS[rng.integers(len(OPENINGS))]} {phrase}".strip()
