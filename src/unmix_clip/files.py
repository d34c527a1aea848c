"""Writing results so that nothing is ever half-written: a temporary name first, then a rename."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unmix_clip.errors import InputError


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, it becomes `path`, else it is removed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all; NaN is refused, undefined numbers are null."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file; a missing or malformed one raises InputError that calls it `what`."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no {what} at {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{what} {path} is not valid JSON: {error}") from None


def read_lines(file: Path, layout: str) -> list[str]:
    """Return the lines of a list file without blank ones; raises InputError that names the layout."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}; expected {layout}") from None
    except UnicodeDecodeError:
        raise InputError(f"{file} is no text in UTF-8; expected {layout}") from None
    lines = [line.strip() for line in lines if line.strip()]
    if not lines:
        raise InputError(f"{file} is empty; expected one entry a line")
    return lines


def make_folder(path: Path) -> Path:
    """Create an output folder and make sure that it can be written; else raise InputError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the output folder {path}: {error.strerror}; choose another") from None
    if not os.access(path, os.W_OK):
        raise InputError(f"cannot write into the output folder {path}; choose another or change its permissions")
    return path
