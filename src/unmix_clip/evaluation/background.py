"""Where the background begins: a map value fitted on pictures that are not evaluated."""

import numpy as np

from unmix_clip.data.samples import IGNORE
from unmix_clip.evaluation.confusion import counted_pixels
from unmix_clip.evaluation.masks import Prediction

CANDIDATES = 41
"""Background thresholds that are tried, evenly spaced among the quantiles of the best map."""


class BackgroundFit:
    """Finds the background threshold that maximises the mIoU of `standard`, in one pass over a fitting split.

    Of every pixel only its truth, its best class and the number of candidates below its best map matter, and of these
    only the sums that IoU is made of.
    """

    def __init__(self, candidates: np.ndarray, n_classes: int) -> None:
        # In the precision of the maps: a candidate must fall on the same side of a height here and in a mask.
        self.candidates = np.unique(np.asarray(candidates, dtype=np.float32))
        self._shape = (n_classes + 1, len(self.candidates) + 1)  # by class, and by how many candidates are reached
        self._said, self._hit, self._on_background = (np.zeros(self._shape, dtype=np.int64) for _ in range(3))
        self._shown = np.zeros(n_classes + 1, dtype=np.int64)

    def update(self, truth: np.ndarray, best: Prediction) -> None:
        """Add one picture: its true mask (H, W) and the best class of its pixels."""
        true, said = counted_pixels(truth, best.mask.numpy(), len(self._shown))
        counted = truth != IGNORE
        reached = np.searchsorted(self.candidates, best.height.numpy()[counted], side="right")
        cell = said * self._shape[1] + reached
        for table, pixels in (
            (self._said, cell),
            (self._hit, cell[true == said]),
            (self._on_background, cell[true == 0]),
        ):
            table += np.bincount(pixels, minlength=table.size).reshape(self._shape)
        self._shown += np.bincount(true, minlength=len(self._shown))

    def scores(self) -> np.ndarray:
        """Return the mIoU, background included, with each candidate as the threshold (len(candidates),)."""
        # Column j: the pixels whose best map reaches candidate j.
        said, hit, on_background = (
            table[:, ::-1].cumsum(1)[:, -2::-1] for table in (self._said, self._hit, self._on_background)
        )
        said[0] = self._shown.sum() - said[1:].sum(0)
        hit[0] = self._shown[0] - on_background[1:].sum(0)
        union = said + self._shown[:, None] - hit
        iou = np.divide(hit, union, out=np.full(union.shape, np.nan), where=union > 0)
        return np.nansum(iou, axis=0) / np.maximum((union > 0).sum(0), 1)

    def best(self) -> float:
        """Return the best candidate, the lowest of equal ones."""
        return float(self.candidates[int(np.argmax(self.scores()))])
