"""What the devices of a step send one another, read from its compiled program."""

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_INSTRUCTION = re.compile(rf"^(?:ROOT )?%?\S+ = (.+?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+)(\d*)(?:e\w+)?\[([\d,]*)\]")  # f32[3,3,64,64], f8e4m3[2], pred[]


class Collective(NamedTuple):
    """One instruction of a compiled step in which devices exchange arrays."""

    kind: str
    """One of `KINDS`."""
    devices: int
    """The number of devices of a group, which exchange arrays with one another; 0 is all."""
    shapes: tuple[tuple[int, ...], ...]
    """Of the arrays that each device gets."""
    size_bytes: int
    """Of these arrays together."""


def parse_collectives(hlo: str) -> list[Collective]:
    """Return the collectives among the instructions of a compiled program's text."""
    found = []
    for line in map(str.strip, hlo.splitlines()):
        match = _INSTRUCTION.match(line)
        if match is None:
            continue
        results, kind, start = match.groups()
        arrays = _ARRAY.findall(results)
        if start and kind in ("all-gather", "collective-permute"):  # has its operands, too
            arrays = arrays[len(arrays) // 2 :]
        shapes = [tuple(map(int, filter(None, shape.split(",")))) for *_, shape in arrays]
        bits = [8 if kind == "pred" else int(size) for kind, size, _ in arrays]
        size = sum(math.prod(s) * b for s, b in zip(shapes, bits, strict=True)) // 8
        found.append(Collective(kind, _group_size(line), tuple(shapes), size))
    return found


def _group_size(line: str) -> int:
    """Return the number of devices of a group, from any of HLO's three notations."""
    if axes := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        sizes = dict(re.findall(r"('\w+')=(\d+)", axes[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'\w+'", axes[2]))
    if grid := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):
        return int(grid[1])
    groups = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    return len(groups[1].split(",")) if groups else 0


def describe_collectives(collectives: Iterable[Collective]) -> list[str]:
    """Return a line for each kind and group size: `all-reduce over 8: 33 arrays, 58.9 MB`."""
    totals: dict[tuple[str, int], tuple[int, int]] = {}
    for one in collectives:
        arrays, size = totals.get((one.kind, one.devices), (0, 0))
        totals[one.kind, one.devices] = arrays + len(one.shapes), size + one.size_bytes
    return [
        f"{kind} over {devices or 'all'} devices: {arrays} "
        f"{'array' if arrays == 1 else 'arrays'}, {size / 1e6:,.3f} MB"
        for (kind, devices), (arrays, size) in sorted(totals.items())
    ]
