"""Class texts: names and prompts through a frozen text tower, to the features that every method compares with."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from unmix_clip.backbones.clip import FrozenClip
from unmix_clip.backbones.prompting import ContextEncoder
from unmix_clip.method.model import ClassTexts
from unmix_clip.vocabulary import Prompts, fill


def encode_classes(
    backbone: FrozenClip, prompts: Prompts, names: Sequence[str], synonyms: Mapping[str, Sequence[str]] | None = None
) -> ClassTexts:
    """Return the text features of some names.

    Args:
        backbone: the frozen CLIP; InputError for names that it cannot know.
        prompts: the templates; with several, a class's feature is the mean of the L2-normalised features of all.
        names: the C classes.
        synonyms: other words for some of them, averaged in; those that the backbone cannot know are left out.
    """
    backbone.require_known(names)
    others = synonyms or {}
    words = [[name, *(w for w in others.get(name, ()) if not backbone.unknown_name(w))] for name in names]
    positive, negative = (_mean_features(backbone, t, words) for t in (prompts.positive, prompts.negative))
    return ClassTexts(positive, negative, tuple(names), ContextEncoder(backbone, names))


def _mean_features(backbone: FrozenClip, templates: Sequence[str], words: Sequence[Sequence[str]]) -> Tensor:
    """Mean over templates and words of each class (C, D); a single text's feature is returned as it is."""
    sizes = [len(templates) * len(of_class) for of_class in words]
    texts = [text for of_class in words for template in templates for text in fill(template, of_class)]
    features = backbone.encode_texts(texts).cpu()
    if len(texts) == len(words):
        return features
    return torch.stack([part.mean(0) for part in F.normalize(features, dim=-1).split(sizes)])
