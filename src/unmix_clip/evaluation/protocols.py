"""How segmentation is scored, by name. A number without its protocol means nothing: papers differ by many points.

`standard` and `standard-objects` take one confusion matrix over the whole data set. The `sliding` ones are how the
training-free rivals report (mmsegmentation's slide inference, with the sizes of SCLIP, arXiv 2312.01597, section 4.1).
The `paper` ones reproduce what the author's public code prints (arXiv 2502.02977), and compare with nothing else.
"""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from unmix_clip.errors import InputError

CHOICES = {
    "background": ("threshold", "names", "ignored"),
    "averaging": ("dataset", "image", "image-positive"),
    "resize": ("bilinear",),
    "refinement": ("none", "pamr"),
}


@dataclass(frozen=True)
class Protocol:
    """A way to make masks from maps and to score them; all of it is printed with every number."""

    name: str
    background: str
    """`threshold`: locations whose best map is below a threshold fitted on another split are background, a class of its
    own; `names`: words for what surrounds objects (vocabulary/class_lists/background.txt) compete with the classes, and
    where one wins is background; `ignored`: pixels that are background in truth do not count, and nothing is predicted
    as background (always so for data sets without background)."""
    tag_gate: bool
    """Whether a class whose tag score is below the tag threshold is kept out of the mask."""
    averaging: str
    """`dataset`: IoU of the classes from one confusion matrix; `image`: mean over pictures of the mean IoU of the
    classes that the picture shows; `image-positive`: the same over those with IoU > 0."""
    resize: str = "bilinear"
    """How maps are brought to the mask's size before the best class is taken: `bilinear`, pixel centres aligned
    (`align_corners=False`). Masks are never resized."""
    short_side_px: int = 0
    """Shorter side of the picture, its ratio kept, before windows are cut; 0 = no windows: the whole picture goes
    through the backbone once, as `--mode` says."""
    window_px: int = 224
    """Side of a window. A backbone of another input size sees it resized."""
    stride_px: int = 112
    """From one window to the next; maps are averaged where windows overlap."""
    refinement: str = "none"
    """`pamr`: maps are refined to the picture's edges (arXiv 2005.08104)."""
    synonyms: bool = False
    """Whether a class's text is the mean over its name and its synonyms."""

    def __post_init__(self) -> None:
        for field, known in CHOICES.items():
            if getattr(self, field) not in known:
                found = getattr(self, field)
                raise InputError(f"protocol {self.name}: {field} is {found!r}; expected one of {', '.join(known)}")
        if self.short_side_px < 0 or self.window_px < 1 or not 1 <= self.stride_px <= self.window_px:
            raise InputError(
                f"protocol {self.name}: short_side_px {self.short_side_px}, window_px {self.window_px}, stride_px "
                f"{self.stride_px}; expected 0 or more, 1 or more, and a stride of 1 to the window"
            )

    @property
    def per_image(self) -> bool:
        """Whether the mean is taken inside each picture first."""
        return self.averaging != "dataset"

    @property
    def slides(self) -> bool:
        """Whether pictures are seen in windows."""
        return self.short_side_px > 0

    @property
    def with_background(self) -> bool:
        """Whether background is a class that is predicted and scored."""
        return self.background != "ignored"

    @property
    def note(self) -> str:
        """One line for people, printed beside every result."""
        backgrounds = {
            "threshold": "background is a class, by a fitted threshold",
            "names": "background is a class, by competing names",
            "ignored": "object pixels only",
        }
        averages = {
            "dataset": "data set mIoU",
            "image": "per-picture mean, as the author's code; not comparable",
            "image-positive": "per-picture mean over IoU > 0, as the author's code; not comparable",
        }
        parts = [averages[self.averaging], backgrounds[self.background]]
        parts += ["classes gated by tags"] * self.tag_gate
        parts += [f"windows of {self.window_px} px, short side {self.short_side_px}"] * self.slides
        parts += [f"refined by {self.refinement}"] * (self.refinement != "none")
        return "; ".join(parts)

    def on(self, has_background: bool) -> "Protocol":
        """Return the protocol as it works on a data set: one without background pixels has none to score."""
        return self if has_background else replace(self, background="ignored")

    def describe(self) -> dict[str, Any]:
        """Return all fields, as results carry them."""
        return asdict(self)


SLIDING: dict[str, Any] = {"tag_gate": False, "averaging": "dataset", "short_side_px": 336}


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("standard", "threshold", True, "dataset"),
        Protocol("standard-objects", "ignored", False, "dataset"),
        Protocol("sliding", "threshold", **SLIDING),
        Protocol("sliding-names", "names", **SLIDING),
        Protocol("sliding-objects", "ignored", **SLIDING),
        Protocol("paper", "ignored", False, "image"),
        Protocol("paper-positive", "ignored", False, "image-positive"),
    )
}


def find_protocol(text: str) -> Protocol:
    """Return a protocol: its name, and after commas key=value changes, such as `sliding,short_side_px=560`.

    A changed protocol has the changes in its name. Raises InputError that names the protocols or keys that exist.
    """
    name, *changes = text.split(",")
    if name not in PROTOCOLS:
        raise InputError(f"unknown protocol {name!r}; expected one of {', '.join(PROTOCOLS)}")
    protocol = PROTOCOLS[name]
    types = {field.name: field.type for field in fields(Protocol) if field.name != "name"}
    values: dict[str, Any] = {}
    for change in changes:
        key, _, value = change.partition("=")
        if key not in types:
            raise InputError(f"protocol {name} has no {key!r} to change; expected KEY=VALUE with {', '.join(types)}")
        wanted: Any = types[key]
        try:
            values[key] = {"true": True, "false": False}[value.lower()] if wanted is bool else wanted(value)
        except (KeyError, ValueError):
            raise InputError(f"protocol {name}: {key} is {value!r}; expected {wanted.__name__}") from None
    return replace(protocol, name=text, **values) if values else protocol
