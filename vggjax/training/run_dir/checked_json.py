"""JSON files that say whether they are what was written: their key `sha256` is of all the others.

A digest of the contents and not of the bytes: the file may be formatted anew. Files of versions
that wrote no digest are read without it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from vggjax.atomic import write_text


def write_json(path: Path, fields: dict[str, Any]) -> None:
    """Write the fields and their digest, whole or not at all; every number must be finite."""
    fields = json.loads(json.dumps(fields, allow_nan=False))  # as they are read: tuples are lists
    write_text(path, json.dumps(fields | {"sha256": _digest(fields)}, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read the fields without their digest.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no JSON object, or not what was written.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(fields, dict):
        raise ValueError(f"expected an object; got {type(fields).__name__}")
    digest = fields.pop("sha256", None)
    if digest is not None and digest != _digest(fields):
        raise ValueError("its contents are not those that were written (see its sha256)")
    return fields


def _digest(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
