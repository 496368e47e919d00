"""The manifest of a folder: the size and SHA-256 of each of its files, written last.

Orbax reads most flipped bits as other numbers, without an error. A checkpoint is therefore used
only if its files are those that were written.
"""

import hashlib
import json
from pathlib import Path

from vggjax.atomic import write_text

MANIFEST = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Write `manifest.json` into a folder whose other files are complete."""
    files = {path.relative_to(folder).as_posix(): _digest(path) for path in _files(folder)}
    text = json.dumps({"files": files}, indent=1)
    own = hashlib.sha256(text.encode()).hexdigest()
    write_text(folder / MANIFEST, f"{text}\n{own}\n")


def find_damage(folder: Path) -> str | None:
    """Return what differs from the folder's manifest; None if nothing does, or it has none.

    A checkpoint of version 0.1.0 has none, nor has one whose process was killed just before that.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        text, _, own = path.read_text(encoding="utf-8").rstrip("\n").rpartition("\n")
        if hashlib.sha256(text.encode()).hexdigest() != own:
            return f"{MANIFEST} is damaged"
        expected = json.loads(text)["files"]
        names = {file.relative_to(folder).as_posix() for file in _files(folder)}
        if names != set(expected):
            return f"{min(names ^ set(expected))} is missing or new"
        for name, digest in expected.items():
            if _digest(folder / name) != digest:
                return f"{name} is damaged"
    except (OSError, UnicodeDecodeError) as error:
        return f"it cannot be read: {error}"
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)


def _digest(path: Path) -> list[int | str]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return [file.tell(), digest]
