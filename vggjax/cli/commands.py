"""The commands: each takes its own words of the command line and gives an exit code.

What a command needs is imported inside it, so that `--help` and the light ones start at once.
"""

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from vggjax.cli.data_commands import augment_preview, doctor
from vggjax.cli.parsing import parse, value_of
from vggjax.cli.weight_commands import convert, verify
from vggjax.errors import ConfigError, printable


def train(argv: Sequence[str]) -> int:
    """Trains on a dataset, evaluates, and writes the report."""
    from vggjax.api import find_rate, fit
    from vggjax.training.config import Config
    from vggjax.training.recipes import check_needs, recipe_fields

    recipe = value_of(argv, "recipe")
    names = ("dataset", "start-from", "start_from", "stages", "unfreeze")
    given = {name: value_of(argv, name) for name in names}
    given = {name.replace("-", "_"): value for name, value in given.items() if value is not None}
    default = Config(**recipe_fields(recipe, given.get("dataset", Config.dataset), given))
    if not {"-h", "--help"} & set(argv):
        check_needs(recipe, given)
    config = parse(Config, argv, "train", default=default, description=train.__doc__)
    if config.lr_find:
        test, plot = find_rate(config)
        print(
            f"\n{test}\nPlot     {printable(plot)}\nTake     {test.flags(config) or 'none of them'}"
        )
        return 0
    result = fit(config)
    print(f"\nReport   {result.report}")
    if result.model is not None:  # a cross-validation has one for each fold
        print(f"Predict  vggjax predict PHOTO.jpg --workdir {shlex.quote(str(result.workdir))}")
    for name, reason in result.unreadable.items():
        print(f"vggjax: left out: {printable(name)}: {printable(reason)}", file=sys.stderr)
    return 3 if result.unreadable else 0


def evaluate(argv: Sequence[str]) -> int:
    """Scores a finished run on a split, and writes eval.json and predictions.csv."""

    def run(*, workdir: str, split: str = "test", batch_size: int | None = None) -> int:
        """Scores a finished run on a split, and writes eval.json and predictions.csv.

        Args:
            workdir: The run's folder.
            split: test, val or train.
            batch_size: Images at a time; None is the run's own.
        """
        from vggjax.evaluation.evaluate import evaluate
        from vggjax.report.report import write_report

        found = evaluate(workdir, split=split, batch_size=batch_size)
        if split == "test":  # the report shows this split: an old page must not stay beside it
            print(f"\nReport   {write_report(workdir)}")
        for name, reason in found["unreadable"].items():
            print(f"vggjax: left out: {printable(name)}: {printable(reason)}", file=sys.stderr)
        return 3 if found["unreadable"] else 0

    return parse(run, argv, "evaluate")


def report(argv: Sequence[str]) -> int:
    """Writes a run's report anew, or one page that compares several runs."""

    def run(
        runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
        /,
        *,
        out: Path | None = None,
        doctor: bool = False,
    ) -> int:
        """Writes a run's report anew, or one page that compares several runs.

        Args:
            runs: Folders of finished runs: one, or several to compare.
            out: The comparison's file; None is report-comparison.html here.
            doctor: Let one run's report look at every image, however many there are.
        """
        from vggjax.report.compare import write_comparison
        from vggjax.report.report import write_report

        if len(runs) == 1 and out is None:
            path = write_report(runs[0], doctor=doctor)
        elif len(runs) == 1 or doctor:
            flag, what = ("--doctor", "one run's") if doctor else ("--out", "several runs'")
            raise ConfigError(f"{flag} is of {what} report; got {len(runs)} run folders.")
        else:
            path = write_comparison(runs, out or "report-comparison.html")
        print(f"Report   {printable(path)}")
        return 0

    return parse(run, argv, "report")


def predict(argv: Sequence[str]) -> int:
    """Names what is on images."""

    def run(
        images: Annotated[tuple[str, ...], tyro.conf.Positional],
        /,
        *,
        workdir: str | None = None,
        weights: str | None = None,
        model: str | None = None,
        top: int = 5,
        csv: str | None = None,
        expect_sha256: str | None = None,
    ) -> int:
        """Names what is on images.

        Args:
            images: Files, folders and globs.
            workdir: A finished run's folder; without it, and without weights, the newest in runs/.
            weights: `imagenet` or a file with the published 1000-class top, in place of a run.
            model: The network that the weights are for.
            top: How many classes to give.
            csv: A file to write the table to.
            expect_sha256: Refuse the weights unless this is their file's checksum.
        """
        from vggjax.evaluation.predict import predict_command

        return predict_command(
            list(images),
            workdir=workdir,
            weights=weights,
            model=model,
            top=top,
            csv=csv,
            expect_sha256=expect_sha256,
        )

    return parse(run, argv, "predict")


def summary(argv: Sequence[str]) -> int:
    """Prints a network's layers, parameters and memory."""

    def run(
        model: Annotated[str, tyro.conf.Positional] = "vgg16",
        /,
        *,
        image_size: int | None = None,
        include_top: bool = True,
        head: str | None = None,
        unfreeze: tuple[str, ...] = ("none",),
        batch_size: int = 32,
    ) -> int:
        """Prints a network's layers, parameters and memory.

        Args:
            model: vgg11, vgg13, vgg16, vgg19, with batch normalization vgg11_bn ..., or a convnet.
            image_size: Side of the images in px; None is the network's own, 224 for VGG.
            include_top: The published top, or the lesson's; --no-include-top leaves it out.
            head: A head of one's own instead, as in --head avg2-128-0.4-5.
            unfreeze: What trains beside the head: none, all, blocks, layers.
            batch_size: Images in a training step, for the memory.
        """
        from vggjax.cli.summary import print_summary, summarize_model
        from vggjax.models.head import Head

        found = summarize_model(
            model,
            image_size=image_size,
            include_top=include_top,
            head=Head.parse(head) if head else None,
            unfreeze=unfreeze,
            batch_size=batch_size,
        )
        print_summary(found, title=f"{model}, {found.image_size} px")
        return 0

    return parse(run, argv, "summary")


def recipes(argv: Sequence[str]) -> int:
    """Lists the recipes of --recipe, or tells what one of them teaches."""

    def run(name: Annotated[str | None, tyro.conf.Positional] = None, /) -> int:
        """Lists the recipes of --recipe, or tells what one of them teaches.

        Args:
            name: A recipe, to be told all of it; None lists them.
        """
        from rich.console import Console

        from vggjax.cli.recipes_screen import print_recipe, print_recipes

        if name is None:
            print_recipes(Console())
        else:
            print_recipe(Console(), name)
        return 0

    return parse(run, argv, "recipes")


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
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
