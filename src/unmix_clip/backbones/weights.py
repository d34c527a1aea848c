"""Where weights come from: published ones through the local cache or the hub, or a file of the user's.

Nothing that could run code is ever loaded (safetensors, or PyTorch files with `weights_only=True`), and a hub
that cannot be reached is told within seconds, with the file that is needed and where to put it.
"""

import os
import pickle
import ssl
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import open_clip
import torch
from open_clip.factory import load_state_dict
from open_clip.pretrained import download_pretrained, get_pretrained_cfg
from safetensors import SafetensorError, safe_open
from torch import nn

from unmix_clip.backbones.huggingface import convert_state_dict, find_clip_weights
from unmix_clip.errors import InputError

HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""How open_clip names its weights on the hub, the safe format first."""
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
PROBE_TIMEOUT_S = 5.0
"""The hub client retries for 23 s a file; one short request first tells whether there is a hub at all."""


def hub_files(published: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Return the hub repository of published weights and the files there that would do, best first."""
    repository, file = os.path.split(published["hf_hub"])
    return repository, (file,) if file else HUB_FILES


def find_cached(published: Mapping[str, Any]) -> Path | None:
    """Return the file of published weights in the local hub cache; asks no network."""
    repository, files = hub_files(published)
    for file in files:
        path = huggingface_hub.try_to_load_from_cache(repository, file)
        if isinstance(path, str):
            return Path(path)
    return None


def fetch_published(name: str, tag: str) -> Path:
    """Return the local file of the weights NAME:TAG, downloaded when needed.

    Raises:
        InputError: the file is not here and the hub cannot be reached; tells which file to place where.
    """
    published = get_pretrained_cfg(name, tag)
    if cached := find_cached(published):
        return cached
    problem = _why_unreachable()
    if problem is None:
        try:
            return Path(download_pretrained(published))
        except OSError as error:  # open_clip turns what the hub client raises into FileNotFoundError
            problem = " ".join(str(error).split())
    repository, files = hub_files(published)
    # A file does not say which activation it was trained with; open_clip's name of the architecture does.
    quick = f"{name}-quickgelu" if published.get("quick_gelu") else name
    fitting_name = quick if quick in open_clip.list_models() else name
    raise InputError(
        f"the weights {name}:{tag} are not on this machine and cannot be downloaded ({problem}): "
        f"get {files[0]} of https://huggingface.co/{repository} and pass {fitting_name}:PATH/{files[0]}, "
        f"or run `hf download {repository} {files[0]}` elsewhere and copy its cache to "
        f"{huggingface_hub.constants.HF_HUB_CACHE}"
    )


def locate_file(path: Path) -> Path:
    """Return the checkpoint that a path names: the file itself, or the one in a folder as the hub has it."""
    if not path.is_dir():
        return path
    for file in HUB_FILES:
        if (path / file).is_file():
            return path / file
    raise InputError(f"the folder {path} holds no {' and no '.join(HUB_FILES)}: place one there, or name a file")


def load_weights(model: nn.Module, path: Path, name: str) -> None:
    """Load a checkpoint into a model of architecture `name`, in place, by open_clip's own conversion rules.

    Raises:
        InputError: another format, a file that would have to run code, a damaged file, weights of another
            architecture.
    """
    _require_plain_tensors(path)
    try:
        if find_clip_weights(path) is not None:
            model.load_state_dict(convert_state_dict(load_state_dict(str(path), weights_only=True)))
        else:
            open_clip.load_checkpoint(model, str(path), strict=True, weights_only=True)
    except (RuntimeError, KeyError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"the weights in {path} are not those of {name}: {reason}; name their architecture") from error


def _require_plain_tensors(path: Path) -> None:
    """Read a checkpoint in the safe way only, and see that it holds tensors by name."""
    if not path.is_file():
        raise InputError(f"there is no file {path}: NAME:PATH takes a .safetensors or .pt file, or a folder with one")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is not a readable safetensors file ({error}): copy it again") from error
    elif path.suffix in TORCH_SUFFIXES:
        if _is_torchscript(path):
            raise InputError(
                f"{path} is a TorchScript archive, as OpenAI published its models, and would run code: "
                "use the .safetensors that the tag openai names, or save its state_dict as one"
            )
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} cannot be read as plain tensors (weights_only=True): it is damaged or "
                "holds objects that could run code; save its state_dict as .safetensors"
            ) from error
        state = content.get("state_dict", content) if isinstance(content, dict) else {}
        names = (
            [key for key, value in state.items() if isinstance(value, torch.Tensor)] if isinstance(state, dict) else []
        )
    else:
        raise InputError(f"{path} is no checkpoint format: expected .safetensors or {', '.join(TORCH_SUFFIXES)}")
    if not names:
        raise InputError(f"{path} holds no named tensors: expected the state_dict of an open_clip model")


def _is_torchscript(path: Path) -> bool:
    """Say whether a file is a TorchScript archive: the zip format of torch.save with constants of a program in it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(entry.endswith("/constants.pkl") for entry in archive.namelist())


def _why_unreachable() -> str | None:
    """Say why the hub cannot be reached; None when something answers. Heeds HF_ENDPOINT and proxies."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    endpoint = huggingface_hub.constants.ENDPOINT
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=PROBE_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return None  # an answer, though not a nice one
    except urllib.error.URLError as error:
        # The hub client brings certificates of its own; only a missing connection is final.
        return None if isinstance(error.reason, ssl.SSLError) else f"{endpoint}: {error.reason}"
    except OSError as error:
        return f"{endpoint}: {error}"
    return None
