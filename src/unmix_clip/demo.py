"""The demo: the product's whole argument, offline and on a CPU, in under three minutes."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from unmix_clip.backbones import build_backbone
from unmix_clip.config import load_config
from unmix_clip.evaluation.entanglement import cosine_matrix
from unmix_clip.evaluator import Method, Thresholds
from unmix_clip.files import make_folder, write_json, write_text, written_whole
from unmix_clip.jobs import Trained, Workplace, entanglement_of, provenance
from unmix_clip.provenance import versions
from unmix_clip.report.figures import QueryRow, draw_curves, draw_matrices, draw_query_maps
from unmix_clip.report.html import Report, png_bytes
from unmix_clip.report.tables import align, percent
from unmix_clip.runs import save_run
from unmix_clip.study import Measured, Sizes, Study, spread

SIZES = Sizes(train=3000, val=500, test=1000, unseen=500)
QUERIES = 8
"""Rows of the figure with query maps."""
COLUMNS = (
    ("map", "tags: mAP"),
    ("of1", "OF1"),
    ("miou_objects", "masks: object pixels, mIoU"),
    ("miou_standard", "with background, mIoU"),
    ("cross_activation", "lights up on other objects"),
    ("background_activation", "on background"),
)


def run_demo(
    out: Path, seeds: Sequence[int], *, cache: Path | None, tell: Callable[[str], None], sizes: Sizes = SIZES
) -> dict[str, Any]:
    """Measure, train over seeds, compare, draw; returns the demo's JSON, written to demo.json beside report.html."""
    started = time.monotonic()
    make_folder(out)
    study = Study(sizes, Workplace(build_backbone("mini"), cache, tell))
    config = load_config("default")
    training = time.monotonic()
    trained = [study.fit(config, seed) for seed in seeds]
    training_s = time.monotonic() - training
    for seed, one in zip(seeds, trained, strict=True):
        metrics = {"history": one.state.history, "thresholds": vars(one.thresholds), "versions": versions()}
        save_run(one.as_run(study.place, study.train, "mini"), out / f"seed{seed}", metrics)
    rivals = study.rivals()
    plain = {rival.name: study.measure(rival, thresholds) for rival, thresholds in rivals}
    unmixed = [study.measure_trained(one, "unmix") for one in trained]
    unseen = {
        **study.unseen_rivals(rivals),
        "unmix": study.unseen_trained(trained[0]),
    }
    entanglement = entanglement_of(study.train.classes, trained[0].texts, trained[0].state.model)
    result = {
        **provenance(study.place, "demo", study.test.dataset, seeds[0]),
        "entanglement": {
            **entanglement,
            "plain": plain["maskclip"].activation,
            "unmixed": unmixed[0].activation,
        },
        "recognition": _by_method(plain, unmixed, lambda m: m.recognition),
        "segmentation": _by_method(plain, unmixed, lambda m: m.segmentation["standard"]),
        "segmentation_objects": _by_method(plain, unmixed, lambda m: m.segmentation["standard-objects"]),
        "unseen": unseen,
        "training_seconds": training_s,
    }
    maskclip = next(fitted for fitted in rivals if fitted[0].name == "maskclip")
    figures = _draw_figures(study, trained, *maskclip)
    for name, figure in figures.items():
        with written_whole(out / name) as temporary:
            temporary.write_bytes(png_bytes(figure))
    write_text(out / "report.html", _compose_report(study, trained, plain, unmixed, result, figures).render())
    result["artifacts"] = ["report.html", "demo.json", *figures, *(f"seed{seed}" for seed in seeds)]
    result["seconds"] = time.monotonic() - started
    write_json(out / "demo.json", result)
    for line in _text_table(plain, unmixed):
        tell(line)
    return result


def _by_method(
    plain: dict[str, Measured], unmixed: Sequence[Measured], pick: Callable[[Measured], dict[str, Any]]
) -> dict[str, Any]:
    """Return one result a method; that of `unmix` is the first seed's, with the spread of all beside it."""
    return {
        **{name: pick(measured) for name, measured in plain.items()},
        "unmix": {**pick(unmixed[0]), "spread": spread(unmixed)},
    }


def table_rows(plain: dict[str, Measured], unmixed: Sequence[Measured]) -> list[list[str]]:
    """Return the table: one row a training-free method, the last row the mean and spread of ours; times 100."""
    rows = [[name, *(percent(m.figures()[key]) for key, _ in COLUMNS)] for name, m in plain.items()]
    ours = spread(unmixed)
    cells = []
    for key, _ in COLUMNS:
        std = ours[key]["std"]
        cells.append(percent(ours[key]["mean"]) + ("" if std is None else f" ± {percent(std)}"))
    return [*rows, [f"unmix ({len(unmixed)} seeds)", *cells]]


def _text_table(plain: dict[str, Measured], unmixed: Sequence[Measured]) -> list[str]:
    header = ["method", "mAP", "OF1", "mIoU objects", "mIoU with bg", "on others", "on background"]
    return align([header, *table_rows(plain, unmixed)])


def _best(plain: dict[str, Measured], key: str) -> tuple[str, float]:
    name = max(plain, key=lambda n: plain[n].figures()[key])
    return name, plain[name].figures()[key]


def _draw_figures(study: Study, trained: Sequence[Trained], plain: Method, thresholds: Thresholds) -> dict[str, Figure]:
    """Draw the demo's figures, by file name; `plain` is the CLIP that the first seed's maps are shown beside."""
    before = cosine_matrix(trained[0].texts.positive.numpy())
    after = cosine_matrix(trained[0].method.queries.positive.numpy())
    return {
        "entanglement.png": draw_matrices(before, after, study.train.classes),
        "queries.png": draw_query_maps(query_rows(study, trained[0], plain, thresholds)),
        "training.png": draw_curves({f"seed {t.state.model.config.seed}": t.state.history for t in trained}),
    }


def _compose_report(
    study: Study,
    trained: Sequence[Trained],
    plain: dict[str, Measured],
    unmixed: Sequence[Measured],
    result: dict[str, Any],
    figures: dict[str, Figure],
) -> Report:
    """Put the report together: what was found first, what was run last."""
    ours, entanglement = spread(unmixed), result["entanglement"]
    report = Report(
        "unmix-clip demo",
        f"{result['n_images']} test scenes, {result['n_classes']} names, backbone mini, "
        f"{len(study.train.samples)} training scenes with image labels only, seeds "
        f"{', '.join(str(m.seed) for m in unmixed)}. Every choice was made on validation scenes.",
    )
    report.tiles(
        [
            (
                "likeness of class texts (mean cosine)",
                f"{entanglement['mean_cosine']:.2f}",
                f"{entanglement['after']['mean_cosine']:.2f}",
            ),
            *(
                (
                    f"{title}, best training-free ({_best(plain, key)[0]})",
                    percent(_best(plain, key)[1]),
                    percent(ours[key]["mean"]),
                )
                for key, title in (("map", "tags, mAP"), ("miou_standard", "masks, mIoU with background"))
            ),
        ]
    )
    report.heading("Where a name lights up")
    report.figure(
        figures["queries.png"],
        "Maps of one name in plain CLIP (maskclip) and unmixed; what is below the background threshold is dark.",
    )
    report.heading("Every method on the same scenes")
    header = ["method", *(title for _, title in COLUMNS)]
    rows = table_rows(plain, unmixed)
    report.table(
        header, rows, ours=[len(rows) - 1],
        note="Figures times 100. The last two columns: how often a location of another object, or of the background, "
        "outranks the object's own (lower is better, 50 = chance).",
    )  # fmt: skip
    report.heading("Names that projector training never saw")
    keys = ("map_unseen", "map_seen", "miou_unseen", "miou_seen")
    rows = [[name, *(percent(figures[key]) for key in keys)] for name, figures in result["unseen"].items()]
    header = ["method", "tags of unseen names, mAP", "of seen names", "masks of unseen names, mIoU", "of seen names"]
    note = "Scenes that show both kinds, all names asked together. Unmixing is trained for its names and costs others."
    report.table(header, rows, ours=[len(rows) - 1], note=note)
    report.heading("How alike the class texts are")
    report.figure(
        figures["entanglement.png"], "Raw cosines between the class texts, before and after the text projector."
    )
    report.heading("Training")
    report.figure(
        figures["training.png"], f"All seeds together took {result['training_seconds']:.0f} s on stored features."
    )
    report.heading("What was run")
    report.code(
        f"unmix-clip demo --seeds {','.join(str(m.seed) for m in unmixed)}\n\n"
        f"{trained[0].state.model.config}\n\n{result['versions']}"
    )
    return report


def query_rows(study: Study, trained: Trained, plain: Method, thresholds: Thresholds) -> list[QueryRow]:
    """Choose the first test scenes with three objects, one query each, with the maps of plain CLIP and of the model."""
    low = (thresholds.background, trained.thresholds.background)
    bench, classes = study.test, study.test.dataset.classes
    wanted = [i for i, row in enumerate(bench.labels) if row.sum() == 3][:QUERIES]
    rows = []
    maps_of = [dict(_maps_of(method, study, wanted)) for method in (plain, trained.method)]
    for number, index in enumerate(wanted):
        image = bench.dataset.samples[index].load_image()
        present = np.flatnonzero(bench.labels[index])
        asked = present[number % len(present)]
        grids = [maps[index][:, asked].reshape(1, *bench.store.grid_hw) for maps in maps_of]
        before, after = (bench.preprocess.grid_to_image(g, (image.height, image.width))[0].numpy() for g in grids)
        others = [classes[i] for i in present if i != asked]
        rows.append(QueryRow(image, classes[asked], others, before, after, low))
    return rows


def _maps_of(method: Method, study: Study, wanted: Sequence[int]) -> list[tuple[int, Any]]:
    last = max(wanted)
    found = []
    for index, _, maps in study.test.scored(method):
        if index in wanted:
            found.append((index, maps))
        if index >= last:
            break
    return found
