"""The class lists of data sets: whole, unambiguous, and in the data sets' own order."""

import pytest

from unmix_clip.errors import InputError
from unmix_clip.vocabulary import load_names

SIZES = {"voc": 20, "context59": 59, "coco": 80, "coco_stuff": 171, "ade20k": 150, "cityscapes": 19}
PLACES = {  # indices as the papers and label files of the data sets have them
    "voc": {"aeroplane": 0, "person": 14, "tvmonitor": 19},
    "coco": {"person": 0, "stop sign": 11, "toothbrush": 79},
    "coco_stuff": {"toothbrush": 79, "banner": 80, "sky-other": 145, "tree": 157, "wood": 170},
    "ade20k": {"wall": 0, "sky": 2, "person": 12, "television": 89, "flag": 149},
    "cityscapes": {"road": 0, "sky": 10, "person": 11, "bicycle": 18},
}


@pytest.mark.parametrize("name", [*SIZES, "background"])
def test_no_word_of_a_list_means_two_classes(name):
    listed = load_names(name)
    words = [*listed.names, *(word for words in listed.synonyms.values() for word in words)]
    assert len(set(words)) == len(words)
    assert all(word and word == word.strip().lower() for word in words)
    assert listed.synonyms.keys() <= set(listed.names)


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_a_list_has_as_many_classes_as_its_data_set_each_in_its_place(name, size):
    names = load_names(name).names
    assert len(names) == size
    assert {word: names.index(word) for word in PLACES.get(name, {})} == PLACES.get(name, {})


def test_the_names_of_coco_stand_in_all_its_lists():
    assert load_names("coco").names == load_names("coco_stuff").names[:80]
    stuff = load_names("coco_stuff").names[80:]
    assert list(stuff) == sorted(stuff)


def test_context_is_in_the_alphabetical_order_of_converted_masks_and_holds_voc():
    names = load_names("context59").names
    assert list(names) == sorted(names)
    assert set(load_names("voc").names) - set(names) == {"diningtable"}  # it is "table" there


def test_no_background_word_is_an_object_of_voc_or_coco():
    words = set(load_names("background").names)
    assert {"sky", "wall", "grass", "road", "sea", "floor"} <= words
    for name in ("voc", "coco"):
        listed = load_names(name)
        assert not words & {*listed.names, *(word for others in listed.synonyms.values() for word in others)}


def test_an_unknown_list_is_told_with_those_there():
    with pytest.raises(InputError, match="unknown class list 'pets'; expected one of ade20k, background, cityscapes"):
        load_names("pets")
