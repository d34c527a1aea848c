"""The NUS-WIDE reader on a small folder of the published layout."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from unmix_clip.data import load_data
from unmix_clip.data.images import image_digest
from unmix_clip.data.nuswide import load_nuswide
from unmix_clip.data.samples import label_matrix
from unmix_clip.errors import InputError

CONCEPTS = ("airport", "lake", "zebra", "cat")
PICTURES = [f"actor\\{i:04d}_{2000 + i}.jpg" for i in range(1, 7)] + [f"zoo\\{i:04d}_{i}.jpg" for i in range(4)]
SPLITS = {"Train": PICTURES[:8], "Test": PICTURES[8:]}
LABELS = {split: np.random.default_rng(5).integers(0, 2, (len(keys), 4)) for split, keys in SPLITS.items()}


@pytest.fixture
def nuswide(tmp_path):
    for folder in ("ConceptsList", "ImageList", "Groundtruth/TrainTestLabels", "Flickr/actor", "Flickr/zoo"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "ConceptsList/Concepts81.txt").write_text("\n".join(CONCEPTS) + "\n")
    for split, keys in SPLITS.items():
        (tmp_path / f"ImageList/{split}Imagelist.txt").write_text("\r\n".join(keys) + "\r\n")
        for name, column in zip(CONCEPTS, LABELS[split].T, strict=True):
            text = "".join(f"{value}\n" for value in column)
            (tmp_path / f"Groundtruth/TrainTestLabels/Labels_{name}_{split}.txt").write_text(text)
    for i, key in enumerate(PICTURES):
        Image.new("RGB", (8, 6), (25 * i, 0, 0)).save(tmp_path / "Flickr" / key.replace("\\", "/"))
    return tmp_path


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_picture_has_the_labels_of_its_line(nuswide, split):
    dataset = load_data(f"nuswide:{nuswide}@{split}")
    assert dataset.classes == CONCEPTS
    assert label_matrix(dataset).tolist() == LABELS[split.title()].tolist()
    for sample, key in zip(dataset.samples, SPLITS[split.title()], strict=True):
        path = nuswide / "Flickr" / key.replace("\\", "/")
        assert sample.digest == hashlib.sha256(f"{sample.key} {image_digest(path)}".encode()).hexdigest()
        assert sample.load_image().tobytes() == Image.open(path).convert("RGB").tobytes()
        assert "\\" not in sample.key


def test_pictures_that_have_gone_are_left_out_and_counted_and_the_others_keep_their_labels(nuswide):
    for key in ("actor/0001_2001.jpg", "actor/0005_2005.jpg"):
        (nuswide / "Flickr" / key).unlink()
    dataset = load_nuswide(nuswide, "train")
    left = [1, 2, 3, 5, 6, 7]
    assert label_matrix(dataset).tolist() == LABELS["Train"][left].tolist()
    assert [sample.key for sample in dataset.samples] == [SPLITS["Train"][i].replace("\\", "/") for i in left]
    assert dataset.notes == {
        "of 161789 pictures, not the published split": 6,
        "pictures of the list missing from the folder": 2,
        "images_without_objects": int((LABELS["Train"][left].sum(1) == 0).sum()),
    }


def test_pictures_may_lie_in_images_and_lists_may_have_slashes(nuswide):
    (nuswide / "Flickr").rename(nuswide / "images")
    file = nuswide / "ImageList/TrainImagelist.txt"
    file.write_text(file.read_text().replace("\\", "/"))
    assert label_matrix(load_nuswide(nuswide, "train")).tolist() == LABELS["Train"].tolist()
    (nuswide / "images").rename(nuswide / "elsewhere")
    with pytest.raises(
        InputError, match=r"none of the 8 pictures of .*TrainImagelist\.txt is in .*images; expected nus"
    ):
        load_nuswide(nuswide, "train")


def labels_of(root, name, split="Train"):
    return root / f"Groundtruth/TrainTestLabels/Labels_{name}_{split}.txt"


def test_the_misprint_of_the_published_labels_is_unknown_but_only_in_its_own_file(nuswide):
    lines = labels_of(nuswide, "lake").read_text().splitlines()
    lines[3] = "-1130179"
    labels_of(nuswide, "lake").write_text("\n".join(lines))
    expected = LABELS["Train"].copy()
    expected[3, CONCEPTS.index("lake")] = -1
    assert label_matrix(load_nuswide(nuswide, "train")).tolist() == expected.tolist()
    labels_of(nuswide, "cat").write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"Labels_cat_Train\.txt line 4 is '-1130179'; expected 0 or 1"):
        load_nuswide(nuswide, "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: labels_of(r, "zebra").write_text("1\n" * 7), "has 7 labels for a list of 8 pictures"),
        (lambda r: labels_of(r, "zebra").write_text("1\n" * 7 + "2\n"), "line 8 is '2'; expected 0 or 1"),
        (
            lambda r: labels_of(r, "zebra").unlink(),
            r"cannot read .*Labels_zebra_Train\.txt: No such file.*expected nus",
        ),
        (lambda r: (r / "ConceptsList/Concepts81.txt").unlink(), r"cannot read .*Concepts81\.txt"),
        (lambda r: (r / "ImageList/TrainImagelist.txt").write_text(""), r"TrainImagelist\.txt is empty"),
    ],
)
def test_a_damaged_copy_is_told_in_one_line(nuswide, change, message):
    change(nuswide)
    with pytest.raises(InputError, match=message) as error:
        load_nuswide(nuswide, "train")
    assert "\n" not in str(error.value)


def test_a_wrong_root_or_split_is_told(nuswide):
    with pytest.raises(InputError, match=r"no folder .*nowhere; expected nuswide:ROOT@SPLIT"):
        load_nuswide(nuswide / "nowhere", "train")
    with pytest.raises(InputError, match="no split 'val'; expected one of train, test"):
        load_nuswide(nuswide, "val")
