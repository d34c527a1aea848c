"""Comparisons in one run: rivals, learned methods, seeds, pairs, unseen classes."""

import json

import numpy as np
import pytest
from support import read_json

SMALL = ("--train-data", "scenes@train?n=150", "--fit-data", "scenes@val?n=60")
RECOGNITION = ("compare", "--data", "scenes@test?n=60", "--task", "recognition", *SMALL)
SEGMENTATION = ("compare", "--data", "scenes@test?n=30", "--task", "segmentation", *SMALL)


def results(ran):
    assert ran.code == 0, ran.err
    return {one["method"]: one for one in json.loads(ran.out)["results"]}


def test_learned_methods_are_trained_over_seeds_and_told_with_their_spread(cli_run):
    methods = "clip,linear-probe,bce-projectors,dualcoop,unmix"
    found = results(cli_run(*RECOGNITION, "--methods", methods, "--seeds", "0,1", "--json", "-"))
    assert list(found) == methods.split(",")
    assert "seeds" not in found["clip"]
    for name in methods.split(",")[1:]:
        one = found[name]
        values = one["spread"]["map"]["values"]
        assert one["seeds"] == [0, 1]
        assert one["map"] == values[0] != values[1]
        assert one["spread"]["map"]["mean"] == pytest.approx(np.mean(values))
        assert one["spread"]["map"]["std"] == pytest.approx(np.std(values, ddof=1))
        assert one["trained_on"].startswith("scenes@train?n=150")
    assert found["unmix"]["map"] > 0.4


def test_unmixing_on_top_of_a_rival_scores_that_rival_s_features(cli_run, tmp_path):
    found = results(cli_run(*SEGMENTATION, "--methods", "naclip,unmix,unmix@naclip", "--json", "-"))
    assert [one["dense"] for one in found.values()] == ["naclip", "maskclip", "naclip"]
    assert found["unmix"]["miou"] != found["unmix@naclip"]["miou"]
    run = tmp_path / "run"
    data = ("--data", "scenes@train?n=150", "--val", "scenes@val?n=60")
    assert cli_run("train", *data, "--dense", "naclip", "--out", run).code == 0
    alone = ("evaluate", "--data", "scenes@test?n=30", "--task", "segmentation", "--model", run, "--json", "-")
    again = json.loads(cli_run(*alone).out)
    assert again["method"] == "unmix@naclip"
    assert again["miou"] == pytest.approx(found["unmix@naclip"]["miou"], abs=1e-6)


def test_every_published_rival_segments_scenes(cli_run):
    rivals = "clip,maskclip,clip-surgery,sclip,clearclip,naclip,sc-clip"
    found = results(cli_run(*SEGMENTATION, "--methods", rivals, "--json", "-", "--against", "maskclip"))
    assert len({one["miou"] for one in found.values()}) == 7
    assert "versus" not in found["maskclip"]
    for name, one in found.items():
        assert one["ci95"][0] <= one["miou"] <= one["ci95"][1]
        if name != "maskclip":
            versus = one["versus"]
            assert versus["difference"] == pytest.approx(one["miou"] - found["maskclip"]["miou"])
            assert versus["ci95"][0] <= versus["difference"] <= versus["ci95"][1]
            assert 0 < versus["p"] <= 1


def test_windows_and_refinement_are_named_and_change_the_masks(cli_run):
    command = ("compare", "--data", "scenes@test?n=6", "--task", "segmentation", "--methods", "maskclip", *SMALL[2:])
    plain = results(cli_run(*command, "--protocol", "standard-objects", "--json", "-"))["maskclip"]
    sliding = ("sliding-objects,short_side_px=192,window_px=128,stride_px=64", "standard-objects,refinement=pamr")
    for protocol in sliding:
        one = results(cli_run(*command, "--protocol", protocol, "--json", "-"))["maskclip"]
        assert one["protocol"].startswith(protocol)
        assert one["protocol_settings"]["name"] == protocol
        assert one["miou"] != plain["miou"]


def test_a_window_over_the_whole_picture_gives_the_same_masks_as_no_window(cli_run):
    command = ("compare", "--data", "scenes@test?n=12", "--task", "segmentation", "--methods", "maskclip", *SMALL[2:])
    plain = results(cli_run(*command, "--protocol", "standard-objects", "--json", "-"))["maskclip"]
    protocol = "sliding-objects,short_side_px=128,window_px=128,stride_px=128"
    whole = results(cli_run(*command, "--protocol", protocol, "--json", "-"))["maskclip"]
    assert whole["per_class_iou"] == plain["per_class_iou"]


def test_scenes_with_unseen_names_are_told_apart_and_nothing_is_trained_on_them(cli_run):
    command = ("compare", "--data", "scenes@unseen?n=60", "--task", "recognition", *SMALL, "--methods", "clip,unmix")
    found = results(cli_run(*command, "--json", "-"))
    for one in found.values():
        seen, unseen = one["map_seen"], one["map_unseen"]
        assert one["map_harmonic"] == pytest.approx(2 * seen * unseen / (seen + unseen))
        assert set(one["f1_top3"]) == set(one["f1_top5"]) == {"precision", "recall", "f1"}
    assert found["unmix"]["n_classes"] == 56
    assert found["unmix"]["map_unseen"] > 0.2  # far above chance: their texts were never pushed away as negatives


def test_partial_labels_are_unknown_in_training_and_in_average_precision(cli_run):
    command = ("evaluate", "--task", "recognition", "--method", "clip", "--fit-data", "scenes@val?n=60", "--json", "-")
    whole = json.loads(cli_run(*command, "--data", "scenes@test?n=60").out)
    part = json.loads(cli_run(*command, "--data", "scenes@test?n=60&keep=0.5").out)
    assert part["data"].endswith("keep=0.5")
    assert part["data_rules"]["labels"].startswith("keep 0.5")
    assert part["map"] != whole["map"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--methods", "clip,naclop"), "unknown method 'naclop'"),
        (("--methods", "clip@naclip"), "METHOD@DENSE"),
        (("--methods", "unmix@clop"), "unmix@clop"),
        (("--methods", "clip", "--against", "unmix"), "--against 'unmix' is not measured"),
        (("--methods", "clip", "--seeds", "a"), "--seeds"),
        (("--methods", "clip", "--class-split", "coco-1-79"), "coco-48-17"),
    ],
)
def test_wrong_comparisons_are_one_line(arguments, told, cli_run):
    ran = cli_run(*RECOGNITION, *arguments)
    assert ran.code == 2
    assert told in ran.err.splitlines()[-1]


def test_a_run_that_overlaps_what_is_evaluated_or_fitted_is_refused(cli_run):
    ran = cli_run("compare", "--data", "scenes@test?n=9", "--task", "recognition", "--methods", "unmix",
                  "--train-data", "scenes@test?n=4", "--fit-data", "scenes@val?n=9")  # fmt: skip
    assert ran.code == 2
    assert "share 4 pictures" in ran.err


def test_runs_of_several_seeds_are_one_method(cli_run, tmp_path):
    for seed in (0, 1):
        data = (
            "--data",
            "scenes@train?n=100",
            "--val",
            "scenes@val?n=60",
            "--set",
            f"seed={seed}",
            "--set",
            "epochs=5",
        )
        assert cli_run("train", *data, "--out", tmp_path / f"{seed}").code == 0
    file = tmp_path / "out.json"
    ran = cli_run("compare", "--data", "scenes@test?n=40", "--task", "recognition", "--methods", "unmix,clip",
                  "--model", tmp_path / "0", "--model", tmp_path / "1", "--json", file)  # fmt: skip
    assert ran.code == 0
    assert read_json(file)["results"][0]["seeds"] == [0, 1]
    assert "±" in ran.out
    found = results(cli_run(*RECOGNITION, "--methods", "unmix,linear-probe", "--model", tmp_path / "0", "--json", "-"))
    assert found["unmix"]["trained_on"].startswith("scenes@train?n=100")  # the run
    assert found["linear-probe"]["trained_on"].startswith("scenes@train?n=150")  # trained here, for want of a run


def test_an_ablation_trains_every_variant_with_every_seed_and_writes_one_table(cli_run, tmp_path):
    table = tmp_path / "table.md"
    ran = cli_run("ablate", "--data", "scenes@train?n=80", "--test", "scenes@val?n=30", "--val", "scenes@test?n=30",
                  "--grid", "mfi_weight=0,30", "--grid", "dense=naclip", "--grid", "keep=0.5", "--set", "epochs=3",
                  "--seeds", "0,1", "--markdown", table, "--json", tmp_path / "a.json")  # fmt: skip
    assert ran.code == 0, ran.err
    rows = read_json(tmp_path / "a.json")["rows"]
    assert [row["variant"] for row in rows] == ["base", "mfi_weight=0", "mfi_weight=30", "dense=naclip", "keep=0.5"]
    for row in rows:
        for key in ("map", "miou_objects", "miou_standard", "mean_cosine", "order_correlation"):
            assert len(row["figures"][key]["values"]) == 2
    cosine = {row["variant"]: row["figures"]["mean_cosine"]["mean"] for row in rows}
    assert cosine["mfi_weight=30"] < cosine["mfi_weight=0"]
    assert table.read_text().count("\n|") == 2 + 5


def test_a_product_of_factors_has_every_combination(cli_run, tmp_path):
    from unmix_clip.ablation import build_variants
    from unmix_clip.config import TrainConfig

    variants = build_variants(TrainConfig(), "maskclip", {"centre": ["true", "false"], "views": ["1", "2"]}, True)
    assert [v.name for v in variants][1:] == [
        f"centre={c}, views={v}" for c in ("true", "false") for v in ("1", "2")
    ]  # fmt: skip
    assert [(v.config.centre, v.config.views) for v in variants[1:]] == [(True, 1), (True, 2), (False, 1), (False, 2)]


def test_a_wrong_grid_is_one_line(cli_run):
    data = ("ablate", "--data", "scenes@train?n=8", "--test", "scenes@val?n=8", "--val", "scenes@test?n=8")
    for grid, told in (("mfi_weigth=1", "did you mean mfi_weight"), ("centre", "key=value"), ("dense=x", "dense=x")):
        ran = cli_run(*data, "--grid", grid)
        assert ran.code == 2
        assert told in ran.err


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Small runs by name: two seeds would be one method, these are not."""
    from support import run_cli

    folder = tmp_path_factory.mktemp("runs")
    data = ("--data", "scenes@train?n=60", "--val", "scenes@val?n=40", "--set", "epochs=2")
    (folder / "mine.toml").write_text('base = "linear-probe"\nrecipe = "mine"\n')
    (folder / "bare.toml").write_text('base = "default"\nrecipe = "bare"\nmfi_weight = 0\n')
    for name, options in {
        "default": (), "bare": ("--config", folder / "bare.toml"), "probe": ("--config", folder / "mine.toml"),
    }.items():  # fmt: skip
        assert run_cli("train", *data, *options, "--out", folder / name).code == 0
    unseen = ("--data", "scenes@unseen?n=60&seed=5", "--val", "scenes@val?n=40", "--set", "epochs=1")
    assert run_cli("train", *unseen, "--out", folder / "saw").code == 0
    return folder


def test_a_run_is_named_by_its_model_whatever_its_recipe_is_called(runs, cli_run):
    assert read_json(runs / "probe" / "metrics.json")["method"] == "linear-probe"
    ran = cli_run(
        "evaluate", "--data", "scenes@test?n=20", "--task", "recognition", "--model", runs / "probe", "--json", "-"
    )
    assert json.loads(ran.out)["method"] == "linear-probe"
    analysed = cli_run("analyze", "--classes", "dog,cat", "--model", runs / "probe", "--json", "-")
    assert "after" not in json.loads(analysed.out)  # it has no projected texts


@pytest.mark.parametrize(
    ("data", "models", "options", "told"),
    [
        ("scenes@test?n=20", ("default", "bare"), (), "differ in recipe, mfi_weight"),
        ("scenes@test?n=20", ("default", "default"), (), "not even their seed"),
        ("scenes@train?n=30", ("default",), (), "was trained on 30 of the pictures"),
        ("scenes@test?n=20", ("default",), ("--fit-data", "scenes@train?n=30"), "every picture of scenes@train"),
        ("scenes@unseen?n=20", ("saw",), (), "which is to be unseen here"),
        ("scenes@unseen?n=20", ("probe",), (), "linear-probe knows only names that it was trained on"),
    ],
)
def test_runs_that_cannot_be_compared_are_told_apart(data, models, options, told, runs, cli_run):
    chosen = [part for model in models for part in ("--model", runs / model)]
    ran = cli_run("compare", "--data", data, "--task", "recognition", "--methods",
                  "linear-probe" if models == ("probe",) else "unmix", *chosen, *options)  # fmt: skip
    assert ran.code == 2
    assert told in ran.err.splitlines()[-1]


def test_pairs_are_refused_where_the_protocol_averages_per_picture(cli_run):
    ran = cli_run(*SEGMENTATION, "--methods", "clip,maskclip", "--against", "clip", "--protocol", "paper")
    assert ran.code == 2
    assert "averages per picture" in ran.err


def test_an_ablation_refuses_to_fit_on_what_it_measures(cli_run):
    ran = cli_run("ablate", "--data", "scenes@train?n=20", "--test", "scenes@val?n=20", "--grid", "views=1")
    assert ran.code == 2
    assert "share 20 pictures" in ran.err


def test_names_of_the_background_compete_with_the_classes(cli_run, monkeypatch):
    """mini knows no such names, so some of its own take their part."""
    from unmix_clip import candidates
    from unmix_clip.vocabulary import ClassNames

    monkeypatch.setattr(candidates, "load_names", lambda name: ClassNames(("kite", "scene"), {}))
    monkeypatch.setattr(candidates.Workplace, "texts", lambda self, prompts, names, synonyms=None: texts(self, names))

    def texts(place, names):
        from unmix_clip.method.model import ClassTexts

        features = place.backbone.encode_texts([f"a photo of a {name}" for name in names])
        return ClassTexts(features, features, tuple(names))

    command = (*SEGMENTATION, "--methods", "maskclip", "--protocol", "standard,background=names", "--json", "-")
    one = results(cli_run(*command))["maskclip"]
    assert one["per_class_iou"]["background"] > 0
    assert len(one["per_class_iou"]) == 1 + 48
    assert "competing names" in one["protocol"]


def test_the_background_is_fitted_to_masks_as_the_protocol_makes_them(cli_run):
    protocol = "standard,tag_gate=false"
    one = results(cli_run(*SEGMENTATION, "--methods", "maskclip", "--protocol", protocol, "--json", "-"))["maskclip"]
    from unmix_clip.backbones import build_backbone
    from unmix_clip.candidates import build_rivals
    from unmix_clip.evaluation.protocols import find_protocol
    from unmix_clip.evaluator import Thresholds, evaluate_masks, fit_thresholds
    from unmix_clip.jobs import Workplace
    from unmix_clip.vocabulary import load_prompts

    place = Workplace(build_backbone("mini"), tell=lambda text: None)
    fitting, test = (place.bench(place.load(spec)) for spec in ("scenes@val?n=60", "scenes@test?n=30"))
    (rival,) = build_rivals(["maskclip"], place.texts(load_prompts("plain"), test.dataset.classes), fitting)
    chosen = find_protocol(protocol)

    def miou(bench, background):
        return evaluate_masks(rival, bench, Thresholds(0, background), [chosen])[protocol].result()["miou"]

    fitted = fit_thresholds(rival, fitting, chosen)
    assert one["miou"] == pytest.approx(miou(test, fitted.background))
    tried = np.linspace(fitted.background - 0.2, fitted.background + 0.2, 9)
    assert miou(fitting, fitted.background) >= max(miou(fitting, b) for b in tried) - 0.005
