"""The COCO reader against pycocotools, on real photos, and on files with every mistake."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from support import SHARED, needs_shared
from torchvision.datasets import CocoDetection

from unmix_clip.data import load_data
from unmix_clip.data.coco import decode_region
from unmix_clip.data.samples import IGNORE, label_matrix, select_classes
from unmix_clip.errors import InputError

ROOT = SHARED / "coco96"
SPLITS = {"train2017": (72, 550, 7, 2), "val2017": (24, 198, 1, 0)}
"""Photos, annotations, crowds among them, photos without objects (counted in the files)."""
PUBLISHED = {"train2017": 118287, "val2017": 5000}


@needs_shared
@pytest.mark.parametrize("split", SPLITS)
def test_labels_and_masks_agree_with_pycocotools_on_every_photo(split):
    dataset = load_data(f"coco:{ROOT}@{split}")
    reference = COCO(ROOT / "annotations" / f"instances_{split}.json")
    categories = reference.getCatIds()
    assert list(dataset.classes) == [c["name"] for c in reference.loadCats(categories)]
    by_name = {image["file_name"]: image["id"] for image in reference.loadImgs(reference.getImgIds())}
    for sample in dataset.samples:
        mask = sample.load_mask()
        annotations = reference.loadAnns(reference.getAnnIds(imgIds=by_name[sample.key]))
        for index, category in enumerate(categories):
            own = [a for a in annotations if a["category_id"] == category]
            single = any(not a["iscrowd"] for a in own)
            assert sample.labels[index] == (1 if single else -1 if own else 0)
        for annotation in annotations:
            region = reference.annToMask(annotation).astype(bool)
            if not annotation["iscrowd"]:
                value = categories.index(annotation["category_id"]) + 1
                smaller = [a for a in annotations if not a["iscrowd"] and a["area"] <= annotation["area"]]
                hidden = np.any([reference.annToMask(a) for a in smaller if a is not annotation] or [~region], axis=0)
                assert (mask[region & ~hidden.astype(bool)] == value).all()
        crowds, instances = (np.zeros(mask.shape, dtype=bool) for _ in range(2))
        for annotation in annotations:
            kind = crowds if annotation["iscrowd"] else instances
            kind |= reference.annToMask(annotation).astype(bool)
        assert np.array_equal(mask == IGNORE, crowds & ~instances)
        assert np.array_equal(mask == 0, ~crowds & ~instances)
        assert mask.shape == (sample.load_image().height, sample.load_image().width)


@needs_shared
@pytest.mark.parametrize(("split", "counts"), SPLITS.items())
def test_crowds_and_empty_photos_are_counted_and_kept(split, counts):
    dataset = load_data(f"coco:{ROOT}@{split}")
    notes = dict(zip(("annotations", "crowd_annotations", "images_without_objects"), counts[1:], strict=True))
    part = {f"of {PUBLISHED[split]} pictures, not the published split": counts[0]}
    assert (len(dataset.samples), dataset.notes) == (counts[0], part | notes)
    assert sum(not sample.labels.any() for sample in dataset.samples) == notes["images_without_objects"]


@pytest.fixture
def tiny(tmp_path):
    """A COCO folder with one picture, one polygon and one crowd."""
    (tmp_path / "val").mkdir()
    (tmp_path / "annotations").mkdir()
    Image.new("RGB", (8, 6)).save(tmp_path / "val" / "a.png")
    square = {
        "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]],
        "area": 16,
        "iscrowd": 0,
        "image_id": 1,
        "category_id": 7,
        "id": 1,
    }
    crowd = {**square, "segmentation": {"size": [6, 8], "counts": [0, 48]}, "area": 48, "iscrowd": 1, "category_id": 3}
    table = {
        "images": [{"id": 1, "file_name": "a.png", "height": 6, "width": 8}],
        "annotations": [square, crowd],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
    }

    def write(change=lambda table: None):
        edited = json.loads(json.dumps(table))
        change(edited)
        (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps(edited))
        return f"coco:{tmp_path}@val"

    return write


def test_a_class_shown_only_as_a_crowd_is_unknown_and_its_region_ignored(tiny):
    dataset = load_data(tiny())
    assert dataset.classes == ("cat", "dog")  # by category id
    assert label_matrix(dataset).tolist() == [[-1, 1]]
    mask = dataset.samples[0].load_mask()
    assert (mask[:4, :4] == 2).all()
    assert (mask[5] == IGNORE).all()


@needs_shared
@pytest.mark.parametrize(("rule", "only_crowd"), [("unknown", -1), ("positive", 1), ("negative", 0)])
def test_each_reading_of_crowds_agrees_with_the_targets_of_torchvision(rule, only_crowd):
    dataset = load_data(f"coco:{ROOT}@train2017?crowd={rule}")
    reference = CocoDetection(ROOT / "train2017", ROOT / "annotations" / "instances_train2017.json")
    index_of = {category: i for i, category in enumerate(reference.coco.getCatIds())}
    expected = np.zeros((len(reference), len(index_of)), dtype=int)
    for row, image in zip(expected, reference.ids, strict=True):
        targets = reference.coco.loadAnns(reference.coco.getAnnIds(image))
        for crowd, label in ((1, only_crowd), (0, 1)):
            row[[index_of[target["category_id"]] for target in targets if target["iscrowd"] == crowd]] = label
    assert (label_matrix(dataset) == expected).all()
    assert dataset.rules == {"crowd": rule}


@pytest.mark.parametrize(("rule", "label"), [("unknown", -1), ("positive", 1), ("negative", 0)])
def test_the_reading_of_crowds_moves_labels_and_never_masks(tiny, rule, label):
    dataset = load_data(tiny() + f"?crowd={rule}")
    assert label_matrix(dataset).tolist() == [[label, 1]]
    assert (dataset.samples[0].load_mask()[5] == IGNORE).all()
    with pytest.raises(InputError, match="crowd is 'some'; expected one of unknown, positive, negative"):
        load_data(tiny() + "?crowd=some")


def test_polygons_and_both_run_length_forms_decode_alike():
    from pycocotools import mask as rle

    region = np.zeros((6, 8), dtype=np.uint8)
    region[1:4, 2:5] = 1
    compressed = rle.encode(np.asfortranarray(region))
    flat = region.flatten(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]]))).tolist()
    counts = np.diff([0, *edges, 48]).tolist()
    for form in (compressed, {"size": [6, 8], "counts": counts}, [[2, 1, 5, 1, 5, 4, 2, 4]]):
        assert np.array_equal(decode_region(form, (6, 8)), region.astype(bool))


def test_selecting_classes_ignores_the_pixels_of_the_others(tiny):
    dataset = select_classes(load_data(tiny(lambda t: t["annotations"].pop())), ["cat"])
    assert dataset.classes == ("cat",)
    assert dataset.samples[0].labels.tolist() == [0]
    mask = dataset.samples[0].load_mask()
    assert (mask[:4, :4] == IGNORE).all()
    assert (mask[5] == 0).all()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop("images"), "no list 'images'"),
        (lambda t: t["annotations"][0].pop("category_id"), r"annotations\[0\]\.category_id is missing; expected int"),
        (
            lambda t: t["annotations"][0].update(category_id=5),
            r"annotations\[0\] has category_id 5; expected an id of 'categories'",
        ),
        (
            lambda t: t["annotations"][0].update(image_id=5),
            r"annotations\[0\] has image_id 5; expected an id of 'images'",
        ),
        (lambda t: t["images"][0].update(file_name="b.png"), "1 of 1 pictures are missing"),
        (lambda t: t["images"].append({**t["images"][0], "id": 2}), r"images\[0\] and \[1\] share the file_name"),
        (lambda t: t["images"][0].update(id=[1]), r"images\[0\]\.id is '\[1\]'; expected int"),
        (lambda t: t["categories"][1].update(name="dog"), r"categories\[0\] and \[1\] share the name 'dog'"),
        (lambda t: t["categories"][1].update(name=" "), r"categories\[1\]\.name is empty"),
        (lambda t: t["images"][0].update(file_name="x" * 300), "1 of 1 pictures are missing"),
        (lambda t: t["categories"][1].update(id=7), r"categories\[0\] and \[1\] share the id 7"),
        (lambda t: t["categories"].append("bird"), r"categories\[2\] is no object"),
        (lambda t: t["annotations"][1].update(area="48"), r"annotations\[1\]\.area is '48'; expected int or float"),
        (lambda t: t["annotations"][1].update(segmentation=None), r"segmentation is 'None'; expected list or dict"),
        (lambda t: (t["images"].clear(), t["annotations"].clear()), "lists no images"),
        (lambda t: (t["categories"].clear(), t["annotations"].clear()), "lists no categories"),
    ],
)
def test_malformed_annotations_are_told_in_one_line(tiny, change, told):
    with pytest.raises(InputError, match=told) as error:
        load_data(tiny(change))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("segmentation", "told"),
    [
        ({"size": [6, 8], "counts": ""}, "runs of 0 pixels"),  # pycocotools returns random pixels for it
        ({"size": [6, 8], "counts": [3]}, "runs of 3 pixels"),  # the same
        ({"size": [6, 8], "counts": [0, 100]}, "runs of 100 pixels"),
        ({"size": [6, 8], "counts": "P"}, "end too early"),
        ({"size": [6, 8], "counts": "a b"}, "character ' '"),
        ({"size": [8, 6], "counts": [48]}, r"a mask of \(8, 6\) for a picture of \(6, 8\)"),
        ({"counts": [48]}, "'size'"),
        ([[1, 2, 3, 4, 5]], "5 numbers; expected pairs"),
        ([[0, 0, 1, 0, "x", 1]], "broken segmentation"),
        ([[0, 0, 1e9, 0, 1, 1]], "far outside"),  # pycocotools would ask for gigabytes
        ([[0, 0, float("nan"), 0, 1, 1]], "far outside"),
        ([5], "broken segmentation"),
    ],
)
def test_a_broken_segmentation_is_told_in_one_line(segmentation, told):
    with pytest.raises(InputError, match=told) as error:
        decode_region(segmentation, (6, 8))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_compressed_run_lengths_of_any_picture_decode_as_in_pycocotools(share):
    from pycocotools import mask as rle

    rng = np.random.default_rng(int(100 * share))
    for image_hw in ((1, 1), (37, 53), (300, 200)):
        region = rng.random(image_hw) < share
        encoded = rle.encode(np.asfortranarray(region.astype(np.uint8)))
        assert np.array_equal(decode_region(encoded, image_hw), region)
        as_text = {"size": list(image_hw), "counts": encoded["counts"].decode()}
        assert np.array_equal(decode_region(as_text, image_hw), region)


def test_a_picture_or_mask_of_another_size_is_told(tiny):
    sample = load_data(tiny(lambda t: t["images"][0].update(height=9))).samples[0]
    with pytest.raises(InputError, match=r"is \(6, 8\) .* say \(9, 8\)"):
        sample.load_image()
    with pytest.raises(InputError, match=r"is \(6, 8\) .* say \(9, 8\)"):
        sample.load_mask()


@pytest.mark.parametrize("height", [9, -6, 10**12])  # the last would ask for 29 TiB
def test_polygons_alone_do_not_hide_that_a_picture_has_another_size(tiny, height):
    def change(table):
        table["annotations"].pop()  # the crowd, whose run lengths tell their own size
        table["images"][0].update(height=height)

    with pytest.raises(InputError, match=rf"is \(6, 8\) .* say \({height}, 8\); expected the same size"):
        load_data(tiny(change)).samples[0].load_mask()


def test_a_mask_fits_a_photo_that_is_stored_turned(tiny, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 8)).save(tmp_path / "val" / "a.png", exif=exif)
    sample = load_data(tiny()).samples[0]
    assert sample.load_mask().shape == (6, 8)
    assert sample.load_image().size == (8, 6)


def test_a_file_that_is_not_json_and_a_missing_split_are_told(tiny, tmp_path):
    spec = tiny()
    (tmp_path / "annotations" / "instances_val.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        load_data(spec)
    with pytest.raises(InputError, match=r"found instances_val\.json there"):
        load_data(f"coco:{tmp_path}@test")
    shutil.rmtree(tmp_path / "annotations")
    with pytest.raises(InputError, match="no annotation file"):
        load_data(spec)
    with pytest.raises(InputError, match="names no split"):
        load_data(f"coco:{tmp_path}")
