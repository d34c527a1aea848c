"""Partial labels: some are hidden, as in the literature on learning from them.

A share of all (picture, class) labels: DualCoOp, arXiv 2206.09541, section 4.1. A single positive a picture: Cole et
al., arXiv 2106.09708. Hidden labels are unknown (-1): they add nothing to the loss, and average precision leaves them
out.
"""

from dataclasses import replace

import numpy as np

from unmix_clip.data.samples import Dataset, Sample, label_matrix
from unmix_clip.errors import InputError


def hide_labels(dataset: Dataset, keep: float | str, seed: int = 0) -> Dataset:
    """Return the same pictures with some labels hidden.

    Args:
        dataset: a data set with labels.
        keep: share in (0, 1] of the labels that stay, each drawn by itself; or `single`: of every picture one positive.
        seed: of the draws. A picture's draw depends on its content alone, so a subset keeps the same
            labels, and with the same seed a larger share keeps those of a smaller one.
    """
    if keep != "single" and not (isinstance(keep, float | int) and 0 < keep <= 1):
        raise InputError(f"keep is {keep!r}; expected a share in (0, 1], or single")
    if seed < 0:
        raise InputError(f"the seed of the labels is {seed}; expected 0 or more")
    label_matrix(dataset)  # a data set without labels is told
    rules = dataset.rules | {"labels": f"keep {keep}, seed {seed}"}
    return replace(dataset, samples=[_hidden(sample, keep, seed) for sample in dataset.samples], rules=rules)


def _hidden(sample: Sample, keep: float | str, seed: int) -> Sample:
    assert sample.labels is not None, "label_matrix has seen to it"
    rng = np.random.default_rng([seed, int(sample.digest[:12], 16)])
    if keep == "single":
        labels = np.full_like(sample.labels, -1)
        if len(positives := np.flatnonzero(sample.labels == 1)):
            labels[rng.choice(positives)] = 1
    else:
        labels = np.where(rng.random(len(sample.labels)) < float(keep), sample.labels, -1).astype(np.int8)
    return replace(sample, labels=labels)
