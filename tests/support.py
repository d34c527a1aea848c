"""What test files import from each other: the command line in this process, the folder of real data."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from unmix_clip import cli

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared, which only the project's machines have")


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


def read_json(path):
    """Read a JSON file."""
    return json.loads(Path(path).read_text())
