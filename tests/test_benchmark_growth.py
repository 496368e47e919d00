"""benchmarks/growth.py and gpu.py at a tiny size."""

import json

import pytest

pytest.importorskip("benchmarks", reason="the tests are not run from the repository's folder")
from benchmarks import gpu, growth
from vggjax.models.head import Head


@pytest.mark.slow
def test_batches_and_sizes_have_a_line_each_and_say_why(tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    growth.print_part("batch", growth.grow_batch("tiny", (1, 2), size_px=32, rounds=1), out)
    growth.print_part("size", growth.grow_size("tiny", (32, 64), batch=2, rounds=1), out)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["part"] for line in lines] == ["batch", "batch", "size", "size"]
    assert all(line["explained"] for line in lines)
    assert capsys.readouterr().out.count("| explained |") == 2


def test_devices_send_the_gradients_of_what_trains():
    head, options = Head.parse("flatten-8-8-3"), {"batch": 8, "size": 32, "unfrozen": ["block5"]}
    lines = [*growth.grow_devices("tiny", ((4, 1), (4, 2)), head=head, **options)]
    assert [line["devices"] for line in lines] == ["4 x 1", "2 x 2"]
    # block5's two convolutions of 8 channels, fc1, fc2 and predictions; and 5 numbers.
    trained = 2 * (9 * 8 * 8 + 8) + 2 * (8 * 8 + 8) + 8 * 3 + 3
    assert all(f"{trained:,} parameters train" in line["explained"] for line in lines)
    assert lines[0]["megabytes"] == round(4 * (trained + 5) / 1e6, 3)
    assert lines[1]["collectives"].count(" over 2 devices: ") == 2


def test_files_and_classes_have_a_line_for_each_number():
    lines = [*growth.grow_files((6,), batch=2)]
    assert [line["files"] for line in lines] == [6]
    assert all(line["open_us"] > 0 and line["decode_us"] > 0 for line in lines)
    lines = [*growth.grow_classes((30,), images=9, batch=4, rounds=1)]
    assert [line["classes"] for line in lines] == [30]
    assert "15,360 weights" in lines[0]["explained"]


@pytest.mark.slow
def test_the_rows_of_a_gpu_come_one_by_one_until_the_time_is_up(monkeypatch):
    monkeypatch.setattr(gpu, "installed", lambda *names: False)
    monkeypatch.setattr(gpu, "measure_peak", lambda precision: 1e12)
    options = {"batch_size": 2, "size": 32, "rounds": 1, "steps": 1}
    works = ["forward", "block5"]
    rows = gpu.measure(works, ["tiny"], ["bfloat16", "tf32"], minutes=9, **options)
    path, *first = [next(rows) for _ in range(3)]
    assert path["images_per_s"] > 0 and path["step_images_per_s"] > 0
    assert [row["work"].split(",")[0] for row in first] == ["TINY forward", "TINY block5"]
    assert all(row["vggjax_ms"] > 0 and row["tflops"] >= 0 for row in first)
    left = [*gpu.measure(works, ["tiny"], ["tf32"], minutes=0, **options)][1:]
    assert [row["left_out"] for row in left] == ["not within 0 minutes"] * 2
