"""The ceiling: a linear head trained with pixel labels on the same frozen locations.

It sees what the projectors never see (the mask of every training picture, down-sampled to the grid), so it says how
much of the places is linearly readable from the features at all.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmix_clip.data.samples import IGNORE
from unmix_clip.features import FeatureStore
from unmix_clip.method.scoring import Scores, pool_top

EPOCHS = 15
BATCH = 4096
LR = 1e-2
INPUT_SCALE = 10.0
"""Stored features are unit vectors; without a scale the logits would take very long to become sharp."""
POOL_SHARE = 0.1


@dataclass(frozen=True)
class PixelProbe:
    """A linear classifier of locations into background and classes."""

    head: nn.Linear
    name: str = "pixel-probe"
    dense: str | None = None

    @torch.no_grad()
    def score(self, patches: Tensor, pooled: Tensor, valid: Tensor | None) -> Scores:
        """Score stored features; maps are class probabilities, background left out."""
        maps = torch.softmax(self.head(INPUT_SCALE * patches), dim=-1)[..., 1:]
        return Scores(pool_top(maps, valid, POOL_SHARE), maps)


def train_pixel_probe(store: FeatureStore, cells: np.ndarray, n_classes: int, seed: int = 0) -> PixelProbe:
    """Train the head by cross-entropy.

    Args:
        store: features of the training pictures.
        cells: (n, N) int32, label of every location: 0 background, 1 + class index, IGNORE.
        n_classes: C.
        seed: seeds weights and order.
    """
    used = torch.from_numpy(cells.reshape(-1) != IGNORE)
    locations = torch.from_numpy(store.patches.reshape(-1, store.patches.shape[-1]).copy())[used]
    targets = torch.from_numpy(cells.reshape(-1).astype(np.int64))[used]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(locations.shape[1], n_classes + 1)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(head.parameters(), lr=LR)
    steps = EPOCHS * -(-len(locations) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(locations), generator=generator).split(BATCH):
            loss = F.cross_entropy(head(INPUT_SCALE * locations[rows].float()), targets[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return PixelProbe(head.requires_grad_(False))
