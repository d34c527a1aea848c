"""The Visual Genome reader on small label files of the kind of VG-256 and VG-500."""

import json

import pytest
from PIL import Image

from unmix_clip.data import load_data
from unmix_clip.data.images import image_digest
from unmix_clip.data.samples import label_matrix
from unmix_clip.data.visual_genome import load_visual_genome
from unmix_clip.errors import InputError

NAMES = ["man", "window", "tree", "sky", "zebra"]
INDEX = {"11.jpg": [0, 3], "2.jpg": [], "3.jpg": [4, 4], "40.jpg": [1], "5.jpg": [0, 1, 2, 3, 4], "6.jpg": [2]}
FOLDERS = {"11.jpg": "VG_100K", "2.jpg": "VG_100K_2", "3.jpg": "images"}
SPLITS = {"train": ["40.jpg", "2.jpg", "11.jpg", "3.jpg"], "test": ["6.jpg", "5.jpg"]}


@pytest.fixture
def genome(tmp_path):
    for split, keys in SPLITS.items():
        (tmp_path / f"{split}_list_5.txt").write_text("\n".join(keys) + "\n")
    (tmp_path / "vg_category_5_labels_index.json").write_text(json.dumps(INDEX))
    (tmp_path / "vg_category_5.txt").write_text("\n".join(NAMES))
    for folder in ("VG_100K", "VG_100K_2", "images"):
        (tmp_path / folder).mkdir()
    for i, key in enumerate(INDEX):
        Image.new("RGB", (8, 6), (25 * i, 0, 0)).save(tmp_path / FOLDERS.get(key, "VG_100K") / key)
    return tmp_path


@pytest.mark.parametrize("split", ["train", "test"])
def test_pictures_stand_in_the_order_of_the_list_with_the_classes_of_their_indices(genome, split):
    dataset = load_data(f"vg:{genome}@{split}?classes=5")
    assert dataset.classes == tuple(NAMES)
    assert [sample.key for sample in dataset.samples] == SPLITS[split]
    for sample in dataset.samples:
        assert [i for i, label in enumerate(sample.labels) if label == 1] == sorted(set(INDEX[sample.key]))
        assert sample.digest == image_digest(genome / FOLDERS.get(sample.key, "VG_100K") / sample.key)
        assert sample.load_image().size == (8, 6)
    assert (label_matrix(dataset) >= 0).all()
    assert dataset.notes == {"images_without_objects": sum(not INDEX[key] for key in SPLITS[split])}
    assert dataset.rules == {"vg_classes": "5"}


def test_names_may_be_json_and_the_list_may_be_that_of_vg_500(genome):
    (genome / "vg_category_5.txt").unlink()
    (genome / "vg_category_5.json").write_text(json.dumps(NAMES[::-1]))
    (genome / "train_list_5.txt").rename(genome / "train_list_500.txt")
    dataset = load_visual_genome(genome, "train", 5)
    assert dataset.classes == tuple(NAMES[::-1])
    assert len(dataset.samples) == 4


def write_index(change):
    return lambda root: (root / "vg_category_5_labels_index.json").write_text(json.dumps(change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: (r / "train_list_5.txt").unlink(),
            r"no train_list_5\.txt in .*; expected vg:.*; lists: test_list_5\.txt$",
        ),
        (lambda r: (r / "train_list_5.txt").write_text("7.jpg"), r"does not name the picture 7\.jpg of the list"),
        (lambda r: (r / "VG_100K/40.jpg").unlink(), r"1 of 4 pictures are missing, such as 40\.jpg; expected vg:"),
        (lambda r: (r / "vg_category_5.txt").unlink(), r"cannot read .*vg_category_5\.txt: .*expected vg:"),
        (lambda r: (r / "vg_category_5.txt").write_text("a\nb"), r"has 2 names, 2 different; expected 5, each once"),
        (lambda r: (r / "vg_category_5.txt").write_text("a\nb\na\nc\nd"), r"has 5 names, 4 different; expected 5"),
        (lambda r: (r / "vg_category_5.json").write_text('{"man": 0}'), r"vg_category_5\.json is no list of names"),
        (lambda r: (r / "vg_category_5_labels_index.json").unlink(), "no Visual Genome label file at"),
        (write_index([1]), r"is no object; expected \{file name"),
        (write_index(INDEX | {"2.jpg": [5]}), r"has \[5\] for the picture 2\.jpg of the list; .* 0 to 4"),
        (write_index(INDEX | {"2.jpg": [-1]}), r"has \[-1\] for"),
        (write_index(INDEX | {"2.jpg": ["man"]}), r"has \['man'\] for"),
        (write_index(INDEX | {"2.jpg": 1}), "has 1 for"),
    ],
)
def test_a_damaged_copy_is_told_in_one_line(genome, change, message):
    change(genome)
    with pytest.raises(InputError, match=message) as error:
        load_visual_genome(genome, "train", 5)
    assert "\n" not in str(error.value)


def test_a_wrong_root_split_or_number_of_classes_is_told(genome):
    with pytest.raises(InputError, match=r"no folder .*nowhere; expected vg:.*vg_category_5_labels_index\.json"):
        load_visual_genome(genome / "nowhere", "train", 5)
    with pytest.raises(InputError, match="no split 'val' here; expected one of train, test"):
        load_visual_genome(genome, "val", 5)
    with pytest.raises(InputError, match=r"no train_list_256\.txt in .*expected vg:ROOT@SPLIT \(ROOT/SPLIT_list_256"):
        load_visual_genome(genome, "train")
