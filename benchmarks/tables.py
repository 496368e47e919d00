"""Figures over seeds as text, and tables that programs write into Markdown pages."""

import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vggjax.atomic import write_text


def interval_half_width(values: Sequence[float]) -> float:
    """Return half of the 95 % interval of the mean (Student's t); 0 of a single value."""
    if len(values) < 2:
        return 0.0
    from scipy.stats import t

    quantile = float(t.ppf(0.975, len(values) - 1))
    return quantile * statistics.stdev(values) / len(values) ** 0.5


def percent(values: Sequence[float], *, digits: int = 1) -> str:
    """Return the mean of shares, with the 95 % interval if there are several: `98.2 % (97-99)`."""
    mean, half = statistics.fmean(values), interval_half_width(values)
    text = f"{100 * mean:.{digits}f} %"
    if len(values) < 2:
        return text
    low, high = max(0.0, mean - half), min(1.0, mean + half)
    return f"{text} ({100 * low:.{digits}f}-{100 * high:.{digits}f})"


def points(values: Sequence[float], *, digits: int = 1) -> str:
    """Return a mean difference of shares in percentage points, with half of its 95 % interval."""
    mean, half = statistics.fmean(values), interval_half_width(values)
    text = f"{100 * mean:+.{digits}f}"
    return f"{text} ± {100 * half:.{digits}f}" if len(values) > 1 else text


def duration(seconds: float) -> str:
    """Return seconds below two minutes, and minutes above."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; a `|` inside a cell is escaped."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def replace_part(page: Path, name: str, text: str) -> None:
    """Replace what stands between the page's lines `<!-- NAME -->` and `<!-- /NAME -->`.

    Raises:
        SystemExit: the page lacks the lines.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{page} has no lines {begin} and {end}, between which to write.")
    write_text(page, f"{before}{begin}\n\n{text}\n\n{end}{after}")


def part_of(page: Path, name: str) -> str:
    """Return what stands between the lines of `replace_part`; empty without them."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    match = re.search(f"<!-- {name} -->(.*?)<!-- /{name} -->", text, re.DOTALL)
    return match[1].strip() if match else ""


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Append one line of JSON to a file of records, whose last line a kill may have cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_cut = path.exists() and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * is_cut + json.dumps(record) + "\n")


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of `append_record`, without a last line that a kill cut short."""
    records = []
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records
