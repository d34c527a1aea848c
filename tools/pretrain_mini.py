"""Pre-train the embedded backbone `mini` from nothing: one command, on a GPU if there is one, on the CPU else.

    python tools/pretrain_mini.py --out runs/mini            # continues by itself where it was stopped
    python tools/pretrain_mini.py --out runs/mini --install  # copies the result into the package

The loss is CLIP's (Radford et al. 2021): symmetric InfoNCE between pictures and captions, nothing else; no class
labels. Pictures and captions come from the embedded world and are a pure function of (seed, step, rank). Two things
matter most on a small budget: pictures of several resolutions in the second half, and easy pictures in the beginning.
"""

import argparse
import json
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file
from torch.utils.data import DataLoader, IterableDataset

from unmix_clip.backbones.dense import encode_pixels
from unmix_clip.backbones.mini import CONTEXT_LENGTH, MiniTokenizer, build_model
from unmix_clip.data.scenes.captions import known_words, write_caption
from unmix_clip.data.scenes.compose import compose_scene, draw_names
from unmix_clip.data.scenes.world import load_world

PACKAGE_DIR = Path(__file__).parent.parent / "src" / "unmix_clip" / "backbones" / "mini"
WORKERS = 1
"""Processes that draw scenes ahead, for each training process."""
CHECKPOINT_EVERY = 100
"""Steps between two checkpoints."""
TOLD = ((5, 5), (1, 2))
"""Fewest and most objects that each of a picture's two captions tells; a second caption is nearly free."""
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI CLIP's


@dataclass(frozen=True)
class Phase:
    """A stretch of training."""

    until: float
    """It lasts until this share of all steps."""
    sides_px: tuple[int, ...]
    """Sides of the pictures; one is drawn for each step."""
    most_objects: int


PHASES = (
    Phase(0.15, (64,), 2),
    Phase(0.52, (64,), 5),
    Phase(0.90, (64, 96, 128), 5),
    Phase(1.00, (128,), 5),
)


@dataclass(frozen=True)
class Plan:
    """Everything that decides the result, saved in `training.json`."""

    steps: int = 3000
    batch: int = 128
    """Pictures a step and process; negatives come from the same batch."""
    processes: int = 2
    width: int = 24
    embed_dim: int = 128
    text_width: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup_steps: int = 150
    seed: int = 0

    def phase(self, step: int) -> Phase:
        """Return the phase of a step."""
        return next(phase for phase in PHASES if step < phase.until * self.steps)

    def lr_at(self, step: int) -> float:
        """Linear warm-up, then a cosine to zero."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        return self.lr * warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))


class CaptionedScenes(IterableDataset):
    """Batches (pixels (B, H, W, 3) uint8, two lists of B captions) from `first_step` on."""

    def __init__(self, plan: Plan, rank: int, first_step: int) -> None:
        self.plan, self.rank, self.first_step = plan, rank, first_step

    def __iter__(self) -> Iterator[tuple[torch.Tensor, list[list[str]]]]:
        """Make the batches, each from its own random generator."""
        names = load_world().classes
        for step in range(self.first_step, self.plan.steps):
            phase = self.plan.phase(step)
            # The side is drawn by a generator that all ranks share, so that no rank waits for another.
            side_px = int(np.random.default_rng([self.plan.seed, 1, step]).choice(phase.sides_px))
            rng = np.random.default_rng([self.plan.seed, 2, step, self.rank])
            scenes = [
                compose_scene(rng, draw_names(rng, names, names, phase.most_objects), side_px)
                for _ in range(self.plan.batch)
            ]
            captions = [
                [write_caption(rng, scene.names, int(rng.integers(fewest, most + 1))) for scene in scenes]
                for fewest, most in TOLD
            ]
            yield torch.from_numpy(np.stack([scene.pixels for scene in scenes])), captions


def contrastive_loss(images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Symmetric InfoNCE of matching rows (B, D)."""
    logits = scale * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def train_step(model: CLIP, tokenizer: MiniTokenizer, batch: tuple, device: torch.device) -> torch.Tensor:
    """Return the loss of one batch, all caption lists on one pass of the image tower."""
    pixels, captions = batch
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (MEAN, STD))
    x = (pixels.to(device).permute(0, 3, 1, 2).float() / 255 - mean) / std
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        images = encode_pixels(model.visual, x, ()).pooled.float()
    texts = [model.encode_text(tokenizer(told).to(device)) for told in captions]  # so small that 16 bit would be slower
    scale = model.logit_scale.exp().clamp(max=100)
    return sum(contrastive_loss(images, text, scale) for text in texts) / len(texts)


def average_gradients(model: CLIP, processes: int) -> None:
    """Average the gradients over all processes, in one message."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    for g, mean in zip(grads, (flat / processes).split([g.numel() for g in grads]), strict=True):
        g.copy_(mean.view_as(g))


def model_config(plan: Plan) -> dict:
    """Return `model.json`: architecture, known words and the kept rows of CLIP's token table."""
    bpe = SimpleTokenizer(context_length=CONTEXT_LENGTH)
    words = known_words()
    kept = {0, bpe.sot_token_id, bpe.eot_token_id, *bpe.encode(",")}  # 0 pads
    kept.update(token for word in words for token in bpe.encode(word))
    return {
        "embed_dim": plan.embed_dim,
        "vision_cfg": {"layers": [1, 1, 1, 1], "width": plan.width, "head_width": 64},
        "text_cfg": {"width": plan.text_width, "heads": 4, "layers": 2},
        "words": list(words),
        "names": list(load_world().classes),
        "token_ids": sorted(kept),
    }


def run(rank: int, plan: Plan, out: Path) -> None:
    """Train in one process; rank 0 writes the checkpoint, the log and at the end the weights."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(plan.seed)
    if device.type == "cpu":
        torch.set_num_threads(1)
    if plan.processes > 1:
        dist.init_process_group("gloo", f"file://{out.resolve()}/rendezvous", rank=rank, world_size=plan.processes)
    config = model_config(plan)
    model = build_model(config).to(device, memory_format=torch.channels_last).train()
    tokenizer = MiniTokenizer(config["words"], config["names"], config["token_ids"])
    decayed = [p for p in model.parameters() if p.ndim > 1]
    other = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": plan.weight_decay}, {"params": other, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    first_step, log = 0, []
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        if state["plan"] != asdict(plan):
            sys.exit(
                f"{checkpoint} was made with other settings ({state['plan']}): continue with those or use another --out"
            )
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first_step, log = state["step"], state["log"]
    scenes = CaptionedScenes(plan, rank, first_step)
    loader = DataLoader(scenes, batch_size=None, num_workers=WORKERS, prefetch_factor=4 if WORKERS else None)
    started, seen = time.monotonic(), 0
    spent_s = log[-1]["seconds"] if log else 0.0
    for step, batch in enumerate(loader, start=first_step):
        for group in optimizer.param_groups:
            group["lr"] = plan.lr_at(step)
        loss = train_step(model, tokenizer, batch, device)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if plan.processes > 1:
            average_gradients(model, plan.processes)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seen += plan.batch * plan.processes
        if rank == 0 and ((step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == plan.steps):
            seconds = time.monotonic() - started
            log.append(
                {
                    "step": step + 1,
                    "loss": round(loss.item(), 4),
                    "side_px": batch[0].shape[1],
                    "seconds": round(spent_s + seconds, 1),
                }
            )
            print(
                f"step {step + 1}/{plan.steps}  loss {loss.item():.3f}  {seen / seconds:.0f} pictures/s  "
                f"{spent_s + seconds:.0f} s",
                flush=True,
            )
            state = {
                "plan": asdict(plan),
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
                "log": log,
            }
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    if rank == 0:
        write_result(model, config, plan, log, device, out)
    if plan.processes > 1:
        dist.destroy_process_group()


def write_result(model: CLIP, config: dict, plan: Plan, log: list[dict], device: torch.device, out: Path) -> None:
    """Write `weights.safetensors` (16 bit), `model.json` and `training.json`."""
    state = {k: (v.half() if v.is_floating_point() else v).contiguous().cpu() for k, v in model.state_dict().items()}
    save_file(state, out / "weights.safetensors")
    (out / "model.json").write_text(json.dumps(config, indent=1) + "\n")
    hardware = (
        torch.cuda.get_device_name() if device.type == "cuda" else f"{plan.processes} CPU cores ({platform.machine()})"
    )
    record = {
        "plan": asdict(plan),
        "phases": [asdict(phase) for phase in PHASES],
        "hardware": hardware,
        "minutes": round(log[-1]["seconds"] / 60, 1),
        "pictures": plan.steps * plan.batch * plan.processes,
        "torch": torch.__version__,
        "log": log,
    }
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log and weights")
    parser.add_argument("--install", action="store_true", help="copy a finished result into the package, do not train")
    for name, value in asdict(Plan()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"default {value}")
    args = vars(parser.parse_args())
    out, install = args.pop("out"), args.pop("install")
    if install:
        for name in ("weights.safetensors", "model.json", "training.json"):
            shutil.copy(out / name, PACKAGE_DIR / name)
        return
    plan = Plan(**args)
    if torch.cuda.is_available():  # one process with the whole batch is faster there
        plan = Plan(**{**asdict(plan), "processes": 1, "batch": plan.batch * plan.processes})
    out.mkdir(parents=True, exist_ok=True)
    (out / "rendezvous").unlink(missing_ok=True)
    if plan.processes == 1:
        run(0, plan, out)
    else:
        torch.multiprocessing.spawn(run, (plan, out), nprocs=plan.processes)


if __name__ == "__main__":
    main()
