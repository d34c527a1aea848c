"""`Unmixer`: a trained model in three lines; the command line, the report and notebooks all use it.

model = Unmixer.from_pretrained("runs/demo")
result = model.tag("street.jpg", classes=["car", "traffic light"])
maps = model.segment("street.jpg")
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unmix_clip.backbones import build_backbone
from unmix_clip.backbones.clip import FrozenClip
from unmix_clip.data.images import load_image
from unmix_clip.errors import InputError
from unmix_clip.evaluation.masks import cut_background
from unmix_clip.evaluator import best_on_picture
from unmix_clip.method.model import Queries
from unmix_clip.runs import Run, load_run, require_backbone
from unmix_clip.texts import encode_classes


@dataclass(frozen=True)
class Tags:
    """Names found in a picture."""

    scores: dict[str, float]
    """Probability of every name asked, in [0, 1]; it does not depend on the other names."""
    labels: tuple[str, ...]
    """The names that reach the model's threshold, best first."""


@dataclass(frozen=True)
class Maps:
    """Where the names are, in the picture's own size and orientation."""

    mask: np.ndarray  # (H, W) int32: 0 background, 1 + index into `classes`
    classes: tuple[str, ...]
    grids: Tensor  # (C, h, w) float32, the maps on the backbone's grid
    to_pixels: Callable[[Tensor], Tensor]
    """Brings grids (k, h, w) to the picture's pixels (k, H, W)."""

    @property
    def heatmaps(self) -> np.ndarray:
        """All maps (C, H, W) float32, higher = more of the class; large for large pictures, see `heatmap`."""
        return self.to_pixels(self.grids).numpy()

    def heatmap(self, name: str) -> np.ndarray:
        """The map (H, W) float32 of one name."""
        index = self.classes.index(name)
        return self.to_pixels(self.grids[index : index + 1])[0].numpy()


@dataclass(frozen=True)
class Prediction:
    """Tags and, where asked for, maps of one picture."""

    tags: Tags
    maps: Maps | None


class Unmixer:
    """A trained run with its frozen backbone.

    Args:
        run: the trained model.
        backbone: the CLIP that it was trained on; another one is refused.
    """

    def __init__(self, run: Run, backbone: FrozenClip) -> None:
        require_backbone(run, backbone)
        self.run, self.backbone = run, backbone
        self._queries: dict[tuple[str, ...], Queries] = {}

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "cpu", backbone_spec: str | None = None) -> "Unmixer":
        """Load a RUN folder and its backbone; raises InputError where either cannot be had.

        `backbone_spec` says where the backbone is now, if not where the run says; other weights are refused.
        """
        run = load_run(Path(folder))
        preprocessing = run.identity.preprocessing
        backbone = build_backbone(
            backbone_spec or run.backbone_spec,
            preprocessing.input_hw,
            mode=preprocessing.mode,
            dense=run.identity.dense,
            last_stage_stride=run.identity.last_stage_stride if run.backbone_spec != "mini" else None,
            device=device,
        )
        return cls(run, backbone)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names that the model was trained on."""
        return self.run.classes

    @property
    def threshold(self) -> float:
        """Probability from which a name counts as present."""
        return float(torch.sigmoid(torch.tensor(self.run.thresholds.tag)))

    @property
    def background(self) -> float:
        """Map value under which a pixel is background.

        Where the run had no masks to fit it on, the map value at which a class is as likely as not.
        """
        fitted = self.run.thresholds.background
        if fitted is not None:
            return fitted
        return self.run.model.even_height

    def untrained(self, classes: Sequence[str]) -> list[str]:
        """Return the names that the model was not trained on: their scores can be poor."""
        return [name for name in classes if name not in self.run.classes]

    def tag(self, image: str | Path | Image.Image, classes: Sequence[str] | None = None) -> Tags:
        """Score names on a picture.

        Args:
            image: a file or a PIL picture.
            classes: the names to ask; None = those that the model was trained on.
        """
        return self.predict([_open(image)], classes, maps=False)[0].tags

    def segment(self, image: str | Path | Image.Image, classes: Sequence[str] | None = None) -> Maps:
        """Locate names in a picture; arguments as `tag`."""
        found = self.predict([_open(image)], classes, maps=True)[0].maps
        assert found is not None, "maps were asked for"
        return found

    @torch.no_grad()
    def predict(
        self, images: Sequence[Image.Image], classes: Sequence[str] | None = None, *, maps: bool = True
    ) -> list[Prediction]:
        """Tag and locate in a batch of RGB pictures, in one pass of the backbone."""
        if isinstance(classes, str):
            raise InputError(f"classes is the text {classes!r}; expected a list of names, such as [{classes!r}]")
        names = tuple(classes or self.run.classes)
        queries = self.queries(names)
        features = self.backbone.encode_pictures(images, batch_size=len(images))
        sizes = [(image.height, image.width) for image in images]
        valid = torch.stack([self.backbone.preprocess.valid_patches(size, features.grid_hw) for size in sizes])
        scores = self.run.model.score(
            features.patches.cpu(), queries, None if bool(valid.all()) else valid, features.pooled.cpu()
        )
        return [
            Prediction(
                tags=self._tags(names, scores.logits[i]),
                maps=self._maps(names, scores.logits[i], scores.maps[i], features.grid_hw, size) if maps else None,
            )
            for i, size in enumerate(sizes)
        ]

    def queries(self, names: tuple[str, ...]) -> Queries:
        """Return the projected texts of some names, kept for the next picture."""
        if names not in self._queries:
            if len(set(names)) != len(names):
                raise InputError(f"the class list names something twice ({', '.join(names)}); expected each name once")
            texts = encode_classes(self.backbone, self.run.prompts, names, self.run.synonyms)
            with torch.no_grad():
                self._queries[names] = self.run.model.project_queries(texts)
        return self._queries[names]

    def _tags(self, names: tuple[str, ...], logits: Tensor) -> Tags:
        probabilities = torch.sigmoid(logits)
        order = torch.argsort(logits, descending=True).tolist()
        present = [names[i] for i in order if logits[i] >= self.run.thresholds.tag]
        return Tags({name: float(p) for name, p in zip(names, probabilities, strict=True)}, tuple(present))

    def _maps(
        self, names: tuple[str, ...], logits: Tensor, maps: Tensor, grid_hw: tuple[int, int], image_hw: tuple[int, int]
    ) -> Maps:
        preprocess = self.backbone.preprocess
        present = logits >= self.run.thresholds.tag
        best = best_on_picture(maps, present, preprocess, grid_hw, image_hw)
        return Maps(
            mask=cut_background(best, self.background),
            classes=names,
            grids=maps.T.reshape(len(names), *grid_hw),
            to_pixels=partial(preprocess.grid_to_image, image_hw=image_hw),
        )


def _open(image: str | Path | Image.Image) -> Image.Image:
    return image.convert("RGB") if isinstance(image, Image.Image) else load_image(Path(image))
