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
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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


def store_features(backbone: FrozenClip, dataset: Dataset, **options: Any) -> FeatureStore:
    """Return the features of a data set by the backbone's own dense strategy; options as `store_dense`."""
    name = backbone.identity.dense
    return store_dense(backbone, dataset, [name], **options)[name]


def store_dense(
    backbone: FrozenClip,
    dataset: Dataset,
    names: Sequence[str],
    *,
    cache: Path | None = None,
    view: int = 0,
    seed: int = 0,
    batch_size: int = 64,
) -> dict[str, FeatureStore]:
    """Return the features of a data set by several dense strategies, computing what is not stored yet in one pass.

    Args:
        backbone: the frozen CLIP.
        dataset: its pictures are read in order; a picture that cannot be read raises InputError.
        names: dense strategies; each has a store of its own.
        cache: folder of all stores; None = `default_cache()`.
        view: 0 = the picture as it is; v > 0 = its v-th augmentation.
        seed: seeds the augmentations; without effect on view 0.
        batch_size: pictures a pass of the backbone.
    """
    if len(dataset.samples) == 0:
        raise InputError(f"{dataset.spec} has no pictures; expected at least one")
    root = make_folder(cache or default_cache())
    pictures = _digest(sample.digest for sample in dataset.samples)
    stores = {}
    for name in sorted(set(names)):
        description = {
            "format": 1,
            "backbone": backbone.with_options(dense=name).identity.compared(),
            "pictures": pictures,
            "view": [view, seed, *augmentation_version()] if view else 0,
            "n": len(dataset.samples),
        }
        stores[name] = _Store(root / _digest([json.dumps(description, sort_keys=True)])[:32], description)
    unfinished = {name: store for name, store in stores.items() if not store.final.exists()}
    with ExitStack() as locks:
        for store in unfinished.values():  # by name, so that two processes cannot wait for each other
            lock = locks.enter_context((make_folder(store.partial) / "lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)  # another process that fills the same store is waited for
        missing = {name: store for name, store in unfinished.items() if not store.final.exists()}
        if missing:
            _fill(missing, backbone, dataset, view, seed, batch_size)
        for name, store in unfinished.items():
            if name in missing:
                (store.partial / "done").unlink()
                store.partial.replace(store.final)
            else:
                shutil.rmtree(store.partial, ignore_errors=True)  # the other process has moved it away
    return {name: open_store(stores[name].final) for name in names}


@dataclass(frozen=True)
class _Store:
    """A store that may be unfinished."""

    final: Path
    description: dict[str, Any]

    @property
    def partial(self) -> Path:
        """Where its rows are written until it is complete."""
        return self.final.with_name(f"{self.final.name}.partial")


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
    stores: Mapping[str, _Store], backbone: FrozenClip, dataset: Dataset, view: int, seed: int, batch_size: int
) -> None:
    """Compute the rows that are still missing, in order, for all stores in one pass."""
    n = len(dataset.samples)
    locations = backbone.grid_hw[0] * backbone.grid_hw[1]
    shapes = {
        "patches": ("float16", [n, locations, backbone.embed_dim]),
        "pooled": ("float16", [n, backbone.embed_dim]),
        "valid": ("bool", [n, locations]),
    }
    counters = [store.partial / "done" for store in stores.values()]
    done = min(int(counter.read_text()) if counter.exists() else 0 for counter in counters)
    if not done:
        _require_space(shapes, len(stores), dataset.spec, counters[0].parent.parent)
    for counter in counters:  # rows behind it are written again, and until then they count as missing
        write_text(counter, str(done))
    arrays = {}
    for name, store in stores.items():
        meta = {**store.description, "grid_hw": backbone.grid_hw, "arrays": shapes}
        write_json(store.partial / "meta.json", meta)
        mode: Literal["r+", "w+"] = "r+" if done else "w+"
        arrays[name] = {
            key: np.memmap(store.partial / f"{key}.bin", dtype=np.dtype(dtype), mode=mode, shape=tuple(shape))
            for key, (dtype, shape) in shapes.items()
        }
    title = f"features of {dataset.spec}" + (f", view {view}" if view else "")
    with ThreadPoolExecutor(1) as reader, progress_bar(title, n, "pictures", done) as bar:
        # Pictures are decoded for the next batch while the backbone works on this one.
        ahead = reader.submit(_read_batch, backbone, dataset.samples, done, batch_size, view, seed)
        for i, start in enumerate(range(done, n, batch_size)):
            pixels, valid = ahead.result()
            if start + batch_size < n:
                ahead = reader.submit(
                    _read_batch, backbone, dataset.samples, start + batch_size, batch_size, view, seed
                )
            rows = slice(start, start + len(valid))
            for name, features in backbone.encode_dense(pixels, list(stores)).items():
                arrays[name]["patches"][rows] = F.normalize(features.patches, dim=-1).half().cpu().numpy()
                arrays[name]["pooled"][rows] = F.normalize(features.pooled, dim=-1).half().cpu().numpy()
                arrays[name]["valid"][rows] = valid
            if (i + 1) % FLUSH_EVERY == 0 or rows.stop == n:
                for array in (array for of_store in arrays.values() for array in of_store.values()):
                    array.flush()
                for counter in counters:
                    write_text(counter, str(rows.stop))
            bar.advance(len(valid))


def stored_bytes(n: int, locations: int, width: int) -> int:
    """Return the size in bytes of a store of n pictures: 16-bit features of all locations and of the picture."""
    return n * (2 * width * (locations + 1) + locations)


def _require_space(shapes: dict[str, tuple[str, list[int]]], stores: int, spec: str, root: Path) -> None:
    """Raise InputError unless the disk has room."""
    n, locations, width = shapes["patches"][1]
    needed, free = stores * stored_bytes(n, locations, width), shutil.disk_usage(root).free
    if needed > free:
        raise InputError(
            f"the features of {spec} need {needed / 1e9:.1f} GB, {root} has {free / 1e9:.1f} GB free; "
            "name another folder (--cache) or use a smaller --image-size"
        )


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
