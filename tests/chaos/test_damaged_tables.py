"""A damaged table is read, or refused in one line: no traceback, no hang."""

import random
import time
from collections import Counter

import pytest
from PIL import Image
from support.chaos import IS_FULL
from support.mutations import mutated_text

from vggjax.data.sources.open import open_source
from vggjax.data.sources.options import DatasetOptions
from vggjax.errors import VggjaxError

TABLES = {
    "path,label": ("path,label,split", "{name},{label},{split}", {}),
    "no first line": ("", "{name} {number}", {}),
    "labels in one cell": (
        "path,label",
        '{name},"{label}|x"',
        {"task": "multilabel", "label_separator": "|"},
    ),
    "columns of 0 and 1": ("id,a,b,c", "{name},{number},1,0", {"task": "multilabel"}),
    "numbered labels in a cell": ("path,label", "{name},[{number} 1 0]", {"task": "multilabel"}),
    "a row per label": ("path,label", "{name},{label}\n{name},x", {"task": "multilabel"}),
    "ids and groups": ("patient,image,diagnosis", "{number},{stem},{label}", {}),
    "paths of another machine": ("", "C:\\data\\{name};{label}", {}),
    "tabs": ("", "{name}\t{label}, or so", {}),
    "a number before it (data.lst)": ("", "{stem}\t{number}\t{name}", {}),
    "UTF-16": ("path,label", "{name},{label}", {}),
    "JSON objects (data.jsonl)": ("", '{{"file_name": "{name}", "label": "{label}"}}', {}),
}
"""Form -> its first line, its other lines, and the options to read it with."""


@pytest.mark.parametrize("what", TABLES)
def test_a_mutated_table_is_read_or_refused_in_one_line(tmp_path, table, what):
    first, line, options = TABLES[what]
    names = [f"{i:02}.png" for i in range(12)]
    for name in names:
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    rows = [
        line.format(
            name=name,
            stem=name[:2],
            label="abc"[i % 3],
            number=i % 2,
            split=("train", "val", "test")[i % 3],
        )
        for i, name in enumerate(names)
    ]
    encoding = "utf-16" if what == "UTF-16" else "utf-8"
    content = "\n".join([*filter(None, [first]), *rows, ""]).encode(encoding)
    ending = what.rpartition(".")[2].rstrip(")") if "(data." in what else "csv"
    path, counts, longest_s = tmp_path / f"data.{ending}", Counter(), 0.0
    path.write_bytes(content)
    open_source(str(path), options=DatasetOptions(**options))
    for seed in range(2000 if IS_FULL else 60):
        path.write_bytes(mutated_text(content, random.Random(f"{what}:{seed}")))
        start_s = time.process_time()
        try:
            source = open_source(str(path), options=DatasetOptions(**options))
            assert len(source) and set(source.labels.tolist()) <= set(range(10**6))
            assert all(isinstance(name, str) and name for name in source.class_names)
            counts["read"] += 1
        except VggjaxError as error:
            assert "\n" not in str(error), seed
            counts["refused in one line"] += 1
        longest_s = max(longest_s, time.process_time() - start_s)
    assert longest_s < 5
    for outcome, count in sorted(counts.items()):
        table.add(f"mutated table, {what}", f"{count}: {outcome}")
