"""Writes the command that makes a run again: the flags that differ from what it starts from.

In: a run's Config. Out: one line for a shell. The run's folder is left out, for in it the command
would find the run finished.
"""

import dataclasses
import shlex
from typing import Any

from vggjax.errors import flag_of, printable
from vggjax.training.config import Config
from vggjax.training.recipes import recipe_fields


def train_command(config: Config) -> str:
    """Gives `vggjax train ...` with every flag that differs from the recipe's and the defaults."""
    words = ["vggjax", "train"]
    for name, value in changed_settings(config).items():
        words += _words(name, value)
    return " ".join(shlex.quote(printable(word)) for word in words)


def changed_settings(config: Config) -> dict[str, Any]:
    """Gives the fields, all but the run's folder, that differ from the recipe's and the defaults.

    The recipe itself is one of them, but for `digits`, which the digits have without being asked.
    """
    start = Config(**recipe_fields(config.recipe, config.dataset))
    changed = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(Config)
        if field.name not in ("workdir", "recipe")
        and getattr(config, field.name) != getattr(start, field.name)
    }
    if config.recipe not in (None, recipe_fields(None, config.dataset).get("recipe")):
        changed = {"recipe": config.recipe} | changed
    return changed


def _words(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag_of(name) if value else flag_of(f"no_{name}")]
    if isinstance(value, tuple | list):
        return [flag_of(name), *map(str, value)]
    return [flag_of(name), str(value)]
