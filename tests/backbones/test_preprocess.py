"""Preprocessing: nothing is cropped, padding is where it is said to be, and maps come back to their pixels."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg, image_transform_v2

from unmix_clip.backbones import Preprocessing
from unmix_clip.errors import InputError

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def preprocessing(mode, input_hw=(64, 64), interpolation="bicubic"):
    return Preprocessing(mode, input_hw, MEAN, STD, interpolation)


def picture(rows, columns, seed=0):
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8))


def bordered_picture(rows, columns):
    """Grey, with a red, green, blue and white border of 1/8 of the picture: top, bottom, left, right."""
    image = np.full((rows, columns, 3), 128, dtype=np.uint8)
    image[: rows // 8], image[-(rows // 8) :] = (255, 0, 0), (0, 255, 0)
    image[rows // 8 : -(rows // 8), : columns // 8] = (0, 0, 255)
    image[rows // 8 : -(rows // 8), -(columns // 8) :] = (255, 255, 255)
    return PIL.Image.fromarray(image)


def colours_of(pixels):
    """Undo the normalisation: (3, H, W) in [0, 1]."""
    return pixels * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]


@pytest.mark.parametrize("mode", ["squash", "pad", "tile"])
@pytest.mark.parametrize("image_hw", [(64, 192), (192, 64), (96, 96)])
def test_no_mode_ever_crops_the_borders_of_a_picture(mode, image_hw):
    preprocess = preprocessing(mode)
    pixels = preprocess.to_pixels(bordered_picture(*image_hw))
    if mode == "tile":
        pixels = torch.cat([torch.cat([pixels[0], pixels[1]], dim=2), torch.cat([pixels[2], pixels[3]], dim=2)], dim=1)
    assert pixels.shape == (3, *preprocess.canvas_hw)
    top, left, bottom, right = preprocess.content_box(image_hw)
    content = colours_of(pixels)[:, top:bottom, left:right]
    rows, columns = content.shape[1:]
    for colour, y, x in (
        ((1, 0, 0), 0, columns // 2),
        ((0, 1, 0), rows - 1, columns // 2),
        ((0, 0, 1), rows // 2, 0),
        ((1, 1, 1), rows // 2, columns - 1),
    ):
        torch.testing.assert_close(content[:, y, x], torch.tensor(colour).float(), rtol=0, atol=0.06)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_squash_gives_the_very_pixels_of_open_clips_own_squash_transform(interpolation):
    image = picture(50, 71)
    theirs = image_transform_v2(
        PreprocessCfg(size=(64, 96), mean=MEAN, std=STD, interpolation=interpolation, resize_mode="squash"),
        is_train=False,
    )(image)
    torch.testing.assert_close(preprocessing("squash", (64, 96), interpolation).to_pixels(image), theirs)


def test_pad_geometry_of_a_wide_picture_as_computed_by_hand():
    preprocess = preprocessing("pad")
    # 100 rows x 200 columns into 64 x 64: factor 0.32, so 32 rows x 64 columns in the top left corner.
    assert preprocess.content_box((100, 200)) == (0, 0, 32, 64)
    pixels = preprocess.to_pixels(PIL.Image.new("RGB", (200, 100), (255, 255, 255)))
    assert torch.allclose(colours_of(pixels)[:, :32], torch.ones(3, 32, 64))
    assert torch.equal(pixels[:, 32:], torch.zeros(3, 32, 64))  # the mean colour
    valid = preprocess.valid_patches((100, 200), (4, 4)).reshape(4, 4)
    assert valid.tolist() == [[True] * 4, [True] * 4, [False] * 4, [False] * 4]


def test_a_location_counts_when_its_centre_is_on_the_picture():
    preprocess = preprocessing("pad")
    # 64 rows x 40 columns stay as they are; locations are 16 pixels, with centres at 8, 24, 40 and 56.
    assert preprocess.valid_patches((64, 40), (4, 4)).reshape(4, 4).tolist() == [[True, True, False, False]] * 4
    assert preprocess.valid_patches((64, 41), (4, 4)).reshape(4, 4).tolist() == [[True, True, True, False]] * 4


def test_a_picture_of_one_row_still_has_a_valid_location():
    preprocess = preprocessing("pad")
    assert preprocess.valid_patches((1, 1000), (4, 4)).sum() == 4
    assert preprocess.to_pixels(picture(1, 1000)).isfinite().all()


@pytest.mark.parametrize("mode", ["squash", "tile"])
def test_without_padding_every_location_is_valid_and_maps_are_resized_bilinearly(mode):
    preprocess, maps = preprocessing(mode), torch.randn(3, 4, 6)
    assert preprocess.valid_patches((50, 70), (4, 6)).all()
    reference = F.interpolate(maps[None], size=(50, 70), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(preprocess.grid_to_image(maps, (50, 70)), reference, rtol=1e-5, atol=1e-6)


def test_maps_come_back_to_the_picture_with_the_padding_cut_away():
    preprocess = preprocessing("pad")
    # 32 x 64 pixels of the 64 x 64 are picture: the upper two of four rows of locations.
    maps = torch.tensor([[1.0, 1, 1, 1], [3, 3, 3, 3], [99, 99, 99, 99], [99, 99, 99, 99]])[None]
    back = preprocess.grid_to_image(maps, (100, 200))
    assert back.shape == (1, 100, 200)
    assert back.max() < 3.001  # nothing of the padding bleeds in
    # Row y stands at (y + 0.5) / 50 - 0.5 in rows of locations, between the centres 0 (value 1) and 1 (value 3).
    position = ((torch.arange(100) + 0.5) / 50 - 0.5).clamp(0, 1)
    torch.testing.assert_close(back[0, :, 17], 1 + 2 * position)


def test_maps_of_a_picture_that_ends_inside_a_location_keep_their_scale():
    preprocess = preprocessing("pad")
    # 64 x 40 pixels: two and a half columns of locations, of which two are valid.
    back = preprocess.grid_to_image(torch.tensor([[0.0, 1, 50, 50]]).expand(4, 4)[None], (64, 40))
    position = ((torch.arange(40) + 0.5) / 16 - 0.5).clamp(0, 1)
    torch.testing.assert_close(back[0, 5], position)


def test_tiles_are_the_quarters_of_the_squashed_picture_row_by_row():
    image = picture(90, 130)
    whole = preprocessing("squash", (64, 128)).to_pixels(image)
    tiles = preprocessing("tile", (32, 64)).to_pixels(image)
    quarters = [whole[:, :32, :64], whole[:, :32, 64:], whole[:, 32:, :64], whole[:, 32:, 64:]]
    assert torch.equal(tiles, torch.stack(quarters))


@pytest.mark.parametrize("kind", ["L", "RGBA", "P", "CMYK"])
def test_pictures_of_any_colour_kind_become_rgb(kind):
    assert preprocessing("squash").to_pixels(picture(20, 30).convert(kind)).shape == (3, 64, 64)


def test_preprocessing_survives_json():
    preprocess = preprocessing("pad", (32, 48))
    assert Preprocessing(**json.loads(json.dumps(preprocess.to_dict()))) == preprocess


@pytest.mark.parametrize(
    ("change", "word"),
    [({"mode": "crop"}, "crop"), ({"interpolation": "box"}, "box"), ({"input_hw": (0, 5)}, "input size")],
)
def test_settings_that_do_not_exist_are_refused(change, word):
    settings = {"mode": "squash", "input_hw": (64, 64), "mean": MEAN, "std": STD} | change
    with pytest.raises(InputError, match=word):
        Preprocessing(**settings)
