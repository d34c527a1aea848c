"""Names and words: class lists from files or the command line, and the prompt templates."""

import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from unmix_clip.errors import InputError


@dataclass(frozen=True)
class Prompts:
    """Positive and negative templates, each with exactly one `{}` for the name; with several, features are averaged."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]

    def __post_init__(self) -> None:
        for kind in ("positive", "negative"):
            given = getattr(self, kind)
            templates = (given,) if isinstance(given, str) else tuple(given)  # one template may stand alone in files
            object.__setattr__(self, kind, templates)
            for template in templates:
                _check_template(template)


@dataclass(frozen=True)
class ClassNames:
    """The classes of a data set in the order of its own ids, and other words for some of them."""

    names: tuple[str, ...]
    synonyms: dict[str, tuple[str, ...]]


def load_prompts(name: str) -> Prompts:
    """Return an entry of prompts.toml; raises InputError that names those that exist."""
    entries = tomllib.loads(_read("prompts.toml"))
    if name not in entries:
        raise InputError(f"unknown prompts {name!r}; expected one of {', '.join(entries)}")
    return Prompts(**entries[name])


def load_class_split(name: str) -> dict[str, tuple[str, ...]]:
    """Return the `seen` and `unseen` names of an entry of splits.toml; InputError names those that exist."""
    entries = tomllib.loads(_read("splits.toml"))
    if name not in entries:
        raise InputError(f"unknown class split {name!r}; expected one of {', '.join(entries)}")
    unseen = tuple(entries[name]["unseen"])
    others = tuple(other for other in load_names("coco").names if other not in unseen)
    return {"seen": tuple(entries[name].get("seen", others)), "unseen": unseen}


def fill(template: str, names: Sequence[str]) -> list[str]:
    """Return the template, which has exactly one `{}`, with each of the names in it."""
    _check_template(template)
    return [template.replace("{}", name) for name in names]


def _check_template(template: str) -> None:
    if template.count("{}") != 1:
        raise InputError(f"prompt {template!r} has {template.count('{}')} places for a name; expected one {{}}")


def list_names() -> list[str]:
    """Return the names of the lists in class_lists/."""
    lists = resources.files(__package__).joinpath("class_lists")
    return sorted(file.name.removesuffix(".txt") for file in lists.iterdir())


def load_names(name: str) -> ClassNames:
    """Return one of the lists of class_lists/, such as `voc` or `ade20k`; InputError names those that exist."""
    if name not in (known := list_names()):
        raise InputError(f"unknown class list {name!r}; expected one of {', '.join(known)}")
    lines = _read(f"class_lists/{name}.txt").splitlines()
    entries = [[word.strip() for word in line.split("|")] for line in lines if not line.startswith("#")]
    return ClassNames(
        names=tuple(first for first, *_ in entries),
        synonyms={first: tuple(others) for first, *others in entries if others},
    )


def load_class_list(source: str) -> tuple[str, ...]:
    """Read class names.

    Args:
        source: a file with one name a line (`#` starts a comment line), names separated by commas, or a list that
            ships, such as `coco` or `voc`.

    Raises:
        InputError: a file that is missing or no text, an empty name, a name given twice.
    """
    if source in list_names():
        return load_names(source).names
    if os.path.isfile(source):  # Path.is_file would raise for a list that is longer than a file name may be
        lines = _read_lines(Path(source))
        found = [(f"line {i}", line.strip()) for i, line in enumerate(lines, 1) if not line.lstrip().startswith("#")]
    elif source.endswith(".txt") or ("/" in source and "," not in source):
        raise InputError(f"no class list at {source}; expected a file with one name a line, or a,b,c")
    else:
        found = [(f"position {i}", part.strip()) for i, part in enumerate(source.split(","), 1)]
    if empty := [place for place, name in found if not name]:
        raise InputError(f"the class list {source!r} has an empty name at {empty[0]}; expected a name everywhere")
    names = [name for _, name in found]
    for i, name in enumerate(names):
        if (first := names.index(name)) < i:
            raise InputError(f"the class list names {name!r} twice ({found[first][0]} and {found[i][0]}); keep it once")
    if not names:
        raise InputError(f"the class list {source!r} is empty; expected at least one name")
    return tuple(names)


def _read_lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the class list {file} ({error}); expected a text file in UTF-8") from None


def _read(file: str) -> str:
    return resources.files(__package__).joinpath(file).read_text(encoding="utf-8")
