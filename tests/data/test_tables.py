"""Tables and folders: every row, and every mistake in a row, is told with its number."""

import pytest
from PIL import Image

from unmix_clip.data import load_data
from unmix_clip.data.samples import label_matrix
from unmix_clip.errors import InputError


@pytest.fixture
def table(tmp_path):
    """Write a table beside three pictures and return its spec."""
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    Image.new("L", (4, 4), 1).save(tmp_path / "mask.png")

    def write(text):
        (tmp_path / "photos.csv").write_text(text)
        return f"table:{tmp_path / 'photos.csv'}"

    return write


def test_both_label_forms_and_empty_cells_are_read(table):
    dataset = load_data(table('filepath,labels\na.png,dog|cat\nb.png,"[""cat""]"\nc.png,\n'))
    assert dataset.classes == ("cat", "dog")
    assert label_matrix(dataset).tolist() == [[1, 1], [1, 0], [0, 0]]
    assert dataset.notes == {"images_without_objects": 1}


def test_a_split_selects_rows_but_the_classes_are_those_of_the_whole_table(table):
    spec = table("filepath,labels,split\na.png,dog,train\nb.png,cat,val\n")
    dataset = load_data(spec + "@val")
    assert [sample.key for sample in dataset.samples] == ["b.png"]
    assert dataset.classes == ("cat", "dog")


def test_masks_of_a_table_are_read(table):
    dataset = load_data(table("filepath,labels,mask\na.png,dog,mask.png\n"))
    assert (dataset.samples[0].load_mask() == 1).all()


def test_a_mask_of_another_size_than_its_picture_is_told(table, tmp_path):
    Image.new("L", (5, 4), 1).save(tmp_path / "wide.png")
    sample = load_data(table("filepath,labels,mask\na.png,dog,wide.png\n")).samples[0]
    with pytest.raises(InputError, match=r"wide\.png is \(4, 5\), its picture \(4, 4\)"):
        sample.load_mask()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("file,labels\na.png,dog\n", "no column filepath"),
        ("filepath,labels\n", "no rows"),
        ("filepath,labels\nz.png,dog\n", "row 2: no picture"),
        (f"filepath,labels\n{'x' * 300}.png,dog\n", "row 2: no picture"),
        (f"filepath,labels\na.png,{'[' * 100_000}\n", "row 2: labels .* are no JSON list"),
        ("filepath,labels\na.png,dog,more\n", "row 2 has another number of cells"),
        ("filepath,labels\na.png,dog\na.png,cat\n", "rows 2 and 3: a.png stands twice"),
        ("filepath,labels\na.png,dog||cat\n", "row 2: labels 'dog||cat' contain an empty name"),
        ('filepath,labels\na.png,"[dog]"\n', "row 2: labels .* are no JSON list"),
        ('filepath,labels\na.png,"[1]"\n', "not all texts"),
        ("filepath,labels\n ,dog\n", "row 2 has an empty filepath"),
        ("filepath,labels\na.png,dog\n\n\nz.png,dog\n", "row 5: no picture"),
        ("filepath,labels\na.png,dog\n./a.png,cat\n", "rows 2 and 3: ./a.png stands twice"),
        ("filepath,labels,split\na.png,dog,train\na.png,dog,val\n", "rows 2 and 3: a.png stands twice"),
        ("filepath,labels,mask\na.png,dog,gone.png\n", "row 2: no mask at"),
        ("filepath,labels,labels\na.png,dog,cat\n", "two columns 'labels'"),
        ("filepath,labels\na.png,\n", "no label in any row"),
        ('filepath,labels\na.png,"dog\n', "cannot be read as a table"),
    ],
)
def test_a_malformed_row_is_told_with_its_number(table, text, told):
    with pytest.raises(InputError, match=told.replace("|", r"\|")) as error:
        load_data(table(text))
    assert "\n" not in str(error.value)


def test_a_table_that_is_not_utf8_or_not_there_is_told(table, tmp_path):
    spec = table("")
    (tmp_path / "photos.csv").write_bytes("filepath,labels\na.png,café\n".encode("latin-1"))
    with pytest.raises(InputError, match="expected CSV in UTF-8"):
        load_data(spec)
    with pytest.raises(InputError, match=r"no table at .*gone\.csv; expected table:FILE\.csv"):
        load_data(f"table:{tmp_path / 'gone.csv'}")


def test_a_path_may_hold_an_at_sign(table, tmp_path):
    table("filepath,labels,split\na.png,dog,val\n")
    (tmp_path / "photos.csv").rename(tmp_path / "me@home.csv")
    assert len(load_data(f"table:{tmp_path}/me@home.csv").samples) == 1
    assert len(load_data(f"table:{tmp_path}/me@home.csv@val").samples) == 1


def test_a_label_outside_the_list_is_told(table):
    with pytest.raises(InputError, match=r"row 3: label 'dgo' is not in the class list \(dog, cat\)"):
        load_data(table("filepath,labels\na.png,dog\nb.png,dgo\n"), ["dog", "cat"])


def test_a_split_that_is_not_there_is_told(table):
    with pytest.raises(InputError, match="no column split"):
        load_data(table("filepath,labels\na.png,dog\n") + "@val")
    with pytest.raises(InputError, match="it has train"):
        load_data(table("filepath,labels,split\na.png,dog,train\n") + "@val")
    with pytest.raises(InputError, match=r"it has \(empty\)"):
        load_data(table("filepath,labels,split\na.png,dog,\n") + "@val")


def test_a_folder_gives_pictures_without_labels(table, tmp_path):
    dataset = load_data(f"folder:{tmp_path}", ["dog"])
    assert [sample.key for sample in dataset.samples] == ["a.png", "b.png", "c.png", "mask.png"]
    assert dataset.samples[0].labels is None
    with pytest.raises(InputError, match="has no labels"):
        label_matrix(dataset)


def test_an_unknown_kind_names_the_kinds_and_their_layouts():
    with pytest.raises(InputError, match=r"scenes\[@train.*coco:ROOT@SPLIT.*table:FILE\.csv.*folder:DIR"):
        load_data("voc:somewhere")


def test_options_of_scenes_are_whole_numbers():
    assert len(load_data("scenes@val?n=3&seed=1").samples) == 3
    for spec in ("scenes@val?n=many", "scenes?n=-3"):
        with pytest.raises(InputError, match="expected a whole number"):
            load_data(spec)
    for spec in ("scenes?colour=3", "scenes?n=3&n=4"):
        with pytest.raises(InputError, match="expected n=, seed=, size=, keep=, label_seed=, each once"):
            load_data(spec)
    with pytest.raises(InputError, match="expected one of train, val, test, unseen"):
        load_data("scenes@trian")


def test_scenes_are_the_test_split_unless_told_otherwise():
    assert load_data("scenes?n=2").samples[0].key == "test/000000"


def test_a_missing_or_empty_folder_is_told(tmp_path):
    with pytest.raises(InputError, match=r"no folder .*gone; expected folder:DIR"):
        load_data(f"folder:{tmp_path / 'gone'}")
    with pytest.raises(InputError, match="no pictures at"):
        load_data(f"folder:{tmp_path}")


@pytest.mark.parametrize("place", ["x" * 300, "~nobody-of-this-name/photos"])
def test_a_place_that_no_file_can_have_is_told_by_every_kind(place):
    for kind, told in (("folder", "no folder"), ("coco", "no folder"), ("table", "no table")):
        with pytest.raises(InputError, match=told):
            load_data(f"{kind}:{place}@train")
