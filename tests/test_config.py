"""Recipes and overrides: every recipe loads, mistakes are told in one line."""

import tomllib
from importlib import resources

import pytest

from unmix_clip.config import TrainConfig, config_from_dict, load_config, recipe_names
from unmix_clip.errors import InputError


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_carries_its_own_name(name):
    assert load_config(name).recipe == name


def test_the_recipe_default_is_the_dataclass_defaults():
    assert load_config() == TrainConfig()


def test_the_paper_recipe_has_the_published_values():
    values = tomllib.loads((resources.files("unmix_clip") / "recipes" / "paper.toml").read_text())
    published = {"lr": 2e-3, "momentum": 0.9, "weight_decay": 5e-4, "epochs": 50, "warmup_lr": 1e-5, "batch_size": 32}
    assert published.items() <= values.items()


def test_later_overrides_win_and_take_the_fields_type():
    config = load_config("paper", ["epochs=3", "epochs=4", "centre=true", "mfi_weight=0"])
    assert (config.epochs, config.centre, config.mfi_weight) == (4, True, 0.0)


def test_a_toml_file_is_read(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('recipe = "mine"\nlr = 1e-4\n')
    assert load_config(file) == TrainConfig(recipe="mine", lr=1e-4)


def test_a_configuration_survives_json():
    config = load_config("paper")
    assert config_from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("mfi_wieght=1", "did you mean mfi_weight"),
        ("epochs", "no '='"),
        ("epochs=many", "expected int"),
        ("epochs=0", "above 0"),
        ("lr=-1", "above 0"),
        ("centre=maybe", "expected bool"),
        ("score=triple", "positive, dual"),
        ("asl_clip=2", r"\[0, 1\]"),
        ("seed=-1", "0 or more"),
    ],
)
def test_a_wrong_override_is_told_in_one_line(override, told):
    with pytest.raises(InputError, match=told) as error:
        load_config(None, [override])
    assert "\n" not in str(error.value)


def test_an_unknown_recipe_names_the_known_ones():
    with pytest.raises(InputError, match="default, dualcoop, linear-probe, paper"):
        load_config("papper")


def test_malformed_toml_is_told(tmp_path):
    file = tmp_path / "bad.toml"
    file.write_text("lr = = 1")
    with pytest.raises(InputError, match="not valid TOML"):
        load_config(file)
