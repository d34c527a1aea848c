"""`doctor`: what this installation can do, what is missing, and how to get it."""

import os
from typing import Any

import torch

from unmix_clip.backbones import list_backbones
from unmix_clip.features import default_cache
from unmix_clip.provenance import versions


def examine() -> dict[str, Any]:
    """Return versions, devices and backbones: those that load offline, and how to get others."""
    listings = list_backbones()
    offline = ["mini", *(f"{item.name}:{tag}" for item in listings for tag in item.cached)]
    supported = [item.name for item in listings if item.supported]
    return {
        "task": "doctor",
        "versions": versions(),
        "devices": ["cpu", *(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count()))],
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "not set; PASSIVE is faster on few cores"),
        "feature_cache": str(default_cache()),
        "backbones_offline": offline,
        "backbones_supported": supported,
        "backbones_unsupported": {item.name: item.reason for item in listings if not item.supported},
        "how_to_get_more": (
            "--backbone RN101:openai downloads its weights from the hub on first use; without a network, put the file "
            "there by hand and use --backbone RN101:PATH"
        ),
    }
