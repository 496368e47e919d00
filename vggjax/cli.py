"""The command line: `vggjax <command>`, the same as `python -m vggjax <command>`.

Exit codes: 0 done; 3 done, but some pictures were left out, each named with its reason; 2 nothing
done and the user can mend it (one line on stderr); 1 a bug; 130 and 143 after a Ctrl-C or SIGTERM.
"""

import contextlib
import functools
import io
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from vggjax.errors import ConfigError, VggjaxError, shown, unknown


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and gives its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: vggjax COMMAND ...; each command has --help\n")
        for name, command in COMMANDS.items():
            print(f"  {name:<10} {command.__doc__.splitlines()[0]}")
        return 0
    if argv[0] == "--version":
        from vggjax import __version__

        print(__version__)
        return 0
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show is no error
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        if argv[0] not in COMMANDS:
            raise ConfigError(unknown("command", argv[0], COMMANDS))
        return COMMANDS[argv[0]](argv[1:])
    except VggjaxError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("by Ctrl-C", code=130)
    except BrokenPipeError:  # `vggjax ... | head`
        with contextlib.suppress(OSError):
            sys.stdout.close()
        return 141
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _fail("Out of memory. A smaller --batch-size or --image-size takes less.")
    except OSError as error:
        place = f": {shown(error.filename)}" if error.filename else ""
        return _fail(f"{error.strerror or error}{place}")


def train(argv: Sequence[str]) -> int:
    """Trains on a data set, evaluates, and writes the report."""
    from vggjax.run import fit
    from vggjax.training.config import Config
    from vggjax.training.recipes import recipe_fields
    from vggjax.training.signals import Interrupted

    recipe = _value_of(argv, "recipe")
    dataset = _value_of(argv, "dataset")
    dataset = Config.dataset if dataset is None else dataset
    default = Config(**recipe_fields(recipe, dataset))
    config = _parse(Config, argv, "train", default=default, description=train.__doc__)
    try:
        result = fit(config)
    except Interrupted as stopped:
        return _fail(str(stopped), code=128 + stopped.signum)
    print(f"\nReport   {result.report}")
    if result.model is not None:  # a cross-validation has one for each fold
        print(f"Predict  vggjax predict PHOTO.jpg --workdir {shlex.quote(str(result.workdir))}")
    for name, reason in result.unreadable.items():
        print(f"vggjax: left out: {shown(name)}: {shown(reason)}", file=sys.stderr)
    return 3 if result.unreadable else 0


def evaluate(argv: Sequence[str]) -> int:
    """Scores a finished run on a split, and writes eval.json and predictions.csv."""

    def run(*, workdir: str, split: str = "test", batch_size: int | None = None) -> int:
        """Scores a finished run on a split, and writes eval.json and predictions.csv.

        Args:
            workdir: The run's folder.
            split: test, val or train.
            batch_size: Pictures at a time; None is the run's own.
        """
        from vggjax.results.evaluate import evaluate
        from vggjax.results.report import write_report

        found = evaluate(workdir, split=split, batch_size=batch_size)
        if split == "test":  # the report shows this split: an old page must not stay beside it
            print(f"\nReport   {write_report(workdir)}")
        for name, reason in found["unreadable"].items():
            print(f"vggjax: left out: {shown(name)}: {shown(reason)}", file=sys.stderr)
        return 3 if found["unreadable"] else 0

    return _parse(run, argv, "evaluate")


def predict(argv: Sequence[str]) -> int:
    """Names what is on pictures."""

    def run(
        pictures: Annotated[tuple[str, ...], tyro.conf.Positional],
        /,
        *,
        workdir: str | None = None,
        weights: str | None = None,
        model: str | None = None,
        top: int = 5,
        csv: str | None = None,
    ) -> int:
        """Names what is on pictures.

        Args:
            pictures: Files, folders and globs.
            workdir: A finished run's folder; without it, and without weights, the newest in runs/.
            weights: `imagenet` or a file with the published 1000-class top, in place of a run.
            model: The network that the weights are for.
            top: How many classes to give.
            csv: A file to write the table to.
        """
        from vggjax.results.predict import predict_command

        return predict_command(
            list(pictures), workdir=workdir, weights=weights, model=model, top=top, csv=csv
        )

    return _parse(run, argv, "predict")


def convert(argv: Sequence[str]) -> int:
    """Converts a weight file of any readable layout to .safetensors, .weights.h5 or .h5."""

    def run(
        src: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")],
        dst: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")],
        /,
    ) -> int:
        """Converts a weight file of any readable layout to .safetensors, .weights.h5 or .h5.

        Args:
            src: The file to read; its content says what it is.
            dst: The file to write; its ending says what it becomes.
        """
        from vggjax.weights.convert import convert

        convert(src, dst)
        return 0

    return _parse(run, argv, "convert")


def summary(argv: Sequence[str]) -> int:
    """Prints a network's layers, parameters and memory."""

    def run(
        model: Annotated[str, tyro.conf.Positional] = "vgg16",
        /,
        *,
        image_size: int = 224,
        include_top: bool = True,
        head: str | None = None,
        unfreeze: tuple[str, ...] = ("none",),
        batch_size: int = 32,
    ) -> int:
        """Prints a network's layers, parameters and memory.

        Args:
            model: vgg11, vgg13, vgg16, vgg19, or with batch normalisation vgg11_bn ...
            image_size: Side of the pictures in px.
            include_top: Keras' published top; --no-include-top leaves it out.
            head: A head of one's own instead, as in --head avg2-128-0.4-5.
            unfreeze: What trains beside the head: none, all, blocks, layers.
            batch_size: Pictures in a training step, for the memory.
        """
        from vggjax.models.head import Head
        from vggjax.results.summary import print_summary, summarize_model

        found = summarize_model(
            model,
            image_size=image_size,
            include_top=include_top,
            head=Head.parse(head) if head else None,
            unfreeze=unfreeze,
            batch_size=batch_size,
        )
        print_summary(found, title=f"{model}, {image_size} px")
        return 0

    return _parse(run, argv, "summary")


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "convert": convert,
    "summary": summary,
}


def _parse(target: Callable, argv: Sequence[str], command: str, **options: Any) -> Any:
    """Lets tyro fill the target from the flags, and calls it; a boxed error becomes one line."""

    @functools.wraps(target)
    def later(*args: Any, **kwargs: Any) -> Callable:
        return functools.partial(target, *args, **kwargs)

    said, is_class = io.StringIO(), isinstance(target, type)
    try:
        with contextlib.redirect_stderr(said), _unfolded(argv):
            filled = tyro.cli(
                target if is_class else later, prog=f"vggjax {command}", args=list(argv), **options
            )
    except SystemExit as end:
        if not end.code:
            raise
        cause = end.__context__
        while cause is not None and not isinstance(cause, VggjaxError):
            cause = cause.__context__
        raise (cause or ConfigError(_one_line(said.getvalue(), command))) from None
    return filled if is_class else filled()  # out here, where stderr is the user's again


@contextlib.contextmanager
def _unfolded(argv: Sequence[str]) -> Iterator[None]:
    """Lets tyro draw its error as wide as it is: a folded value cannot be put together again."""
    before = os.environ.get("COLUMNS")
    if not {"-h", "--help"} & set(argv):
        os.environ["COLUMNS"] = "10000"
    try:
        yield
    finally:
        os.environ.pop("COLUMNS", None)
        if before is not None:
            os.environ["COLUMNS"] = before


def _one_line(box: str, command: str) -> str:
    lines = [line.strip("│ \t") for line in box.splitlines()[1:]]  # the first is the box's title
    text = " ".join(line for line in lines if line.strip("╰╯─-"))
    text = re.split(r" (?:Argument helptext:|For full helptext)", text)[0]
    text = re.sub(r" Perhaps you meant: (--[\w-]+).*", r". Perhaps you meant \1", text)
    text = re.sub(
        r"Error parsing (\S+): invalid literal for int.*: (.*)", r"\1 takes INT; got \2", text
    )
    text = re.sub(
        r"Error parsing (\S+): no type matching (\S+) .*? from \[(.*?)\].*",
        r"\1 takes \2; got \3",
        text,
    )
    return f"{text[:1].upper()}{text[1:].strip().rstrip('.')}. See vggjax {command} --help."


def _value_of(argv: Sequence[str], flag: str) -> str | None:
    """Finds a flag's value before the flags are parsed: it decides their defaults."""
    for i, word in enumerate(argv):
        if word == f"--{flag}" and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(f"--{flag}="):
            return word.split("=", 1)[1]
    return None


def _fail(message: str, *, code: int = 2) -> int:
    message = " ".join(message.splitlines())
    word = "error" if code == 2 else "stopped"
    sys.stdout.flush()
    print(f"vggjax: {word}: {message}", file=sys.stderr)
    return code
