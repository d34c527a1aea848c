"""Unmixing texts alone: a text projector driven by the MFI loss and nothing else, stopped at any mean cosine.

It isolates what the MFI loss does to the class texts (arXiv 2502.02977: "an optimal level" of shared information) from
what the tags teach. The projector starts as the identity, so the path leads from the backbone's own cosines downwards.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unmix_clip.errors import InputError
from unmix_clip.method.losses import mfi_loss
from unmix_clip.method.projectors import TextProjector

LR = 1e-4
NOISE = 1e-3
"""Standard deviation of the seeded noise on the identity."""
MOST_STEPS = 5000
BISECTIONS = 20


@dataclass(frozen=True)
class UnmixedTexts:
    """Texts projected to a mean cosine."""

    target: float
    mean_cosine: float
    projected: Tensor  # (C, D) L2-normalised
    steps: int


def mean_off_diagonal(projected: Tensor) -> float:
    """Mean cosine of different rows of unit vectors (C, D)."""
    total = projected.sum(0).square().sum() - len(projected)
    return float(total / (len(projected) * (len(projected) - 1)))


def unmix_texts(texts: Tensor, targets: Sequence[float], seed: int = 0) -> Iterator[UnmixedTexts]:
    """Minimise the MFI loss of projected texts and yield them whenever their mean cosine reaches a target.

    Args:
        texts: (C, D) text features.
        targets: mean off-diagonal cosines, falling, below the texts' own.
        seed: of the noise that the identity starts with.

    Raises:
        InputError: targets that do not fall, one that the texts are below already, or one that is not reached.
    """
    unit = F.normalize(texts.float(), dim=-1)
    if sorted(targets, reverse=True) != list(targets) or (targets and targets[0] > mean_off_diagonal(unit)):
        raise InputError(
            f"targets {list(targets)}; expected falling ones below the mean cosine {mean_off_diagonal(unit):.3f}"
        )
    projector = _identity(unit.shape[1], seed)
    optimizer = torch.optim.Adam(projector.parameters(), lr=LR)
    steps, before = 0, None
    for target in targets:
        while mean_off_diagonal(found := _project(projector, unit)) > target:
            if steps == MOST_STEPS:
                raise InputError(
                    f"the mean cosine {target} is not reached in {steps} steps (now {mean_off_diagonal(found):.3f}); "
                    "expected a higher target for these texts"
                )
            before = [p.detach().clone() for p in projector.parameters()]
            loss = mfi_loss(projector(unit))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            steps += 1
        projected = found if before is None else _between(projector, before, unit, target)
        yield UnmixedTexts(target, mean_off_diagonal(projected), projected, steps)


def _identity(width: int, seed: int) -> TextProjector:
    """A projector that gives its inputs back but for noise: x = relu(x) - relu(-x)."""
    projector = TextProjector(width, 2 * width, width, norm=False)
    generator = torch.Generator().manual_seed(seed)
    eye = torch.eye(width)
    with torch.no_grad():
        for weight, wanted in zip(
            projector.parameters(), (torch.cat([eye, -eye]), torch.cat([eye, -eye], 1)), strict=True
        ):
            weight.copy_(wanted + NOISE * torch.randn(wanted.shape, generator=generator))
    return projector


@torch.no_grad()
def _project(projector: TextProjector, unit: Tensor) -> Tensor:
    return F.normalize(projector(unit), dim=-1)


@torch.no_grad()
def _between(projector: TextProjector, before: Sequence[Tensor], unit: Tensor, target: float) -> Tensor:
    """Return the texts at the target, between the weights before the last step and after it; the weights stay."""
    after = [p.detach().clone() for p in projector.parameters()]
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        for p, a, b in zip(projector.parameters(), before, after, strict=True):
            p.copy_(a + middle * (b - a))
        if mean_off_diagonal(_project(projector, unit)) > target:
            low = middle
        else:
            high = middle
    projected = _project(projector, unit)
    for p, b in zip(projector.parameters(), after, strict=True):
        p.copy_(b)
    return projected
