"""Show the findings of `vggjax doctor` on one HTML page, with the images themselves.

The page needs no other file, no network and no script. Long lists are cut; the JSON of findings.py
is complete. Nothing is written into the dataset.
"""

import os
import shlex
from pathlib import Path
from typing import Any

from vggjax.atomic import check_output_file, write_output
from vggjax.data.quality.findings import Entry, Finding, Findings
from vggjax.errors import ConfigError, printable
from vggjax.report.doctor_screen import describe_entry, describe_finding, shown_entries, verdict
from vggjax.report.page import render
from vggjax.report.thumbnails import Thumbnails

MAX_CASES = 24
"""Cases of a kind that are shown with their images."""

MAX_MEMBERS = 4
MAX_LINES = 200

WITH_IMAGES = ("damaged", "tiny", "small_pictures", "extreme_aspect", "misnamed")
GROUPED = (
    "label_conflict",
    "leaked",
    "exact_duplicate",
    "near_duplicate",
    "turned_copy",
    "adapted",
)
"""Kinds whose cases are several images, side by side; all others are lines of text."""


def check_doctor_page(path: str | Path, *, dataset: str) -> Path:
    """Return the path of the page.

    Raises:
        ConfigError: it is a folder, its folder does not exist, it lies in the dataset, or it exists
            and has the name of something other than a page.
    """
    endings = (".html", ".htm") if os.path.lexists(path) else ()  # an older page may be replaced
    path, folder = check_output_file(path, field="html", endings=endings), Path(dataset)
    folder = folder.expanduser()
    if folder.exists() and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise ConfigError(f"{printable(path)} is inside the dataset; choose a path outside of it.")
    return path


def write_doctor_page(findings: Findings, path: str | Path) -> Path:
    """Write the page, whole or not at all, and return its path.

    Raises:
        ConfigError: for the reasons of `check_doctor_page`.
    """
    path = check_doctor_page(path, dataset=findings.dataset)
    source, classes = findings.source, findings.classes()
    thumbnails = Thumbnails(source)
    context = {
        "name": printable(Path(findings.dataset).name or findings.dataset),
        "dataset": printable(findings.dataset),
        "clean": not findings.problems,
        "verdict": verdict(findings),
        "tiles": _tiles(findings),
        "classes": [row | {"name": printable(row["name"])} for row in classes],
        "largest": max((row["images"] for row in classes), default=1) or 1,
        "splits": list(classes[0]["splits"]) if classes else [],
        "problems": [_section(item, findings, thumbnails) for item in findings.problems],
        "remarks": [_section(item, findings, thumbnails) for item in findings.remarks],
        "fix": f"vggjax doctor {shlex.quote(printable(findings.dataset))} --fix CLEANED",
        "is_fixable": source is not None and len(source) > 0 and source.path(0) is not None,
    }
    write_output(path, render("doctor.html.j2", context).encode("utf-8", "surrogateescape"))
    return path


def _tiles(findings: Findings) -> list[tuple[str, str]]:
    source, duplicates = findings.source, findings.duplicates
    if source is None or duplicates is None:
        return [("0", "images")]
    counts = {item.kind: item.count for item in findings.items}
    tiles = [
        (len(source), "images"),
        (len(source.class_names), "classes"),
        (len(duplicates.unreadable), "unreadable"),
        (duplicates.exact, "exact duplicates"),
        (duplicates.near, "near-duplicates"),
        (counts.get("label_conflict", 0), "label conflicts"),
    ]
    if source.splits:
        tiles.append((counts.get("leaked", 0), "leaked"))
    return [(f"{count:,}", text) for count, text in tiles]


def _section(item: Finding, findings: Findings, thumbnails: Thumbnails) -> dict[str, Any]:
    has_images = findings.source is not None and item.kind in (*WITH_IMAGES, *GROUPED)
    section = describe_finding(item, findings, most=MAX_CASES if has_images else MAX_LINES)
    section |= {"cases": [], "is_grouped": item.kind in GROUPED}
    if has_images:
        entries = shown_entries(item, findings)[:MAX_CASES]
        section |= {"lines": [], "cases": [_case(item.kind, x, thumbnails) for x in entries]}
    return section


def _case(kind: str, entry: Entry, thumbnails: Thumbnails) -> dict[str, Any]:
    source = thumbnails.source
    assert source is not None
    members = [
        {
            "id": printable(source.ids[i]),
            "label": printable(source.label_text(i)),
            "split": str(source.split_of[i]),
            "image": thumbnails.image(i),
        }
        for i in entry.images[:MAX_MEMBERS]
    ]
    text = describe_entry(kind, entry, None)
    return {"text": text, "members": members, "more": len(entry.images) - len(members)}
