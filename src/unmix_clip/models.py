"""Every model that can be trained, by the name in the configuration: the method's projectors and the learned rivals."""

from collections.abc import Sequence

from unmix_clip.baselines.dualcoop import DualCoOp
from unmix_clip.baselines.linear_probe import LinearProbe
from unmix_clip.config import TrainConfig
from unmix_clip.method.model import TagModel, UnmixModel


def build_model(config: TrainConfig, width: int, token_width: int, classes: Sequence[str]) -> TagModel:
    """Build an untrained model.

    Args:
        config: `model` chooses it.
        width: D of the backbone.
        token_width: E of its text tower's token embeddings; matters to `dualcoop` only.
        classes: the names that it is to be trained on.
    """
    if config.model == "linear-probe":
        return LinearProbe(config, width, classes)
    if config.model == "dualcoop":
        return DualCoOp(config, token_width, classes)
    return UnmixModel(config, width)
