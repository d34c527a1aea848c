"""Fixtures that several test files share."""

import pytest
import torch
from support import run_cli

torch.set_num_threads(1)  # waiting threads cost more than they bring on the few cores of a test machine


@pytest.fixture(scope="session", autouse=True)
def feature_cache(tmp_path_factory):
    """Keep all stored features of the tests out of the user's cache, and share them between tests."""
    patch = pytest.MonkeyPatch()
    patch.setenv("UNMIX_CLIP_CACHE", str(tmp_path_factory.mktemp("features")))
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def seeded():
    """The same random numbers in every run, whichever tests are chosen."""
    torch.manual_seed(0)


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
