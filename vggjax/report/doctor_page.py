"""Shows what `vggjax doctor` found on one HTML page, with the images themselves.

The page needs no other file, no network and no script. Of a long list it shows the first cases; the
JSON of findings.py holds all. Nothing is written to the dataset.
"""

import base64
import io
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from vggjax.atomic import write_text
from vggjax.data.quality.findings import KINDS, Finding, Findings
from vggjax.data.sources.source import Source
from vggjax.errors import ConfigError, DataError, printable
from vggjax.report.doctor_screen import SENTENCES, describe_entry, verdict

MAX_CASES = 24
"""Cases of a kind that are shown with their images."""

MAX_MEMBERS = 4
MAX_LINES = 200
THUMBNAIL_PX = 200

WITH_IMAGES = ("damaged", "tiny", "small_pictures", "extreme_aspect", "misnamed")
GROUPED = ("label_conflict", "leaked", "exact_duplicate", "near_duplicate", "adapted")
"""Kinds whose cases are several images, side by side; the others are lines of text."""


def check_doctor_page(path: str | Path, *, dataset: str) -> Path:
    """Gives the page's path.

    Raises:
        ConfigError: it is a folder, its folder is not there, or it lies in the dataset.
    """
    path, folder = Path(path).expanduser(), Path(dataset).expanduser()
    if folder.is_dir() and path.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"{printable(path)} lies in the dataset; give a place outside of it.")
    if folder.is_file() and path.resolve() == folder.resolve():
        raise ConfigError(f"{printable(path)} is the dataset itself; give another file.")
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigError(
            f"--html takes a file to write, in a folder that is there; got {printable(path)}."
        )
    return path


def write_doctor_page(findings: Findings, path: str | Path) -> Path:
    """Writes the page, whole or not at all, and gives its path.

    Raises:
        ConfigError: what `check_doctor_page` refuses.
    """
    path = check_doctor_page(path, dataset=findings.dataset)
    source = findings.source
    page = _template().render(
        name=_short(findings.dataset),
        dataset=printable(findings.dataset),
        clean=not findings.problems,
        verdict=verdict(findings),
        tiles=_tiles(findings),
        classes=_classes(findings),
        splits=[split for split in findings.counts() if split],
        problems=[_section(item, findings) for item in findings.problems],
        remarks=[_section(item, findings) for item in findings.remarks],
        fix=f"vggjax doctor {shlex.quote(printable(findings.dataset))} --fix CLEANED",
        fixable=source is not None and len(source) > 0 and source.path(0) is not None,
    )
    write_text(path, page)
    return path


def _tiles(findings: Findings) -> list[tuple[str, str]]:
    source, duplicates = findings.source, findings.duplicates
    if source is None:
        return [("0", "images")]
    counts = {item.kind: item.count for item in findings.items}
    tiles = [
        (len(source), "images"),
        (len(source.class_names), "classes"),
        (len(duplicates.unreadable), "cannot be read"),
        (duplicates.exact, "exact duplicates"),
        (duplicates.near, "near duplicates"),
        (counts.get("label_conflict", 0), "label conflicts"),
    ]
    if source.splits:
        tiles.append((counts.get("leaked", 0), "leaked"))
    return [(f"{count:,}", text) for count, text in tiles]


def _classes(findings: Findings) -> list[dict[str, Any]]:
    if findings.source is None:
        return []
    counts, names = findings.counts(), findings.source.class_names
    total = sum(counts.values(), np.zeros(len(names), np.int64))
    return [
        {
            "name": printable(name),
            "splits": [int(count[label]) for split, count in counts.items() if split],
            "images": int(total[label]),
            "share": float(total[label] / max(1, total.max())),
            "weight": None if findings.weights is None else float(findings.weights[label]),
        }
        for label, name in enumerate(names)
    ]


def _section(item: Finding, findings: Findings) -> dict[str, Any]:
    kind, source = KINDS[item.kind], findings.source
    section = {
        "id": item.kind,
        "title": kind.title,
        "meaning": kind.meaning,
        "count": None if item.kind in SENTENCES else item.count,
        "grouped": item.kind in GROUPED,
        "lines": [],
        "cases": [],
    }
    if item.kind in (*WITH_IMAGES, *GROUPED):
        for entry in item.entries[:MAX_CASES]:
            text = f"{printable(entry.text)}: {len(entry.images):,}"
            text = text if item.kind == "adapted" else printable(entry.text)
            section["cases"].append(_case(entry.images, text, findings))
    else:
        section["lines"] = [describe_entry(entry, source) for entry in item.entries[:MAX_LINES]]
    return section | {
        "more": len(item.entries) - len(section["cases"]) - len(section["lines"]),
    }


def _case(images: tuple[int, ...], text: str, findings: Findings) -> dict[str, Any]:
    source, split_of = findings.source, findings.split_of
    members = [
        {
            "id": printable(source.ids[i]),
            "label": printable(source.class_names[source.labels[i]]),
            "split": str(split_of[i]),
            "image": _thumbnail(source, i),
        }
        for i in images[:MAX_MEMBERS]
    ]
    return {"text": text, "members": members, "more": len(images) - len(members)}


def _thumbnail(source: Source, i: int) -> str | None:
    from PIL import Image

    try:
        image = Image.fromarray(source.read(i).pixels)
    except DataError:
        return None  # it was there a moment ago
    side = max(image.size)
    if side <= THUMBNAIL_PX // 4:  # a tiny image shows its pixels, sharp
        times = THUMBNAIL_PX // side
        image = image.resize((image.width * times, image.height * times), 0)
    # A strip of 1 x 5,000 px becomes one that can be seen.
    image = image.resize(_shown_size(*image.size), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _shown_size(width: int, height: int) -> tuple[int, int]:
    times = min(1, THUMBNAIL_PX / max(width, height))
    return max(4, round(width * times)), max(4, round(height * times))


def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("doctor.html.j2")


def _short(path: str) -> str:
    return printable(Path(path).name or path)
