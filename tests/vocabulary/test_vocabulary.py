"""Class lists and prompts."""

import pytest
from support import SHARED, needs_shared

from unmix_clip.errors import InputError
from unmix_clip.vocabulary import Prompts, fill, load_class_list, load_class_split, load_names, load_prompts


@needs_shared
def test_the_coco_names_are_those_of_the_category_ids():
    assert list(load_names("coco").names) == (SHARED / "clip_text" / "coco_names.txt").read_text().splitlines()
    assert load_class_list("coco") == load_names("coco").names


def test_a_class_list_comes_from_commas_or_from_a_file_with_comments(tmp_path):
    assert load_class_list("dog, traffic light") == ("dog", "traffic light")
    file = tmp_path / "names.txt"
    file.write_text("# animals\ndog\ncat\n")
    assert load_class_list(str(file)) == ("dog", "cat")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("dog\ndog\n", "'dog' twice .line 1 and line 2"),
        ("dog\n\ncat\n", "empty name at line 2"),
        ("# none\n", "is empty"),
    ],
)
def test_mistakes_in_a_file_are_told_with_their_line(tmp_path, text, told):
    file = tmp_path / "names.txt"
    file.write_text(text)
    with pytest.raises(InputError, match=told):
        load_class_list(str(file))


def test_a_list_longer_than_a_file_name_may_be_is_a_list():
    names = tuple(f"name {i}" for i in range(500))
    assert load_class_list(",".join(names)) == names
    assert load_class_list("car/truck,dog") == ("car/truck", "dog")


def test_a_file_with_a_byte_order_mark_is_read_and_one_in_another_encoding_told(tmp_path):
    file = tmp_path / "names.txt"
    file.write_bytes(b"\xef\xbb\xbfdog\r\ncat\r\n\r\n")
    assert load_class_list(str(file)) == ("dog", "cat")
    file.write_bytes("café\n".encode("latin-1"))
    with pytest.raises(InputError, match="expected a text file in UTF-8"):
        load_class_list(str(file))


def test_mistakes_between_commas_are_told_with_their_position():
    with pytest.raises(InputError, match="empty name at position 2"):
        load_class_list("dog,,cat")
    with pytest.raises(InputError, match=r"'dog' twice \(position 1 and position 3\)"):
        load_class_list("dog,cat, dog")


def test_a_missing_file_is_told():
    with pytest.raises(InputError, match="no class list at"):
        load_class_list("nowhere.txt")


def test_prompts_are_fixed_and_have_one_place_for_the_name():
    assert load_prompts("paper") == Prompts("A photo of a {}", "Not a photo of a {}")
    assert fill(load_prompts("plain").positive[0], ["dog"]) == ["a photo of a dog"]
    with pytest.raises(InputError, match="expected one of plain, paper"):
        load_prompts("mine")
    with pytest.raises(InputError, match="2 places"):
        Prompts("a {} {}", "no {}")
    with pytest.raises(InputError, match="0 places"):
        fill("a photo", ["dog"])


@pytest.mark.parametrize(("name", "seen", "unseen"), [("coco-48-17", 48, 17), ("coco-65-15", 65, 15)])
def test_seen_and_unseen_classes_are_different_names_of_coco(name, seen, unseen):
    split = load_class_split(name)
    assert (len(split["seen"]), len(split["unseen"])) == (seen, unseen)
    assert len({*split["seen"], *split["unseen"]} & set(load_names("coco").names)) == seen + unseen
    with pytest.raises(InputError, match="coco-48-17, coco-65-15"):
        load_class_split("coco-1-79")
