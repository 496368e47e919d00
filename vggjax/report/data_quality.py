"""Says on a report what is wrong with the dataset: the doctor's findings, where they cost little.

The doctor decodes every image once: about a thousand small photographs a second on two cores. A
report looks at no more than that by itself; of a larger dataset it tells what the run found on its
way, and gives the command.
"""

import shlex
from typing import Any

from vggjax.data.quality.doctor import examine
from vggjax.data.quality.findings import KINDS
from vggjax.data.sources.source import Source
from vggjax.errors import VggjaxError, printable
from vggjax.report.doctor_screen import SENTENCES, describe_entry
from vggjax.training.config import Config

MAX_IMAGES = 2000
MAX_BYTES = 32 * 2**20
"""Up to this size of all files a dataset is looked at without being asked."""

_MAX_LINES = 3


def describe_health(config: Config, source: Source | None, *, ask: bool = False) -> dict[str, Any]:
    """Gives what the page tells of the dataset.

    Returns:
        `looked`, whether the doctor looked; `findings`, {title, meaning, count or None, problem,
        lines, more}; and `command`, which looks at everything. `ask` looks whatever it costs.
    """
    told: dict[str, Any] = {
        "looked": False,
        "findings": [],
        "command": f"vggjax doctor {shlex.quote(printable(config.dataset))} --html doctor.html",
    }
    if source is None or not (ask or _is_small(source)):
        return told
    try:
        found = examine(config.dataset, data_dir=config.data_dir, num_threads=config.num_threads)
    except VggjaxError:  # it was opened a moment ago
        return told
    for item in found.items:
        kind = KINDS[item.kind]
        entries = item.entries[:_MAX_LINES]
        told["findings"].append(
            {
                "title": kind.title,
                "meaning": kind.meaning,
                "count": None if item.kind in SENTENCES else item.count,
                "problem": item.is_problem,
                "lines": [
                    f"{printable(entry.text)}: {len(entry.images):,}"
                    if item.kind == "adapted"
                    else describe_entry(entry, found.source)
                    for entry in entries
                ],
                "more": len(item.entries) - len(entries),
            }
        )
    return told | {"looked": True}


def _is_small(source: Source) -> bool:
    if len(source) > MAX_IMAGES:
        return False
    total = 0
    for i in range(len(source)):
        path = source.path(i)
        try:
            total += path.stat().st_size if path is not None else 0
        except OSError:
            continue
        if total > MAX_BYTES:
            return False
    return True
