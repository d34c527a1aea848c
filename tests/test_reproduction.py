"""`reproduce`: every shipped recipe parses, a dry run finds what is missing, a small one runs to its table."""

import json

import pytest
from support import SHARED, needs_shared

from unmix_clip.config import TrainConfig, load_config, recipe_names
from unmix_clip.errors import InputError
from unmix_clip.reproduction import load_experiment

PLACES = {key: f"/data/{key}" for key in ("voc2007", "coco", "voc2012", "context", "cityscapes", "ade20k")}
EXPERIMENTS = [name for name in recipe_names() if name.startswith(("paper-", "zs3-", "scenes-"))]

SMALL = """
base = "default"
recipe = "small"
epochs = 8

[reproduce]
backbone = "mini"
seeds = [3, 4]
train = "{scenes}@train?n=120"
fit = "scenes@val?n=50"

[[reproduce.cells]]
task = "recognition"
data = "scenes@test?n=50"
figure = "map"
published = 0.5
source = "this test"

[[reproduce.cells]]
task = "segmentation"
data = "scenes@test?n=20"
protocol = "standard-objects"
figure = "miou"
source = "nowhere"
"""


def places_of(name):
    wanted = {"paper-voc2007": ["voc2007"], "paper-coco14": ["coco"], "scenes-mini": []}
    all_but_voc2007 = [key for key in PLACES if key != "voc2007"]
    keys = next((keys for start, keys in wanted.items() if name.startswith(start)), all_but_voc2007)
    return {key: PLACES[key] for key in keys}


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_a_training_configuration_under_its_own_name(name):
    config = load_config(name)
    assert isinstance(config, TrainConfig)
    assert config.recipe == name


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_fills_in_its_places_and_keeps_test_data_out_of_training(name):
    experiment = load_experiment(name, places_of(name))
    assert len(experiment.seeds) >= 3
    assert not any("{" in spec for spec in experiment.specs())
    assert experiment.train not in {cell.data for cell in experiment.cells}
    assert all(cell.published is None or 0 < cell.published < 1 for cell in experiment.cells)
    assert all(cell.source for cell in experiment.cells)


def test_paper_recipes_have_the_papers_settings():
    paper, recipe = load_config("paper").to_dict(), load_config("paper-coco14-rn101").to_dict()
    assert {**paper, "recipe": "paper-coco14-rn101"} == recipe


def test_traps_change_the_data_and_the_protocol_by_name():
    plain = load_experiment("paper-voc2007-rn101", places_of("paper-voc2007"))
    traps = load_experiment("paper-voc2007-rn101", places_of("paper-voc2007"), ["difficult-negative", "labels-90"])
    assert plain.train == "voc2007:/data/voc2007@trainval"
    assert traps.train == "voc2007:/data/voc2007@trainval?difficult=negative&keep=0.9"
    assert traps.cells[0].data == "voc2007:/data/voc2007@test?difficult=negative"
    masks = load_experiment("zs3-coco14-vitb16", places_of("zs3"), ["per-image-miou", "crowd-positive"])
    assert {cell.protocol for cell in masks.cells} == {"paper"}
    assert masks.train.endswith("?crowd=positive")
    assert masks.cells[0].data == "voc21:/data/voc2012@val"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("default", {}), "no table"),
        (("scenes-mini", {"coco": "x"}), "'coco' is not used by scenes-mini; expected no --data"),
        (("paper-coco14-rn101", {}), "'coco' is needed .* expected --data coco=PATH"),
        (("scenes-mini", {}, ["select-on-test"]), "unknown trap 'select-on-test'"),
    ],
)
def test_wrong_experiments_are_told(arguments, told):
    with pytest.raises(InputError, match=told):
        load_experiment(*arguments)


@pytest.fixture
def small(tmp_path):
    file = tmp_path / "small.toml"
    file.write_text(SMALL)
    return file


def test_a_dry_run_lists_what_is_there_and_what_is_missing(cli_run, small, tmp_path):
    ran = cli_run("reproduce", small, "--data", "scenes=scenes", "--dry-run", "--json", tmp_path / "dry.json")
    assert ran.code == 0, ran.err
    dry = json.loads((tmp_path / "dry.json").read_text())
    assert [check["problem"] for check in dry["checks"]] == [None] * 5
    assert dry["pictures"] == 120 + 50 + 50 + 20
    assert dry["disk_gb"] == pytest.approx(240 * (2 * 128 * 65 + 64) / 1e9)
    assert dry["hours"] > 0
    ran = cli_run("reproduce", "paper-voc2007-rn101", "--data", f"voc2007={tmp_path / 'gone'}", "--dry-run")
    assert ran.code == 2
    assert ran.out.count("PROBLEM") == 3  # the weights, two splits
    assert "3 of 3 checks failed" in ran.err


def test_a_small_experiment_prints_published_beside_ours(cli_run, small, tmp_path):
    ran = cli_run("reproduce", small, "--data", "scenes=scenes", "--json", tmp_path / "r.json", "--trap", "labels-90")
    assert ran.code == 0, ran.err
    result = json.loads((tmp_path / "r.json").read_text())
    tags, masks = result["cells"]
    assert result["seeds"] == [3, 4]
    assert len(set(tags["values"])) == 2
    assert tags["difference"] == pytest.approx(tags["ours"] - 0.5)
    assert masks["published"] is None
    assert masks["difference"] is None
    assert masks["protocol"].startswith("standard-objects")
    assert result["traps"] == {
        "difficult-negative": False, "crowd-positive": False, "labels-90": True, "per-image-miou": False
    }  # fmt: skip
    assert "labels-90 ON" in ran.out
    assert "published" in ran.out
    assert "keep=0.9" in result["data"]


def test_windows_and_views_are_counted_as_passes():
    experiment = load_experiment("zs3-coco14-vitb16", places_of("zs3"))
    assert experiment.passes(experiment.train) == 4  # views of the recipe `paper`
    assert experiment.passes("voc21:/data/voc2012@val") == 2 * 3  # 336 x 448 in windows of 224 every 112
    assert experiment.passes("cityscapes:/data/cityscapes@val") == 4 * 6  # 560 x 746


@needs_shared
def test_a_dry_run_reads_no_picture(monkeypatch):
    from unmix_clip.data import images, load_data

    monkeypatch.setattr(images, "image_digest", None)  # would fail
    with images.pictures_unread():
        assert len(load_data(f"coco:{SHARED / 'coco96'}@val2017").samples) == 24


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (('figure = "map"', 'figure = "mAP"'), "figure 'mAP'; expected one of map, map_11point"),
        (('task = "segmentation"', 'task = "segmentatoin"'), "task 'segmentatoin'"),
        (("seeds = [3, 4]", "seeds = 3"), "seeds = 3; expected a list"),
        (('source = "nowhere"', 'sauce = "nowhere"'), "key 'sauce'"),
    ],
)
def test_a_wrong_experiment_is_told_before_anything_is_trained(change, told, tmp_path):
    file = tmp_path / "wrong.toml"
    file.write_text(SMALL.replace(*change))
    with pytest.raises(InputError, match=told):
        load_experiment(str(file), {"scenes": "scenes"})
