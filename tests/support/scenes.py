"""Images that differ by seed, and folders of them, for the tests of datasets and data quality."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def scene(seed: int, side: int = 128) -> np.ndarray:
    """Draw large soft shapes and some detail; uint8 RGB (side, side, 3)."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (n, n, 3), np.uint8)).resize((side, side), 3),
            float,
        )
        for n in (3, 7, 20)
    ]
    return np.clip(0.5 * layers[0] + 0.35 * layers[1] + 0.15 * layers[2], 0, 255).astype(np.uint8)


def saved(image: np.ndarray, quality: int) -> np.ndarray:
    """Return the pixels after JPEG compression."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    with Image.open(file) as again:
        return np.asarray(again)


def put(root: Path, name: str, image: np.ndarray | bytes, kind: str = "PNG") -> Path:
    """Write an image, or bytes, whatever the extension."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, bytes):
        path.write_bytes(image)
    else:
        Image.fromarray(image).save(path, kind)
    return path


def put_flat(root: Path, *names: str) -> Path:
    """Write a flat PNG of 6x4 px for each name, the red of image i being 7 i; return the root."""
    for i, name in enumerate(names):
        put(root, name, np.full((4, 6, 3), (i * 7 % 256, 9, 9), np.uint8))
    return root


def fill(root: Path, *names: str, count: int = 4, side: int = 40, seed: int = 0) -> Path:
    """Fill class folders with images that are all different; return the root."""
    for n, name in enumerate(names):
        for i in range(count):
            put(root, f"{name}/{i}.png", scene(seed + 1000 * n + i, side))
    return root
