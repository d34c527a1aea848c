"""The Open Images reader on small files of the published layouts, against a plain reading of them."""

import numpy as np
import pytest
from PIL import Image

from unmix_clip.data import load_data
from unmix_clip.data.openimages import load_open_images
from unmix_clip.data.samples import label_matrix
from unmix_clip.errors import InputError

NAMES = {"/m/03": "Zebra", "/m/01": "Dog", "/m/02": "Fork, salad", "/m/04": "Lamp", "/m/05": "dog"}
"""In the order of the file; two machine ids share a name but for its case."""
PICTURES = [f"{i:016x}" for i in range(8)]
ROWS = [
    (PICTURES[3], "verification", "/m/01", "1"),
    (PICTURES[3], "verification", "/m/02", "0"),
    (PICTURES[0], "crowdsource-verification", "/m/01", "0"),
    (PICTURES[0], "verification", "/m/03", "1.0"),
    (PICTURES[1], "verification", "/m/01", "0"),
    (PICTURES[1], "verification", "/m/05", "1"),  # contradicts the line before
    (PICTURES[2], "machine", "/m/01", "1"),  # nobody looked
    (PICTURES[2], "verification", "/m/03", "0.7"),
    (PICTURES[2], "verification", "/m/02", "1"),
    (PICTURES[4], "verification", "/m/03", "0"),
    (PICTURES[5], "machine", "/m/03", "0.4"),
    (PICTURES[6], "verification", "/m/77", "1"),  # a class without a name
]


def write(file, header, rows):
    lines = [",".join(f'"{cell}"' if "," in cell else cell for cell in row) for row in [*header, *rows]]
    file.write_text("\n".join(lines) + "\n")


LABEL_HEADER = [("ImageID", "Source", "LabelName", "Confidence")]


@pytest.fixture
def openimages(tmp_path):
    write(tmp_path / "validation-annotations-human-imagelabels.csv", LABEL_HEADER, ROWS)
    write(tmp_path / "class-descriptions.csv", [], NAMES.items())
    (tmp_path / "validation").mkdir()
    for i, key in enumerate(PICTURES):
        Image.new("RGB", (8, 6), (25 * i, 0, 0)).save(tmp_path / "validation" / f"{key}.jpg")
    return tmp_path


def test_verified_labels_are_read_and_everything_else_is_unknown(openimages):
    dataset = load_data(f"openimages:{openimages}@validation")
    assert dataset.classes == ("Zebra", "Dog", "Fork, salad")  # nothing says Lamp
    expected = {3: [-1, 1, 0], 0: [1, 0, -1], 1: [-1, 1, -1], 2: [-1, -1, 1], 4: [0, -1, -1]}
    assert {PICTURES.index(s.key): s.labels.tolist() for s in dataset.samples} == expected
    assert dataset.notes == {
        "of 41620 pictures, not the published split": 5,
        "pictures of the labels missing from the folder": 0,
        "pictures left out, with no verified label of the classes": 2,
    }
    assert dataset.rules == {"label_file": "validation-annotations-human-imagelabels.csv"}
    assert dataset.samples[0].load_image().getpixel((0, 0))[0] == pytest.approx(75, abs=3)


def test_classes_are_chosen_by_name_in_the_order_asked_and_in_any_case(openimages):
    dataset = load_open_images(openimages, "validation", ["lamp", "dog", "Zebra"])
    assert dataset.classes == ("lamp", "dog", "Zebra")
    expected = {3: [-1, 1, -1], 0: [-1, 0, 1], 1: [-1, 1, -1], 4: [-1, -1, 0]}  # 2 has a fork only
    assert {PICTURES.index(s.key): s.labels.tolist() for s in dataset.samples} == expected


def test_pictures_that_are_not_there_are_left_out_and_counted(openimages):
    (openimages / "validation" / f"{PICTURES[0]}.jpg").unlink()
    (openimages / "validation" / f"{PICTURES[6]}.jpg").unlink()
    dataset = load_open_images(openimages, "validation")
    assert [PICTURES.index(sample.key) for sample in dataset.samples] == [3, 1, 2, 4]
    assert dataset.notes["pictures of the labels missing from the folder"] == 2
    assert dataset.classes == ("Zebra", "Dog", "Fork, salad")  # the same for every part of a split
    for file in (openimages / "validation").iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"none of the 0 pictures in .*expected openimages:"):
        load_open_images(openimages, "validation")


def test_the_newest_full_label_file_is_read_and_the_descriptions_that_belong_to_it(openimages):
    write(openimages / "validation-annotations-human-imagelabels-boxable.csv", LABEL_HEADER, ROWS[:2])
    write(openimages / "class-descriptions-boxable.csv", [], [("/m/01", "Hound"), ("/m/02", "Fork")])
    assert "Hound" not in load_open_images(openimages, "validation").classes
    rows = [(PICTURES[5], "verification", "/m/04", "1")]
    write(openimages / "oidv7-val-annotations-human-imagelabels.csv", LABEL_HEADER, rows)
    write(openimages / "oidv6-val-annotations-human-imagelabels.csv", LABEL_HEADER, ROWS)
    write(openimages / "oidv7-class-descriptions.csv", [("LabelName", "DisplayName")], NAMES.items())
    newest = load_open_images(openimages, "validation")
    assert (newest.classes, newest.rules["label_file"][:5]) == (("Lamp",), "oidv7")
    for file in openimages.glob("*imagelabels.csv"):
        file.unlink()
    assert load_open_images(openimages, "validation").classes == ("Hound", "Fork")


def test_many_random_rows_agree_with_a_plain_reading(openimages):
    rng = np.random.default_rng(1)
    keys, ids = rng.choice(PICTURES, 25), rng.choice([*NAMES], 25)
    rows = [(k, "verification", i, str(v)) for k, i, v in zip(keys, ids, rng.integers(0, 2, 25), strict=True)]
    write(openimages / "validation-annotations-human-imagelabels.csv", LABEL_HEADER, rows)
    dataset = load_open_images(openimages, "validation")
    for sample in dataset.samples:
        for name, label in zip(dataset.classes, sample.labels, strict=True):
            said = [int(v) for k, _, i, v in rows if k == sample.key and NAMES[i].lower() == name.lower()]
            assert label == max(said, default=-1)
    assert {-1, 0, 1} <= set(label_matrix(dataset).flat)


def label_file(root):
    return root / "validation-annotations-human-imagelabels.csv"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: write(label_file(r), [("ImageID", "Source", "Name", "Confidence")], ROWS), "no column LabelName"),
        (lambda r: write(label_file(r), LABEL_HEADER, [(*ROWS[0][:3], "yes")]), "row 2: Confidence is 'yes'"),
        (
            lambda r: write(label_file(r), LABEL_HEADER, [(*ROWS[0][:3], "2")]),
            "row 2: Confidence is '2'; expected 0 to 1",
        ),
        (lambda r: write(label_file(r), LABEL_HEADER, [(*ROWS[0][:3], "nan")]), "row 2: Confidence is 'nan'"),
        (lambda r: write(label_file(r), LABEL_HEADER, [ROWS[0][:2]]), "row 2 has 2 cells"),
        (lambda r: write(label_file(r), LABEL_HEADER, [(*ROWS[0], "1")]), "row 2 has 5 cells, its header 4"),
        (lambda r: label_file(r).write_text(""), "no column ImageID, Source"),
        (lambda r: label_file(r).write_bytes(b"\xff\xfe"), "cannot be read as a table"),
        (lambda r: (r / "class-descriptions.csv").unlink(), r"no class-descriptions\*\.csv in"),
        (lambda r: label_file(r).unlink(), "no labels of the split 'validation' in .*; splits there: none"),
    ],
)
def test_malformed_files_are_told_in_one_line(openimages, change, message):
    change(openimages)
    with pytest.raises(InputError, match=message) as error:
        load_open_images(openimages, "validation")
    assert "\n" not in str(error.value)


def test_a_wrong_root_split_or_class_is_told(openimages):
    with pytest.raises(InputError, match=r"no folder .*nowhere; expected openimages:ROOT@SPLIT"):
        load_open_images(openimages / "nowhere", "test")
    for split in ("test", "val"):
        with pytest.raises(InputError, match=f"no labels of the split '{split}' .*; splits there: validation"):
            load_open_images(openimages, split)
    with pytest.raises(InputError, match=r"1 of 2 classes are not in .*, such as 'zebras'; .* perhaps 'zebra'"):
        load_open_images(openimages, "validation", ["Dog", "zebras"])
    with pytest.raises(InputError, match="has 1 names twice"):
        load_open_images(openimages, "validation", ["Dog", "dog"])
