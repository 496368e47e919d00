"""Print the findings of `vggjax doctor` on a terminal or into a pipe.

File names are printed safely and never broken across lines; long lists are cut. The JSON of
findings.py and the page of doctor_page.py are complete.
"""

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vggjax.data.quality.clean import CleanCopy
from vggjax.data.quality.findings import KINDS, Entry, Finding, Findings
from vggjax.data.sources.source import Source
from vggjax.errors import flag_of, printable, with_flags
from vggjax.training.config import Config

MAX_ENTRIES = 10
MAX_MEMBERS = 3
MAX_CLASSES = 30

UNCOUNTED = (
    *("refused", "layout", "masks", "combined_labels", "passed_over", "kin"),
    *("imbalance", "measurements", "uneven", "unlabeled", "note"),
)
"""Kinds whose entries are sentences; their number has no meaning."""

UNFIXED = ("blank", "near_duplicate", "turned_copy", "tiny", "extreme_aspect", "imbalance")
"""Problems that `--fix` leaves to the user."""

_FIELDS = [*(field.name for field in fields(Config)), "write_csv"]


def print_findings(console: Console, findings: Findings) -> None:
    """Print the classes, the problems, the remarks and the verdict."""
    source, duplicates = findings.source, findings.duplicates
    if source is not None:
        total, classes = len(source), len(source.class_names)
        text = f"{printable(findings.dataset)}: {total:,} image{'' if total == 1 else 's'} in "
        text += f"{classes:,} class{'' if classes == 1 else 'es'}"
        if duplicates is not None and duplicates.unreadable:
            text += f", {total - len(duplicates.unreadable):,} of them readable"
        _print(console, text)
        console.print(_class_table(findings))
    for title, items, style in (
        ("Problems", findings.problems, "bold red"),
        ("Remarks", findings.remarks, "bold"),
    ):
        if items:
            console.print(f"\n{title}", style=style, highlight=False)
        for item in items:
            _print_finding(console, describe_finding(item, findings, most=MAX_ENTRIES))
    console.print()
    _print(console, verdict(findings))


def print_clean_copy(console: Console, copy: CleanCopy, findings: Findings) -> None:
    """Print what `--fix` wrote, left out, renamed, and left to the user to decide."""
    for action in ("left out", "renamed"):
        changes = [change for change in copy.changes if change.action == action]
        if not changes:
            continue
        console.print(f"\n{action.capitalize()}: {len(changes):,}", style="bold", highlight=False)
        for change in changes[:MAX_ENTRIES]:
            target = f" -> {printable(change.target)}" if change.target else ""
            _print(console, f"    {printable(change.id)}{target}: {printable(change.reason)}")
        _print_more(console, len(changes) - MAX_ENTRIES)
    _print(console, f"\nCopy     {printable(copy.folder)}: {copy.images:,} images")
    _print(console, f"Changes  {printable(copy.table)}: {len(copy.changes):,}, each with a reason")
    unfixed = [item for item in findings.problems if item.kind in UNFIXED]
    if unfixed:
        names = ", ".join(f"{KINDS[item.kind].title.lower()} ({item.count:,})" for item in unfixed)
        _print(console, f"Kept     {names}: please decide")


def print_table(console: Console, path: Path, options: dict[str, str]) -> None:
    """Print where `--write-csv` wrote the table, and the command that trains on it."""
    words = ["vggjax", "train", "--dataset", str(path)]
    words += [word for name, value in options.items() for word in (flag_of(name), value)]
    _print(console, f"\nCSV      {printable(path)}")
    _print(console, f"Train    {' '.join(shlex.quote(printable(word)) for word in words)}")


def verdict(findings: Findings) -> str:
    """Return the result of the examination in one sentence."""
    kinds = len(findings.problems)
    if not kinds:
        return "Clean: no problems found."
    return f"{kinds} kind{'' if kinds == 1 else 's'} of problem{'' if kinds == 1 else 's'} found."


def shown_entries(item: Finding, findings: Findings) -> tuple[Entry, ...]:
    """Return the cases of a finding, without duplicates that its label conflicts show."""
    if item.kind not in ("exact_duplicate", "near_duplicate"):
        return item.entries
    conflicts = {entry.images for entry in findings.of("label_conflict")}
    return tuple(entry for entry in item.entries if entry.images not in conflicts)


def describe_entry(kind: str, entry: Entry, source: Source | None) -> str:
    """Describe one case: its images, joined by `=` where they are duplicates, and its text."""
    text = with_flags(printable(entry.text), _FIELDS)
    if kind == "adapted":
        return f"{text}: {len(entry.images):,}"
    if source is None or not entry.images:
        return text
    names = [printable(source.ids[i]) for i in entry.images[:MAX_MEMBERS]]
    if len(entry.images) > MAX_MEMBERS:
        names.append(f"{len(entry.images) - MAX_MEMBERS:,} more")
    return " = ".join(names) + (f": {text}" if text else "")


def describe_finding(item: Finding, findings: Findings, *, most: int) -> dict[str, Any]:
    """Describe a finding for a page, with its first `most` entries as lines.

    Duplicates that are label conflicts too are only counted, `above`.
    """
    kind, entries = KINDS[item.kind], shown_entries(item, findings)
    return {
        "id": item.kind,
        "title": kind.title,
        "meaning": kind.meaning,
        "count": None if item.kind in UNCOUNTED else item.count,
        "is_problem": item.is_problem,
        "lines": [describe_entry(item.kind, entry, findings.source) for entry in entries[:most]],
        "more": max(len(entries) - most, 0),
        "above": len(item.entries) - len(entries),
    }


def _print_finding(console: Console, finding: dict[str, Any]) -> None:
    count = "" if finding["count"] is None else f": {finding['count']:,}"
    heading = f"  [bold]{finding['title']}{count}[/] ({finding['meaning']})"
    console.print(heading, highlight=False, soft_wrap=True)
    for line in finding["lines"]:
        _print(console, f"      {line}")
    _print_more(console, finding["more"])
    if finding["above"]:
        _print(console, f"      and {finding['above']:,} above, among the label conflicts")


def _class_table(findings: Findings) -> Table:
    rows = findings.classes()
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("class", overflow="fold")
    for split in (*rows[0]["splits"], "images", "balanced weight"):
        table.add_column(split, justify="right", no_wrap=True)
    if len(rows) > MAX_CLASSES:  # the smallest ones may lack images
        table.caption = f"the {MAX_CLASSES} smallest of {len(rows):,} classes"
        smallest = sorted(rows, key=lambda row: row["images"])[:MAX_CLASSES]
        rows = [row for row in rows if row in smallest]
    for row in rows:
        table.add_row(
            escape(printable(row["name"])),
            *(f"{size:,}" for size in row["splits"].values()),
            f"{row['images']:,}",
            "" if row["weight"] is None else f"{row['weight']:.3f}",
        )
    return table


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _print_more(console: Console, more: int) -> None:
    if more > 0:
        _print(console, f"      and {more:,} more")
