"""Prints what `vggjax doctor` found, for a terminal or a pipe.

File names are printed safely and never broken across lines; of a long list the first few. The JSON
of findings.py and the page of doctor_page.py hold everything.
"""

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vggjax.data.quality.clean import CleanCopy
from vggjax.data.quality.findings import KINDS, Entry, Finding, Findings
from vggjax.data.sources.source import Source
from vggjax.errors import printable

MAX_ENTRIES = 10
MAX_MEMBERS = 3
MAX_CLASSES = 30

SENTENCES = ("refused", "imbalance", "uneven", "note")
"""Kinds whose entries speak for themselves; how many there are says nothing."""


def print_findings(console: Console, findings: Findings) -> None:
    """Prints the classes, the problems, the remarks and the verdict."""
    source, duplicates = findings.source, findings.duplicates
    if source is not None:
        total, classes = len(source), len(source.class_names)
        readable = total - len(duplicates.unreadable)
        _say(
            console,
            f"{printable(findings.dataset)}: {total:,} image{'' if total == 1 else 's'} in "
            f"{classes:,} class{'' if classes == 1 else 'es'}"
            + (f", {readable:,} of them readable" if readable < total else ""),
        )
        console.print(_class_table(findings))
    for title, items, style in (
        ("Problems", findings.problems, "bold red"),
        ("Remarks", findings.remarks, "bold"),
    ):
        if items:
            console.print(f"\n{title}", style=style, highlight=False)
        for item in items:
            _print_finding(console, item, source)
    console.print()
    _say(console, verdict(findings))


KEPT = ("near_duplicate", "tiny", "extreme_aspect", "imbalance")
"""Problems that `--fix` leaves for a person to decide."""


def print_clean_copy(console: Console, copy: CleanCopy, findings: Findings) -> None:
    """Says what `--fix` wrote, and names what it left out, renamed, or left to decide."""
    for action in ("left out", "renamed"):
        changes = [change for change in copy.changes if change.action == action]
        if not changes:
            continue
        console.print(f"\n{action.capitalize()}: {len(changes):,}", style="bold", highlight=False)
        for change in changes[:MAX_ENTRIES]:
            became = f" -> {printable(change.target)}" if change.target else ""
            _say(console, f"    {printable(change.id)}{became}: {printable(change.reason)}")
        _say_more(console, len(changes) - MAX_ENTRIES)
    _say(console, f"\nCopy     {printable(copy.folder)}: {copy.images:,} images")
    _say(console, f"Changes  {printable(copy.table)}: {len(copy.changes):,}, each with its reason")
    kept = [item for item in findings.problems if item.kind in KEPT]
    if kept:
        told = ", ".join(f"{KINDS[item.kind].title.lower()} ({item.count:,})" for item in kept)
        _say(console, f"Kept     {told}: for you to decide")


def verdict(findings: Findings) -> str:
    """Sums it up in a sentence."""
    kinds = len(findings.problems)
    if not kinds:
        return "Clean: no problem was found."
    return f"{kinds} kind{'' if kinds == 1 else 's'} of problem{'' if kinds == 1 else 's'} found."


def describe_entry(entry: Entry, source: Source | None, *, most: int = MAX_MEMBERS) -> str:
    """Words one case: names, joined by `=` where they are one image, and what is said of it."""
    names = [printable(source.ids[i]) for i in entry.images[:most]]
    if len(entry.images) > most:
        names.append(f"{len(entry.images) - most:,} more")
    text = printable(entry.text)
    if not names:
        return text
    return " = ".join(names) + (f": {text}" if text else "")


def _print_finding(console: Console, item: Finding, source: Source | None) -> None:
    title, meaning = KINDS[item.kind].title, KINDS[item.kind].meaning
    count = "" if item.kind in SENTENCES else f": {item.count:,}"
    console.print(f"  [bold]{title}{count}[/] ({meaning})", highlight=False, soft_wrap=True)
    for entry in item.entries[:MAX_ENTRIES]:
        if item.kind == "adapted":
            _say(console, f"      {printable(entry.text)}: {len(entry.images):,}")
        else:
            _say(console, f"      {describe_entry(entry, source)}")
    _say_more(console, len(item.entries) - MAX_ENTRIES)


def _class_table(findings: Findings) -> Table:
    counts, names = findings.counts(), findings.source.class_names
    total = sum(counts.values(), np.zeros(len(names), np.int64))
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("class", overflow="fold")
    splits = [split for split in counts if split]
    for split in splits:
        table.add_column(split, justify="right", no_wrap=True)
    table.add_column("images", justify="right", no_wrap=True)
    table.add_column("balanced weight", justify="right", no_wrap=True)
    order = range(len(names))
    if len(names) > MAX_CLASSES:  # the smallest are those that may lack images
        order = sorted(np.argsort(total, kind="stable")[:MAX_CLASSES].tolist())
    for label in order:
        table.add_row(
            escape(printable(names[label])),
            *(f"{counts[split][label]:,}" for split in splits),
            f"{total[label]:,}",
            "" if findings.weights is None else f"{findings.weights[label]:.3f}",
        )
    if len(names) > MAX_CLASSES:
        table.caption = f"the {MAX_CLASSES} smallest of {len(names):,} classes"
    return table


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _say_more(console: Console, more: int) -> None:
    if more > 0:
        _say(console, f"      and {more:,} more")
