"""How segmentation is scored, by name. A number without its protocol means nothing: papers differ by many points.

`standard` and `standard-objects` take one confusion matrix over the whole data set, as all rivals report. The `paper`
ones reproduce what the author's public code prints (arXiv 2502.02977), and compare with nothing else.
"""

from dataclasses import dataclass

from unmix_clip.errors import InputError

BACKGROUNDS = ("threshold", "ignored")
AVERAGES = ("dataset", "image", "image-positive")
RESIZES = ("bilinear",)


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
    """One line for people, printed beside every result."""
    resize: str = "bilinear"
    """How maps are brought to the mask's size before the best class is taken: `bilinear`, pixel centres aligned
    (`align_corners=False`). Masks are never resized."""

    def __post_init__(self) -> None:
        for field, known in (("background", BACKGROUNDS), ("averaging", AVERAGES), ("resize", RESIZES)):
            if getattr(self, field) not in known:
                found = getattr(self, field)
                raise InputError(f"protocol {self.name}: {field} is {found!r}; expected one of {', '.join(known)}")

    @property
    def per_image(self) -> bool:
        """Whether the mean is taken inside each picture first."""
        return self.averaging != "dataset"


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
