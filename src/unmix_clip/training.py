"""Training the projectors on stored features: set up, fit, keep. One loop for every recipe.

The backbone is not here: everything is read from feature stores. A run is a pure function of (configuration, features,
labels, texts): the order of the pictures and the choice of views come from generators seeded by (seed, epoch), so a run
that was stopped and resumed ends with the very same weights.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unmix_clip.config import TrainConfig
from unmix_clip.errors import InputError
from unmix_clip.features import FeatureStore
from unmix_clip.files import written_whole
from unmix_clip.method.model import ClassTexts, TagModel, UnmixModel
from unmix_clip.models import build_model
from unmix_clip.progress import progress_bar

PRIOR = 0.05
"""Share of the pictures in which a class is thought present at the start: sets the initial bias."""


@dataclass(frozen=True)
class TrainingSet:
    """What the projectors are trained on."""

    views: Sequence[FeatureStore]
    """The plain view first, then the augmented ones; same pictures, same order."""
    labels: np.ndarray  # (n, C) int8: 1 present, 0 absent, -1 unknown
    texts: ClassTexts


@dataclass
class FitState:
    """Where a run stands; all of it is in the checkpoint."""

    model: TagModel
    optimizer: torch.optim.Optimizer
    epoch: int
    history: list[dict[str, float]]


def build_untrained(config: TrainConfig, data: TrainingSet) -> TagModel:
    """Build the model with seeded weights; projectors get the constants that centre their inputs."""
    texts = data.texts
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        token_width = texts.context.width if texts.context else 0
        model = build_model(config, texts.positive.shape[1], token_width, texts.names)
    if isinstance(model, UnmixModel):
        _set_constants(model, data)
    return model


def _set_constants(model: UnmixModel, data: TrainingSet) -> None:
    """Centre the inputs of projectors, and start the bias of the positive score where few classes are present."""
    config = model.config
    if config.centre:
        model.patch_mean.copy_(mean_location(data.views[0]))
        model.pooled_mean.copy_(mean_pooled(data.views[0]))
        model.text_mean.copy_(torch.nn.functional.normalize(data.texts.positive, dim=-1).mean(0))
    if config.score == "positive":
        with torch.no_grad():
            _, patches, pooled, valid = next(data.views[0].batches(config.batch_size))
            logits = model.score(patches, model.project_queries(data.texts), valid, pooled).logits  # with bias 0
            model.bias.copy_((logits / config.gain).flatten().quantile(1 - PRIOR))


def mean_location(store: FeatureStore) -> Tensor:
    """Mean of all valid, L2-normalised location features (D,)."""
    total, count = torch.zeros(store.patches.shape[-1], dtype=torch.float64), 0
    for _, patches, _, valid in store.batches():
        total += patches[valid].double().sum(0)
        count += int(valid.sum())
    return (total / count).float()


def mean_pooled(store: FeatureStore) -> Tensor:
    """Mean of all L2-normalised pooled features (D,)."""
    return torch.from_numpy(store.pooled.astype(np.float64).mean(0)).float()


def learning_rate(config: TrainConfig, step: int, steps_an_epoch: int) -> float:
    """Constant during the warm-up epochs, then a cosine from `lr` to zero."""
    warm = config.warmup_epochs * steps_an_epoch
    if step < warm:
        return config.warmup_lr
    total = max(config.epochs * steps_an_epoch - warm, 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / total))


def fit(
    config: TrainConfig,
    data: TrainingSet,
    *,
    checkpoint: Path | None = None,
    resume: bool = False,
    validate: Callable[[TagModel], dict[str, float]] | None = None,
    source: str = "",
) -> FitState:
    """Train the projectors.

    Args:
        config: the recipe.
        data: features, labels and texts.
        checkpoint: file that is rewritten after every epoch; None = no checkpoint.
        resume: continue from `checkpoint` where it exists.
        source: digest of what features, labels and texts were made from; a checkpoint of another is refused.
        validate: called every few epochs with the model in evaluation mode; its figures go into the history.

    Returns:
        The final state, its model in evaluation mode; `history` has one entry an epoch.

    Raises:
        InputError: the checkpoint is of another run.
    """
    _check(config, data)
    state = _start(config, data)
    if resume and checkpoint is not None and checkpoint.exists():
        _load_checkpoint(checkpoint, state, config, source)
    validate_every = max(1, config.epochs // 10)
    with progress_bar(f"training {config.recipe}", config.epochs, "epochs", state.epoch) as bar:
        for epoch in range(state.epoch, config.epochs):
            figures = _train_epoch(config, data, state, epoch)
            if validate and ((epoch + 1) % validate_every == 0 or epoch + 1 == config.epochs):
                figures |= validate(state.model)
            state.history.append({"epoch": epoch + 1, **figures})
            state.epoch = epoch + 1
            if checkpoint is not None:
                _save_checkpoint(checkpoint, state, config, source)
            bar.advance(note="  ".join(f"{name} {value:.3f}" for name, value in figures.items()))
    return state


def _check(config: TrainConfig, data: TrainingSet) -> None:
    if len(data.views) != config.views:
        raise InputError(f"got {len(data.views)} stored views, the configuration asks for views = {config.views}")
    if len(data.labels) != len(data.views[0]):
        raise InputError(f"got {len(data.labels)} rows of labels for {len(data.views[0])} pictures")
    if not (data.labels == 1).any():
        raise InputError(
            "no picture has a label: training needs at least one positive; check the data and the class list"
        )


def _start(config: TrainConfig, data: TrainingSet) -> FitState:
    model = build_untrained(config, data)
    options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), momentum=config.momentum, **options)
    else:
        optimizer = torch.optim.Adam(model.parameters(), **options)
    return FitState(model, optimizer, 0, [])


def _train_epoch(config: TrainConfig, data: TrainingSet, state: FitState, epoch: int) -> dict[str, float]:
    """Run one epoch; return the mean of every term of the loss."""
    rng = np.random.default_rng([config.seed, epoch])
    order = rng.permutation(len(data.labels))
    view_of = rng.integers(len(data.views), size=len(order))
    starts = range(0, len(order), config.batch_size)
    sums: dict[str, float] = {}
    state.model.train()
    for i, start in enumerate(starts):
        lr = learning_rate(config, epoch * len(starts) + i, len(starts))
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        rows = np.sort(order[start : start + config.batch_size])
        patches, pooled, valid = _gather(data.views, rows, view_of[rows])
        terms = state.model.objective(patches, data.texts, torch.from_numpy(data.labels[rows]), valid, pooled)
        state.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        state.optimizer.step()
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + value.item()
    with torch.no_grad():
        state.model.project_queries(data.texts)  # the text norm keeps the statistics of the final weights
    state.model.eval()
    return {name: value / len(starts) for name, value in sums.items()}


def _gather(
    views: Sequence[FeatureStore], rows: np.ndarray, view_of: np.ndarray
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Read the chosen view of each row: patches (B, N, D), pooled (B, D), valid (B, N) or None where all are."""
    pooled = np.empty((len(rows), views[0].pooled.shape[1]), dtype=np.float32)
    patches = np.empty((len(rows), *views[0].patches.shape[1:]), dtype=np.float32)
    valid = np.empty((len(rows), views[0].valid.shape[1]), dtype=bool)
    for number, view in enumerate(views):
        chosen = view_of == number
        if chosen.any():
            patches[chosen] = view.patches[rows[chosen]]
            valid[chosen] = view.valid[rows[chosen]]
            pooled[chosen] = view.pooled[rows[chosen]]
    return torch.from_numpy(patches), torch.from_numpy(pooled), None if valid.all() else torch.from_numpy(valid)


def _save_checkpoint(path: Path, state: FitState, config: TrainConfig, source: str) -> None:
    contents = {
        "source": source,
        "config": config.to_dict(),
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "epoch": state.epoch,
        "history": state.history,
    }
    with written_whole(path) as temporary:
        torch.save(contents, temporary)


def _load_checkpoint(path: Path, state: FitState, config: TrainConfig, source: str) -> None:
    contents = torch.load(path, weights_only=True)
    old, wanted = contents["config"], config.to_dict()
    if old != wanted:
        changed = [f"{k} {old.get(k)!r}, now {v!r}" for k, v in wanted.items() if old.get(k) != v]
        raise InputError(
            f"cannot resume {path.parent}: it was started with {'; '.join(changed)}; "
            "use the same settings or another --out"
        )
    if contents["source"] != source:
        raise InputError(
            f"cannot resume {path.parent}: it was started with another backbone, class list or other pictures; "
            "use the same ones or another --out"
        )
    state.model.load_state_dict(contents["model"])
    state.model.eval()
    state.optimizer.load_state_dict(contents["optimizer"])
    state.epoch, state.history = contents["epoch"], contents["history"]
