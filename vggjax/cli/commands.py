"""The commands, one function each: its parameters are the flags, its result is the exit code.

A function's docstring is its --help. What a command needs is imported inside it, so that --help
starts at once.
"""

import json as json_module
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from vggjax.cli.parsing import parse, value_of
from vggjax.data.augment.settings import Augmentation
from vggjax.data.sources.options import DEFAULT_OPTIONS, DatasetOptions
from vggjax.errors import ConfigError, printable
from vggjax.training.config import Config
from vggjax.training.recipes import check_needs, recipe_fields


def train(config: Config) -> int:
    """Train on a dataset, evaluate, and write the report."""
    from vggjax.api import find_learning_rate, fit

    if config.lr_find:
        rate_test, plot = find_learning_rate(config)
        flags = rate_test.flags(config) or "none of these rates"
        print(f"\n{rate_test}\nPlot     {printable(plot)}\nUse      {flags}")
        return 0
    result = fit(config)
    if result.report is not None:
        print(f"\nReport   {printable(result.report)}")
    if result.model is not None:  # a cross-validation has one model for each fold
        print(f"Predict  vggjax predict PHOTO.jpg --workdir {shlex.quote(str(result.workdir))}")
    exit_code = _report_left_out(result.unreadable)
    return 1 if result.report is None else exit_code


def parse_train(argv: Sequence[str]) -> Config:
    """Return the Config of `train`'s flags: its recipe sets the defaults, a flag wins.

    A first word that is no flag is the dataset.

    Raises:
        ConfigError: flags that do not fit, or a recipe without the flag that it needs.
    """
    if argv and not argv[0].startswith("-"):
        if (dataset := value_of(argv, "dataset")) is not None:
            raise ConfigError(f"`dataset` is given twice, {argv[0]!r} and {dataset!r}.")
        argv = ["--dataset", *argv]
    recipe = value_of(argv, "recipe")
    names = ("dataset", "start-from", "start_from", "stages", "unfreeze")
    given = {
        name.replace("-", "_"): value
        for name in names
        if (value := value_of(argv, name)) is not None
    }
    default = Config(**recipe_fields(recipe, given.get("dataset", Config.dataset), given))
    if not {"-h", "--help"} & set(argv):
        check_needs(recipe, given)
    return parse(Config, argv, "train", default=default, description=train.__doc__)


def evaluate(
    *,
    workdir: str,
    split: str = "test",
    dataset: str | None = None,
    options: Annotated[DatasetOptions, arg(name="")] = DEFAULT_OPTIONS,
    batch_size: int | None = None,
) -> int:
    """Evaluate a finished run on a split; write eval.json and predictions.csv.

    Args:
        workdir: The run's folder.
        split: test, val or train; of another dataset also all.
        dataset: Where the run's dataset lies now, or another labeled dataset, whose results get a
            folder of their own in the run's.
        options: How to read that dataset; by default as the run's own.
        batch_size: Images per step; None uses the run's own.
    """
    from vggjax.evaluation.evaluate import evaluate
    from vggjax.evaluation.other_data import open_evaluation
    from vggjax.report.report import write_report

    run: Any = workdir
    if dataset is None and options != DEFAULT_OPTIONS:
        raise ConfigError(
            "The options of a dataset need `dataset`; the run's own data has its own."
        )
    if dataset is not None:
        run, split = open_evaluation(workdir, dataset, split, options=options)
    result = evaluate(run, split=split, batch_size=batch_size)
    is_own = dataset is None or run.workdir == Path(workdir)
    if split == "test" and is_own:  # the report shows this split: it must not show older figures
        print(f"\nReport   {printable(write_report(run))}")
    return _report_left_out(result["unreadable"])


def report(
    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN [RUN ...]")],
    /,
    *,
    out: Path | None = None,
    doctor: bool = False,
    dataset: str | None = None,
) -> int:
    """Write a run's report again, or one page that compares several runs.

    Args:
        runs: Folders of finished runs: one, or several to compare.
        out: The comparison's file; None is report-comparison.html in this folder.
        doctor: Check every image of the dataset for the report, however many there are.
        dataset: Where the dataset of the run lies now.
    """
    from vggjax.report.compare import write_comparison
    from vggjax.report.report import write_report
    from vggjax.training.run_dir.run_result import load_run_result

    if not runs:
        raise ConfigError("Missing: RUN. Give the folder of a finished run, or several to compare.")
    if len(runs) == 1 and out is None:
        run = load_run_result(runs[0], dataset=dataset) if dataset else runs[0]
        path = write_report(run, doctor=doctor)
    elif len(runs) == 1 or doctor or dataset:
        field, scope = "out", "several runs"
        if len(runs) > 1:
            field, scope = "doctor" if doctor else "dataset", "one run"
        raise ConfigError(
            f"`{field}` applies to the report of {scope}; got {', '.join(map(printable, runs))}."
        )
    else:
        path = write_comparison(runs, out or "report-comparison.html")
    print(f"Report   {printable(path)}")
    return 0


def predict(
    images: Annotated[Positional[tuple[str, ...]], arg(metavar="IMAGE [IMAGE ...]")],
    /,
    *,
    workdir: str | None = None,
    weights: str | None = None,
    model: str | None = None,
    top: int = 5,
    csv: str | None = None,
    probabilities: bool = False,
    json: bool = False,
    sort_into: str | None = None,
    expect_sha256: str | None = None,
) -> int:
    """Classify images.

    Exit code 0: all of them; 3: some were left out, each named with its reason; 2: none.

    Args:
        images: Files, folders and globs; - reads names from the standard input.
        workdir: A finished run's folder; without it, and without weights, the newest in runs/.
        weights: `imagenet` or a file with the published 1000-class top, in place of a run.
        model: The network of the weights, such as vgg16.
        top: Number of classes to print for each image.
        csv: A file to write a row per image to, as it comes; a file that is there is continued.
        probabilities: A column per class in the CSV in place of the top classes, and in the JSON.
        json: Print a JSON object per image, one a line, instead of the table.
        sort_into: A folder to copy the images into, one folder per class.
        expect_sha256: Refuse weights whose file has another checksum.
    """
    from vggjax.evaluation.predict_files import predict_command

    return predict_command(
        list(images),
        workdir=workdir,
        weights=weights,
        model=model,
        top=top,
        csv=csv,
        probabilities=probabilities,
        json=json,
        sort_into=sort_into,
        expect_sha256=expect_sha256,
    )


def convert(
    src: Annotated[Positional[Path], arg(metavar="SRC")],
    dst: Annotated[Positional[Path], arg(metavar="DST")],
    /,
    *,
    format: Literal["vggjax", "torchvision", "timm"] | None = None,
    model: str | None = None,
    expect_sha256: str | None = None,
) -> int:
    """Convert a weight file between the formats of Keras, torchvision, timm and vggjax.

    Args:
        src: The file to read, of any known format (see `vggjax verify --help`), or a run's folder.
        dst: The file to write, by its ending: .safetensors, .weights.h5, .h5, .keras or .pth.
        format: Whose layer names to write; by default vggjax's in .safetensors, torchvision's in
            .pth.
        model: The network that SRC must hold, such as vgg16; None accepts any, if it is complete.
        expect_sha256: Refuse a SRC with another checksum.
    """
    from vggjax.weights.convert import convert

    convert(src, dst, layout=format, model=model, expect_sha256=expect_sha256)
    return 0


def verify(
    file: Annotated[Positional[Path], arg(metavar="FILE")],
    /,
    *,
    model: str | None = None,
    expect_sha256: str | None = None,
) -> int:
    """Check a weight file: format, layers, checksum, and the pixels that it expects.

    Exit code 0: a VGG's weights, complete and finite; 2: not, with the reason.

    Args:
        file: Keras' or torch's, .safetensors, .onnx, .npz or a pickle of arrays.
        model: The network that it must hold, such as vgg16; None accepts any.
        expect_sha256: Refuse a file with another checksum.
    """
    from vggjax.weights.verify import print_verification, verify_file

    print_verification(verify_file(file, model=model, expect_sha256=expect_sha256))
    return 0


def summary(
    model: Positional[str] = "vgg16",
    /,
    *,
    image_size: int | None = None,
    include_top: bool = True,
    head: str | None = None,
    unfreeze: tuple[str, ...] = ("none",),
    batch_size: int = 32,
) -> int:
    """Print a network's layers, parameters and memory.

    Args:
        model: vgg11, vgg13, vgg16, vgg19, with batch normalization vgg11_bn ..., or a convnet.
        image_size: Side of the images in px; None is the network's own, 224 for VGG.
        include_top: The published 1000-class top; --no-include-top leaves it out.
        head: A custom head instead of the top, such as avg2-128-0.4-5.
        unfreeze: What trains besides the head: none, all, blocks, layers.
        batch_size: Images in a training step, for the memory.
    """
    from vggjax.cli.tables import print_summary, summarize_model
    from vggjax.models.head import Head

    model_summary = summarize_model(
        model,
        image_size=image_size,
        include_top=include_top,
        head=Head.parse(head) if head else None,
        unfreeze=unfreeze,
        batch_size=batch_size,
    )
    print_summary(model_summary, title=f"{model}, {model_summary.image_size} px")
    return 0


def recipes(name: Positional[str | None] = None, /) -> int:
    """List the recipes of --recipe, or describe one.

    Args:
        name: The recipe to describe; None lists all.
    """
    from rich.console import Console

    from vggjax.cli.tables import print_recipe, print_recipes

    if name is None:
        print_recipes(Console())
    else:
        print_recipe(Console(), name)
    return 0


def doctor(
    data: Annotated[Positional[str], arg(metavar="DATA")],
    /,
    *,
    options: Annotated[DatasetOptions, arg(name="")] = DEFAULT_OPTIONS,
    data_dir: str | None = None,
    json: bool = False,
    html: Path | None = None,
    fix: Path | None = None,
    write_csv: Path | None = None,
) -> int:
    """Check a dataset; optionally write a cleaned copy, or a CSV of it.

    Exit code 0: clean, or remarks only; 2: problems.

    Args:
        data: A folder, a CSV, a tfds name or digits.
        options: How to read the dataset.
        data_dir: Where datasets of tfds are kept.
        json: Print the findings as JSON instead of a table.
        html: A page to write, with thumbnails.
        fix: A new folder for a cleaned copy; the original is never changed.
        write_csv: A new CSV for the table as it was understood: path,label[,split][,group].
    """
    from rich.console import Console

    from vggjax.data.quality.clean import check_output, write_clean_copy
    from vggjax.data.quality.doctor import examine
    from vggjax.data.sources.csv_write import check_table_output, write_table
    from vggjax.report.doctor_page import check_doctor_page, write_doctor_page
    from vggjax.report.doctor_screen import print_clean_copy, print_findings, print_table
    from vggjax.training.console import progress_bar

    if html is not None:  # before the images are read, which may take minutes
        check_doctor_page(html, dataset=data)
    if fix is not None:
        check_output(data, fix)
    if write_csv is not None:
        check_table_output(write_csv)
    console = Console(stderr=json)  # stdout holds the JSON alone
    with progress_bar(console, "reading images") as progress:
        findings = examine(data, data_dir=data_dir, options=options, progress=progress)
    if json:
        print(json_module.dumps(findings.to_json(), indent=2))
    else:
        print_findings(console, findings)
    if html is not None:
        console.print(f"Page     {printable(write_doctor_page(findings, html))}", markup=False)
    if fix is not None:
        with progress_bar(console, "copying") as progress:
            copy = write_clean_copy(findings, fix, progress=progress)
        print_clean_copy(console, copy, findings)
    if write_csv is not None:
        print_table(console, write_csv, write_table(findings.source, write_csv))
    return findings.exit_code


def augment_preview(
    data: Annotated[Positional[str], arg(metavar="DATA")],
    out: Annotated[Positional[Path], arg(metavar="OUT")],
    /,
    *,
    settings: Annotated[Augmentation, arg(name="")] = Augmentation(),  # noqa: B008
    options: Annotated[DatasetOptions, arg(name="")] = DEFAULT_OPTIONS,
    augment: str | None = None,
    image_size: int = 224,
    rows: int = 6,
    seed: int = 0,
    data_dir: str | None = None,
) -> int:
    """Draw a grid of training images as augmentation would change them.

    Args:
        data: A folder, a CSV, a tfds name or digits.
        out: The file to write: .png, .jpg or .webp.
        settings: The augmentation.
        options: How to read the dataset.
        augment: A named augmentation: none, flip, crop-flip or randaugment.
        image_size: Side in px of the images that the model would see.
        rows: Number of images.
        seed: Of the choice of images and of the random draws.
        data_dir: Where datasets of tfds are kept.
    """
    from vggjax.data.augment.settings import resolve
    from vggjax.report.augment_preview import write_preview

    path = write_preview(
        data,
        out,
        augmentation=resolve(settings, augment),
        image_size=image_size,
        rows=rows,
        seed=seed,
        data_dir=data_dir,
        options=options,
    )
    print(f"Preview  {printable(path)}")
    return 0


def _report_left_out(unreadable: dict[str, str]) -> int:
    """Print the images that were left out, with the reasons; return the exit code."""
    for name, reason in unreadable.items():
        print(f"vggjax: left out: {printable(name)}: {printable(reason)}", file=sys.stderr)
    return 3 if unreadable else 0


COMMANDS: dict[str, Callable[..., int]] = {
    "train": train,
    "evaluate": evaluate,
    "report": report,
    "predict": predict,
    "convert": convert,
    "verify": verify,
    "summary": summary,
    "recipes": recipes,
    "doctor": doctor,
    "augment-preview": augment_preview,
}
"""Name -> command, in the order of the help."""
