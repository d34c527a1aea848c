"""The image loader against hand-made files: the picture as a person sees it, or one clear line."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from unmix_clip.data.images import image_digest, list_images, load_image, load_mask_png
from unmix_clip.data.samples import IGNORE
from unmix_clip.errors import InputError


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = np.zeros((20, 30, 3), dtype=np.uint8)
    upright[:8, :8] = 255  # a white square at the top left of the displayed picture
    # What a camera stores so that this orientation displays `upright` (EXIF 2.3, tag 0x0112).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / "photo.png"
    Image.fromarray(np.ascontiguousarray(stored)).save(file, exif=exif)
    assert np.array_equal(np.asarray(load_image(file)), upright)


def test_16_bit_greys_are_scaled_by_their_depth(tmp_path):
    values = np.array([[0, 257 * 10, 257 * 128, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert np.asarray(load_image(tmp_path / "deep.png"))[0, :, 0].tolist() == [0, 10, 128, 255]


def test_a_dark_16_bit_picture_is_not_taken_for_8_bit(tmp_path):
    Image.fromarray(np.full((2, 2), 200, dtype=np.uint16)).save(tmp_path / "dark.png")
    assert np.asarray(load_image(tmp_path / "dark.png")).max() == 1


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(tmp_path, mode):
    colour = (200, 0, 0, 0) if mode == "RGBA" else (0, 0)
    half = (200, 0, 0, 128) if mode == "RGBA" else (0, 128)
    picture = Image.new(mode, (2, 1), colour)
    picture.putpixel((1, 0), half)
    picture.save(tmp_path / "clear.png")
    clear, mixed = np.asarray(load_image(tmp_path / "clear.png"))[0]
    assert clear.tolist() == [255, 255, 255]
    assert mixed[1] == pytest.approx(127, abs=1)


def test_a_transparent_palette_entry_is_white(tmp_path):
    picture = Image.new("P", (2, 1), 0)
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "palette.png", transparency=0)
    assert np.asarray(load_image(tmp_path / "palette.png"))[0].tolist() == [[255, 255, 255], [40, 50, 60]]


@pytest.mark.parametrize(("mode", "colour", "suffix"), [("CMYK", (0, 0, 0, 0), "jpg"), ("1", 1, "png")])
def test_cmyk_and_one_bit_pictures_become_rgb(tmp_path, mode, colour, suffix):
    file = tmp_path / f"white.{suffix}"
    Image.new(mode, (8, 8), colour).save(file)
    loaded = load_image(file)
    assert loaded.mode == "RGB"
    assert np.asarray(loaded).min() >= 254


def test_a_truncated_jpeg_is_told(tmp_path):
    file = tmp_path / "cut.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:900])
    with pytest.raises(InputError, match=r"cut\.jpg is damaged or truncated"):
        load_image(file)


def test_a_huge_picture_is_refused_from_its_header(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for side, told in ((11_000, "11000 x 11000 pixels; expected at most 100,000,000"), (60_000, "scale it down")):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        file = tmp_path / f"{side}.png"
        file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
        with pytest.raises(InputError, match=told):
            load_image(file)


def test_a_missing_file_and_a_file_that_is_no_picture_are_told(tmp_path):
    (tmp_path / "note.jpg").write_text("no picture")
    with pytest.raises(InputError, match="no picture that can be read"):
        load_image(tmp_path / "note.jpg")
    with pytest.raises(InputError, match="no picture at"):
        load_image(tmp_path / "gone.jpg")


def test_folders_globs_and_files_are_listed_once_in_order(tmp_path):
    for name in ("b.png", "a.jpg", "sub/c.webp", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = list_images([tmp_path, tmp_path / "a.jpg", str(tmp_path / "*.png")])
    assert [file.relative_to(tmp_path).as_posix() for file in found] == ["a.jpg", "b.png", "sub/c.webp"]
    with pytest.raises(InputError, match="no pictures at"):
        list_images([tmp_path / "*.gif"])


def test_the_digest_is_that_of_the_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert image_digest(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_masks_are_read_and_checked(tmp_path):
    file = tmp_path / "mask.png"
    Image.fromarray(np.array([[0, 1], [2, 255]], dtype=np.uint8)).save(file)
    assert load_mask_png(file, (2, 2), 2).tolist() == [[0, 1], [2, IGNORE]]
    with pytest.raises(InputError, match=r"has the values \[2\]; expected 0 to 1 and 255"):
        load_mask_png(file, (2, 2), 1)
    with pytest.raises(InputError, match=r"is \(2, 2\), its picture \(3, 2\)"):
        load_mask_png(file, (3, 2), 2)
