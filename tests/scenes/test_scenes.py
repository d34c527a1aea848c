"""The embedded world: exact labels and masks, made again from a seed, never mixed up between splits."""

import re
from pathlib import Path

import numpy as np
import pytest

from unmix_clip.data.scenes import class_groups, load_scenes
from unmix_clip.data.scenes.captions import known_words, write_caption
from unmix_clip.data.scenes.compose import MIN_SIDE_PX, compose_scene, draw_names, scene_rng
from unmix_clip.data.scenes.stickers import render_sticker
from unmix_clip.data.scenes.world import load_world
from unmix_clip.errors import InputError

COCO_NAMES = Path(__file__).parents[3] / "shared" / "data" / "clip_text" / "coco_names.txt"


@pytest.mark.skipif(not COCO_NAMES.exists(), reason="needs ../shared")
def test_every_name_of_the_world_is_a_coco_category():
    assert set(load_world().classes) <= set(COCO_NAMES.read_text().splitlines())


def test_the_world_has_48_seen_and_8_unseen_names():
    world = load_world()
    assert len(world.seen) == 48
    assert len(world.unseen) == 8
    assert not set(world.seen) & set(world.unseen)


def test_themes_and_companions_are_names_of_the_world():
    world = load_world()
    grouped = [name for group in (*world.themes.values(), *world.companions.values()) for name in group]
    assert set(grouped) <= set(world.classes)
    assert set(world.companions) <= set(world.classes)
    assert {name for members in world.themes.values() for name in members} == set(world.classes)


def test_the_same_seed_draws_the_same_scene_in_any_order():
    forwards = load_scenes("test", n=6)
    again = load_scenes("test", n=12)
    for i in (5, 0, 3):
        assert np.array_equal(forwards.samples[i].load_image(), again.samples[i].load_image())
        assert np.array_equal(forwards.samples[i].load_mask(), again.samples[i].load_mask())
        assert forwards.samples[i].digest == again.samples[i].digest


def test_splits_and_seeds_draw_other_scenes_with_other_digests():
    scenes = [load_scenes(split, n=1, seed=seed) for split in ("train", "val", "test") for seed in (0, 1)]
    assert len({scene.samples[0].digest for scene in scenes}) == 6
    assert len({scene.samples[0].load_image().tobytes() for scene in scenes}) == 6


def test_masks_and_labels_agree_in_every_scene():
    dataset = load_scenes("test", n=200)
    for sample in dataset.samples:
        shown = np.zeros(len(dataset.classes), dtype=np.int8)
        shown[np.setdiff1d(np.unique(sample.load_mask()), [0]) - 1] = 1
        assert np.array_equal(shown, sample.labels)


def test_scenes_have_one_to_five_objects_some_of_which_overlap():
    counts = [int(sample.labels.sum()) for sample in load_scenes("test", n=400).samples]
    assert set(counts) == {1, 2, 3, 4, 5}
    assert 2.2 < np.mean(counts) < 2.8


def test_a_later_object_hides_part_of_an_earlier_one_but_never_all():
    hidden = 0
    for index in range(60):
        alone = compose_scene(scene_rng(0, "overlap", index), ["clock"], 128)
        both = compose_scene(scene_rng(0, "overlap", index), ["clock", "bed"], 128)
        left = (both.mask[alone.mask == 1] == 1).mean()
        assert left >= 0.45
        hidden += left < 1
    assert hidden > 5


def test_pixels_outside_the_mask_do_not_depend_on_the_glyph_inside():
    scene = compose_scene(scene_rng(0, "edge", 1), ["tv"], 128)
    ground = scene.mask == 0
    assert 0.6 < ground.mean() < 0.97
    assert scene.pixels[ground].std() < scene.pixels.std() + 60
    assert scene.mask.max() == 1


def test_train_val_and_test_never_show_an_unseen_name_and_unseen_always_does():
    unseen = set(load_world().unseen)
    for split in ("train", "val", "test"):
        assert not unseen & set(load_scenes(split, n=1).classes)
    dataset = load_scenes("unseen", n=100)
    columns = [dataset.classes.index(name) for name in unseen]
    assert all(sample.labels[columns].sum() >= 1 for sample in dataset.samples)


def test_class_groups_split_the_names_of_the_unseen_split_only():
    groups = class_groups(load_scenes("unseen", n=1).classes)
    assert (len(groups["seen"]), len(groups["unseen"])) == (48, 8)
    assert class_groups(load_scenes("test", n=1).classes) == {}


def test_names_that_stand_together_do_so_more_often_than_by_chance():
    world = load_world()
    drawn = [draw_names(scene_rng(0, "pairs", i), world.seen, world.seen, 5) for i in range(4000)]
    with_fork = [names for names in drawn if "fork" in names]
    knife_given_fork = np.mean(["knife" in names for names in with_fork])
    knife = np.mean(["knife" in names for names in drawn])
    assert knife_given_fork > 4 * knife


def test_a_sticker_is_solid_and_as_large_as_asked():
    sticker = render_sticker("mdi.television_classic", 64, 0)
    assert max(sticker.silhouette.shape) == 64
    inside = sticker.silhouette > 127
    row = inside[inside.shape[0] // 2]
    first, last = np.flatnonzero(row)[[0, -1]]
    assert row[first : last + 1].all()
    assert (sticker.glyph > 127).sum() < inside.sum()


def test_every_glyph_of_the_world_can_be_drawn():
    for glyphs in load_world().glyphs.values():
        for glyph in glyphs:
            assert (render_sticker(glyph, MIN_SIDE_PX, 0).silhouette > 127).sum() > 20


def captioned(count=400):
    world = load_world()
    for i in range(count):
        rng = scene_rng(0, "captions", i)
        scene = compose_scene(rng, draw_names(rng, world.classes, world.classes, 5), 64)
        yield scene, write_caption(rng, scene.names, most=2 if i % 2 else 5)


def test_captions_name_only_what_the_picture_shows_or_say_that_it_is_absent():
    words = set(known_words())
    for scene, caption in captioned():
        assert set(caption.replace(",", "").split()) <= words
        named = [name for name in load_world().classes if re.search(rf"\b(a|no) {name}\b", caption)]
        if any(word in caption.split() for word in ("without", "not", "no")):
            assert not set(named) & set(scene.names), caption
        else:
            assert set(named) <= set(scene.names), caption


@pytest.mark.parametrize(
    ("options", "told"),
    [({"split": "tset"}, "train, val, test, unseen"), ({"n": 0}, "n >= 1"), ({"size": 8}, "size >= 32")],
)
def test_a_wrong_split_or_size_is_told(options, told):
    with pytest.raises(InputError, match=told):
        load_scenes(**options)
