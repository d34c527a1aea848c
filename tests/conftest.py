"""What several test files share: the command line in this process, a small trained run, the folder of real data."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from unmix_clip import cli

torch.set_num_threads(1)  # waiting threads cost more than they bring on the few cores of a test machine

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared, which only the project's machines have")


@pytest.fixture(scope="session", autouse=True)
def feature_cache(tmp_path_factory):
    """Keep all stored features of the tests out of the user's cache, and share them between tests."""
    patch = pytest.MonkeyPatch()
    patch.setenv("UNMIX_CLIP_CACHE", str(tmp_path_factory.mktemp("features")))
    yield
    patch.undo()


def run_cli(*arguments, capsys=None):
    """Run the command line; returns exit code, and stdout and stderr where `capsys` is given."""
    patch = pytest.MonkeyPatch()
    patch.setattr(sys, "argv", ["unmix-clip", *map(str, arguments)])
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        patch.undo()
    captured = capsys.readouterr() if capsys else SimpleNamespace(out="", err="")
    return SimpleNamespace(code=code, out=captured.out, err=captured.err)


@pytest.fixture
def cli_run(capsys):
    """The command line with its output captured."""
    return lambda *arguments: run_cli(*arguments, capsys=capsys)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """A RUN folder of a short training on scenes."""
    out = tmp_path_factory.mktemp("run") / "small"
    data = ("--data", "scenes@train?n=400", "--val", "scenes@val?n=100")
    assert run_cli("train", *data, "--out", out, "--set", "epochs=15", "--json", out / "printed.json").code == 0
    return out


def read_json(path):
    """Read a JSON file."""
    return json.loads(Path(path).read_text())
