"""The feature store: written once, keyed by content, safe against a kill."""

import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import unmix_clip.features as features_module
from unmix_clip.backbones import build_backbone
from unmix_clip.data.samples import Dataset, Sample
from unmix_clip.errors import InputError
from unmix_clip.features import open_store, store_dense, store_features


class CountingClip:
    """A backbone that counts the pictures it encodes."""

    def __init__(self, backbone):
        self.backbone, self.encoded = backbone, 0

    def __getattr__(self, name):
        return getattr(self.backbone, name)

    def encode_dense(self, pixels, names):
        self.encoded += len(pixels)
        return self.backbone.encode_dense(pixels, names)


def pictures(n, seed=0):
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(n):
        pixels = rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)
        samples.append(
            Sample(
                key=f"{i}",
                labels=None,
                load_image=lambda pixels=pixels: Image.fromarray(pixels),
                load_mask=None,
                digest=hashlib.sha256(pixels.tobytes()).hexdigest(),
            )
        )
    return Dataset(spec="test", classes=("a",), samples=samples, notes={})


@pytest.fixture(scope="module")
def mini():
    return build_backbone("mini", 32)


@pytest.fixture
def clip(mini):
    return CountingClip(mini)


def test_stored_features_are_the_backbones_normalised_in_16_bit(clip, tmp_path):
    data = pictures(5)
    store = store_features(clip, data, cache=tmp_path, batch_size=2)
    direct = clip.encode_pictures([sample.load_image() for sample in data.samples])
    assert store.patches.dtype == np.float16
    np.testing.assert_allclose(store.patches, F.normalize(direct.patches, dim=-1).numpy(), atol=5e-4)
    np.testing.assert_allclose(store.pooled, F.normalize(direct.pooled, dim=-1).numpy(), atol=5e-4)
    assert store.grid_hw == direct.grid_hw


def test_a_second_run_encodes_nothing(clip, tmp_path):
    data = pictures(5)
    first = store_features(clip, data, cache=tmp_path)
    assert clip.encoded == 5
    second = store_features(clip, data, cache=tmp_path)
    assert clip.encoded == 5
    assert second.folder == first.folder


def test_other_content_size_view_or_weights_give_another_store(clip, mini, tmp_path):
    data = pictures(3)
    folders = {store_features(clip, data, cache=tmp_path).folder}
    folders.add(store_features(clip, pictures(3, seed=1), cache=tmp_path).folder)
    folders.add(store_features(clip, Dataset("test", ("a",), data.samples[::-1], {}), cache=tmp_path).folder)
    folders.add(store_features(clip, data, cache=tmp_path, view=1).folder)
    folders.add(store_features(clip, data, cache=tmp_path, view=1, seed=1).folder)
    folders.add(store_features(build_backbone("mini", 48), data, cache=tmp_path).folder)
    folders.add(store_features(build_backbone("mini", 32, mode="pad"), data, cache=tmp_path).folder)
    changed = build_backbone("mini", 32)
    state = {k: v.clone() for k, v in changed.model.state_dict().items()}
    state["visual.conv1.weight"][0, 0, 0, 0] += 1e-3
    changed.model.load_state_dict(state)
    folders.add(
        store_features(
            changed.__class__(changed.model, changed.tokenizer, changed.preprocess, name="mini", tag="x"),
            data,
            cache=tmp_path,
        ).folder
    )
    assert len(folders) == 8


def test_a_killed_run_continues_behind_the_last_flush_with_the_same_result(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(features_module, "FLUSH_EVERY", 1)
    data = pictures(7)
    whole = store_features(clip, data, cache=tmp_path / "whole", batch_size=2)
    encode = clip.backbone.encode_dense

    def killed(pixels, names):
        if clip.encoded >= 7 + 4:
            raise KeyboardInterrupt
        return encode(pixels, names)

    clip.encoded = 7
    monkeypatch.setattr(clip.backbone, "encode_dense", killed)
    with pytest.raises(KeyboardInterrupt):
        store_features(clip, data, cache=tmp_path / "killed", batch_size=2)
    assert not [folder for folder in (tmp_path / "killed").iterdir() if folder.suffix != ".partial"]
    monkeypatch.setattr(clip.backbone, "encode_dense", encode)
    clip.encoded = 0
    resumed = store_features(clip, data, cache=tmp_path / "killed", batch_size=2)
    assert clip.encoded < 7
    assert np.array_equal(resumed.patches, whole.patches)
    assert np.array_equal(resumed.pooled, whole.pooled)


def test_several_dense_strategies_share_one_pass_and_what_is_stored_is_not_computed_again(clip, tmp_path):
    data = pictures(6)
    alone = store_features(clip, data, cache=tmp_path / "alone")
    clip.encoded = 0
    stores = store_dense(clip, data, ["maskclip", "naclip", "clearclip"], cache=tmp_path / "all")
    assert clip.encoded == 6
    assert np.array_equal(stores["maskclip"].patches, alone.patches)
    assert not np.array_equal(stores["naclip"].patches, alone.patches)
    assert np.array_equal(stores["naclip"].pooled, alone.pooled)
    assert store_features(clip, data, cache=tmp_path / "all").folder == stores["maskclip"].folder
    store_dense(clip, data, ["naclip", "sclip"], cache=tmp_path / "all")
    assert clip.encoded == 12  # only sclip was missing
    store_dense(clip, data, ["naclip", "sclip"], cache=tmp_path / "all")
    assert clip.encoded == 12
    assert not list((tmp_path / "all").glob("*.partial"))


def test_a_kill_while_a_second_strategy_starts_costs_the_first_nothing_but_time(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(features_module, "FLUSH_EVERY", 1)
    data, encode, calls = pictures(8), clip.backbone.encode_dense, []
    whole = store_features(clip, data, cache=tmp_path / "whole", batch_size=2)

    def killed_in_batch(number):
        def encode_or_die(pixels, names):
            calls.append(names)
            if len(calls) == number:
                raise KeyboardInterrupt
            return encode(pixels, names)

        return encode_or_die

    for number, names in ((3, ["maskclip"]), (1, ["maskclip", "naclip"])):
        calls.clear()
        monkeypatch.setattr(clip.backbone, "encode_dense", killed_in_batch(number))
        with pytest.raises(KeyboardInterrupt):
            store_dense(clip, data, names, cache=tmp_path / "killed", batch_size=2)
    monkeypatch.setattr(clip.backbone, "encode_dense", encode)
    again = store_features(clip, data, cache=tmp_path / "killed", batch_size=2)
    assert np.array_equal(again.patches, whole.patches)


def test_augmented_views_differ_from_the_plain_one_and_are_the_same_again(clip, tmp_path):
    data = pictures(3)
    plain = store_features(clip, data, cache=tmp_path)
    view = store_features(clip, data, cache=tmp_path / "a", view=1)
    torch.manual_seed(99)
    again = store_features(clip, data, cache=tmp_path / "b", view=1)
    assert np.array_equal(view.patches, again.patches)
    assert not np.array_equal(view.patches, plain.patches)


def test_padded_locations_are_marked(tmp_path):
    store = store_features(build_backbone("mini", 48, mode="pad"), pictures(2), cache=tmp_path)  # 40 x 60 pictures
    assert store.valid.reshape(2, 3, 3).all(axis=(0, 2)).tolist() == [True, True, False]


def test_a_damaged_store_is_told(clip, tmp_path):
    store = store_features(clip, pictures(2), cache=tmp_path)
    with (store.folder / "patches.bin").open("r+b") as file:
        file.truncate(10)
    with pytest.raises(InputError, match="damaged"):
        open_store(store.folder)


def test_an_empty_data_set_is_refused(clip, tmp_path):
    with pytest.raises(InputError, match="no pictures"):
        store_features(clip, Dataset("folder:x", (), [], {}), cache=tmp_path)


def test_batches_cover_every_row_once(clip, tmp_path):
    store = store_features(clip, pictures(5), cache=tmp_path)
    seen = [row for rows, *_ in store.batches(2) for row in range(rows.start, rows.stop)]
    assert seen == list(range(5))
    _, patches, pooled, valid = next(store.batches(2))
    assert (patches.dtype, pooled.dtype, valid.dtype) == (torch.float32, torch.float32, torch.bool)
