"""Results as text: one table of methods, or a summary of one result."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from unmix_clip.files import write_text


def percent(value: float | None, digits: int = 1) -> str:
    """Return a figure in [0, 1] times 100; undefined figures are a dash."""
    return "-" if value is None else f"{100 * value:.{digits}f}"


def spread_text(figure: dict[str, Any], scale: float = 100, digits: int = 1) -> str:
    """Return mean and standard deviation of a figure over seeds, such as `93.2 ± 0.1`."""
    if figure["mean"] is None:
        return "-"
    mean = f"{scale * figure['mean']:.{digits}f}"
    return mean if figure["std"] is None else f"{mean} ± {scale * figure['std']:.{digits}f}"


def format_table(results: Sequence[dict[str, Any]]) -> str:
    """Return evaluate results as an aligned table, figures times 100; mean and spread where there are several seeds."""
    first = results[0]
    recognition = first["task"] == "recognition"
    columns = {"map": "mAP", "cf1": "CF1", "of1": "OF1", "top1": "top-1"}
    if not recognition:
        columns = {"miou": "mIoU", "pixel_accuracy": "pixel acc."}
    header = ["method", *columns.values()]
    header.insert(2, "95 %")
    rows = []
    for r in results:
        row = [r["method"]]
        for key in columns:
            one_or_more = r.get("spread", {}).get(key) or {"mean": r[key], "std": None}
            row.append(spread_text(one_or_more))
        row.insert(2, _interval(r["ci95"]))
        rows.append(row)
    optional: dict[str, Callable[[dict[str, Any]], str]] = {
        "map_seen": lambda r: percent(r["map_seen"]),
        "map_unseen": lambda r: percent(r["map_unseen"]),
        "map_harmonic": lambda r: percent(r["map_harmonic"]),
        "cross-act.": lambda r: percent((r.get("entanglement") or {}).get("cross_activation")),
        "versus": _versus,
    }
    present = {
        "map_seen": "map_seen" in first,
        "map_unseen": "map_unseen" in first,
        "map_harmonic": "map_harmonic" in first,
        "cross-act.": not recognition and bool(first.get("entanglement")),
        "versus": any("versus" in r for r in results),
    }
    for name, text in optional.items():
        if present[name]:
            header.append(name.replace("map_", "mAP "))
            for row, r in zip(rows, results, strict=True):
                row.append(text(r))
    title = f"{first['task']} on {first['data']} ({first['n_images']} pictures, {first['n_classes']} classes)"
    rules = "".join(f"; {key}: {value}" for key, value in first["data_rules"].items())
    lines = [title, f"protocol: {first['protocol']}{rules}"]
    if seeds := next((r["seeds"] for r in results if "seeds" in r), None):
        lines.append(f"learned methods: mean ± standard deviation over seeds {', '.join(map(str, seeds))}")
        lines.append(f"intervals and paired differences are over pictures, with seed {seeds[0]}")
    return "\n".join([*lines, "", *align([header, *rows])])


def _interval(ci95: Sequence[float] | None) -> str:
    return "-" if ci95 is None else f"{percent(ci95[0])}-{percent(ci95[1])}"


def _versus(result: dict[str, Any]) -> str:
    """Difference to the method that is compared against, its interval and p."""
    versus = result.get("versus")
    if versus is None or versus["difference"] is None:
        return "-"
    low_high = "" if versus["ci95"] is None else " [{:+.1f}, {:+.1f}]".format(*(100 * v for v in versus["ci95"]))
    p = "" if versus["p"] is None else f" p {versus['p']:.3f}"
    return f"{100 * versus['difference']:+.1f}{low_high}{p} vs {versus['method']}"


ABLATION_COLUMNS = {
    "map": ("mAP", 100, 1),
    "miou_objects": ("mIoU objects", 100, 1),
    "miou_standard": ("mIoU with bg", 100, 1),
    "cross_activation": ("on others", 100, 1),
    "mean_cosine": ("mean cosine", 1, 3),
    "order_correlation": ("order kept", 1, 2),
    "seconds": ("train s", 1, 0),
}
"""Figures of an ablation: title, factor, digits."""


def ablation_rows(result: dict[str, Any]) -> list[list[str]]:
    """Return the table of an ablation, the header first."""
    header = ["variant", *(title for title, _, _ in ABLATION_COLUMNS.values())]
    rows = [
        [row["variant"], *(spread_text(row["figures"][key], *how[1:]) for key, how in ABLATION_COLUMNS.items())]
        for row in result["rows"]
    ]
    return [header, *rows]


def _ablation_title(result: dict[str, Any]) -> str:
    return (
        f"{result['method']} on {result['data']}, trained on {result['trained_on']}, seeds "
        f"{', '.join(map(str, result['seeds']))}"
    )


def format_ablation(result: dict[str, Any]) -> str:
    """Return an ablation as an aligned table."""
    return "\n".join([_ablation_title(result), "", *align(ablation_rows(result))])


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, the header first, as a Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def write_markdown(path: Path, result: dict[str, Any]) -> None:
    """Write an ablation as Markdown."""
    write_text(path, f"{_ablation_title(result)}\n\n{markdown_table(ablation_rows(result))}")


def format_check(checked: dict[str, Any]) -> str:
    """Return a dry run, one line a check."""
    lines = [f"{'ok     ' if one['problem'] is None else 'PROBLEM'}  {one['what']}: {one['problem'] or one['found']}"
             for one in checked["checks"]]  # fmt: skip
    if checked["hours"] is not None:
        lines.append(
            f"features of {checked['pictures']} pictures, views and windows: {checked['disk_gb']:.1f} GB "
            f"({checked['free_gb']:.1f} GB free), about {checked['hours']:.1f} hours on this machine"
        )
    return "\n".join(lines)


def format_reproduction(result: dict[str, Any]) -> str:
    """Return published | ours | difference, with the traps that are on and off."""
    rows = [["data", "figure", "pictures", "published", "ours", "difference"]]
    for cell in result["cells"]:
        difference = "-" if cell["difference"] is None else f"{100 * cell['difference']:+.1f}"
        ours = spread_text({"mean": cell["ours"], "std": cell["std"]})
        name = cell["figure"] if cell["figure"] == "map" else f"{cell['figure']} ({cell['protocol'].partition(':')[0]})"
        rows.append([cell["data"], name, str(cell["n_images"]), percent(cell["published"]), ours, difference])
    traps = ", ".join(f"{name} {'ON' if on else 'off'}" for name, on in result["traps"].items())
    title = f"{result['recipe']}, seeds {', '.join(map(str, result['seeds']))}; {result['protocol']}"
    return "\n".join([title, f"traps: {traps}", "", *align(rows)])


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
