"""The VOC reader against torchvision's on a small folder of the true layout; three readings of difficult objects."""

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import VOCDetection, VOCSegmentation

from unmix_clip.data import load_data
from unmix_clip.data.samples import IGNORE, label_matrix
from unmix_clip.data.voc import CLASSES, SYNONYMS, find_voc, load_voc, read_objects
from unmix_clip.errors import InputError
from unmix_clip.evaluation.metrics import average_precision

OBJECTS = {
    "000001": [("dog", 0), ("person", 0)],
    "000002": [("dog", 1)],
    "000003": [("cat", 0), ("cat", 1)],
    "000004": [("dog", 0), ("dog", 1), ("person", 1)],
    "000005": [],
    "000006": [("tvmonitor", 0)],
    "000007": [("aeroplane", 1), ("bird", 1)],
    "000008": [("person", 0), ("chair", 1), ("sofa", 0)],
}
"""(class, difficult) of every object, by picture; all are in trainval, the last three in val."""
SPLITS = {"trainval": list(OBJECTS), "val": list(OBJECTS)[5:]}
MASKED = ("000001", "000004", "000008")


@pytest.fixture
def voc(tmp_path):
    """VOCdevkit/VOC2007 with eight pictures, three of them with a mask."""
    base = tmp_path / "VOCdevkit" / "VOC2007"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main", "ImageSets/Segmentation", "SegmentationClass"):
        (base / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for key, objects in OBJECTS.items():
        pixels = rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(base / "JPEGImages" / f"{key}.jpg")
        write_annotation(base, key, objects)
    for split, keys in SPLITS.items():
        write_lines(base / f"ImageSets/Main/{split}.txt", keys)
        for name in CLASSES:
            write_lines(base / f"ImageSets/Main/{name}_{split}.txt", [f"{k} {told(k, name):2d}" for k in keys])
    write_lines(base / "ImageSets/Segmentation/trainval.txt", MASKED)
    for key in MASKED:
        values = rng.choice([*range(21), 255], (12, 16)).astype(np.uint8)
        mask = Image.fromarray(values, mode="P")
        mask.putpalette(rng.integers(0, 255, 768).tolist())
        mask.save(base / f"SegmentationClass/{key}.png")
    return tmp_path


def write_lines(file, lines):
    file.write_text("".join(f"{line}\n" for line in lines))


def write_annotation(base, key, objects):
    body = "".join(
        f"<object><name>{name}</name><difficult>{hard}</difficult><part><name>head</name></part>"
        f"<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
        for name, hard in objects
    )
    (base / f"Annotations/{key}.xml").write_text(f"<annotation><filename>{key}.jpg</filename>{body}</annotation>")


def told(key, name):
    """What the class file says of a picture, from the table above."""
    hard = [difficult for other, difficult in OBJECTS[key] if other == name]
    return -1 if not hard else 0 if all(hard) else 1


@pytest.mark.parametrize(("rule", "only_difficult"), [("ignore", -1), ("negative", 0), ("positive", 1)])
@pytest.mark.parametrize("with_class_files", [True, False])
def test_labels_agree_with_the_objects_that_torchvision_reads(voc, rule, only_difficult, with_class_files):
    if not with_class_files:
        for file in voc.rglob("ImageSets/Main/*_trainval.txt"):
            file.unlink()
    dataset = load_voc(voc, 2007, "trainval", difficult=rule)
    reference = VOCDetection(voc, "2007", "trainval")
    assert len(dataset.samples) == len(reference)
    for sample, (picture, target) in zip(dataset.samples, reference, strict=True):
        objects = target["annotation"].get("object", [])
        assert sample.key + ".jpg" == target["annotation"]["filename"]
        assert np.array_equal(sample.load_image(), picture)
        for name, label in zip(dataset.classes, sample.labels, strict=True):
            own = [o["difficult"] for o in objects if o["name"] == name]
            assert label == (1 if "0" in own else only_difficult if own else 0)
    assert dataset.rules == {"difficult": rule}


def test_masks_agree_with_torchvision_and_other_pictures_have_none(voc):
    dataset = load_voc(voc, 2007, "trainval")
    masks = {sample.key: sample.load_mask() for sample in dataset.samples if sample.load_mask}
    assert tuple(masks) == MASKED
    for mask, (_, reference) in zip(masks.values(), VOCSegmentation(voc, "2007", "trainval"), strict=True):
        assert np.array_equal(np.where(mask == IGNORE, 255, mask), reference)
        assert (mask == IGNORE).any()
        assert CLASSES[mask.max() - 1] == "tvmonitor"


def test_each_reading_of_difficult_objects_gives_its_hand_computed_average_precision(voc):
    # dogs in 000001, 000002 (only a difficult one), 000003 (none), 000004, scored in this order
    expected = {"ignore": (1 + 2 / 3) / 2, "negative": (1 + 2 / 4) / 2, "positive": (1 + 1 + 3 / 4) / 3}
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    for rule, value in expected.items():
        labels = label_matrix(load_voc(voc, 2007, "trainval", difficult=rule))[:4, CLASSES.index("dog")]
        assert average_precision(scores, labels) == pytest.approx(value)


def test_notes_count_difficult_objects_and_name_a_partial_copy(voc):
    assert load_voc(voc, 2007, "trainval").notes == {
        "of 5011 pictures, not the published split": 8,
        "labels_only_difficult": 5,
        "images_with_only_difficult_objects": 2,
    }
    assert [sample.key for sample in load_voc(voc, 2007, "val").samples] == SPLITS["val"]


def test_the_class_files_outweigh_the_annotations_and_need_no_list(voc):
    base = voc / "VOCdevkit" / "VOC2007"
    (base / "ImageSets/Main/trainval.txt").unlink()
    write_annotation(base, "000005", [("cow", 0)])
    assert not load_voc(voc, 2007, "trainval").samples[4].labels.any()
    for file in base.glob("ImageSets/Main/*_trainval.txt"):
        file.unlink()
    with pytest.raises(InputError, match=r"lacks 20 of 20 class files of 'trainval'.*splits there: val$"):
        load_voc(voc, 2007, "trainval")


def test_the_root_may_be_any_folder_of_the_layout_but_never_that_of_another_year(voc):
    inside = voc / "VOCdevkit" / "VOC2007"
    renamed = (voc / "mine").resolve()
    renamed.symlink_to(inside)
    for root in (voc, voc / "VOCdevkit", inside):
        assert find_voc(root, 2007) == inside
    assert find_voc(renamed, 2007) == renamed
    for root in (voc, inside, voc / "VOCdevkit" / "VOC2007" / "JPEGImages", voc / "nowhere"):
        with pytest.raises(InputError, match=r"no VOC2012 in .*; expected voc2012:ROOT@SPLIT .*VOC2012/"):
            find_voc(root, 2012)


def test_a_spec_chooses_the_rule_and_synonyms_are_about_the_classes(voc):
    dataset = load_data(f"voc2007:{voc}@val?difficult=negative")
    assert dataset.rules == {"difficult": "negative"}
    assert (label_matrix(dataset) >= 0).all()
    assert len(dataset.classes) == len(set(dataset.classes)) == 20
    assert dataset.synonyms == SYNONYMS
    assert set(dataset.synonyms) < set(dataset.classes)


def edit(path, *change):
    return lambda base: (base / path).write_text((base / path).read_text().replace(*change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda base: [(base / f"JPEGImages/00000{i}.jpg").unlink() for i in (3, 6)],
            r"2 of 8 pictures are missing, such as .*000003\.jpg; expected voc2007:",
        ),
        (edit("ImageSets/Main/cow_trainval.txt", "000003 -1\n", ""), "differ in 1 of their 7 and 8 pictures.* 000003;"),
        (edit("ImageSets/Main/trainval.txt", "000003", "000009"), "differ in 2 of their 8 and 8 pictures, .* 000003;"),
        (edit("ImageSets/Main/trainval.txt", "000003", "000002"), r"trainval\.txt lists 1 pictures twice"),
        (edit("ImageSets/Main/cow_trainval.txt", "000003 -1", "000003 2"), r"cow_trainval\.txt entry 3 is '000003 2'"),
        (edit("ImageSets/Main/cow_trainval.txt", "000003 -1", "000003"), r"cow_trainval\.txt entry 3 is '000003'"),
        (edit("ImageSets/Main/cow_trainval.txt", "000003 ", "000002 "), r"cow_trainval\.txt entry 3 .*a picture, once"),
        (lambda base: (base / "ImageSets/Main/cow_trainval.txt").write_text("\n"), r"cow_trainval\.txt is empty"),
        (lambda base: (base / "ImageSets/Main/cow_trainval.txt").write_bytes(b"\xff"), "is no text in UTF-8"),
        (
            lambda base: (base / "ImageSets/Main/cow_trainval.txt").unlink(),
            r"lacks 1 of 20 class files of 'trainval', such as cow_trainval\.txt; .*; splits there: trainval, val",
        ),
    ],
)
def test_a_damaged_copy_is_told_in_one_line(voc, change, message):
    change(voc / "VOCdevkit" / "VOC2007")
    with pytest.raises(InputError, match=message) as error:
        load_voc(voc, 2007, "trainval")
    assert "\n" not in str(error.value)


def test_an_unknown_split_year_or_rule_is_told(voc):
    with pytest.raises(InputError, match=r"class files of 'test'.*splits there: trainval, val"):
        load_voc(voc, 2007, "test")
    with pytest.raises(InputError, match="no VOC of 2008 here; expected one of 2007, 2012"):
        load_voc(voc, 2008, "val")
    with pytest.raises(InputError, match="difficult is 'skip'; expected one of ignore, negative, positive"):
        load_voc(voc, 2007, "val", difficult="skip")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "declares a DOCTYPE or ENTITY"),
        ("<annotation>", "is not valid XML"),
        ("<annotation><object><name>unicorn</name></object></annotation>", "an object 'unicorn' with difficult '0'"),
        ("<annotation><object><name>dog</name><difficult>2</difficult></object></annotation>", "difficult '2'"),
        ("<annotation><object/></annotation>", "an object ''"),
    ],
)
def test_an_unsafe_or_broken_annotation_is_refused(tmp_path, text, message):
    file = tmp_path / "a.xml"
    for encoding in ("utf-8", "utf-8-sig"):
        file.write_text(text, encoding=encoding)
        with pytest.raises(InputError, match=message):
            read_objects(file)
    file.write_text(text, encoding="utf-16")  # would hide a declaration from a search in the bytes
    with pytest.raises(InputError, match="is not valid XML"):
        read_objects(file)
    file.unlink()
    with pytest.raises(InputError, match="cannot read the annotation"):
        read_objects(file)


def test_an_annotation_without_a_difficult_flag_holds_ordinary_objects(tmp_path):
    (tmp_path / "a.xml").write_text("<annotation><object><name> dog </name></object></annotation>")
    assert read_objects(tmp_path / "a.xml") == [("dog", False)]
