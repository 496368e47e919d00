"""Random damage to the contents of a file, by a seeded generator."""

import json
import random
from typing import Any


def damaged(content: bytes, rng: random.Random) -> tuple[bytes, Any]:
    """Return the damaged contents, and the positions of the bytes that changed."""
    if rng.random() < 0.1:
        length = rng.randrange(len(content))
        return content[:length], range(length, len(content))
    bad = bytearray(content)
    if rng.random() < 0.05:  # a run of zeros, as of a disk that lost a block
        start = rng.randrange(len(bad))
        stop = min(len(bad), start + rng.choice((4, 16, 64, 512)))
        bad[start:stop] = bytes(stop - start)
    for _ in range(rng.choice((1, 1, 1, 1, 2, 3, 8))):
        i = rng.randrange(len(bad))
        bad[i] = rng.choice((rng.randrange(256), 0, 255, bad[i] ^ 1 << rng.randrange(8)))
    changed = [i for i, (a, b) in enumerate(zip(content, bad, strict=True)) if a != b]
    return bytes(bad), changed


def flipped(content: bytes, rng: random.Random) -> bytes:
    """Return the contents with one bit flipped."""
    bad = bytearray(content)
    bit = rng.randrange(8 * len(bad))
    bad[bit // 8] ^= 1 << bit % 8
    return bytes(bad)


STRANGE = [
    None,
    True,
    -1,
    0,
    3,
    2**70,
    1e308,
    float("nan"),
    "",
    "x",
    "\x00\n",
    [],
    {},
    [[]],
    [1, "a"],
]


def edited(value: Any, rng: random.Random) -> Any:
    """Return a JSON value in which an entry is removed, renamed, repeated, moved or another."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return rng.choice(STRANGE)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, other = rng.choice(keys), rng.choice(keys)
    copy: Any = value.copy()
    match rng.randrange(5):
        case 0:
            del copy[key]
        case 1:
            copy[key], copy[other] = copy[other], copy[key]
        case 2 if isinstance(copy, dict):
            copy[f"{key}{rng.choice(('x', ' ', '/'))}"] = copy.pop(key)
        case 2:
            copy.append(copy[key])
        case _:
            copy[key] = edited(copy[key], rng)
    return copy


def mutated_text(content: bytes, rng: random.Random) -> bytes:
    """Return damaged bytes, or lines that are removed, repeated, swapped or joined."""
    if rng.random() < 0.5:
        return damaged(content, rng)[0]
    lines = content.split(b"\n")
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(5):
        case 0:
            del lines[i]
        case 1:
            lines.insert(i, lines[j])
        case 2:
            lines[i], lines[j] = lines[j], lines[i]
        case 3:
            lines[i] = lines[i][: len(lines[i]) // 2] + lines[j]
        case _:
            cells = lines[i].split(b",")
            cells[rng.randrange(len(cells))] = rng.choice(
                (b"", b'"', b"\xff", b"\r", b"=1+1", b"a" * 9999, b"\x00", b"-1", b"nan", b"1e999")
            )
            lines[i] = b",".join(cells)
    return b"\n".join(lines)


def mutated_json(content: bytes, rng: random.Random) -> bytes:
    """Return damaged bytes, or the text of an edited value."""
    if rng.random() < 0.5:
        return damaged(content, rng)[0]
    return json.dumps(edited(json.loads(content), rng), indent=2).encode()
