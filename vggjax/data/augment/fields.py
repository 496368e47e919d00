"""Checks the fields of a frozen dataclass of settings, and words a refusal as its flag.

Every field is a flag of the same name on the command line. Types are those that the field
declares: a whole number may stand for a float, and no number may be infinite or NaN.
"""

import math
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vggjax.errors import ConfigError, unknown_name


def flag(name: str) -> str:
    """Gives a field's flag: `batch_size` is `--batch-size`."""
    return "--" + name.replace("_", "-")


def check(settings: Any, name: str, holds: bool, wanted: str) -> None:
    """Refuses a field's value unless `holds`: `--epochs must be above 0; got 0.`"""
    if not holds:
        raise ConfigError(f"{flag(name)} must be {wanted}; got {shown_value(settings, name)}.")


def shown_value(settings: Any, name: str) -> str:
    """Writes a field's value as it is typed: several values apart by blanks."""
    value = getattr(settings, name)
    return " ".join(map(str, value)) if isinstance(value, tuple) and value else str(value)


def coerce_tuples(settings: Any) -> None:
    """Turns a list, or a single value, into a tuple where the field is declared as one."""
    for name, kind in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        if get_origin(kind) is tuple and not isinstance(value, tuple):
            single = isinstance(value, str) or not hasattr(value, "__iter__")
            object.__setattr__(settings, name, (value,) if single else tuple(value))


def check_types(settings: Any) -> None:
    """Refuses a value of another type than its field declares.

    Raises:
        ConfigError: with the flag, what it takes, and the nearest choice if it has some.
    """
    for name, kind in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        if get_origin(kind) is tuple:
            for item in value:
                _check_type(name, item, get_args(kind)[0], value)
        else:
            _check_type(name, value, kind, value)


def _check_type(name: str, value: Any, kind: Any, received: Any) -> None:
    kinds = get_args(kind) or (kind,)
    choices = [choice for k in kinds if get_origin(k) is Literal for choice in get_args(k)]
    if get_origin(kind) is Literal:
        choices, kinds = list(kinds), ()
    if choices:
        if value not in choices and not (value is None and type(None) in kinds):
            raise ConfigError(unknown_name(flag(name), value, choices))
        return
    taken = (*kinds, int) if float in kinds else kinds
    if not isinstance(value, taken) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join(k.__name__.replace("NoneType", "None") for k in kinds)
        raise ConfigError(f"{flag(name)} takes {names}; got {received!r}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{flag(name)} must be a finite number; got {value}.")
