"""The image loader against hand-made files: the picture as a person sees it, or one clear line."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from unmix_clip.data.images import image_digest, list_images, load_image, load_image_hw
from unmix_clip.errors import InputError


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


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
    tiff = tmp_path / "photo.tif"
    Image.fromarray(np.ascontiguousarray(stored)).save(tiff, exif=exif)
    assert np.array_equal(np.asarray(load_image(tiff)), upright)
    jpeg, webp = tmp_path / "photo.jpg", tmp_path / "photo.webp"
    for lossy in (jpeg, webp):
        Image.fromarray(np.ascontiguousarray(stored)).save(lossy, exif=exif)
        assert np.abs(np.asarray(load_image(lossy), dtype=int) - upright).mean() < 8
    for each in (file, tiff, jpeg, webp):
        assert load_image_hw(each) == upright.shape[:2]


def test_a_photo_with_broken_exif_data_is_still_read(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    file = tmp_path / "photo.png"
    Image.fromarray(pixels).save(file, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09 broken")
    assert np.array_equal(np.asarray(load_image(file)), pixels)
    # Orientation 6 beside a width that is a text: Pillow's exif_transpose cannot write that back.
    tags = ((0x0100, 2, 4, b"wide"), (0x0112, 3, 1, b"\0\6\0\0"), (0x8769, 2, 4, b"none"))
    entries = b"".join(struct.pack(">HHI", *tag[:3]) + tag[3] for tag in tags)
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", len(tags)) + entries + b"\0\0\0\0"
    Image.fromarray(pixels).save(file, exif=exif)
    assert np.array_equal(np.asarray(load_image(file)), np.rot90(pixels, -1))


def test_damaged_files_give_a_picture_or_one_clear_line_and_nothing_else(tmp_path):
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8))
    for suffix in ("jpg", "png", "webp", "gif", "bmp"):
        file = tmp_path / f"photo.{suffix}"
        picture.save(file, **({"exif": exif} if suffix in ("jpg", "png", "webp") else {}))
        whole = file.read_bytes()
        for _ in range(150):
            damaged = bytearray(whole)
            for at in rng.integers(0, min(len(whole), 200), size=3):
                damaged[at] = rng.integers(0, 256)
            file.write_bytes(damaged)
            try:
                told, mode = "", load_image(file).mode
            except InputError as error:
                told, mode = str(error), "RGB"
            assert mode == "RGB"
            assert not told or (told.startswith(str(file)) and "\n" not in told)


def test_16_bit_greys_are_scaled_by_their_depth(tmp_path):
    values = np.array([[0, 257 * 10, 257 * 128, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert np.asarray(load_image(tmp_path / "deep.png"))[0, :, 0].tolist() == [0, 10, 128, 255]


def test_a_dark_16_bit_picture_is_not_taken_for_8_bit(tmp_path):
    Image.fromarray(np.full((2, 2), 200, dtype=np.uint16)).save(tmp_path / "dark.png")
    assert np.asarray(load_image(tmp_path / "dark.png")).max() == 1
    (tmp_path / "dark.pgm").write_bytes(b"P5 2 1 65535\n" + struct.pack(">HH", 200, 100))  # Pillow opens it as 32-bit
    assert np.asarray(load_image(tmp_path / "dark.pgm")).max() == 1


def test_the_transparent_value_of_a_16_bit_grey_is_white(tmp_path):
    header = struct.pack(">IIBBBBB", 2, 1, 16, 0, 0, 0, 0)
    chunks = (
        (b"IHDR", header),
        (b"tRNS", struct.pack(">H", 0)),
        (b"IDAT", zlib.compress(struct.pack(">BHH", 0, 0, 257))),
    )
    (tmp_path / "clear.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*c) for c in (*chunks, (b"IEND", b"")))
    )
    assert np.asarray(load_image(tmp_path / "clear.png"))[0, :, 0].tolist() == [255, 1]


@pytest.mark.parametrize(("dtype", "kind"), [(np.float32, "floating-point"), (np.int32, "32-bit")])
def test_pictures_of_unknown_range_are_refused(tmp_path, dtype, kind):
    Image.fromarray(np.full((2, 2), 7, dtype=dtype)).save(tmp_path / "depth.tif")
    with pytest.raises(InputError, match=f"{kind} pixels of unknown range"):
        load_image(tmp_path / "depth.tif")


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
    for side, told in ((11_000, "11000 x 11000 pixels; expected at most 100,000,000"), (60_000, "scale it down")):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        file = tmp_path / f"{side}.png"
        file.write_bytes(
            b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")
        )
        with pytest.raises(InputError, match=told):
            load_image(file)
        with pytest.raises(InputError, match=told):
            load_image_hw(file)


def test_a_decoder_that_asks_for_too_much_memory_is_told(tmp_path, monkeypatch):
    # What a JPEG 2000 file with a damaged tile size makes Pillow's decoder raise (found by changing random bytes).
    file = tmp_path / "photo.png"
    Image.new("RGB", (4, 4)).save(file)

    def exhausted(self):
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", exhausted)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", exhausted)
    with pytest.raises(InputError, match=r"photo\.png needs more memory than there is"):
        load_image(file)


def test_a_missing_file_and_a_file_that_is_no_picture_are_told(tmp_path):
    (tmp_path / "note.jpg").write_text("no picture")
    with pytest.raises(InputError, match="no picture that can be read"):
        load_image(tmp_path / "note.jpg")
    with pytest.raises(InputError, match="no picture at"):
        load_image(tmp_path / "gone.jpg")
    with pytest.raises(InputError, match="is a folder; expected a picture"):
        load_image(tmp_path)


def test_a_postscript_file_is_not_run(tmp_path):
    (tmp_path / "photo.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(InputError, match=r"photo\.jpg is no picture .* expected one of JPEG, PNG"):
        load_image(tmp_path / "photo.jpg")


def test_folders_globs_and_files_are_listed_once_in_order(tmp_path):
    for name in ("b.png", "a.jpg", "sub/c.webp", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = list_images([tmp_path, tmp_path / "a.jpg", str(tmp_path / "*.png")])
    assert [file.relative_to(tmp_path).as_posix() for file in found] == ["a.jpg", "b.png", "sub/c.webp"]
    with pytest.raises(InputError, match="no pictures at"):
        list_images([tmp_path / "*.gif"])


def test_one_file_by_two_paths_is_one_picture_and_hidden_files_are_none(tmp_path, monkeypatch):
    for name in ("a.jpg", "._a.jpg", "sub/b.jpg", ".thumbnails/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    found = list_images(["a.jpg", tmp_path / "a.jpg", "sub/../a.jpg", tmp_path])
    assert sorted(file.name for file in found) == ["a.jpg", "b.jpg"]
    with pytest.raises(InputError, match="no pictures at xxx"):
        list_images(["x" * 300])
    monkeypatch.chdir(tmp_path / ".thumbnails")
    assert list_images([tmp_path / ".thumbnails"])  # a hidden folder that is named outright is not left out


def test_the_digest_is_that_of_the_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert image_digest(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
