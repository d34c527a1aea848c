"""A run on disk: config.json, model.safetensors, metrics.json. What `train` writes and everything else reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from unmix_clip.backbones.clip import FrozenClip
from unmix_clip.backbones.identity import BackboneIdentity, require_same
from unmix_clip.config import TrainConfig, config_from_dict
from unmix_clip.data.samples import Dataset, Sample
from unmix_clip.errors import InputError
from unmix_clip.evaluator import Thresholds
from unmix_clip.files import make_folder, read_json, write_json, written_whole
from unmix_clip.method.model import TagModel
from unmix_clip.models import build_model
from unmix_clip.provenance import versions
from unmix_clip.vocabulary import Prompts

FORMAT = 2
LEARNED = {
    "unmix": "default",
    "unmix-paper": "paper",
    "bce-projectors": "bce-projectors",
    "linear-probe": "linear-probe",
    "dualcoop": "dualcoop",
}
"""Methods that are trained, and their recipes."""
PICTURE_DIGITS = 15
"""Hex digits of a picture's digest that a run remembers."""


@dataclass(frozen=True)
class Run:
    """A trained model with everything that it needs to be used or refused."""

    model: TagModel
    classes: tuple[str, ...]
    prompts: Prompts
    backbone_spec: str
    identity: BackboneIdentity
    thresholds: Thresholds
    data: str
    """The data set that it was trained on."""
    width: int
    """Width D of the backbone's features."""
    synonyms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Other words that the texts of some names are averaged with."""
    token_width: int = 0
    """Width of the text tower's token embeddings."""
    pictures: frozenset[int] = frozenset()
    """The pictures that it was trained on, see `picture_number`."""


def save_run(run: Run, folder: Path, metrics: dict[str, Any]) -> None:
    """Write a run; each file appears whole, `config.json` last."""
    make_folder(folder)
    with written_whole(folder / "model.safetensors") as temporary:
        save_file({name: tensor.contiguous() for name, tensor in run.model.state_dict().items()}, temporary)
    with written_whole(folder / "pictures.safetensors") as temporary:
        save_file({"digests": torch.tensor(sorted(run.pictures), dtype=torch.int64)}, temporary)
    write_json(folder / "metrics.json", metrics)
    write_json(
        folder / "config.json",
        {
            "format": FORMAT,
            "train": run.model.config.to_dict(),
            "classes": run.classes,
            "prompts": {"positive": run.prompts.positive, "negative": run.prompts.negative},
            "backbone_spec": run.backbone_spec,
            "backbone": run.identity.to_dict(),
            "thresholds": vars(run.thresholds),
            "data": run.data,
            "synonyms": run.synonyms,
            "width": {"features": run.width, "tokens": run.token_width},
            "versions": versions(),
        },
    )


def picture_number(sample: Sample) -> int:
    """Return the start of a picture's digest as a number, as a run remembers what it was trained on."""
    return int(sample.digest[:PICTURE_DIGITS], 16)


def picture_numbers(dataset: Dataset) -> frozenset[int]:
    """Return `picture_number` of every picture."""
    return frozenset(picture_number(sample) for sample in dataset.samples)


def load_run(folder: Path) -> Run:
    """Read a run.

    Raises:
        InputError: the folder is no run, or a file of it is damaged or of another format.
    """
    if not folder.is_dir():
        raise InputError(f"no folder {folder}; expected a run that `unmix-clip train --out {folder}` writes")
    config = read_json(folder / "config.json", "run")
    if config.get("format") != FORMAT:
        raise InputError(
            f"{folder} has run format {config.get('format')!r}; this version reads {FORMAT}: train it again"
        )
    try:
        identity = BackboneIdentity.from_dict(config["backbone"])
        state = load_file(folder / "model.safetensors")
        width = config["width"]
        model = build_model(config_from_dict(config["train"]), width["features"], width["tokens"], config["classes"])
        model.load_state_dict(state)
        return Run(
            model=model.eval().requires_grad_(False),
            classes=tuple(config["classes"]),
            prompts=Prompts(**config["prompts"]),
            backbone_spec=config["backbone_spec"],
            identity=identity,
            thresholds=Thresholds(**config["thresholds"]),
            data=config["data"],
            width=width["features"],
            synonyms=config["synonyms"],
            token_width=width["tokens"],
            pictures=frozenset(load_file(folder / "pictures.safetensors")["digests"].tolist()),
        )
    except FileNotFoundError:
        raise InputError(
            f"{folder} has no model.safetensors or no pictures.safetensors: it is not finished; train with --resume"
        ) from None
    except (KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder} is not a readable run ({type(error).__name__}: {error}); train it again") from None


def method_name(config: TrainConfig, dense: str) -> str:
    """Return the method that a trained model is: METHOD, or METHOD@DENSE unless DENSE is maskclip."""
    names = {recipe: name for name, recipe in LEARNED.items()}
    name = config.model if config.model != "projectors" else names.get(config.recipe, "unmix")
    return name if dense == "maskclip" else f"{name}@{dense}"


def require_backbone(run: Run, backbone: FrozenClip) -> None:
    """Raise InputError unless `backbone` gives the features that the run was trained on."""
    require_same(run.identity, backbone.identity)
