"""The readers of segmentation data sets, on small copies in the true layouts, against torchvision and pycocotools."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from support import SHARED, needs_shared
from torchvision import datasets as reference

from unmix_clip.data.mask_files import CODINGS, UNEXPECTED, Coding, build_mapping, read_mask
from unmix_clip.data.samples import IGNORE, label_matrix
from unmix_clip.data.segmentation import (
    LAYOUTS,
    load_ade20k,
    load_cityscapes,
    load_coco_object,
    load_coco_stuff,
    load_context,
    load_voc_segmentation,
    require_same_names,
)
from unmix_clip.errors import InputError
from unmix_clip.vocabulary import load_names

ROWS, COLUMNS = 6, 9
COCO_IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
"""The category ids of COCO's 80 classes."""


def save_picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((ROWS, COLUMNS, 3), len(path.name), dtype=np.uint8)).save(path)


def save_mask(path, values, palette=False):
    """Save a mask that shows the given values, each at least once; returns it."""
    mask = np.resize(np.asarray(values, dtype=np.uint8), (ROWS, COLUMNS))
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask)
    if palette:
        image = image.convert("P")
        image.putdata(mask.ravel())
        image.putpalette([(37 * i + c) % 256 for i in range(256) for c in (0, 5, 90)])
    image.save(path)
    return mask


def make_voc(root, year=2012, masks="SegmentationClass", lists="Segmentation", values=(0, 1, 15, 20, 255)):
    folder = root / "VOCdevkit" / f"VOC{year}"
    keys = ["2007_000033", "2007_000042", "2007_000061"]
    for i, key in enumerate(keys):
        save_picture(folder / "JPEGImages" / f"{key}.jpg")
        save_mask(folder / masks / f"{key}.png", values[i:], palette=True)
    (folder / "ImageSets" / lists).mkdir(parents=True)
    (folder / "ImageSets" / lists / "val.txt").write_text("\n".join(keys) + "\n")
    return folder


def make_context(root):
    return make_voc(root, 2010, "SegmentationClassContext", "SegmentationContext", values=(0, 1, 37, 59))


def make_ade(root):
    folder = root / "ADEChallengeData2016"
    for i, values in enumerate(([0, 1, 13], [150, 2], [0])):
        save_picture(folder / "images" / "validation" / f"ADE_val_0000000{i}.jpg")
        save_mask(folder / "annotations" / "validation" / f"ADE_val_0000000{i}.png", values)
    (folder / "images" / "validation" / "._ADE_val_00000001.jpg").write_bytes(b"")  # some archives bring such
    return folder


def make_cityscapes(root, form="labelIds", values=(0, 4, 7, 18, 24, 33)):
    for city, number in (("ulm", 1), ("ulm", 2), ("bonn", 1)):
        name = f"{city}_00000{number}_000019"
        save_picture(root / "leftImg8bit" / "val" / city / f"{name}_leftImg8bit.png")
        save_mask(root / "gtFine" / "val" / city / f"{name}_gtFine_{form}.png", values[number:])
    return root


def make_coco_stuff(root, form="stuffthingmaps", values=(0, 12, 91, 181, 255)):
    train_ids = form == "labelTrainIds"
    folder = root / ("annotations" if train_ids else "stuffthingmaps") / "val2017"
    for i in range(3):
        save_picture(root / ("images/val2017" if train_ids else "val2017") / f"00000000013{i}.jpg")
        save_mask(folder / f"00000000013{i}{'_labelTrainIds' if train_ids else ''}.png", values[i:])
    return root


def make_coco(root):
    """A COCO folder with all 80 categories, under ids with gaps, and two overlapping objects."""
    save_picture(root / "val2017" / "1.jpg")
    names = load_names("coco").names
    boxes = ([0, 0, 7, 0, 7, 5, 0, 5], 35, 18, 0), ([1, 1, 3, 1, 3, 3, 1, 3], 4, 90, 1)
    table = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": ROWS, "width": COLUMNS}],
        "annotations": [
            {"segmentation": [box], "area": area, "category_id": category, "id": i + 1, "image_id": 1, "iscrowd": 0}
            for box, area, category, i in boxes
        ],
        "categories": [{"id": i, "name": name} for i, name in zip(COCO_IDS, names, strict=True)],
    }
    (root / "annotations").mkdir()
    file = root / "annotations" / "instances_val2017.json"
    file.write_text(json.dumps(table))
    return file


def of_classes(dataset, mask):
    """The names of the classes that a mask shows."""
    return {dataset.classes[value - 1] for value in np.unique(mask) if value > 0}


def test_voc_masks_agree_with_torchvision(tmp_path):
    make_voc(tmp_path)
    theirs = [np.asarray(mask) for _, mask in reference.VOCSegmentation(tmp_path, "2012", "val")]
    with_background = load_voc_segmentation(tmp_path, "val", background=True)
    without = load_voc_segmentation(tmp_path, "val", background=False)
    assert len(theirs) == 3
    for raw, own, other in zip(theirs, with_background.samples, without.samples, strict=True):
        expected = np.where(raw == 255, -1, raw.astype(np.int32))
        assert np.array_equal(own.load_mask(), expected)
        assert np.array_equal(other.load_mask(), np.where(raw == 0, -1, expected))
        assert own.image_hw == raw.shape == own.load_image().size[::-1]
    assert (with_background.has_background, without.has_background) == (True, False)
    assert (with_background.rules["zero"], without.rules["zero"]) == ("background", "ignored")


def test_cityscapes_label_ids_agree_with_torchvisions_table_of_train_ids(tmp_path):
    make_cityscapes(tmp_path, values=(*range(34),))
    theirs = reference.Cityscapes(tmp_path, split="val", target_type="semantic")
    train_id = {c.id: c.train_id for c in theirs.classes}
    names = {c.train_id: c.name for c in theirs.classes if not c.ignore_in_eval}
    dataset = load_cityscapes(tmp_path, "val")
    assert dataset.classes == tuple(names[i] for i in range(19))
    own = {sample.key: sample for sample in dataset.samples}
    for path, (_, target) in zip(theirs.images, theirs, strict=True):
        expected = np.vectorize(train_id.get)(np.asarray(target))
        expected = np.where((expected == 255) | (expected < 0), IGNORE, expected + 1)
        assert np.array_equal(own[path.rsplit("/")[-1]].load_mask(), expected)


def test_both_forms_of_cityscapes_say_the_same(tmp_path):
    by_ids = load_cityscapes(make_cityscapes(tmp_path / "ids", values=(7, 33, 19, 0, 4)), "val")
    values = (0, 18, 6, 255, 255)  # the same in train ids
    by_train_ids = load_cityscapes(make_cityscapes(tmp_path / "train_ids", "labelTrainIds", values), "val")
    for one, other in zip(by_ids.samples, by_train_ids.samples, strict=True):
        assert np.array_equal(one.load_mask(), other.load_mask())
    assert "labelTrainIds" in by_train_ids.rules["masks"]
    assert by_ids.rules["masks"].startswith("labelIds")


def test_train_ids_of_cityscapes_are_read_first(tmp_path):
    make_cityscapes(tmp_path)
    make_cityscapes(tmp_path, "labelTrainIds", (11, 11, 11))
    dataset = load_cityscapes(tmp_path, "val")
    assert of_classes(dataset, dataset.samples[0].load_mask()) == {"person"}


def test_coco_objects_agree_with_pycocotools(tmp_path):
    file = make_coco(tmp_path)
    dataset = load_coco_object(tmp_path, "val2017")
    theirs = COCO(file)
    mask = dataset.samples[0].load_mask()
    dog, brush = (theirs.annToMask(annotation).astype(bool) for annotation in theirs.loadAnns([1, 2]))
    names = [theirs.loadCats([i])[0]["name"] for i in (18, 90)]
    assert names == ["dog", "toothbrush"]
    values = [dataset.classes.index(name) + 1 for name in names]
    assert np.array_equal(mask, np.where(brush, values[1], np.where(dog, values[0], 0)))
    assert of_classes(dataset, mask) == set(names)
    assert dataset.has_background
    assert dataset.spec == f"coco-object:{tmp_path}@val2017"
    assert dataset.notes["of 5000 pictures, not the published split"] == 1


def test_converted_coco_objects_are_read_first_and_the_rules_say_so(tmp_path):
    make_coco(tmp_path)
    before = load_coco_object(tmp_path, "val2017").rules["masks"]
    save_picture(tmp_path / "images" / "val2017" / "1.jpg")
    save_mask(tmp_path / "annotations" / "val2017" / "1_instanceTrainIds.png", (0, 17, 80, 255))
    dataset = load_coco_object(tmp_path, "val2017")
    assert of_classes(dataset, dataset.samples[0].load_mask()) == {"dog", "toothbrush"}
    assert dataset.rules["masks"].startswith("instanceTrainIds")
    assert "instances JSON" in before


def test_both_forms_of_coco_stuff_say_the_same(tmp_path):
    original = load_coco_stuff(make_coco_stuff(tmp_path / "original"), "val2017")
    values = (0, 11, 80, 170, 255)
    converted = load_coco_stuff(make_coco_stuff(tmp_path / "converted", "labelTrainIds", values), "val2017")
    for one, other in zip(original.samples, converted.samples, strict=True):
        assert np.array_equal(one.load_mask(), other.load_mask())
    assert of_classes(original, original.samples[0].load_mask()) == {"person", "stop sign", "banner", "wood"}
    assert not original.has_background
    assert original.samples[0].load_mask().min() == IGNORE


@needs_shared
def test_stuffthingmaps_hold_category_ids_less_one():
    table = json.loads((SHARED / "coco96" / "annotations" / "instances_val2017.json").read_text())
    assert [category["id"] for category in table["categories"]] == COCO_IDS
    mapping = CODINGS["coco-stuff stuffthingmaps"].mapping
    names = load_names("coco_stuff").names
    assert {c["name"]: names[mapping[c["id"] - 1] - 1] for c in table["categories"]} == {n: n for n in names[:80]}
    assert [names[mapping[i - 1] - 1] for i in range(92, 183)] == list(names[80:])
    assert (mapping != UNEXPECTED).sum() == 171 + 1


def test_context_has_its_classes_by_name_and_background_only_in_context60(tmp_path):
    make_context(tmp_path)
    whole, reduced = (load_context(tmp_path, "val", background=flag) for flag in (True, False))
    mask = whole.samples[0].load_mask()
    assert of_classes(whole, mask) == {"aeroplane", "person", "wood"}
    assert (mask == 0).any()
    assert np.array_equal(reduced.samples[0].load_mask(), np.where(mask == 0, IGNORE, mask))
    assert (whole.has_background, reduced.has_background) == (True, False)


def test_ade_counts_classes_from_one_and_ignores_zero(tmp_path):
    make_ade(tmp_path)
    dataset = load_ade20k(tmp_path, "validation")
    masks = [sample.load_mask() for sample in dataset.samples]
    assert [of_classes(dataset, mask) for mask in masks] == [{"wall", "person"}, {"flag", "building"}, set()]
    assert (masks[2] == IGNORE).all()
    assert dataset.notes == {"of 2000 pictures, not the published split": 3, "images_without_objects": 1}
    assert load_ade20k(tmp_path / "ADEChallengeData2016", "validation").classes == dataset.classes


LOADERS = {
    "voc21": (make_voc, lambda root, split: load_voc_segmentation(root, split, background=True)),
    "voc20": (make_voc, lambda root, split: load_voc_segmentation(root, split, background=False)),
    "context60": (make_context, lambda root, split: load_context(root, split, background=True)),
    "context59": (make_context, lambda root, split: load_context(root, split, background=False)),
    "coco-object": (make_coco, load_coco_object),
    "coco-stuff": (make_coco_stuff, load_coco_stuff),
    "ade20k": (make_ade, load_ade20k),
    "cityscapes": (make_cityscapes, load_cityscapes),
}
SPLIT = {"ade20k": "validation", "coco-object": "val2017", "coco-stuff": "val2017"}


@pytest.mark.parametrize("kind", LOADERS)
def test_labels_are_the_classes_that_a_mask_shows(tmp_path, kind):
    make, load = LOADERS[kind]
    make(tmp_path)
    dataset = load(tmp_path, SPLIT.get(kind, "val"))
    shown = [of_classes(dataset, sample.load_mask()) for sample in dataset.samples]
    assert [{dataset.classes[i] for i in np.flatnonzero(row)} for row in label_matrix(dataset)] == shown
    assert dataset.spec == f"{kind}:{tmp_path}@{SPLIT.get(kind, 'val')}"
    assert any("not the published split" in note for note in dataset.notes)
    assert dataset.synonyms.keys() < set(dataset.classes)
    assert len({sample.key for sample in dataset.samples}) == len(dataset.samples)


@pytest.mark.parametrize("kind", LOADERS)
def test_a_wrong_folder_or_split_is_told_with_the_layout_and_the_splits_there(tmp_path, kind):
    make, load = LOADERS[kind]
    with pytest.raises(InputError) as nowhere:
        load(tmp_path, "val")
    make(tmp_path)
    with pytest.raises(InputError, match=f"no split 'dev' .* there: .*{SPLIT.get(kind, 'val')}") as unknown:
        load(tmp_path, "dev")
    for error in (nowhere, unknown):
        assert LAYOUTS[kind] in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "broken", "told"),
    [
        ("voc21", "JPEGImages/2007_000042.jpg", "1 of 3 pictures are missing, such as .*2007_000042.jpg"),
        ("voc21", "SegmentationClass/2007_000033.png", "1 of 3 masks are missing, such as .*2007_000033.png"),
        ("ade20k", "annotations/validation/ADE_val_00000001.png", "1 of 3 pictures have no mask"),
        ("ade20k", "images/validation/ADE_val_00000001.jpg", "1 of 3 masks have no picture"),
        ("coco-stuff", "stuffthingmaps/val2017/000000000132.png", "1 of 3 pictures have no mask"),
        ("cityscapes", "gtFine/val/ulm/ulm_000001_000019_gtFine_labelIds.png", "1 of 3 pictures have no mask"),
    ],
)
def test_a_partial_download_is_told(tmp_path, kind, broken, told):
    make, load = LOADERS[kind]
    (make(tmp_path) / broken).unlink()
    with pytest.raises(InputError, match=told) as error:
        load(tmp_path, SPLIT.get(kind, "val"))
    assert "\n" not in str(error.value)


def test_an_empty_split_a_split_without_classes_and_a_name_twice_are_told(tmp_path):
    folder = make_voc(tmp_path)
    (tmp_path / "leftImg8bit" / "val").mkdir(parents=True)
    with pytest.raises(InputError, match="no pictures of 'val'"):
        load_cityscapes(tmp_path, "val")
    with pytest.raises(InputError, match="shows a class; choose a split whose masks are published"):
        load_cityscapes(make_cityscapes(tmp_path / "withheld", values=(0, 1, 2, 3)), "val")
    (folder / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_000033\n2007_000033\n")
    with pytest.raises(InputError, match="1 pictures twice"):
        load_voc_segmentation(tmp_path, "val", background=True)


def test_another_year_is_never_read_as_voc2012(tmp_path):
    folder = make_voc(tmp_path, year=2007)
    with pytest.raises(InputError, match="no VOC2012 in"):
        load_voc_segmentation(folder, "val", background=True)


@pytest.mark.parametrize(
    ("kind", "make", "told"),
    [
        ("voc21", lambda root: make_voc(root, values=(21, 1, 2)), "has the values 21; expected the values 0-20, 255"),
        (
            "context59",
            lambda root: make_voc(root, 2010, "SegmentationClassContext", "SegmentationContext", (0, 9, 255, 60)),
            r"60, 255; expected the values 0-59: .* masks that start at 0 without 'other'",
        ),
        ("coco-stuff", lambda root: make_coco_stuff(root, values=(11, 1, 182)), r"11, 182; .* category id - 1"),
        (
            "coco-stuff",
            lambda root: make_coco_stuff(root, "labelTrainIds", (181, 1, 2)),
            "181; expected the values 0-170, 255: 171 to 181 look like the original ids",
        ),
        (
            "cityscapes",
            lambda root: make_cityscapes(root, "labelTrainIds", (0, 7, 33, 33)),
            "33; expected the values 0-18, 255: 19 to 33 look like labelIds",
        ),
        (
            "cityscapes",
            lambda root: make_cityscapes(root, "labelIds", (0, 7, 255)),
            "255; expected the values 0-33: 255 looks like labelTrainIds",
        ),
    ],
)
def test_values_of_another_coding_are_told_with_what_they_look_like(tmp_path, kind, make, told):
    make(tmp_path)
    with pytest.raises(InputError, match=told) as error:
        LOADERS[kind][1](tmp_path, SPLIT.get(kind, "val"))
    assert "\n" not in str(error.value)


CODING = Coding(build_mapping([1, 2], background=[0]), "rule", "mend")


def test_a_mask_of_colours_of_another_size_or_no_png_is_told(tmp_path):
    path = tmp_path / "mask.png"
    for mode in ("RGB", "RGBA", "LA"):
        Image.new(mode, (COLUMNS, ROWS)).save(path)
        with pytest.raises(InputError, match=rf"has colours \({mode}\); expected numbers, as a palette"):
            read_mask(path, CODING, (ROWS, COLUMNS))
    with pytest.raises(InputError, match=r"is \(6, 9\), its picture \(9, 6\)"):
        read_mask(path, CODING, (COLUMNS, ROWS))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match="cannot read the mask"):
        read_mask(path, CODING, (ROWS, COLUMNS))
    path.unlink()
    with pytest.raises(InputError, match="no mask at"):
        read_mask(path, CODING, (ROWS, COLUMNS))


def test_masks_of_one_and_of_sixteen_bits_are_read_by_value(tmp_path):
    path = tmp_path / "mask.png"
    bits = np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS) % 3 == 0
    Image.fromarray(bits).save(path)  # a lossless optimiser makes such a file of 0 and 255
    assert np.array_equal(read_mask(path, CODING, (ROWS, COLUMNS)), np.where(bits, IGNORE, 0))
    wide = np.full(65536, -2, dtype=np.int32)
    wide[[0, 26000]] = 0, 1
    Image.fromarray(np.where(bits, 26000, 0).astype(np.uint16)).save(path)
    assert np.array_equal(read_mask(path, Coding(wide, "", ""), (ROWS, COLUMNS)), bits.astype(np.int32))
    with pytest.raises(InputError, match="the values 26000; expected the values 0-2, 255: mend"):
        read_mask(path, CODING, (ROWS, COLUMNS))


def test_a_mask_that_changes_after_loading_is_validated_again(tmp_path):
    folder = make_voc(tmp_path)
    dataset = load_voc_segmentation(tmp_path, "val", background=True)
    save_mask(folder / "SegmentationClass" / "2007_000033.png", (77,))
    with pytest.raises(InputError, match="the values 77"):
        dataset.samples[0].load_mask()


def test_a_list_of_names_beside_the_data_must_be_ours(tmp_path):
    folder = make_ade(tmp_path)
    names = list(load_names("ade20k").names)
    info = folder / "objectInfo150.txt"

    def write(words):
        rows = [f"{i}\t0.1\t5\t1\t{word}" for i, word in enumerate(words, 1)]
        info.write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]) + "\n")

    write([names[0], "building, edifice", *names[2:89], "television receiver, television, tv", *names[90:]])
    assert load_ade20k(tmp_path, "validation").classes == tuple(names)
    write(["wall", "tree", *names[2:]])
    with pytest.raises(InputError, match=r"objectInfo150.txt .*number 2 is 'tree', expected 'building'"):
        load_ade20k(tmp_path, "validation")
    write(names[:149])
    with pytest.raises(InputError, match="lists 149 classes, expected 150;"):
        load_ade20k(tmp_path, "validation")
    write([*names, "more"])
    with pytest.raises(InputError, match="lists 151 classes, expected 150;"):
        load_ade20k(tmp_path, "validation")
    with pytest.raises(InputError, match="here lists 1 classes, expected 2: number 1 is 'c', expected 'a'"):
        require_same_names(("a", "b"), ["c"], "here")
    other = make_coco(tmp_path)
    table = json.loads(other.read_text())
    table["categories"][0]["name"] = "human"
    other.write_text(json.dumps(table))
    with pytest.raises(InputError, match="number 1 is 'human', expected 'person'"):
        load_coco_object(tmp_path, "val2017")
