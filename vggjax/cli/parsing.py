"""Fills a command's parameters from its flags, by tyro; what cannot be filled is one line.

tyro draws its errors in boxes, several lines each; this package's command line answers every
mistake of its user with one line on stderr, and this file makes the one of the other.
"""

import contextlib
import difflib
import functools
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tyro

from vggjax.errors import ConfigError, VggjaxError


def parse(target: Callable, argv: Sequence[str], command: str, **options: Any) -> Any:
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


_HINTS = {
    "True": "A switch takes no value: --horizontal-flip, or --no-horizontal-flip.",
    "False": "A switch takes no value: --horizontal-flip, or --no-horizontal-flip.",
    "--rescale": "Pixels are scaled as the weights expect; --preprocess unit is x/255.",
}
"""First word that is not understood -> the way out, for what is typed over from Keras."""


def _one_line(box: str, command: str) -> str:
    lines = [line.strip("│ \t") for line in box.splitlines()[1:]]  # the first is the box's title
    text = " ".join(line for line in lines if line.strip("╰╯─-"))
    text = re.split(r" (?:Argument helptext:|For full helptext)", text)[0]
    text, *meant = text.split(" Perhaps you meant: ")
    if meant:  # tyro's own order puts what merely begins alike first
        typed, flags = re.search(r"--[\w-]+", text), re.findall(r"--[\w-]+", meant[0])
        near = difflib.get_close_matches(typed[0], flags, n=1, cutoff=0) if typed else flags
        text += f". Perhaps you meant {near[0]}"
    text = re.sub(
        r"Error parsing (\S+): invalid literal for int.*: (.*)", r"\1 takes INT; got \2", text
    )
    text = re.sub(
        r"Error parsing (\S+): no type matching (\S+) .*? from \[(.*?)\].*",
        r"\1 takes \2; got \3",
        text,
    )
    hint = next((f" {said}" for word, said in _HINTS.items() if f": {word}" in text), "")
    return f"{text[:1].upper()}{text[1:].strip().rstrip('.')}.{hint} See vggjax {command} --help."


def value_of(argv: Sequence[str], flag: str) -> str | None:
    """Finds a flag's value before the flags are parsed: it decides their defaults."""
    for i, word in enumerate(argv):
        if word == f"--{flag}" and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(f"--{flag}="):
            return word.split("=", 1)[1]
    return None
