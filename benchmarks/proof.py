"""The proof: every claim of the README in one run over seeds, printed as tables and written to docs/proof.json.

    make proof        # about 20 minutes on 2 cores; the README tells what it printed and where

Rows: the training-free rivals, the recipe `default` with and without the MFI loss (paired by seed), the recipe `paper`,
and the ceiling, a linear head trained with pixel labels. Everything is chosen on validation scenes.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from unmix_clip.config import load_config
from unmix_clip.evaluation.entanglement import text_entanglement
from unmix_clip.files import write_json
from unmix_clip.provenance import versions
from unmix_clip.report.tables import align, percent
from unmix_clip.study import FIGURES, Measured, Sizes, Study, spread

HEADER = ["method", "mAP", "OF1", "top-1", "mIoU objects", "mIoU with bg", "on others", "on background", "mean cosine"]


def row(name: str, measured: list[Measured]) -> list[str]:
    """One line of the table, mean and standard deviation over seeds, times 100 but for the cosine."""
    figures = spread(measured)
    cells = []
    for key in FIGURES:
        std = figures[key]["std"]
        cells.append(percent(figures[key]["mean"]) + ("" if std is None else f" ± {percent(std)}"))
    cosines = [m.mean_cosine for m in measured if m.mean_cosine is not None]
    return [name, *cells, f"{np.mean(cosines):.3f}" if cosines else "-"]


def main() -> None:
    """Run the study and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=Path("docs/proof.json"))
    parser.add_argument("--train", type=int, default=Sizes.train, help="training scenes")
    args = parser.parse_args()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    started = time.monotonic()
    study = Study(Sizes(train=args.train))
    default = load_config("default")
    plain = study.plain_texts.positive.numpy()
    cosine = text_entanglement(plain, study.train.classes)["mean_cosine"]
    recipes = {
        "unmix (default)": default,
        "unmix, MFI weight 0": replace(default, mfi_weight=0.0),
        "unmix, recipe paper": load_config("paper"),
    }
    rivals = study.rivals()
    lines: dict[str, list[Measured]] = {r.name: [study.measure(r, t)] for r, t in rivals}
    unseen = {name: [figures] for name, figures in study.unseen_rivals(rivals).items()}
    for name, config in recipes.items():
        trained = [study.fit(config, seed) for seed in seeds]
        lines[name] = [study.measure_trained(one, name) for one in trained]
        unseen[name] = [study.unseen_trained(one) for one in trained]
    lines["pixel-probe (ceiling)"] = [study.pixel_ceiling()]
    print(f"\n{study.test.dataset.spec}, {len(study.train.samples)} training scenes, seeds {args.seeds}")
    print("\n".join(align([HEADER, *(row(name, measured) for name, measured in lines.items())])))
    with_mfi, without = lines["unmix (default)"], lines["unmix, MFI weight 0"]
    paired = {
        key: [a.figures()[key] - b.figures()[key] for a, b in zip(with_mfi, without, strict=True)] for key in FIGURES
    }
    print(
        "\nMFI on minus off, paired by seed (points): "
        + ", ".join(f"{key} {100 * np.mean(v):+.1f} ± {100 * np.std(v, ddof=1):.1f}" for key, v in paired.items())
    )
    after = float(np.mean([m.mean_cosine for m in with_mfi if m.mean_cosine is not None]))
    print(f"entanglement: reduction {1 - after / cosine:.3f}")
    print(f"\nmean cosine of the plain class texts: {cosine:.4f}")
    keys = ("map_unseen", "map_seen", "miou_unseen", "miou_seen")
    print("\nscenes with unseen names, all names asked (means over seeds)")
    rows = [
        [name, *(percent(float(np.mean([f[key] for f in found]))) for key in keys)] for name, found in unseen.items()
    ]
    print("\n".join(align([["method", "mAP unseen", "mAP seen", "mIoU unseen", "mIoU seen"], *rows])))
    write_json(
        args.out,
        {
            "seeds": seeds,
            "n_train": len(study.train.samples),
            "test": study.test.dataset.spec,
            "plain_mean_cosine": cosine,
            "figures": {name: spread(measured) for name, measured in lines.items()},
            "mean_cosine": {name: [m.mean_cosine for m in measured] for name, measured in lines.items()},
            "mfi_on_minus_off": paired,
            "unseen": unseen,
            "versions": versions(),
            "seconds": time.monotonic() - started,
        },
    )


if __name__ == "__main__":
    main()
