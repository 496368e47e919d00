"""JSON files that say whether they are what was written: their key `sha256` is of all the others.

A digest of the contents and not of the bytes: the file may be formatted anew. Files of versions
that wrote no digest have no `format` either, and are read without it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from vggjax.atomic import write_text

FORMAT = 2
"""The version of these files; 1 had no digest."""


def write_json(path: Path, fields: dict[str, Any]) -> None:
    """Write the fields and their digest, whole or not at all; every number must be finite."""
    fields = {"format": FORMAT} | fields
    fields = json.loads(json.dumps(fields, allow_nan=False))  # as they are read: tuples are lists
    write_text(path, json.dumps(fields | {"sha256": _digest(fields)}, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read the fields without their digest and format.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no JSON object, not what was written, or of a later version.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(fields, dict):
        raise ValueError(f"expected an object; got {type(fields).__name__}")
    digest = fields.pop("sha256", None)
    if (digest is not None or "format" in fields) and digest != _digest(fields):
        raise ValueError("its contents are not those that were written (see its sha256)")
    if fields.pop("format", FORMAT) != FORMAT:
        raise ValueError("a later version of vggjax wrote it; install that one")
    return fields


def check_form(value: Any, form: Any, name: str = "it") -> None:
    """Raise ValueError unless a JSON value has a form.

    A form is a type, `[form]` of a list's entries, or `{key: form}` of an object; the key `...` has
    the form of all other entries, which may be missing. A float may be a whole number.
    """
    kind: Any = form if isinstance(form, type) else type(form)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise ValueError(f"{name} must be a {kind.__name__}; got {str(value)[:40]!r}")
    if isinstance(form, list):
        for entry in value:
            check_form(entry, form[0], f"an entry of {name}")
    elif isinstance(form, dict):
        missing = [key for key in form if key is not ... and key not in value]
        if missing:
            raise ValueError(f"{name} lacks {missing[0]!r}")
        for key, entry in value.items():
            if key in form or ... in form:
                check_form(entry, form.get(key, form.get(...)), repr(key))


def _digest(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
