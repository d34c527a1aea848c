"""How segmentation is scored, by name. A number without its protocol means nothing: papers differ by many points.

`standard` and `standard-objects` take one confusion matrix over the whole data set, as all rivals report. The `paper`
ones reproduce what the author's public code prints, and compare with nothing else.
"""

from dataclasses import dataclass

from unmix_clip.errors import InputError


@dataclass(frozen=True)
class Protocol:
    """A way to score masks."""

    name: str
    background: str
    """`threshold`: locations whose best map is below a threshold fitted on another split are background, a class of its
    own; `ignored`: pixels that are background in truth do not count, and nothing is predicted as background."""
    tag_gate: bool
    """Whether a class whose tag score is below the tag threshold is kept out of the mask."""
    averaging: str
    """`dataset`: IoU of the classes from one confusion matrix; `image`: mean over pictures of the mean IoU of the
    classes that the picture shows; `image-positive`: the same over those with IoU > 0."""
    note: str = ""


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("standard", "threshold", True, "dataset", "data set mIoU, background counts as a class"),
        Protocol("standard-objects", "ignored", False, "dataset", "data set mIoU over object pixels"),
        Protocol("paper", "ignored", False, "image", "per-picture mean, as the author's code; not comparable"),
        Protocol("paper-positive", "ignored", False, "image-positive", "the same over IoU > 0; not comparable"),
    )
}


def find_protocol(name: str) -> Protocol:
    """Return a protocol by name; raises InputError that names those that exist."""
    if name not in PROTOCOLS:
        raise InputError(f"unknown protocol {name!r}; expected one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
