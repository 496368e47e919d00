"""Read the settings of a run from a file: YAML, or the `config.json` of a run.

A file is a mapping of fields of `Config` to values. YAML is read as its version 1.2 means it: `no`
and `off` are words, 1e-3 is a number. From a run's own file its `workdir` is left out, so that
another run begins. Settings that are given beside the file win, and `recipe` works in it as there.
"""

import dataclasses
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from vggjax.data.augment.settings import check_field, shown_value
from vggjax.errors import ConfigError, nearest_name, printable
from vggjax.training.config import Config

_OF_RUN = {"format", "sha256"}
"""Keys of a run's config.json that are no settings."""


def read_settings(path: str | Path) -> dict[str, Any]:
    """Return the fields that a file sets, each with a value of its type.

    Args:
        path: a YAML or JSON file, or the folder of a run.

    Raises:
        ConfigError: the file cannot be read, is no mapping, or has an unknown field or a value that
            does not fit; the message names the file and the field.
    """
    path = Path(path).expanduser()
    path = path / "config.json" if path.is_dir() else path
    try:
        fields = _parse(path)
        if fields is None:
            raise ConfigError("it is empty.")
        if not isinstance(fields, dict):
            raise ConfigError(f"expected `name: value` on each line; got {type(fields).__name__}.")
        if {*fields} >= _OF_RUN:
            left_out = {*_OF_RUN, "workdir", "config"}
            fields = {name: value for name, value in fields.items() if name not in left_out}
        return {name: value for name, value in map(_checked, fields.items())}
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"`config` {printable(path)} cannot be read: {reason}.") from None
    except ConfigError as error:
        raise ConfigError(f"{printable(path)}: {error}") from None


def merge(file: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """Return the fields of a file but for those that the names given beside it replace.

    `stages` replaces a file's `unfreeze` and epochs, and `unfreeze` its stages.
    """
    replaced = {*given}
    if "unfreeze" in given:
        replaced.add("stages")
    elif "stages" in given:
        replaced |= {"unfreeze", "head_epochs", "epochs"}
    return {name: value for name, value in file.items() if name not in replaced}


def describe(path: str, file: Mapping[str, Any], config: Config) -> str:
    """Return in a line which settings came from a file, and which of its own were replaced."""
    defaults = {field.name: field.default for field in dataclasses.fields(Config)}
    own = {name: value for name, value in file.items() if value != defaults[name]}
    kept = [name for name, value in own.items() if getattr(config, name) == value]
    replaced = [name for name in own if name not in kept]
    text = ", ".join(f"{name} {shown_value(config, name)}" for name in kept) or "nothing"
    text = f"Settings from {printable(path)}: {printable(text)}"
    return f"{text}; given otherwise: {', '.join(replaced)}" if replaced else text


def unchecked(fields: Mapping[str, Any]) -> Config:
    """Return a Config of defaults that only need to fit together with what is given beside them."""
    config = object.__new__(Config)
    for field in dataclasses.fields(Config):
        object.__setattr__(config, field.name, fields.get(field.name, field.default))
    return config


def _checked(item: tuple[Any, Any]) -> tuple[str, Any]:
    """Return a field and its value; raise ConfigError if there is none, or the value misfits."""
    key, value = item
    name = str(key).removeprefix("--").replace("-", "_")
    names = [field.name for field in dataclasses.fields(Config) if field.name != "config"]
    if name not in names:
        near = nearest_name(name, names)
        hint = f"did you mean `{near}`?" if near else "vggjax train --help-all lists them."
        raise ConfigError(f"{printable(key)!r} is no setting; {hint}")
    return name, check_field(Config, name, value)


def _parse(path: Path) -> Any:
    """Return the contents of a JSON or YAML file; raise ConfigError if it is neither."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            return json.loads(text)
        return _parse_yaml(text)
    except UnicodeDecodeError:
        raise ConfigError("it is no text in UTF-8.") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"it is not JSON: {error}.") from None
    except RecursionError:
        raise ConfigError("it is nested too deeply.") from None


def _parse_yaml(text: str) -> Any:
    """Parse YAML with the core schema of version 1.2, and refuse a key that is there twice."""
    import yaml

    class Loader(yaml.SafeLoader):
        """PyYAML's, which knows version 1.1, with other rules for plain words."""

        yaml_implicit_resolvers: dict[str, Any] = {}

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key.value for key, _ in node.value]
            twice = next((key for key in keys if keys.count(key) > 1), None)
            if twice is not None:
                raise ConfigError(f"`{printable(twice)}` is there twice.")
            return super().construct_mapping(node, deep)

    for tag, pattern in {
        "bool": "true|True|TRUE|false|False|FALSE",
        "null": "~|null|Null|NULL|",
        "int": "[-+]?[0-9]+",
        "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.nan",
    }.items():
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^({pattern})$"), None)
    Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
    try:
        return yaml.load(text, Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "unreadable"
        raise ConfigError(f"it is not YAML{where}: {problem}.") from None
