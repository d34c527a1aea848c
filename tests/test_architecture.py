"""The direction of the arrows: what may import what, read from the sources."""

import ast
from pathlib import Path

import pytest

import unmix_clip

PACKAGE = Path(unmix_clip.__file__).parent
# From the ground up: a layer imports itself and those before it.
LAYERS = (
    ("errors",),
    ("files", "progress", "provenance", "config", "vocabulary"),
    ("data", "method", "evaluation", "backbones"),
    ("baselines.training_free", "baselines.linear_probe", "baselines.dualcoop"),
    ("features", "models", "texts"),
    ("training", "baselines"),
    ("evaluator",),
    ("runs",),
    ("unmixer", "jobs"),
    ("candidates",),
    ("comparison",),
    ("report",),
    ("prediction", "study", "ablation", "reproduction", "analysis", "doctor"),
    ("demo",),
    ("cli",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
WITHIN_GROUND = {
    "evaluation": {"data.samples", "evaluation"},
    "method": {"method"},
    "backbones": {"backbones"},
    "data": {"data"},
}


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def layer_of(module):
    """The longest prefix of a module's name that has a layer."""
    parts = module.split(".")
    return next(p for p in (".".join(parts[:i]) for i in range(len(parts), 0, -1)) if p in LEVEL)


def imports_of(path):
    """Modules of the package that a file imports when it is imported itself (not inside functions)."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("unmix_clip."):
            base = node.module.removeprefix("unmix_clip.")
            for alias in node.names:
                nested = PACKAGE.joinpath(*base.split("."), f"{alias.name}.py")
                yield f"{base}.{alias.name}" if nested.exists() else base


MODULES = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_what_lies_below_it(path):
    own = layer_of(name_of(path))
    for module in imports_of(path):
        other = layer_of(module)
        if other == own:
            continue
        if LEVEL[other] == LEVEL[own] and own in WITHIN_GROUND:
            assert any(module.startswith(allowed) for allowed in WITHIN_GROUND[own]), (
                f"{name_of(path)} imports {module}"
            )
        else:
            assert LEVEL[other] < LEVEL[own], f"{name_of(path)} imports {module}"


def test_nothing_is_called_utils():
    assert not [path for path in MODULES if "util" in path.stem or "helper" in path.stem]


def test_no_pickle_and_no_eval():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "pickle.load", "pickle.loads"), path
                if called == "torch.load":
                    assert "weights_only=True" in ast.unparse(node), path
                if called == "np.load":
                    assert "allow_pickle=False" in ast.unparse(node), path
