"""What the documentation shows works: its examples, its recipes, its names."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unmix_clip.backbones import build_backbone
from unmix_clip.backbones.dense import DENSE_STRATEGIES
from unmix_clip.baselines.training_free import PUBLISHED
from unmix_clip.config import recipe_names
from unmix_clip.data import kinds
from unmix_clip.errors import InputError
from unmix_clip.evaluation.protocols import PROTOCOLS
from unmix_clip.reproduction import TRAPS
from unmix_clip.runs import LEARNED

DOCS = Path(__file__).parents[1] / "docs"


def examples():
    """The two modules that extending.md shows, run."""
    found = []
    for code in re.findall(r"```python\n(.*?)```", (DOCS / "extending.md").read_text(), re.DOTALL):
        assert len(code.splitlines()) < 40
        found.append({})
        exec(compile(code, "extending.md", "exec"), found[-1])
    return found


def test_the_data_set_of_the_documentation_is_read(tmp_path):
    load_listed = examples()[0]["load_listed"]
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 6), "red" if name == "a.png" else "blue").save(tmp_path / name)
    (tmp_path / "train.tsv").write_text("a.png\tdog, sofa\nb.png\t\n")
    dataset = load_listed(tmp_path, "train")
    assert dataset.classes == ("dog", "sofa")
    assert np.array_equal([s.labels for s in dataset.samples], [[1, 1], [0, 0]])
    assert dataset.samples[0].load_image().size == (8, 6)
    with pytest.raises(InputError, match=r"no list .*test\.tsv"):
        load_listed(tmp_path, "test")
    (tmp_path / "train.tsv").write_text("a.png dog\n")
    with pytest.raises(InputError, match="line 1 has 1 columns"):
        load_listed(tmp_path, "train")


def test_the_rival_of_the_documentation_is_encoded(monkeypatch):
    monkeypatch.setitem(DENSE_STRATEGIES, "vv", examples()[1]["VV"])
    clip = build_backbone("mini", dense="vv")
    features = clip.encode_images(torch.randn(2, 3, 64, 64))
    assert features.patches.shape == (2, 16, 128)
    assert not torch.allclose(
        features.patches, clip.encode_dense(torch.randn(2, 3, 64, 64), ["maskclip"])["maskclip"].patches
    )


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("data.md", [name for name in kinds() if name]),
        ("protocols.md", list(PROTOCOLS)),
        ("rivals.md", [*PUBLISHED, *LEARNED]),
        ("reproduce.md", [*TRAPS, *(n for n in recipe_names() if n.endswith("rn101") or n == "scenes-mini")]),
    ],
)
def test_every_name_that_one_can_type_is_documented(page, names):
    text = (DOCS / page).read_text()
    assert [name for name in names if f"`{name}`" not in text] == []
