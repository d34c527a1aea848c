"""The frozen-feature store: the backbone sees each picture once; everything after it reads a memory map.

A store is a folder named by a hash of everything that its contents depend on: the backbone's identity (weights,
activation, dense strategy, preprocessing), the content of every picture in order, and the augmented view. A change of
any gives another folder, so nothing stale is ever read. Rows are written in order into `NAME.partial/`, flushed, and
only then counted in its `done` file; the folder gets its final name when it is complete. A kill at any moment costs at
most the rows since the last flush; the next run continues behind them.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unmix_clip.backbones.clip import FrozenClip
from unmix_clip.data.augment import augment, augmentation_version
from unmix_clip.data.samples import Dataset, Sample
from unmix_clip.errors import InputError
from unmix_clip.files import make_folder, read_json, write_json, write_text
from unmix_clip.progress import progress_bar

FLUSH_EVERY = 8
"""Batches between two flushes."""


@dataclass(frozen=True)
class FeatureStore:
    """Features of a data set's pictures, in its order; L2-normalised, float16, memory-mapped read-only."""

    folder: Path
    patches: np.ndarray  # (n, N, D) float16
    pooled: np.ndarray  # (n, D) float16
    valid: np.ndarray  # (n, N) bool: False where a location shows only padding
    grid_hw: tuple[int, int]

    def __len__(self) -> int:
        return len(self.pooled)

    def batches(self, batch_size: int = 256) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Yield (rows, patches (B, N, D) float32, pooled (B, D) float32, valid (B, N) bool) in order."""
        for start in range(0, len(self), batch_size):
            rows = slice(start, min(start + batch_size, len(self)))
            yield (
                rows,
                torch.from_numpy(self.patches[rows].astype(np.float32)),
                torch.from_numpy(self.pooled[rows].astype(np.float32)),
                torch.from_numpy(self.valid[rows].copy()),
            )


def default_cache() -> Path:
    """Return the folder for feature stores: $UNMIX_CLIP_CACHE, else ~/.cache/unmix-clip."""
    return Path(os.environ.get("UNMIX_CLIP_CACHE", "~/.cache/unmix-clip")).expanduser()


def store_features(
    backbone: FrozenClip,
    dataset: Dataset,
    *,
    cache: Path | None = None,
    view: int = 0,
    seed: int = 0,
    batch_size: int = 64,
) -> FeatureStore:
    """Return the features of a data set, computing what is not stored yet.

    Args:
        backbone: the frozen CLIP.
        dataset: its pictures are read in order; a picture that cannot be read raises InputError.
        cache: folder of all stores; None = `default_cache()`.
        view: 0 = the picture as it is; v > 0 = its v-th augmentation.
        seed: seeds the augmentations; without effect on view 0.
        batch_size: pictures a pass of the backbone.
    """
    if len(dataset.samples) == 0:
        raise InputError(f"{dataset.spec} has no pictures; expected at least one")
    description = {
        "format": 1,
        "backbone": backbone.identity.compared(),
        "pictures": _digest(sample.digest for sample in dataset.samples),
        "view": [view, seed, *augmentation_version()] if view else 0,
        "n": len(dataset.samples),
    }
    name = _digest([json.dumps(description, sort_keys=True)])[:32]
    root = make_folder(cache or default_cache())
    final, partial = root / name, root / f"{name}.partial"
    if not final.exists():
        make_folder(partial)
        with (partial / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another process that fills the same store is waited for
            if not final.exists():
                _fill(partial, description, backbone, dataset, view, seed, batch_size)
                (partial / "done").unlink()
                partial.replace(final)
    return open_store(final)


def open_store(folder: Path) -> FeatureStore:
    """Open a finished store."""
    meta = read_json(folder / "meta.json", "feature store")
    arrays = {}
    for name, (dtype, shape) in meta["arrays"].items():
        path = folder / f"{name}.bin"
        wanted = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if not path.is_file() or path.stat().st_size != wanted:
            raise InputError(f"the feature store {folder} is damaged ({name}.bin); delete that folder and run again")
        arrays[name] = np.memmap(path, dtype=dtype, mode="r", shape=tuple(shape))
    return FeatureStore(folder=folder, grid_hw=tuple(meta["grid_hw"]), **arrays)


def _digest(parts: Iterator[str] | list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _fill(
    folder: Path, description: dict, backbone: FrozenClip, dataset: Dataset, view: int, seed: int, batch_size: int
) -> None:
    """Compute the rows that are still missing, in order."""
    n = len(dataset.samples)
    grid_hw = backbone.grid_hw
    locations = grid_hw[0] * grid_hw[1]
    shapes = {
        "patches": ("float16", [n, locations, backbone.embed_dim]),
        "pooled": ("float16", [n, backbone.embed_dim]),
        "valid": ("bool", [n, locations]),
    }
    write_json(folder / "meta.json", {**description, "grid_hw": grid_hw, "arrays": shapes})
    counter = folder / "done"
    done = int(counter.read_text()) if counter.exists() else 0
    needed = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for dtype, shape in shapes.values())
    free = shutil.disk_usage(folder).free
    if not done and needed > free:
        raise InputError(
            f"the features of {dataset.spec} need {needed / 1e9:.1f} GB, {folder.parent} has {free / 1e9:.1f} GB free; "
            "name another folder (--cache) or use a smaller --image-size"
        )
    mode: Literal["r+", "w+"] = "r+" if done else "w+"
    arrays = {
        name: np.memmap(folder / f"{name}.bin", dtype=np.dtype(dtype), mode=mode, shape=tuple(shape))
        for name, (dtype, shape) in shapes.items()
    }
    title = f"features of {dataset.spec}" + (f", view {view}" if view else "")
    starts = range(done, n, batch_size)
    with ThreadPoolExecutor(1) as reader, progress_bar(title, n, "pictures", done) as bar:
        # Pictures are decoded for the next batch while the backbone works on this one.
        ahead = reader.submit(_read_batch, backbone, dataset.samples, done, batch_size, view, seed)
        for i, start in enumerate(starts):
            pixels, valid = ahead.result()
            if start + batch_size < n:
                ahead = reader.submit(
                    _read_batch, backbone, dataset.samples, start + batch_size, batch_size, view, seed
                )
            features = backbone.encode_images(pixels)
            rows = slice(start, start + len(valid))
            arrays["patches"][rows] = F.normalize(features.patches, dim=-1).half().cpu().numpy()
            arrays["pooled"][rows] = F.normalize(features.pooled, dim=-1).half().cpu().numpy()
            arrays["valid"][rows] = valid
            if (i + 1) % FLUSH_EVERY == 0 or rows.stop == n:
                for array in arrays.values():
                    array.flush()
                write_text(counter, str(rows.stop))
            bar.advance(len(valid))


def _read_batch(
    backbone: FrozenClip, samples: Sequence[Sample], start: int, count: int, view: int, seed: int
) -> tuple[Tensor, np.ndarray]:
    """Decode pictures: pixels for the backbone, and which locations are valid (B, N) bool."""
    pixels, valid = [], []
    for i in range(start, min(start + count, len(samples))):
        image = samples[i].load_image()
        if view:
            image = augment(image, [seed, view, int(samples[i].digest[:12], 16)])
        pixels.append(backbone.preprocess.to_pixels(image))
        valid.append(backbone.preprocess.valid_patches((image.height, image.width), backbone.grid_hw))
    return torch.stack(pixels), np.stack([v.numpy() for v in valid])
