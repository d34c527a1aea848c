"""The pre-training tool on a toy plan: it writes a loadable model and continues where it was stopped."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

spec = importlib.util.spec_from_file_location("pretrain_mini", Path(__file__).parents[2] / "tools" / "pretrain_mini.py")
pretrain_mini = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pretrain_mini)
pretrain_mini.WORKERS = 0  # scenes are drawn in this process: forking a test process with threads can lock up

TOY = pretrain_mini.Plan(steps=4, batch=4, processes=1, width=8, embed_dim=16, text_width=16, warmup_steps=1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    pretrain_mini.run(0, TOY, out)
    return out


def test_it_writes_weights_that_the_model_loads_and_a_record(whole):
    config = json.loads((whole / "model.json").read_text())
    model = pretrain_mini.build_model(config)
    model.load_state_dict(load_file(whole / "weights.safetensors"))
    record = json.loads((whole / "training.json").read_text())
    assert record["plan"]["steps"] == record["log"][-1]["step"] == 4
    assert record["pictures"] == 16


def test_a_run_that_was_killed_ends_with_the_same_weights(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain_mini, "CHECKPOINT_EVERY", 2)
    train_step, steps = pretrain_mini.train_step, []

    def killed(*arguments):
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return train_step(*arguments)

    monkeypatch.setattr(pretrain_mini, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        pretrain_mini.run(0, TOY, tmp_path)
    monkeypatch.setattr(pretrain_mini, "train_step", train_step)
    pretrain_mini.run(0, TOY, tmp_path)
    expected, found = (load_file(folder / "weights.safetensors") for folder in (whole, tmp_path))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_checkpoint_of_another_plan_is_refused(whole):
    with pytest.raises(SystemExit, match="other settings"):
        pretrain_mini.run(0, replace(TOY, steps=5), whole)


def test_the_contrastive_loss_is_clips():
    torch.manual_seed(0)
    images, texts = torch.randn(5, 8), torch.randn(5, 8)
    cosine = torch.nn.functional.cosine_similarity(images[:, None], texts[None], dim=-1) * 10
    rows = [-torch.log_softmax(cosine[i], 0)[i] for i in range(5)]
    columns = [-torch.log_softmax(cosine[:, i], 0)[i] for i in range(5)]
    expected = (sum(rows) + sum(columns)) / 10
    torch.testing.assert_close(pretrain_mini.contrastive_loss(images, texts, torch.tensor(10.0)), expected)
