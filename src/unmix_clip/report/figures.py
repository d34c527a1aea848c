"""The figures: matrices before and after, query maps on pictures, training curves. Each returns a matplotlib figure."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

HEAT = matplotlib.colormaps["inferno"]
STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 110,
}
matplotlib.rcParams.update(STYLE)


@dataclass(frozen=True)
class QueryRow:
    """One picture with the maps of one name, plain and unmixed, on the picture's pixels."""

    image: Image.Image
    name: str
    others: Sequence[str]
    """The other names that the picture shows."""
    before: np.ndarray  # (H, W)
    after: np.ndarray  # (H, W)
    low: tuple[float | None, float | None] = (None, None)
    """The background thresholds of both: what is below is shown dark."""


def draw_matrices(before: np.ndarray, after: np.ndarray | None, names: Sequence[str]) -> Figure:
    """Draw the cosine matrix (C, C) of the class texts, plain and unmixed side by side, on one colour scale."""
    panels = [("plain CLIP", before)] + ([("unmixed", after)] if after is not None else [])
    figure = Figure(figsize=(5.4 * len(panels) + 0.8, 5.6))
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, matrix) in zip(axes, panels, strict=True):
        shown = axis.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        off_diagonal = matrix[~np.eye(len(matrix), dtype=bool)]
        axis.set_title(f"{title}: mean cosine {off_diagonal.mean():.3f}", fontsize=11)
        ticks = range(len(names)) if len(names) <= 60 else []
        axis.set_xticks(ticks, [names[i] for i in ticks], rotation=90, fontsize=5.5)
        axis.set_yticks(ticks, [names[i] for i in ticks], fontsize=5.5)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    figure.colorbar(shown, ax=axes, shrink=0.75, label="cosine between class texts")
    return figure


def draw_query_maps(rows: Sequence[QueryRow]) -> Figure:
    """Draw for each row: the picture, where the name lights up in plain CLIP, and where it does unmixed."""
    across = min(2, len(rows))
    bands = -(-len(rows) // across)
    figure = Figure(figsize=(6.3 * across, 2.35 * bands))
    axes = figure.subplots(bands, 3 * across, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for i, row in enumerate(rows):
        band, first = i // across, 3 * (i % across)
        beside = f"beside {', '.join(row.others)}" if row.others else "alone"
        panels = (
            (np.asarray(row.image), f"“{row.name}”\n{beside}"),
            (overlay(row.image, row.before, row.low[0]), "plain CLIP\n"),
            (overlay(row.image, row.after, row.low[1]), "unmixed\n"),
        )
        for offset, (picture, title) in enumerate(panels):
            axes[band, first + offset].imshow(picture)
            axes[band, first + offset].set_title(title, fontsize=8)
    return figure


def draw_curves(histories: dict[str, Sequence[dict[str, float]]]) -> Figure:
    """Draw the loss terms and the validation figures over the epochs, one line a run."""
    keys = [key for key in ("asl", "mfi", "val_map") if any(key in h for r in histories.values() for h in r)]
    labels = {"asl": "asymmetric loss", "mfi": "MFI loss", "val_map": "validation mAP"}
    figure = Figure(figsize=(3.2 * len(keys), 2.6))
    for axis, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        for name, history in histories.items():
            points = [(entry["epoch"], entry[key]) for entry in history if key in entry]
            axis.plot(
                *zip(*points, strict=True), marker="o" if key.startswith("val") else None, markersize=3, label=name
            )
        axis.set(title=labels[key], xlabel="epoch")
        if key == "mfi":
            axis.set_yscale("log")
        axis.grid(alpha=0.25)
    figure.axes[0].legend(frameon=False)
    return figure


def overlay(image: Image.Image, heat: np.ndarray, low: float | None = None, strength: float = 0.75) -> np.ndarray:
    """Lay a map (H, W) over a picture: (H, W, 3) uint8, bright where it is high.

    `low` is the value from which the map counts, such as the background threshold; all below it is dark. None = the
    map's lowest value.
    """
    low, high = float(heat.min()) if low is None else low, float(heat.max())
    level = np.clip((heat - low) / max(high - low, 1e-9), 0, 1)
    grey = np.asarray(image.convert("L").convert("RGB"), dtype=np.float32)
    return (grey * (1 - strength) + HEAT(level)[..., :3] * 255 * strength).astype(np.uint8)


def palette(count: int) -> np.ndarray:
    """Return `count` + 1 well separated colours (count + 1, 3) uint8; the first, for the background, is black."""
    hues = (np.arange(count) * 0.618034) % 1.0
    values = np.where(np.arange(count) % 2, 0.95, 0.75)
    hsv = np.stack([hues, np.full(count, 0.8), values], axis=-1)
    colours = matplotlib.colors.hsv_to_rgb(hsv) * 255
    return np.concatenate([np.zeros((1, 3)), colours]).astype(np.uint8)


def paint_mask(image: Image.Image, mask: np.ndarray, classes: Sequence[str], strength: float = 0.6) -> Image.Image:
    """Lay a mask (H, W), 0 = background, over a picture, with the names of its classes in their colours."""
    colours = palette(len(classes))
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    inside = (mask > 0)[..., None]
    painted = np.where(inside, pixels * (1 - strength) + colours[mask] * strength, pixels * 0.7)
    out = Image.fromarray(painted.astype(np.uint8))
    draw = ImageDraw.Draw(out)
    size_px = max(10, out.height // 28)
    for row, index in enumerate(sorted(set(np.unique(mask)) - {0})):
        at = (4, 4 + row * (size_px + 3))
        box = draw.textbbox(at, classes[index - 1], font_size=size_px)
        draw.rectangle((box[0] - 2, box[1] - 1, box[2] + 2, box[3] + 1), fill=(0, 0, 0))
        draw.text(at, classes[index - 1], fill=tuple(int(v) for v in colours[index]), font_size=size_px)
    return out
