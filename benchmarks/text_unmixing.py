"""What the MFI loss alone does to class texts: any mean cosine can be had, at the price of the order by meaning.

    python benchmarks/text_unmixing.py --text-features coco_vit_b32_openai.npy --classes coco_names.txt

Trains a text projector by the MFI loss and nothing else, from the identity, and stops at each mean cosine
(`method/text_only.py`). Prints a table, writes docs/text_unmixing.json and .png. The line of comparison is what costs
nothing: subtracting the mean text.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from unmix_clip.evaluation.entanglement import damage_to_meaning, text_entanglement
from unmix_clip.files import write_json, written_whole
from unmix_clip.method.text_only import unmix_texts
from unmix_clip.provenance import versions
from unmix_clip.report.tables import align
from unmix_clip.vocabulary import load_class_list

TARGETS = [0.75, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02, 0.0]
LABELS = {"order_correlation": "rank correlation of all pairs", "neighbour_overlap": "five nearest names kept"}


def main() -> None:
    """Run over seeds, print, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text-features", type=Path, required=True)
    parser.add_argument("--classes", required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=Path("docs/text_unmixing"))
    args = parser.parse_args()
    started = time.monotonic()
    features = np.load(args.text_features, allow_pickle=False).astype(np.float32)
    names = load_class_list(args.classes)
    before = text_entanglement(features, names)["mean_cosine"]
    targets = [target for target in TARGETS if target < before]
    rows: dict[float, list[dict[str, float | None]]] = {target: [] for target in targets}
    for seed in (int(seed) for seed in args.seeds.split(",")):
        for found in unmix_texts(torch.from_numpy(features), targets, seed):
            damage = damage_to_meaning(features, found.projected.numpy())
            rows[found.target].append({"mean_cosine": found.mean_cosine, "steps": found.steps, **damage})
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    centred = unit - unit.mean(0)
    centring = {
        "mean_cosine": text_entanglement(centred, names)["mean_cosine"],
        **damage_to_meaning(features, centred),
    }
    result = {
        "text_features": args.text_features.name,
        "n_classes": len(names),
        "seeds": args.seeds,
        "mean_cosine": before,
        "centring_alone": centring,
        "rows": [{"target": target, "seeds": of_seeds} for target, of_seeds in rows.items()],
        "versions": versions(),
        "seconds": time.monotonic() - started,
    }
    write_json(args.out.with_suffix(".json"), result)
    table = [["mean cosine", *LABELS.values(), "steps"], [f"{before:.3f} (as it is)", "1.000", "1.000", "0"]]
    for of_seeds in rows.values():
        cells = [f"{np.mean([r['mean_cosine'] for r in of_seeds]):.3f}"]
        for key in (*LABELS, "steps"):
            values = np.array([r[key] for r in of_seeds], dtype=float)
            digits = 0 if key == "steps" else 3
            cells.append(f"{values.mean():.{digits}f} ± {spread(values):.{digits}f}")
        table.append(cells)
    table.append([f"{centring['mean_cosine']:.3f} (centred)", *(f"{centring[key]:.3f}" for key in LABELS), "-"])
    print("\n".join(align(table)))
    with written_whole(args.out.with_suffix(".png")) as temporary:
        draw(rows, before, centring).savefig(temporary, format="png", dpi=110)


def spread(values: np.ndarray | list[float]) -> float:
    """Standard deviation over seeds, 0 of a single one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def draw(rows: dict, before: float, centring: dict) -> Figure:
    """Draw what is kept against the mean cosine, with its spread over seeds; crosses: subtracting the mean text."""
    figure = Figure(figsize=(6.4, 3.8), constrained_layout=True)
    axis = figure.subplots()
    for key, label in LABELS.items():
        kept = [[r[key] for r in of_seeds] for of_seeds in rows.values()]
        means, spreads = (np.array([f(values) for values in kept]) for f in (np.mean, spread))
        (line,) = axis.plot([before, *rows], [1, *means], marker="o", markersize=3, label=label)
        axis.fill_between(list(rows), means - spreads, means + spreads, alpha=0.2, color=line.get_color())
        axis.plot(centring["mean_cosine"], centring[key], marker="x", markersize=8, color=line.get_color())
    axis.set(xlabel="mean cosine of the class texts", ylabel="kept of the order by meaning", ylim=(0, 1.03))
    axis.invert_xaxis()
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="lower left", title="crosses: the mean text subtracted, nothing trained")
    return figure


if __name__ == "__main__":
    main()
