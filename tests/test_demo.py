"""The demo on a few scenes: its JSON, its files, its report."""

import re

import pytest
from support import read_json

from unmix_clip.demo import run_demo
from unmix_clip.runs import load_run
from unmix_clip.study import Sizes


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    told = []
    result = run_demo(out, [0, 1], cache=None, tell=told.append, sizes=Sizes(train=400, val=100, test=80, unseen=40))
    return out, result, told


def test_its_json_has_the_promised_keys(demo):
    out, result, _ = demo
    written = read_json(out / "demo.json")
    assert {"entanglement", "recognition", "segmentation", "artifacts"} <= written.keys()
    assert {"clip", "maskclip", "unmix"} <= written["recognition"].keys() & written["segmentation"].keys()
    assert written["recognition"]["unmix"]["map"] == result["recognition"]["unmix"]["map"]
    assert len(written["recognition"]["unmix"]["spread"]["map"]["values"]) == 2


def test_unmixing_lowers_the_likeness_of_the_class_texts(demo):
    assert demo[1]["entanglement"]["reduction"] > 0.5


def test_every_artifact_exists_and_a_saved_model_loads(demo):
    out, result, _ = demo
    assert all((out / name).exists() for name in result["artifacts"])
    assert load_run(out / "seed1").model.config.seed == 1


def test_the_report_is_one_file_without_external_requests(demo):
    text = (demo[0] / "report.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert "http" not in re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", text)
    assert text.count("data:image/png;base64,") == 3


def test_the_table_names_every_method_and_the_number_of_seeds(demo):
    table = "\n".join(demo[2])
    assert all(name in table for name in ("clip-centred-softmax", "maskclip", "unmix (2 seeds)"))
