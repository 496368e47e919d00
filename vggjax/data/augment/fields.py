"""Declare the settings of a frozen dataclass with their bounds, and check their values.

Each field is also a flag of the command line. A message names a setting by its field, in backticks:
"`epochs` must be above 0; got 0."
"""

import dataclasses
import math
import operator
import re
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vggjax.errors import ConfigError, unknown_name


def setting(
    default: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    non_empty: bool = False,
) -> Any:
    """Declare a dataclass field with the bounds that `check_settings` holds its value to.

    The bounds of a tuple field hold for each of its items. None, where the field's type allows it,
    passes. `non_empty` refuses an empty string or tuple.
    """
    bounds = {"above": above, "at least": at_least, "below": below, "at most": at_most}
    given = {bound: limit for bound, limit in bounds.items() if limit is not None}
    return dataclasses.field(default=default, metadata={"bounds": given, "non_empty": non_empty})


def check_settings(settings: Any) -> None:
    """Check every field of a dataclass instance against its declared type, choices and bounds.

    A list, or a single value, becomes a tuple if the field is declared as one. An int may stand for
    a float; no number may be infinite or NaN.

    Raises:
        ConfigError: with the field, what it accepts and the value received.
    """
    kinds = get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        kind, value = kinds[field.name], getattr(settings, field.name)
        is_tuple = get_origin(kind) is tuple
        if is_tuple and not isinstance(value, tuple):
            single = isinstance(value, str) or not hasattr(value, "__iter__")
            value = (value,) if single else tuple(value)
            object.__setattr__(settings, field.name, value)
        for item in value if is_tuple else (value,):
            _check_type(field.name, item, get_args(kind)[0] if is_tuple else kind, value)
            for bound, limit in field.metadata.get("bounds", {}).items():
                holds = item is None or _HOLDS[bound](item, limit)
                check(settings, field.name, holds, _bounds_text(field))
        if field.metadata.get("non_empty") and value in ("", ()):
            raise ConfigError(f"`{field.name}` is empty; give it a value.")


_HOLDS = {
    "above": operator.gt,
    "at least": operator.ge,
    "below": operator.lt,
    "at most": operator.le,
}


def _bounds_text(field: dataclasses.Field) -> str:
    text = " and ".join(f"{bound} {limit}" for bound, limit in field.metadata["bounds"].items())
    return re.sub("^at least (.*) and (?:at most )?", r"from \1 to ", text)


def check(settings: Any, name: str, holds: bool, wanted: str) -> None:
    """Raise ConfigError unless `holds`: "`name` must be {wanted}; got {its value}."."""
    if not holds:
        raise ConfigError(f"`{name}` must be {wanted}; got {shown_value(settings, name)}.")


def shown_value(settings: Any, name: str) -> str:
    """Return a field's value as it is typed on the command line: "0.8 1.2" for a tuple."""
    value = getattr(settings, name)
    return " ".join(map(str, value)) if isinstance(value, tuple) and value else str(value)


def _check_type(name: str, value: Any, kind: Any, received: Any) -> None:
    kinds = (kind,) if get_origin(kind) is Literal else get_args(kind) or (kind,)
    choices = [choice for k in kinds if get_origin(k) is Literal for choice in get_args(k)]
    if choices:
        if value not in choices and not (value is None and type(None) in kinds):
            raise ConfigError(unknown_name(f"`{name}`", value, choices))
        return
    accepted = (*kinds, int) if float in kinds else kinds
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join(k.__name__.replace("NoneType", "None") for k in kinds)
        raise ConfigError(f"`{name}` takes {names}; got {received!r}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"`{name}` must be a finite number; got {value}.")
