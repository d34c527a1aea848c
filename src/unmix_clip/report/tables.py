"""Results as text: one table of methods, or a summary of one result."""

from collections.abc import Sequence
from typing import Any


def percent(value: float | None, digits: int = 1) -> str:
    """Return a figure in [0, 1] times 100; undefined figures are a dash."""
    return "-" if value is None else f"{100 * value:.{digits}f}"


def format_table(results: Sequence[dict[str, Any]]) -> str:
    """Return evaluate results as an aligned table, figures times 100."""
    first = results[0]
    if first["task"] == "recognition":
        header = ["method", "mAP", "95 %", "CF1", "OF1", "top-1"]
        rows = []
        for r in results:
            low_high = "-" if r["ci95"] is None else f"{percent(r['ci95'][0])}-{percent(r['ci95'][1])}"
            rows.append([r["method"], percent(r["map"]), low_high, *(percent(r[k]) for k in ("cf1", "of1", "top1"))])
    else:
        header = ["method", "mIoU", "pixel acc.", "cross-act.", "background-act."]
        rows = [
            [
                r["method"],
                percent(r["miou"]),
                percent(r["pixel_accuracy"]),
                percent(r["entanglement"]["cross_activation"]),
                percent(r["entanglement"]["background_activation"]),
            ]
            for r in results
        ]
    title = f"{first['task']} on {first['data']} ({first['n_images']} pictures, {first['n_classes']} classes)"
    return "\n".join([title, f"protocol: {first['protocol']}", "", *align([header, *rows])])


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines: the first column left-aligned, the others right-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def format_summary(result: dict[str, Any], indent: str = "") -> str:
    """Return the short values of a result, one a line; long lists are left to --json."""
    lines = []
    for key, value in result.items():
        if key in ("history", "per_class_ap", "per_class_iou", "config"):
            continue
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", format_summary(value, indent + "  ")]
        elif key == "top_pairs":
            lines += [f"{indent}most confusable:"]
            lines += [f"{indent}  {a} / {b}: {cosine:.4f}" for a, b, cosine in value[:10]]
        elif isinstance(value, float):
            lines.append(f"{indent}{key}: {value:.4f}")
        elif isinstance(value, list | tuple) and len(value) > 12:
            lines.append(f"{indent}{key}: {len(value)} entries")
        else:
            lines.append(f"{indent}{key}: {value}")
    return "\n".join(lines)
