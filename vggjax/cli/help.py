"""The page of `vggjax COMMAND --help`, from the command's parameters and their docstrings."""

import ast
import dataclasses
import inspect
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from vggjax.data.sources.options import DatasetOptions
from vggjax.errors import flag_of
from vggjax.training.config import Config

METAVARS = {
    **dict.fromkeys(
        ("workdir", "start_from", "data_dir", "weights", "csv", "sort_into", "explain", "config"),
        "PATH",
    ),
    **dict.fromkeys(("label_pattern", "group_pattern"), "REGEX"),
    **dict.fromkeys(("unfreeze", "stages"), "LAYERS"),
    "dataset": "DATA",
    "split": "SHARES",
    "recipe": "NAME",
    "model": "NAME",
    "head": "HEAD",
    "expect_sha256": "SHA256",
}
"""A parameter -> what stands for its value; others have the word of their type."""

GROUPS = {
    "Data": "dataset",
    "How the data is read": "task",
    "Splits": "split",
    "Images": "image_size",
    "Augmentation": "augment",
    "Devices": "coordinator",
    "Model": "model",
    "What trains": "unfreeze",
    "Optimizer": "batch_size",
    "The best weights": "patience",
    "Cached features": "cache_features",
    "The run": "log_every_steps",
}
"""The groups of train's settings -> the first field of each, in the order of `Config`."""

FIRST = {
    "Data": ("dataset", "split", "image_size", "augment"),
    "Model": ("model", "weights", "unfreeze", "recipe"),
    "Training": ("epochs", "batch_size", "learning_rate", "workdir"),
}
"""What most trainings need to set: the page of `vggjax train --help`."""


TRAINS = "Train on a dataset, evaluate, and write the report. Defaults are in brackets."


@dataclass(frozen=True)
class _Entry:
    name: str
    words: str
    """`--epochs INT`, or `IMAGE [IMAGE ...]` of a positional argument."""
    text: str
    default: str = ""

    def short(self) -> "_Entry":
        """Return the entry with the first sentence of its text."""
        return dataclasses.replace(self, text=re.split(r"(?<=\.)\s+(?=[A-Z`])", self.text)[0])


def train_page(default: Config, *, whole: bool) -> str:
    """Return the help of `vggjax train` with the defaults of a Config.

    Args:
        default: the settings that are used unless a flag says otherwise.
        whole: all settings, in groups, instead of the twelve that most trainings need.
    """
    entries = {entry.name: entry for entry in _settings(Config, default)}
    entries["dataset"] = dataclasses.replace(entries["dataset"], words="DATA, --dataset DATA")
    if whole:
        names, starts = [*entries], [*GROUPS.values()]
        ends = [*map(names.index, starts[1:]), len(names)]
        groups = {
            title: names[names.index(start) : end]
            for (title, start), end in zip(GROUPS.items(), ends, strict=True)
        }
    else:
        groups = {title: list(group) for title, group in FIRST.items()}
    page = ["usage: vggjax train [DATA] [OPTIONS]\n", f"{TRAINS}\n"]
    for title, group in groups.items():
        shown = [entries[name] for name in group]
        page.append(_render(title, shown if whole else [entry.short() for entry in shown]))
    number = sum(map(len, FIRST.values()))
    page.append(
        f"The {number} that most trainings need: --help. All {len(entries)}: --help-all. Lessons: "
        "vggjax recipes."
    )
    return "\n".join(page).rstrip()


def command_page(name: str, command: Callable[..., Any]) -> str:
    """Return the help of any other command."""
    description, texts = _docstring(command)
    positional: list[_Entry] = []
    options: list[_Entry] = []
    dataset: list[_Entry] = []
    hints = typing.get_type_hints(command, include_extras=True)
    for parameter in inspect.signature(command).parameters.values():
        if dataclasses.is_dataclass(default := parameter.default):
            group = dataset if isinstance(default, DatasetOptions) else options
            group += _settings(type(default), default)
            continue
        text = texts.get(parameter.name, "")
        if parameter.kind is parameter.POSITIONAL_ONLY:
            words = _positional_words(parameter, hints[parameter.name])
            positional.append(_Entry(parameter.name, words, text))
        else:
            shown = "" if default is parameter.empty else _shown(default)
            options.append(_entry(parameter.name, hints[parameter.name], text, shown))
    usage = " ".join([*(entry.words for entry in positional), "[OPTIONS]"])
    page = [f"usage: vggjax {name} {usage}\n", f"{description}\n"]
    titles = ("Arguments", "Options", "How the data is read")
    for title, entries in zip(titles, (positional, options, dataset), strict=True):
        if title == "Options":
            entries = [*entries, _Entry("help", "--help", "Print this page.")]
        if entries:
            page.append(_render(title, entries))
    return "\n".join(page).rstrip()


def _settings(cls: type, default: Any) -> Iterator[_Entry]:
    """Yield the fields of a dataclass of settings, in the order of the fields."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            texts |= _attribute_docstrings(base)
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        shown = _shown(getattr(default, field.name))
        yield _entry(field.name, hints[field.name], texts.get(field.name, ""), shown)


def _entry(name: str, hint: Any, text: str, shown: str) -> _Entry:
    flag, hint = flag_of(name), _plain(hint)
    if hint is bool:
        words = f"{flag}, --no-{flag[2:]}" if shown == "on" else flag
    else:
        words = f"{flag} {_metavar(name, hint)}"
    return _Entry(name, words, text, "" if shown == "off" else shown)


def _plain(hint: Any) -> Any:
    """Return a type without its annotations and without None."""
    if hasattr(hint, "__metadata__"):
        hint = hint.__origin__
    if get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    return hint


def _metavar(name: str, hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "{" + ",".join(map(str, get_args(hint))) + "}"
    if get_origin(hint) is tuple:
        return f"{_metavar(name, get_args(hint)[0])} ..."
    return METAVARS.get(name) or {int: "INT", float: "FLOAT", Path: "PATH"}.get(hint, "TEXT")


def _positional_words(parameter: inspect.Parameter, hint: Any) -> str:
    given = [getattr(note, "metavar", None) for note in getattr(hint, "__metadata__", ())]
    word = next(filter(None, given), parameter.name.upper())
    return word if parameter.default is parameter.empty else f"[{word}]"


def _shown(value: Any) -> str:
    """Return a default as it would be typed; empty for None, whose docstring says what it is."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return "" if value is None else str(value)


def _attribute_docstrings(cls: type) -> dict[str, str]:
    """Return the string that follows each field in a class's source."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    texts = {}
    assert isinstance(definition, ast.ClassDef)
    for field, follower in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(follower, ast.Expr):
            if isinstance(follower.value, ast.Constant) and isinstance(field.target, ast.Name):
                texts[field.target.id] = _without_none(str(follower.value.value))
    return texts


def _without_none(text: str) -> str:
    """Return a docstring as one line, in words of the command line."""
    text = re.sub(r"(^|\. )None is ", r"\1By default ", " ".join(text.split()))
    return text.replace("; None is ", "; by default ")


def _docstring(command: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """Return a command's description, and its parameters' texts."""
    description, _, arguments = (inspect.getdoc(command) or "").partition("\n\nArgs:\n")
    parts = re.split(r"^ {4}(\w+): ", arguments, flags=re.MULTILINE)[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return description, {name: _without_none(text) for name, text in pairs}


def _render(title: str, entries: list[_Entry]) -> str:
    """Return a group: a line or more for each parameter, its words left of its text."""
    indent = 26
    width = max(60, min(shutil.get_terminal_size().columns, 100))
    lines = [f"{title}:"]
    for entry in entries:
        default = f" [{entry.default}]" if entry.default else ""
        text = textwrap.wrap(entry.text + default, width - indent, break_long_words=False) or [""]
        if len(entry.words) > indent - 4:
            lines.append(f"  {entry.words}")
        else:
            lines.append(f"  {entry.words:<{indent - 4}}  {text.pop(0)}".rstrip())
        lines += [" " * indent + line for line in text]
    return "\n".join(lines) + "\n"
