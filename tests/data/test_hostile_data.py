"""Datasets made to hang or to fill the memory: each is answered or named."""

import os
import socket
import threading
import time

import numpy as np
import pytest
from PIL import Image

from vggjax.data.quality.doctor import examine
from vggjax.data.sources import csv_table
from vggjax.data.sources.open import open_source, scan_source
from vggjax.errors import DataError
from vggjax.training.run_dir.contents import Contents


def two_classes(root, each=4):
    rng = np.random.default_rng(3)
    for name in "ab":
        (root / name).mkdir(parents=True)
        for i in range(each):
            pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_sockets_loops_and_long_names_are_answered(tmp_path, monkeypatch):
    root = two_classes(tmp_path / "data")
    (root / "a" / "0.png").rename(root / "a" / f"{251 * 'n'}.png")
    os.mkfifo(root / "a" / "pipe.png")
    os.mkfifo(root / "b" / "pipe.tiff")
    os.mkfifo(root / "labels.csv")
    os.mkfifo(root / "a" / "notes")
    (root / "a" / "up").symlink_to("..")
    (root / "b" / "loop.png").symlink_to("loop.png")
    monkeypatch.chdir(root / "b")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket.png")
        found = []
        thread = threading.Thread(target=lambda: found.append(examine(str(root))), daemon=True)
        thread.start()
        thread.join(120)
        assert found, "it hangs"
        source = open_source(str(root))
        states = Contents(source)
        states.add_all(2, None)
        assert sum(state is not None for state in states.states().values()) == 8
    text = str(found[0].to_json())
    assert "pipe.png" in text and f"{251 * 'n'}" not in text


@pytest.mark.parametrize("text", ["x" * 2_000_000, "name," * 300_000 + "\n"])
def test_a_huge_header_is_refused(tmp_path, text):
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(DataError, match="first line of over 1,048,576 bytes"):
        scan_source(str(tmp_path / "table.csv"))


def test_a_huge_cell_and_a_huge_table_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "table.csv"
    path.write_text(f"path,{'x' * 200_000}\na.png,a\n")
    with pytest.raises(DataError, match="not a CSV: line 1: field larger"):
        scan_source(str(path))
    monkeypatch.setattr(csv_table, "MAX_TABLE_BYTES", 1000)
    with pytest.raises(DataError, match="bytes, of at most 1,000 in a table"):
        scan_source(str(path))


def test_many_empty_folders_and_links_to_one_image_take_seconds(tmp_path):
    root = two_classes(tmp_path / "data", each=1)
    start = time.process_time()
    for i in range(2000):
        (root / f"empty{i}").mkdir()
        (root / "a" / f"link{i}.png").symlink_to("0.png")
    assert len(scan_source(str(root)).empty) == 2000
    assert time.process_time() - start < 10
