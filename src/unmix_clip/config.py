"""The training configuration: one frozen dataclass; TOML key = field = `--set` key = JSON key.

Recipes ship in `recipes/`: `default` (ours), `paper` (as published), the learned rivals, and the published experiments
(`paper-voc2007-rn101`, ...), whose table [reproduce] is read by `reproduction.py`. The resolved configuration is saved
beside every model and inside every result.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any

from unmix_clip.errors import InputError

CHOICES = {
    "model": ("projectors", "linear-probe", "dualcoop"),
    "score": ("positive", "dual"),
    "asl_reduction": ("batch_mean", "sum"),
    "mfi_form": ("class", "dimension"),
    "optimizer": ("adam", "sgd"),
}


@dataclass(frozen=True)
class TrainConfig:
    """How the projectors are built, scored and trained. The field defaults are the recipe `default`."""

    recipe: str = "default"
    """Name of the recipe that these values started from."""
    model: str = "projectors"
    """`projectors` (the method), or a learned rival of baselines/: `linear-probe` or `dualcoop`."""
    prompts: str = "plain"
    """Entry of vocabulary/prompts.toml: the positive and the negative templates."""
    synonyms: bool = False
    """Average a class's text over its name and the synonyms that the data set knows."""
    score: str = "positive"
    """`positive` (ours) or `dual` (the paper's softmax over a positive and a negative prompt)."""
    centre: bool = True
    """Subtract the training set's mean location feature and the mean class text (constants of the model)."""
    out_ratio: float = 1.0
    """Width of the projected space, as a share of the backbone's width."""
    hidden_ratio: float = 3.0
    """Hidden width of the text projector, as a share of the backbone's width."""
    text_depth: int = 2
    """Linear layers of the text projector (the paper's 2)."""
    image_depth: int = 1
    """Linear layers of the image projector (the paper's 1)."""
    text_norm: bool = False
    """Whether the text projector has a BatchNorm (with statistics fixed after training)."""
    pool_share: float = 0.1
    """`positive`: share of the locations whose mean cosine is a picture's score."""
    pooled_share: float = 0.1
    """Weight of the picture's pooled feature in its tag scores, in [0, 1]; 1 = the final pooling is kept, as in plain
    CLIP. Maps never use it."""
    gain: float = 30.0
    """Logits per unit of pooled cosine; `dual`: multiplies the scaled cosine (the paper's 5)."""
    scale: float = 20.0
    """`dual`: multiplies cosines before the softmax over locations."""
    context_tokens: int = 8
    """`dualcoop`: learned tokens before the name, of either prompt (published: 16 shared, 64 class-specific)."""
    class_specific: bool = False
    """`dualcoop`: contexts of their own for every class, instead of two for all."""
    asl_gamma_neg: float = 2.0
    """Asymmetric loss: focusing exponent of negatives."""
    asl_gamma_pos: float = 1.0
    """Asymmetric loss: focusing exponent of positives."""
    asl_clip: float = 0.05
    """Asymmetric loss: probability margin under which a negative adds nothing."""
    asl_reduction: str = "batch_mean"
    """`batch_mean` (sum over classes, mean over pictures) or `sum`."""
    mfi_form: str = "class"
    """Reading of the MFI loss: `class` (cosines of the texts) or `dimension` (correlations of the dimensions)."""
    mfi_weight: float = 10.0
    """Weight of the MEAN squared off-diagonal entry; 0 switches the MFI loss off."""
    mfi_alpha: float = 0.0
    """The paper's alpha on the published sum, converted for the names at hand; above 0 it replaces `mfi_weight`."""
    mfi_lambda: float = 0.2
    """Lambda of the published sum; it only sets how much the diagonal of the dimension form weighs."""
    optimizer: str = "adam"
    """`adam` or `sgd`."""
    lr: float = 2e-3
    """Peak learning rate; a cosine takes it to zero."""
    momentum: float = 0.9
    """`sgd`: momentum."""
    weight_decay: float = 0.0
    """L2 penalty on all weights."""
    epochs: int = 30
    """Passes over the training pictures."""
    warmup_epochs: int = 1
    """First epochs, run at `warmup_lr`."""
    warmup_lr: float = 2e-4
    """Learning rate of the warm-up epochs."""
    batch_size: int = 64
    """Pictures a step."""
    views: int = 1
    """Stored views of each training picture: the plain one and views - 1 augmented ones (RandAugment, Cutout)."""
    seed: int = 0
    """Seeds the initial weights, the order of the pictures and the choice of the views."""

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(allowed)}")
        positive = ("out_ratio", "hidden_ratio", "pool_share", "gain", "scale", "lr", "mfi_lambda")
        for name in (*positive, "epochs", "batch_size", "views", "text_depth", "image_depth", "context_tokens"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}; expected a number above 0")
        for name in ("mfi_weight", "mfi_alpha", "weight_decay", "warmup_epochs", "warmup_lr", "seed"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} is {getattr(self, name)}; expected 0 or more")
        for name in ("asl_clip", "pool_share", "pooled_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected a share in [0, 1]")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship."""
    folder = resources.files("unmix_clip") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_config(source: str | Path | None = None, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a recipe and apply `key=value` overrides.

    Args:
        source: name of a shipped recipe, or the path of a TOML file; None is `default`.
        overrides: such as `mfi_weight=0`; later ones win.

    Raises:
        InputError: an unknown recipe, file, key or value.
    """
    values = read_recipe(source or "default")
    values.pop("reproduce", None)  # the experiment around the recipe, see reproduction.py
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise InputError(f"--set {override!r} has no '='; expected key=value, such as mfi_weight=0")
        values[key.strip()] = value.strip()
    return config_from_dict(values)


def read_recipe(source: str | Path) -> dict[str, Any]:
    """Return the values of a recipe; those of the recipe that it names as its `base` lie under them."""
    if str(source) in recipe_names():
        text = (resources.files("unmix_clip") / "recipes" / f"{source}.toml").read_text(encoding="utf-8")
    elif Path(source).is_file():
        text = Path(source).read_text(encoding="utf-8")
    else:
        raise InputError(
            f"no recipe or file {str(source)!r}; expected a TOML file or one of {', '.join(recipe_names())}"
        )
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{source} is not valid TOML: {error}") from error
    base = values.pop("base", None)
    if base is not None and base not in recipe_names():
        raise InputError(f"{source} has the base {base!r}; expected one of {', '.join(recipe_names())}")
    return values if base is None else {**read_recipe(base), **values}


def config_from_dict(values: dict[str, Any]) -> TrainConfig:
    """Build a configuration; unknown keys and values of another type raise InputError."""
    types = {field.name: field.type for field in fields(TrainConfig)}
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key not in types:
            near = get_close_matches(key, types, n=3)
            raise InputError(f"unknown setting {key!r}; did you mean {', '.join(near) or ', '.join(types)}?")
        checked[key] = _parse(key, value, types[key])
    return replace(TrainConfig(), **checked)


def _parse(key: str, value: Any, wanted: Any) -> Any:
    """Convert a TOML or command-line value to a field's type."""
    try:
        if wanted is bool:
            return {"true": True, "false": False}[str(value).lower()]
        if wanted is int:
            return int(str(value))
        if wanted is float:
            return float(value)
    except (KeyError, ValueError, TypeError):
        raise InputError(f"{key} is {value!r}; expected {wanted.__name__}") from None
    return str(value)
