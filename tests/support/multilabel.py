"""Images with several labels each: colored squares in the corners, named by a CSV."""

from pathlib import Path

import numpy as np
from PIL import Image

LABELS = ("blue", "green", "red")


def make_squares(root: Path, count: int = 60, *, shares=(0.2, 0.4, 0.6)) -> Path:
    """Write images of 32 px and `labels.csv`; some images have no label. Return the CSV's path.

    `shares` are the frequencies of the labels, whose squares are in corners of their own.
    """
    rng = np.random.default_rng(3)
    targets = rng.random((count, len(LABELS))) < shares
    targets[: len(LABELS) + 1] = [[False] * 3, *np.eye(3, dtype=bool).tolist()]
    lines = ["path,label"]
    root.mkdir(parents=True, exist_ok=True)
    for i, target in enumerate(targets):
        image = rng.integers(60, 160, (32, 32, 3), dtype=np.uint8)
        for label in np.flatnonzero(target):
            top, left = divmod(int(label), 2)
            image[top * 16 : top * 16 + 14, left * 16 : left * 16 + 14, 2 - label] = 255
        Image.fromarray(image).save(root / f"{i:03}.png")
        lines.append(f"{i:03}.png,{'|'.join(np.array(LABELS)[target])}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root / "labels.csv"
