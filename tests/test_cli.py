"""The commands as users script them: JSON keys, exit codes, one line for every mistake."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from support import SHARED, needs_shared, read_json

from unmix_clip.data.scenes import load_scenes

COMMON = {"task", "protocol", "method", "backbone", "data", "n_images", "n_classes", "seed", "versions", "seconds"}
RECOGNITION = {"map", "cf1", "of1", "cp", "cr", "op", "or", "per_class_ap", "n_classes_scored", "ci95"}
SEGMENTATION = {"miou", "pixel_accuracy", "per_class_iou", "background", "n_classes_scored"}


CLIP = ("evaluate", "--task", "recognition", "--method", "clip", "--data")
UNMIX = ("evaluate", "--task", "recognition", "--data", "scenes?n=4")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Four scenes as files, and one file that is no picture."""
    folder = tmp_path_factory.mktemp("photos")
    for i, sample in enumerate(load_scenes("test", n=4).samples):
        sample.load_image().save(folder / f"scene{i}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff this is no picture")
    return folder


def test_importing_the_package_loads_no_torch_and_is_quick():
    code = "import time; t = time.time(); import unmix_clip, sys; print('torch' in sys.modules, time.time() - t)"
    torch_loaded, seconds = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert torch_loaded == "False"
    assert float(seconds) < 1


def test_a_run_holds_config_weights_and_metrics(small_run):
    config, metrics = read_json(small_run / "config.json"), read_json(small_run / "metrics.json")
    assert (small_run / "model.safetensors").stat().st_size > 1000
    assert config["backbone"]["weights_digest"] == metrics["backbone"]["weights_digest"]
    assert config["train"]["epochs"] == 15
    assert len(config["classes"]) == 48
    assert metrics["history"][-1]["epoch"] == 15
    assert metrics["entanglement"]["reduction"] == pytest.approx(
        1 - metrics["entanglement"]["after"]["mean_cosine"] / metrics["entanglement"]["mean_cosine"]
    )


def test_evaluate_prints_nothing_but_json_to_stdout_where_asked(small_run, cli_run):
    ran = cli_run(
        "evaluate", "--data", "scenes@test?n=80", "--task", "recognition", "--model", small_run, "--json", "-"
    )
    result = json.loads(ran.out)
    assert ran.code == 0
    assert result.keys() >= COMMON | RECOGNITION
    assert (result["method"], result["n_images"], result["n_classes"]) == ("unmix", 80, 48)
    assert 0 <= result["ci95"][0] <= result["map"] <= result["ci95"][1] <= 1


def test_classes_without_positives_are_null_and_not_scored(small_run, cli_run):
    ran = cli_run("evaluate", "--data", "scenes@test?n=5", "--task", "recognition", "--model", small_run, "--json", "-")
    result = json.loads(ran.out)
    values = list(result["per_class_ap"].values())
    assert values.count(None) == 48 - result["n_classes_scored"] > 0
    assert result["map"] == pytest.approx(np.mean([v for v in values if v is not None]))


@pytest.mark.parametrize("protocol", ["standard", "standard-objects", "paper", "paper-positive"])
def test_segmentation_names_its_protocol(small_run, cli_run, protocol):
    command = ("evaluate", "--data", "scenes@test?n=40", "--task", "segmentation", "--model", small_run)
    result = json.loads(cli_run(*command, "--protocol", protocol, "--json", "-").out)
    assert result.keys() >= COMMON | SEGMENTATION
    assert result["protocol"].startswith(protocol)
    assert 0 < result["miou"] < 1


def test_compare_measures_every_method_in_one_table(small_run, cli_run, tmp_path):
    file = tmp_path / "compared.json"
    ran = cli_run(
        "compare", "--data", "scenes@test?n=80", "--task", "recognition", "--model", small_run, "--json", file,
        "--fit-data", "scenes@val?n=100",
    )  # fmt: skip
    results = read_json(file)["results"]
    assert [r["method"] for r in results][:3] == ["unmix", "clip", "clip-softmax"]
    assert len(results) == 14
    assert all(r.keys() >= COMMON | RECOGNITION for r in results)
    assert len([line for line in ran.out.splitlines() if "clip" in line or "unmix" in line]) >= 9


def test_one_method_alone_gives_the_same_as_in_a_comparison(small_run, cli_run):
    data = ("--data", "scenes@test?n=60", "--fit-data", "scenes@val?n=60", "--task", "segmentation", "--json", "-")
    alone = json.loads(cli_run("evaluate", *data, "--method", "maskclip", "--backbone", "mini").out)
    both = json.loads(cli_run("compare", *data, "--methods", "unmix,maskclip", "--model", small_run).out)["results"]
    assert both[1]["miou"] == alone["miou"]


def test_the_clip_baseline_equals_scikit_learn_on_plain_cosines(cli_run):
    from sklearn.metrics import average_precision_score

    from unmix_clip.backbones import build_backbone

    ran = cli_run("evaluate", "--data", "scenes@test?n=60", "--task", "recognition", "--method", "clip", "--json", "-")
    clip, dataset = build_backbone("mini"), load_scenes("test", n=60)
    pictures = clip.encode_pictures([s.load_image() for s in dataset.samples]).pooled.numpy()
    texts = clip.encode_texts([f"a photo of a {name}" for name in dataset.classes]).numpy()
    cosines = (pictures / np.linalg.norm(pictures, axis=1, keepdims=True)) @ (
        texts / np.linalg.norm(texts, axis=1, keepdims=True)
    ).T
    labels = np.stack([s.labels for s in dataset.samples])
    scored = labels.any(0)
    expected = np.mean([average_precision_score(labels[:, c], cosines[:, c]) for c in np.flatnonzero(scored)])
    assert json.loads(ran.out)["map"] == pytest.approx(expected, abs=2e-3)  # features are stored in 16 bit


def test_predict_writes_tags_maps_and_masks_and_lists_what_failed(small_run, photos, cli_run, tmp_path):
    out = tmp_path / "predicted"
    formats = ("--format", "json,csv,coco", "--heatmaps", "--masks")
    ran = cli_run("predict", "--model", small_run, "--out", out, photos, *formats)
    assert ran.code == 3
    written = read_json(out / "predictions.json")
    assert written.keys() >= COMMON
    images = written["images"]
    assert [record["failure"] is None for record in images] == [False, True, True, True, True]
    assert images[0]["file"].endswith("broken.jpg")
    assert images[0]["labels"] == []
    for record in images[1:]:
        assert record["image_hw"] == [128, 128]
        mask = np.asarray(Image.open(out / record["mask"]))
        assert mask.shape == (128, 128)
        names = read_json(out / "predictions.json")["classes"]
        assert {names[v - 1] for v in np.unique(mask) if v} <= {label["name"] for label in record["labels"]}
    assert len((out / "predictions.csv").read_text().splitlines()) >= 6
    assert list((out / "heatmaps").glob("*/*.jpg"))


def test_predicted_coco_masks_are_read_back_by_pycocotools(small_run, photos, cli_run, tmp_path):
    from pycocotools.coco import COCO

    cli_run("predict", "--model", small_run, "--out", tmp_path, photos, "--format", "coco,json", "--masks")
    coco = COCO(tmp_path / "predictions_coco.json")
    images = read_json(tmp_path / "predictions.json")["images"]
    for annotation in coco.loadAnns(coco.getAnnIds()):
        mask = np.asarray(Image.open(tmp_path / images[annotation["image_id"]]["mask"]))
        assert np.array_equal(coco.annToMask(annotation).astype(bool), mask == annotation["category_id"])


def test_a_score_does_not_depend_on_the_other_names_asked(small_run, photos, cli_run, tmp_path):
    scores = []
    for classes in ("dog", "cat,dog,pizza"):
        out = tmp_path / classes[:3]
        cli_run("predict", "--model", small_run, "--out", out, photos / "scene0.png", "--classes", classes)
        scores.append(read_json(out / "predictions.json")["images"][0]["scores"]["dog"])
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_names_that_were_not_trained_on_are_told(small_run, photos, cli_run, tmp_path):
    ran = cli_run("predict", "--model", small_run, "--out", tmp_path, photos / "scene0.png", "--classes", "dog,kite")
    assert ran.code == 0
    assert "not trained on: kite" in ran.err


@pytest.fixture
def table_with_a_broken_picture(photos):
    """A table of the four scenes with their labels, and the file that is no picture."""
    dataset = load_scenes("test", n=4)
    lines = ["filepath,labels", "broken.jpg,dog"]
    for i, sample in enumerate(dataset.samples):
        lines.append(f"scene{i}.png,{'|'.join(dataset.classes[c] for c in np.flatnonzero(sample.labels))}")
    (photos / "photos.csv").write_text("\n".join(lines) + "\n")
    return f"table:{photos / 'photos.csv'}"


def test_evaluation_refuses_a_broken_picture_unless_it_is_allowed(small_run, cli_run, table_with_a_broken_picture):
    command = ("evaluate", "--data", table_with_a_broken_picture, "--task", "recognition", "--model", small_run)
    refused = cli_run(*command, "--json", "-")
    assert refused.code == 2
    assert "broken.jpg is no picture" in refused.err
    allowed = cli_run(*command, "--json", "-", "--skip-broken")
    result = json.loads(allowed.out)
    assert allowed.code == 3
    assert result["n_images"] == 4
    assert result["failures"][0]["file"] == "broken.jpg"


def test_segmentation_of_pictures_without_masks_is_refused(small_run, cli_run, table_with_a_broken_picture):
    command = ("evaluate", "--data", table_with_a_broken_picture, "--task", "segmentation", "--model", small_run)
    ran = cli_run(*command, "--skip-broken")
    assert ran.code == 2
    assert "has no mask of" in ran.err


def test_a_run_without_masks_still_leaves_background(photos, cli_run, tmp_path):
    dataset = load_scenes("train", n=40)
    lines = ["filepath,labels"]
    for i, sample in enumerate(dataset.samples):
        sample.load_image().save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{'|'.join(dataset.classes[c] for c in np.flatnonzero(sample.labels))}")
    (tmp_path / "train.csv").write_text("\n".join(lines))
    run = tmp_path / "run"
    assert cli_run("train", "--data", f"table:{tmp_path / 'train.csv'}", "--out", run, "--set", "epochs=40").code == 0
    assert read_json(run / "config.json")["thresholds"]["background"] is None
    ran = cli_run("predict", "--model", run, "--out", tmp_path / "p", tmp_path / "0.png", "--masks")
    assert "no masks to fit the background on" in ran.err
    record = read_json(tmp_path / "p" / "predictions.json")["images"][0]
    assert record["labels"]
    assert 0 in np.unique(np.asarray(Image.open(tmp_path / "p" / record["mask"])))


def test_pictures_are_never_both_fitted_on_and_evaluated_or_trained_on(small_run, cli_run, tmp_path):
    fitted = cli_run(*CLIP, "scenes@test?n=8", "--fit-data", "scenes@test?n=4")
    trained = cli_run("train", "--data", "scenes@val?n=8", "--val", "scenes@val?n=4", "--out", tmp_path / "r")
    for ran in (fitted, trained):
        assert ran.code == 2
        assert "share 4 pictures" in ran.err
    unnamed = cli_run(*CLIP, "scenes@val?n=8")
    assert unnamed.code == 2
    assert "--fit-data" in unnamed.err


def test_training_without_a_split_uses_the_training_scenes(cli_run, tmp_path):
    command = (
        "train",
        "--data",
        "scenes?n=20",
        "--val",
        "scenes@val?n=20",
        "--out",
        tmp_path / "r",
        "--set",
        "epochs=1",
    )
    assert cli_run(*command).code == 0
    assert read_json(tmp_path / "r" / "metrics.json")["data"].startswith("scenes@train")


def test_a_class_list_restricts_the_classes_of_the_data(cli_run, tmp_path):
    command = ("train", "--data", "scenes@train?n=60", "--val", "scenes@val?n=60", "--set", "epochs=1")
    assert cli_run(*command, "--out", tmp_path / "r", "--classes", "dog,cat").code == 0
    assert read_json(tmp_path / "r" / "config.json")["classes"] == ["cat", "dog"]
    refused = cli_run(*command, "--out", tmp_path / "s", "--classes", "dog,unicorn")
    assert refused.code == 2
    assert "no class 'unicorn'" in refused.err


def test_a_training_is_not_resumed_on_other_pictures(cli_run, tmp_path):
    command = ("train", "--val", "scenes@val?n=20", "--out", tmp_path / "r", "--set", "epochs=1")
    assert cli_run(*command, "--data", "scenes@train?n=20").code == 0
    ran = cli_run(*command, "--data", "scenes@train?n=21", "--resume")
    assert ran.code == 2
    assert "other pictures" in ran.err


@needs_shared
def test_real_photos_train_evaluate_and_predict(cli_run, tmp_path):
    coco, run = SHARED / "coco96", tmp_path / "run"
    trained = cli_run(
        "train", "--data", f"coco:{coco}@train2017", "--val", f"coco:{coco}@val2017", "--out", run, "--set", "epochs=2"
    )
    assert trained.code == 0
    assert "mini does not know" in trained.err
    assert "7 crowd annotations" in trained.err
    data = ("--data", f"coco:{coco}@val2017", "--model", run, "--methods", "unmix,clip,maskclip", "--json", "-")
    for task, figure in (("recognition", "map"), ("segmentation", "miou")):
        results = json.loads(cli_run("compare", *data, "--task", task).out)["results"]
        assert [0 <= r[figure] <= 1 for r in results] == [True] * 3
        assert results[0]["n_images"] == 24
        assert results[0]["n_classes"] == len(read_json(run / "config.json")["classes"]) < 80
    photo = next((coco / "val2017").glob("*.jpg"))
    assert cli_run("predict", "--model", run, "--out", tmp_path / "p", photo, "--masks").code == 0
    record = read_json(tmp_path / "p" / "predictions.json")["images"][0]
    mask = np.asarray(Image.open(tmp_path / "p" / record["mask"]))
    assert list(mask.shape) == record["image_hw"]


def test_analyze_gives_the_entanglement_before_and_after(small_run, cli_run, tmp_path):
    figure = tmp_path / "matrix.png"
    command = ("analyze", "--classes", "fork,knife,cup", "--model", small_run, "--figure", figure, "--json", "-")
    result = json.loads(cli_run(*command).out)
    assert COMMON | {"mean_cosine", "max_cosine", "top_pairs", "after", "reduction"} <= result.keys()
    assert len(result["top_pairs"]) == 3
    assert Image.open(figure).size[0] > 500


def test_analyze_measures_cross_activation_on_pictures(small_run, cli_run):
    command = ("analyze", "--classes", "fork,knife", "--model", small_run, "--data", "scenes@test?n=40", "--json", "-")
    pictures = json.loads(cli_run(*command).out)["pictures"]
    assert 0 < pictures["unmixed"]["cross_activation"] < 0.5
    assert 0 < pictures["plain"]["cross_activation"] < 0.5


@needs_shared
@pytest.mark.parametrize(("name", "mean"), [("coco", 0.7990), ("lvis_v1", 0.7426)])
def test_analyze_gives_the_known_entanglement_of_the_real_clip(cli_run, name, mean):
    folder = SHARED / "clip_text"
    features = folder / f"{name}_vit_b32_openai.npy"
    ran = cli_run("analyze", "--text-features", features, "--classes", folder / f"{name}_names.txt", "--json", "-")
    assert json.loads(ran.out)["mean_cosine"] == pytest.approx(mean, abs=5e-5)


def test_doctor_lists_what_works_offline(cli_run):
    result = json.loads(cli_run("doctor", "--json", "-").out)
    assert "mini" in result["backbones_offline"]
    assert "RN101" in result["backbones_supported"]


def test_a_resumed_training_writes_the_same_weights(small_run, cli_run, tmp_path):
    data = ("--data", "scenes@train?n=60", "--val", "scenes@val?n=40", "--set", "epochs=4")
    assert cli_run("train", *data, "--out", tmp_path / "whole").code == 0
    assert cli_run("train", *data, "--out", tmp_path / "again", "--resume").code == 0
    (tmp_path / "again" / "model.safetensors").unlink()
    assert cli_run("train", *data, "--out", tmp_path / "again", "--resume").code == 0
    whole, again = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "again"))
    assert whole == again


def test_training_refuses_to_overwrite_a_run(small_run, cli_run):
    before = (small_run / "model.safetensors").read_bytes()
    ran = cli_run("train", "--data", "scenes@train?n=40", "--out", small_run)
    assert ran.code == 2
    assert "already holds a run" in ran.err
    assert (small_run / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((*CLIP, "scenes?n=4", "--backbone", "RN5O:x"), "RN50"),
        ((*CLIP, "scenes?n=4", "--backbone", "RN50:openai"), "RN50"),
        ((*CLIP, "scenes@tset"), "train, val, test, unseen"),
        ((*CLIP, "scenes?m=4"), "expected n=, seed=, size="),
        ((*CLIP, "picasa:x"), "coco:"),
        ((*CLIP, "coco:nowhere@val2017"), "no folder nowhere"),
        ((*CLIP, "table:nowhere.csv"), "no table at nowhere.csv"),
        ((*CLIP, "folder:nowhere"), "no folder nowhere"),
        (("evaluate", "--data", "scenes", "--task", "naming", "--method", "clip"), "recognition or segmentation"),
        (UNMIX, "--model RUN"),
        ((*UNMIX, "--method", "clop"), "unknown method 'clop'"),
        ((*UNMIX, "--model", "nowhere"), "no folder nowhere"),
        (("compare", "--data", "scenes?n=4", "--task", "segmentation", "--protocol", "mine"), "standard-objects"),
        (("analyze", "--classes", "dog,dog"), "twice"),
        (("analyze", "--classes", "dog,,cat"), "empty name"),
        (("analyze", "--classes", "dog,zebra"), "zebra"),
        (("analyze", "--classes", "dog"), "at least two"),
        (("analyze", "--text-features", "nowhere.npy", "--classes", "a,b"), "no text features"),
        (("train", "--data", "scenes@train?n=8", "--out", "x", "--set", "epoch=3"), "did you mean epochs"),
        (("train", "--data", "scenes@train?n=8", "--out", "x", "--config", "best"), "default, dualcoop"),
        (("train", "--data", "scenes@train?n=8", "--out", "x", "--device", "abacus"), "device 'abacus'"),
        (("predict", "--model", "nowhere", "--out", "x", "y.jpg"), "no folder nowhere"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_and_exit_code_2(arguments, told, cli_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = cli_run(*arguments)
    assert ran.code == 2
    (line,) = [line for line in ran.err.splitlines() if line.startswith("unmix-clip: ")]
    assert told in line
    assert "Traceback" not in ran.err


def test_a_model_of_another_backbone_is_refused(small_run, cli_run):
    data = ("--data", "scenes@test?n=4", "--task", "recognition", "--model", small_run)
    ran = cli_run("evaluate", *data, "--backbone", "mini", "--image-size", "96")
    assert ran.code == 2
    assert "input_hw" in ran.err


def test_a_damaged_run_is_refused(small_run, cli_run, tmp_path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(small_run, broken)
    (broken / "model.safetensors").write_bytes(b"no weights")
    ran = cli_run("evaluate", "--data", "scenes@test?n=4", "--task", "recognition", "--model", broken)
    assert ran.code == 2
    assert "not a readable run" in ran.err


@pytest.mark.skipif(os.name != "posix", reason="a file where a folder should be")
def test_an_output_folder_that_cannot_be_made_is_told_before_anything_runs(cli_run, tmp_path):
    (tmp_path / "file").write_text("x")
    ran = cli_run("train", "--data", "scenes@train?n=8", "--out", tmp_path / "file" / "run")
    assert ran.code == 2
    assert "cannot make the output folder" in ran.err
