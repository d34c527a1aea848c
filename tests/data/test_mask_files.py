"""Masks that number a class list, read and checked."""

import numpy as np
import pytest
from PIL import Image

from unmix_clip.data.mask_files import plain_coding, read_mask
from unmix_clip.data.samples import IGNORE
from unmix_clip.errors import InputError


def test_masks_are_read_and_checked(tmp_path):
    file = tmp_path / "mask.png"
    Image.fromarray(np.array([[0, 1], [2, 255]], dtype=np.uint8)).save(file)
    assert read_mask(file, plain_coding(2), (2, 2)).tolist() == [[0, 1], [2, IGNORE]]
    with pytest.raises(InputError, match=r"has the values 2; expected the values 0-1, 255"):
        read_mask(file, plain_coding(1), (2, 2))
    with pytest.raises(InputError, match=r"is \(2, 2\), its picture \(3, 2\)"):
        read_mask(file, plain_coding(2), (3, 2))
    with pytest.raises(InputError, match="no mask at"):
        read_mask(tmp_path / "gone.png", plain_coding(2), (2, 2))
    Image.new("RGB", (2, 2)).save(file)
    with pytest.raises(InputError, match="has colours"):
        read_mask(file, plain_coding(2), (2, 2))
    Image.new("L", (2, 2)).save(file, "JPEG")
    with pytest.raises(InputError, match="expected a PNG file"):
        read_mask(file, plain_coding(2), (2, 2))


def test_a_palette_mask_gives_its_indices_not_its_colours(tmp_path):
    mask = Image.new("P", (2, 1), 1)
    mask.putpalette([0, 0, 0, 200, 100, 50])
    mask.save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png", plain_coding(1), (1, 2)).tolist() == [[1, 1]]
