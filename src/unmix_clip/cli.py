"""The command line: a table of commands, each a thin function over `jobs`, `prediction` and `demo`.

Exit codes: 0 done, 2 the input is wrong (one line on stderr), 3 done but some inputs failed and are listed.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from unmix_clip import __version__
from unmix_clip.errors import InputError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Measure how a CLIP mixes up classes, unmix it, then tag, localise and segment every object of a picture.",
)

JsonOption = Annotated[str | None, typer.Option("--json", help="Write the result as JSON to this file; - = stdout.")]
BackboneOption = Annotated[str, typer.Option("--backbone", help="mini, NAME:TAG, NAME:random or NAME:PATH.")]
SizeOption = Annotated[int | None, typer.Option("--image-size", help="Side of the input in pixels.")]
ModeOption = Annotated[str, typer.Option("--mode", help="How pictures meet the input size: squash, pad or tile.")]
StrideOption = Annotated[int | None, typer.Option("--last-stage-stride", help="1 = a grid twice as fine (ResNets).")]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, ...: where the backbone runs.")]
CacheOption = Annotated[Path | None, typer.Option("--cache", help="Folder of stored features.")]
ModelOption = Annotated[Path | None, typer.Option("--model", help="A RUN folder of `train`.")]
DataOption = Annotated[
    str,
    typer.Option("--data", help="KIND:PLACE@SPLIT?options: scenes, coco, voc2007, ade20k, table, ... (docs/data.md)."),
]
DenseOption = Annotated[
    str, typer.Option("--dense", help="Dense features: maskclip, sclip, clearclip, naclip, sc-clip, clip-surgery.")
]
ModelsOption = Annotated[
    list[Path] | None, typer.Option("--model", help="A RUN folder of `train`; again for more, such as other seeds.")
]
TrainDataOption = Annotated[
    str | None, typer.Option("--train-data", help="What learned methods without a --model are trained on.")
]
SplitOption = Annotated[
    str | None, typer.Option("--class-split", help="Seen and unseen classes: coco-48-17 or coco-65-15.")
]
TaskOption = Annotated[str, typer.Option("--task", help="recognition or segmentation.")]
ProtocolOption = Annotated[
    str,
    typer.Option("--protocol", help="standard, sliding, paper, ...; changes after commas: sliding,refinement=pamr."),
]
FitOption = Annotated[str | None, typer.Option("--fit-data", help="Where thresholds are fitted.")]
SkipOption = Annotated[bool, typer.Option("--skip-broken", help="Leave out pictures that cannot be read.")]
ClassesOption = Annotated[str | None, typer.Option("--classes", help="A file with one name a line, or a,b,c.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Seeds everything random.")]


@app.callback(invoke_without_command=True)
def version_option(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Show the version."""
    if version:
        print(__version__)
        raise typer.Exit


@app.command(epilog="Example: unmix-clip demo --out runs/demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for figures, models and report.html.")] = Path("runs/demo"),
    seeds: Annotated[str, typer.Option(help="Seeds of the projectors, such as 0,1,2.")] = "0,1,2",
    seed: Annotated[int | None, typer.Option(help="One seed only; overrides --seeds.")] = None,
    cache: CacheOption = None,
    json_file: JsonOption = None,
) -> None:
    """Offline, on a CPU: measure entanglement, train the projectors, compare, draw, report."""
    from unmix_clip.demo import run_demo

    chosen = [seed] if seed is not None else _numbers(seeds, "--seeds")
    result = run_demo(out, chosen, cache=cache, tell=_tell)
    _write(result, json_file)
    _tell(f"report: {out / 'report.html'}")


@app.command(epilog="Example: unmix-clip doctor")
def doctor(json_file: JsonOption = None) -> None:
    """Versions, devices, which backbones load offline, what is missing and how to get it."""
    from unmix_clip.doctor import examine

    _emit(examine(), json_file)


@app.command(epilog="Example: unmix-clip analyze --backbone mini --classes fork,knife,cup --model runs/demo/seed0")
def analyze(
    classes: Annotated[str, typer.Option("--classes", help="A file with one name a line, or a,b,c.")],
    backbone: Annotated[
        str | None, typer.Option("--backbone", help="mini, NAME:TAG, NAME:random or NAME:PATH.")
    ] = None,
    text_features: Annotated[
        Path | None, typer.Option("--text-features", help="Stored text features (C, D), .npy, instead of a backbone.")
    ] = None,
    model: ModelOption = None,
    data: Annotated[str | None, typer.Option(help="Pictures with masks: adds cross-activation.")] = None,
    prompts: Annotated[str, typer.Option(help="Entry of prompts.toml.")] = "plain",
    top: Annotated[int, typer.Option(help="How many confusable pairs to list.")] = 20,
    figure: Annotated[Path | None, typer.Option(help="Draw the matrix to this PNG.")] = None,
    cache: CacheOption = None,
    json_file: JsonOption = None,
) -> None:
    """Entanglement of a class list: mean and spread of the cosines, most confusable pairs; before and after."""
    from unmix_clip.analysis import analyze_classes

    result = analyze_classes(
        classes,
        backbone,
        text_features,
        model,
        data,
        prompts_name=prompts,
        top=top,
        figure=figure,
        cache=cache,
        tell=_tell,
    )
    _emit(result, json_file)


@app.command(epilog="Example: unmix-clip train --data scenes@train --out runs/mine --set mfi_weight=0")
def train(
    data: DataOption,
    out: Annotated[Path, typer.Option(help="RUN folder: config.json, model.safetensors, metrics.json.")],
    backbone: BackboneOption = "mini",
    config: Annotated[str | None, typer.Option(help="A recipe (default, paper) or a TOML file.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="key=value, again and again.")] = None,
    val: Annotated[str | None, typer.Option("--val", help="Data for the thresholds; else a tenth is held out.")] = None,
    labels: Annotated[str, typer.Option(help="all: the labels of the data.")] = "all",
    classes: ClassesOption = None,
    class_split: SplitOption = None,
    dense: DenseOption = "maskclip",
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped.")] = False,
    image_size: SizeOption = None,
    mode: ModeOption = "squash",
    last_stage_stride: StrideOption = None,
    device: DeviceOption = "cpu",
    cache: CacheOption = None,
    skip_broken: SkipOption = False,
    json_file: JsonOption = None,
) -> None:
    """Train the two projectors on image labels."""
    from unmix_clip import jobs
    from unmix_clip.config import load_config
    from unmix_clip.files import make_folder
    from unmix_clip.vocabulary import load_class_list, load_class_split

    if labels != "all":
        raise InputError(f"--labels is {labels!r}; this version trains on labels only: expected all")
    settings = load_config(config, overrides or [])
    if classes and class_split:
        raise InputError("--classes and --class-split both name the classes; leave one of them out")
    names = load_class_list(classes) if classes else load_class_split(class_split)["seen"] if class_split else None
    make_folder(out)
    if not resume and any((out / name).exists() for name in ("config.json", "checkpoint.pt")):
        raise InputError(f"{out} already holds a run; choose another --out, or --resume to continue it")
    place = _workplace(backbone, image_size, mode, last_stage_stride, device, cache, skip_broken, dense)
    metrics = jobs.train(place, settings, data, out, backbone_spec=backbone, val=val, classes=names, resume=resume)
    _emit(metrics, json_file)
    _tell(f"run: {out}")
    _exit_3_if(place.failures)


@app.command(epilog="Example: unmix-clip evaluate --data scenes@test --task recognition --model runs/mine")
def evaluate(
    data: DataOption,
    task: TaskOption,
    model: ModelsOption = None,
    method: Annotated[str | None, typer.Option(help="As in compare; left out, the method that --model is.")] = None,
    backbone: Annotated[str | None, typer.Option("--backbone", help="For a rival without --model.")] = None,
    protocol: ProtocolOption = "standard",
    fit_data: FitOption = None,
    train_data: TrainDataOption = None,
    class_split: SplitOption = None,
    image_size: SizeOption = None,
    mode: ModeOption = "squash",
    device: DeviceOption = "cpu",
    cache: CacheOption = None,
    skip_broken: SkipOption = False,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
) -> None:
    """Measure one method on one data set under one named protocol."""
    place, runs = _place_and_runs(model, backbone, image_size, mode, device, cache, skip_broken)
    plan = _plan(data, task, protocol, fit_data, train_data, class_split, [seed])
    if not (method or runs):
        raise InputError("evaluate measures one method: add --model RUN, or --method NAME")
    from unmix_clip.candidates import run_name

    results = _compare(place, plan, [method or run_name(runs[0])], runs)
    _emit(results[0], json_file, table=results)
    _exit_3_if(place.failures)


@app.command(
    epilog="Example: unmix-clip compare --data scenes@test --task recognition --methods clip,naclip,unmix --seeds 0,1"
)
def compare(
    data: DataOption,
    task: TaskOption,
    methods: Annotated[
        str, typer.Option(help="Comma-separated; METHOD@DENSE = a learned one on a rival's features; all = the usual.")
    ] = "all",
    model: ModelsOption = None,
    backbone: Annotated[str | None, typer.Option("--backbone", help="Where no --model is given.")] = None,
    protocol: ProtocolOption = "standard",
    fit_data: FitOption = None,
    train_data: TrainDataOption = None,
    seeds: Annotated[str, typer.Option(help="Of learned methods that are trained here, such as 0,1,2.")] = "0",
    against: Annotated[str | None, typer.Option(help="A method that all others are paired with.")] = None,
    class_split: SplitOption = None,
    image_size: SizeOption = None,
    mode: ModeOption = "squash",
    device: DeviceOption = "cpu",
    cache: CacheOption = None,
    skip_broken: SkipOption = False,
    json_file: JsonOption = None,
) -> None:
    """Measure several methods in one run, in one table; learned ones without a --model are trained first."""
    place, runs = _place_and_runs(model, backbone, image_size, mode, device, cache, skip_broken)
    plan = _plan(data, task, protocol, fit_data, train_data, class_split, _numbers(seeds, "--seeds"), against)
    chosen = None if methods == "all" else [name.strip() for name in methods.split(",")]
    results = _compare(place, plan, chosen, runs)
    _emit({"results": results}, json_file, table=results)
    _exit_3_if(place.failures)


@app.command(
    epilog="Example: unmix-clip ablate --data scenes@train --val scenes@test?n=200 --test scenes@val --grid views=1,2"
)
def ablate(
    data: DataOption,
    test: Annotated[str, typer.Option(help="Where figures are taken; to choose by them, name a validation split.")],
    grid: Annotated[list[str], typer.Option("--grid", help="key=value,value: a setting, or dense or keep; again.")],
    val: Annotated[str | None, typer.Option("--val", help="Where thresholds are fitted.")] = None,
    config: Annotated[str | None, typer.Option("--config", help="The recipe that is varied.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="key=value of the base.")] = None,
    product: Annotated[bool, typer.Option("--product", help="All combinations, not one factor at a time.")] = False,
    seeds: Annotated[str, typer.Option(help="Of every variant, such as 0,1,2.")] = "0,1,2",
    backbone: BackboneOption = "mini",
    dense: DenseOption = "maskclip",
    image_size: SizeOption = None,
    mode: ModeOption = "squash",
    device: DeviceOption = "cpu",
    cache: CacheOption = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table as Markdown too.")] = None,
    json_file: JsonOption = None,
) -> None:
    """What each choice of the method brings: a small grid over stored features, with spreads."""
    from unmix_clip import ablation
    from unmix_clip.config import load_config
    from unmix_clip.report.tables import format_ablation, write_markdown

    factors = ablation.parse_grid(grid)
    base = load_config(config, overrides or [])
    place = _workplace(backbone, image_size, mode, None, device, cache, False, dense)
    result = ablation.ablate(
        place, base, data, factors, val=val, test=test, seeds=_numbers(seeds, "--seeds"), product=product
    )
    _write(result, json_file)
    if markdown:
        write_markdown(markdown, result)
    if json_file != "-":
        print(format_ablation(result))


@app.command(epilog="Example: unmix-clip reproduce paper-voc2007-rn101 --data voc2007=/data/VOCdevkit --dry-run")
def reproduce(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe, or a TOML file with a table [reproduce].")],
    data: Annotated[list[str] | None, typer.Option("--data", help="KEY=PATH of each data set that it needs.")] = None,
    trap: Annotated[
        list[str] | None, typer.Option("--trap", help="Switch a trap of the published protocol on.")
    ] = None,
    backbone: Annotated[str | None, typer.Option("--backbone", help="Another one, such as RN101:PATH.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check paths, counts, disk and time; start nothing.")
    ] = False,
    device: DeviceOption = "cpu",
    cache: CacheOption = None,
    json_file: JsonOption = None,
) -> None:
    """A recipe over its seeds: published | ours mean and spread | difference."""
    from unmix_clip import reproduction
    from unmix_clip.report.tables import format_check, format_reproduction

    places = dict(item.partition("=")[::2] for item in data or [])
    if empty := [key for key, path in places.items() if not path]:
        raise InputError(f"--data {empty[0]!r} names no place; expected KEY=PATH, such as voc2007=/data/VOCdevkit")
    experiment = reproduction.load_experiment(recipe, places, trap or [], backbone)
    checked = reproduction.check(experiment, cache, device)
    if dry_run:
        _write({"task": "dry run", "recipe": experiment.name, **checked}, json_file)
        if json_file != "-":
            print(format_check(checked))
    if problems := [one for one in checked["checks"] if one["problem"]]:
        raise InputError(
            f"{recipe} cannot run, {len(problems)} of {len(checked['checks'])} checks failed: "
            f"{problems[0]['what']}: {problems[0]['problem']}"
        )
    if not dry_run:
        result = reproduction.reproduce(experiment, traps=trap or [], cache=cache, device=device, tell=_tell)
        _write(result, json_file)
        if json_file != "-":
            print(format_reproduction(result))


@app.command(epilog="Example: unmix-clip predict --model runs/mine --out predicted photos/ --heatmaps --masks")
def predict(
    paths: Annotated[list[str], typer.Argument(help="Files, folders, globs.")],
    model: Annotated[Path, typer.Option("--model", help="A RUN folder of `train`.")],
    out: Annotated[Path, typer.Option(help="Folder for predictions and pictures.")],
    classes: ClassesOption = None,
    heatmaps: Annotated[bool, typer.Option("--heatmaps", help="One overlay a name found.")] = False,
    masks: Annotated[bool, typer.Option("--masks", help="Indexed masks, and overlays on the picture.")] = False,
    backbone: Annotated[str | None, typer.Option("--backbone", help="Where the run's backbone is now.")] = None,
    formats: Annotated[str, typer.Option("--format", help="Some of json,csv,coco.")] = "json",
    device: DeviceOption = "cpu",
    json_file: JsonOption = None,
) -> None:
    """Tags, heat-maps and masks of pictures."""
    from unmix_clip.prediction import predict_files
    from unmix_clip.unmixer import Unmixer
    from unmix_clip.vocabulary import load_class_list

    names = load_class_list(classes) if classes else None
    unmixer = Unmixer.from_pretrained(model, device, backbone)
    if masks and unmixer.run.thresholds.background is None:
        _tell("this run had no masks to fit the background on: it begins where a class is as likely as not")
    if names and (new := unmixer.untrained(names)):
        _tell(f"not trained on: {', '.join(new)}; their scores may be poor")
    result = predict_files(
        unmixer, paths, out, classes=names, heatmaps=heatmaps, masks=masks, formats=formats.split(",")
    )
    failed = [record for record in result["images"] if record["failure"]]
    if json_file:
        _emit(result, json_file)
    else:
        for record in result["images"]:
            tags = ", ".join(f"{label['name']} {label['score']:.2f}" for label in record["labels"])
            print(f"{record['file']}: {record['failure'] or tags or '-'}")
    _tell(f"{len(result['images']) - len(failed)} predicted, {len(failed)} failed: {out}")
    _exit_3_if(failed)


def _workplace(
    backbone: str,
    image_size: int | None,
    mode: str,
    stride: int | None,
    device: str,
    cache: Path | None,
    skip: bool,
    dense: str = "maskclip",
) -> Any:
    from unmix_clip.backbones import build_backbone
    from unmix_clip.jobs import Workplace

    built = build_backbone(backbone, image_size, mode=mode, dense=dense, last_stage_stride=stride, device=device)
    return Workplace(built, cache, tell=_tell, skip_broken=skip)


def _place_and_runs(
    models: Sequence[Path] | None,
    backbone: str | None,
    image_size: int | None,
    mode: str,
    device: str,
    cache: Path | None,
    skip_broken: bool,
) -> tuple[Any, list[Any]]:
    """Return the workplace and the runs: their backbone is the first run's unless one is named."""
    from unmix_clip.jobs import Workplace
    from unmix_clip.runs import load_run
    from unmix_clip.unmixer import Unmixer

    runs = [load_run(folder) for folder in models or []]
    if not runs or backbone is not None:
        return _workplace(backbone or "mini", image_size, mode, None, device, cache, skip_broken), runs
    if image_size is not None or mode != "squash":
        raise InputError("--image-size and --mode come from the run of --model; leave them out")
    built = Unmixer.from_pretrained((models or [])[0], device).backbone
    return Workplace(built, cache, tell=_tell, skip_broken=skip_broken), runs


def _plan(
    data: str,
    task: str,
    protocol: str,
    fit_data: str | None,
    train_data: str | None,
    class_split: str | None,
    seeds: Sequence[int],
    against: str | None = None,
) -> Any:
    from unmix_clip.candidates import Plan
    from unmix_clip.evaluation.protocols import find_protocol
    from unmix_clip.vocabulary import load_class_split

    if task not in ("recognition", "segmentation"):
        raise InputError(f"--task is {task!r}; expected recognition or segmentation")
    return Plan(
        data=data,
        task=task,
        methods=(),
        protocol=find_protocol(protocol),
        fit_data=fit_data,
        train_data=train_data,
        seeds=seeds,
        against=against,
        groups=load_class_split(class_split) if class_split else None,
    )


def _compare(place: Any, plan: Any, methods: Sequence[str] | None, runs: Sequence[Any]) -> list[dict[str, Any]]:
    from dataclasses import replace

    from unmix_clip import candidates, comparison

    if methods is None:
        methods = candidates.default_methods(place.backbone.dense_names, runs)
    return comparison.compare(place, replace(plan, methods=methods), runs)


def _numbers(text: str, flag: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{flag} is {text!r}; expected whole numbers, such as 0,1,2") from None


def _tell(text: str) -> None:
    print(text, file=sys.stderr)


def _emit(result: dict[str, Any], json_file: str | None, table: Sequence[dict[str, Any]] | None = None) -> None:
    """Write the result as JSON where asked, and print a table or a summary unless stdout has the JSON."""
    _write(result, json_file)
    if json_file == "-":
        return
    from unmix_clip.report.tables import format_summary, format_table

    print(format_table(table) if table else format_summary(result))


def _write(result: dict[str, Any], json_file: str | None) -> None:
    """Write the result as JSON to a file, or to stdout for "-"."""
    if json_file == "-":
        print(json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False))
    elif json_file:
        from unmix_clip.files import make_folder, write_json

        make_folder(Path(json_file).parent)
        write_json(Path(json_file), result)


def _exit_3_if(failures: Sequence[Any]) -> None:
    if failures:
        raise typer.Exit(3)


def main() -> None:
    """Run the command line; wrong input is one line on stderr and exit code 2."""
    # Before torch is loaded: waiting OpenMP threads otherwise spin, which halves the speed on few cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except InputError as error:
        print(f"unmix-clip: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full disk, a folder without permission
        if error.filename is None:
            raise
        print(f"unmix-clip: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
