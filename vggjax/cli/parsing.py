"""Fill a command's parameters from the command line with tyro; report a mistake in one line.

tyro draws its errors as boxes. Its parse-error hook hands over the same error as data, which
becomes a `ConfigError` here. A tyro without that hook prints its own box and exits with code 2.
"""

import dataclasses
import difflib
import inspect
import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

import tyro

from vggjax.errors import ConfigError, flag_of

_HINTS = {
    "True": "A switch takes no value: --horizontal-flip, or --no-horizontal-flip.",
    "False": "A switch takes no value: --horizontal-flip, or --no-horizontal-flip.",
    "--rescale": "Pixels are scaled as the weights expect; --preprocess unit is x/255.",
    "--resume": "The same command with the same --workdir resumes.",
    "--pretrained": "--weights imagenet is the default; none starts from random weights.",
    "--freeze": "All layers but the head are frozen, except those that --unfreeze names.",
    "--dropout": "The head says it, as in --head avg-256-0.5-classes; see vggjax summary --help.",
    "--image": "Images are given without a flag: vggjax predict photo.jpg.",
    "--input": "Images are given without a flag: vggjax predict photo.jpg.",
    "--device": "JAX chooses it; JAX_PLATFORMS=cpu before the command is the CPU.",
}
"""An unrecognized word -> the way out, for habits from other tools."""

_SPELLINGS = {
    "--dataset": ("data", "data-path", "data-root", "train-dir", "source", "images"),
    "--workdir": ("run", "run-dir", "output", "output-dir", "save-dir", "project", "logdir"),
    "--learning-rate": ("lr", "lr0", "eta"),
    "--batch-size": ("bs", "batch", "b"),
    "--image-size": ("imgsz", "img-size", "size", "input-size", "sz", "resolution"),
    "--epochs": ("nb-epochs", "num-epochs", "n-epochs", "max-epochs", "e"),
    "--model": ("arch", "architecture", "net", "network", "backbone"),
    "--weight-decay": ("wd", "decay", "l2"),
    "--optimizer": ("opt", "optim", "solver"),
    "--num-threads": ("workers", "num-workers", "j", "threads"),
    "--devices": ("gpus", "num-gpus", "ngpu"),
    "--split": ("val-split", "validation-split", "test-size"),
    "--patience": ("early-stopping", "early-stop"),
    "--augment": ("aug", "augmentation", "auto-augment"),
    "--dtype": ("amp", "fp16", "half", "mixed-precision", "precision"),
    "--csv": ("out", "output", "save-txt"),
    "--top": ("topk", "top-k"),
}
"""A flag -> its spellings in other tools."""


def parse(target: Callable[..., Any], argv: Sequence[str], command: str, **options: Any) -> Any:
    """Return what `target`, a command's function or a dataclass, returns for these flags.

    Args:
        target: the function or dataclass whose parameters become flags.
        argv: the words after the command.
        command: its name, for messages.
        **options: of `tyro.cli`, such as `default`.

    Raises:
        ConfigError: flags that do not fit; the message names the flag, what it takes and the
            nearest match.
    """

    def refuse(event: Any) -> None:
        _refuse(event, list(argv), flags_of(target), command)

    with _on_parse_error(refuse):
        return tyro.cli(target, prog=f"vggjax {command}", args=list(argv), **options)


def value_of(argv: Sequence[str], flag: str) -> str | None:
    """Return the last value of `--flag` without parsing the rest; None if it is absent."""
    value = None
    for i, word in enumerate(argv):
        if word == f"--{flag}" and i + 1 < len(argv):
            value = argv[i + 1]
        elif word.startswith(f"--{flag}="):
            value = word.split("=", 1)[1]
    return value


def _on_parse_error(hook: Callable[[Any], None]) -> AbstractContextManager[None]:
    try:
        from tyro._errors import on_parse_error  # tyro calls this interface experimental
    except ImportError:
        return nullcontext()
    return on_parse_error(hook)


def _refuse(event: Any, argv: list[str], flags: list[str], command: str) -> None:
    """Raise the event's error as one line; an event of an unknown kind is left to tyro."""
    argument: Any = getattr(event, "argument", None)
    match type(event).__name__:
        case "InstantiationFailure" if argument is None:  # the dataclass refused the values
            raise ConfigError(event.message)
        case "InstantiationFailure":
            message = _wrong_value(argument, argv)
        case "InvalidChoice":
            choices = list(event.choices)
            if "None" in choices:  # of an optional field, in the order of a set
                choices = sorted({*choices} - {"None"})
            listed = ", ".join(choices)
            message = f"{argument.display_name()} takes one of {listed}; got {event.value!r}."
        case "BadValue":
            unknown = [w for w in argv if w.startswith("--") and w.partition("=")[0] not in flags]
            if argument.is_positional() and unknown:  # which took its place
                message = _unrecognized(unknown, flags)
            else:
                message = _wrong_value(argument, argv)
        case "UnrecognizedArgs":
            message = _unrecognized(event.tokens, flags)
            word, is_given = event.tokens[0], value_of(argv, "dataset") is not None
            if command == "train" and not (is_given or word in _HINTS or word.startswith("-")):
                message += f" Did you mean --dataset {word}?"
        case "MissingArgs":
            missing = (context.arg for context in event.missing_arguments)
            names = (a.lowered.metavar if a.is_positional() else a.display_name() for a in missing)
            first, *others = map(str, names)
            message = f"Missing: {', '.join([first, *others])}."
            meant = [w for w in argv if w not in flags and _nearest_flag(w, flags) == first]
            if first.startswith("--") and argv and not argv[0].startswith("-"):
                message += f" Did you mean {first} {argv[0]}?"
            elif meant:
                message += f" Did you mean {first} for {meant[0]}?"
        case _:
            return
    _raise(message, command)


def _raise(message: str, command: str) -> NoReturn:
    raise ConfigError(f"{message} See vggjax {command} --help.")


def _wrong_value(argument: Any, argv: list[str]) -> str:
    flag, metavar = argument.display_name(), str(argument.lowered.metavar)
    return f"{flag} takes {metavar.replace('{None}', 'None')}; got {_values_after(argv, flag)}."


def _unrecognized(tokens: list[str], flags: list[str]) -> str:
    message = f"Unrecognized option{'s' if len(tokens) > 1 else ''}: {' '.join(tokens)}."
    words = [token.partition("=")[0] for token in tokens]
    hints = [_HINTS[word] for word in words if word in _HINTS]
    meant = {w: flag for w in words if w not in _HINTS and (flag := _nearest_flag(w, flags))}
    if meant:
        names = " and ".join(f"{flag} for {w}" for w, flag in meant.items())
        hints.append(f"Did you mean {names if len(meant) > 1 else next(iter(meant.values()))}?")
    return " ".join([message, *hints])


def _nearest_flag(word: str, flags: list[str]) -> str | None:
    """Return the flag that an unrecognized word stands for; None for a value, or without one."""
    if not word.startswith("-"):
        return None
    name = word.lstrip("-").replace("_", "-").lower()
    for flag, spellings in _SPELLINGS.items():
        if name in spellings and flag in flags:
            return flag
    near = difflib.get_close_matches(f"--{name}", flags, n=1, cutoff=0.65)
    return near[0] if near else None


def _values_after(argv: list[str], flag: str) -> str:
    """Return the words last given to a flag as they were typed, or "nothing"."""
    values = "nothing"
    for i, word in enumerate(argv):
        if word.startswith(f"{flag}="):
            values = repr(word.split("=", 1)[1])
        elif word == flag:
            given = itertools.takewhile(lambda other: not other.startswith("--"), argv[i + 1 :])
            values = " ".join(map(repr, given)) or "nothing"
    return values


def flags_of(target: Callable[..., Any]) -> list[str]:
    """Return the flags of a dataclass or function; a boolean has its `--no-` form as well."""
    flags: list[str] = []
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind is parameter.POSITIONAL_ONLY:
            continue
        if dataclasses.is_dataclass(type(parameter.default)):  # its fields are flags themselves
            flags += flags_of(type(parameter.default))
        else:
            flags.append(flag_of(name))
            if isinstance(parameter.default, bool):
                flags.append(flag_of(f"no_{name}"))
    return flags
