"""Tiny architectures of every family, and a way to give a model weights worth testing."""

import torch

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VIT = {"image_size": 224, "layers": 3, "width": 32, "head_width": 16, "patch_size": 16}
TINY_CONFIGS = {
    "tiny-RN": {"vision_cfg": {"image_size": 224, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}},
    "tiny-ViT": {"vision_cfg": VIT},
    "tiny-ViT-quickgelu": {"vision_cfg": VIT, "quick_gelu": True},
    "tiny-ViT-avg": {"vision_cfg": VIT | {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True}},
    "tiny-ViT-scaled": {"vision_cfg": VIT | {"ls_init_value": 0.5}},
}


def disturb(model: torch.nn.Module, seed: int = 0) -> None:
    """Give every weight a random part: as initialised, biases are 0 and ResNet blocks are switched off by their BN."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.add_(
                noise.abs() * 0.3 if name.endswith("running_var") else noise * 0.1 if tensor.ndim < 2 else noise * 0.02
            )
