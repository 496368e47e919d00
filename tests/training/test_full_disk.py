"""Disks that are full, and run folders that are deleted: one clear error, whatever is written."""

import dataclasses
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from support.full_disk import file_size_limit
from support.training_runs import make_config, make_three_classes

from vggjax import api
from vggjax.atomic import write_text
from vggjax.errors import VggjaxError
from vggjax.training.prepare import prepare_run
from vggjax.training.run_dir import checkpoint
from vggjax.training.run_dir.checkpoint import check_room
from vggjax.training.run_dir.log import Log, append_log
from vggjax.training.stage_loop import checkpoint_bytes
from vggjax.training.trainer import train


def test_the_disk_needs_room_for_two_checkpoints_and_a_tenth(tmp_path, monkeypatch):
    disk = SimpleNamespace(free=2200)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: disk)
    check_room(tmp_path, 1000)
    disk.free -= 1
    with pytest.raises(VggjaxError, match="Make room, or give a `workdir` on another disk"):
        check_room(tmp_path, 1000)
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    (tmp_path / "checkpoints" / "5" / "data").write_bytes(b"x")  # it will be deleted
    check_room(tmp_path, 1000)


def test_a_checkpoint_that_is_being_written_may_change_while_its_size_is_read(tmp_path):
    """Orbax moves its files together and gives the folder its name at the end."""
    done = threading.Event()

    def write_and_rename():
        while not done.is_set():
            parts = tmp_path / "checkpoints" / "6.tmp" / "model" / "part"
            parts.mkdir(parents=True)
            (parts / "data").write_bytes(b"x")
            shutil.rmtree(tmp_path / "checkpoints" / "6.tmp" / "model")
            (tmp_path / "checkpoints" / "6.tmp").rename(tmp_path / "checkpoints" / "6")
            (tmp_path / "checkpoints" / "6").rmdir()

    with ThreadPoolExecutor() as writer:
        writing = writer.submit(write_and_rename)
        try:
            for _ in range(1000):
                check_room(tmp_path, 1)
        finally:
            done.set()
        writing.result()


def test_the_size_of_a_checkpoint_counts_weights_and_moments(tmp_path):
    images = make_three_classes(tmp_path)
    run = prepare_run(make_config(images, tmp_path / "run", optimizer="sgd", duplicates="ignore"))
    with_ema = dataclasses.replace(run, config=dataclasses.replace(run.config, ema=0.9))
    adam = dataclasses.replace(run, config=dataclasses.replace(run.config, optimizer="adam"))
    sizes = [checkpoint_bytes(one, run.stages[0]) for one in (run, with_ema, adam)]
    weights = sizes[1] - sizes[0]
    assert weights > 10_000 and abs(sizes[2] - sizes[0] - weights) < 100
    assert not (tmp_path / "run").exists()


def test_a_run_that_does_not_fit_the_disk_is_refused_before_its_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=9e9))
    monkeypatch.setattr("vggjax.training.trainer.checkpoint_bytes", lambda run, stage: 5e9)
    with pytest.raises(VggjaxError, match="has 9,000.0 MB free; two checkpoints need 11,000.0 MB"):
        train(make_config(make_three_classes(tmp_path), tmp_path / "run", duplicates="ignore"))
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_log_that_cannot_be_written_is_one_error(tmp_path):
    Log(tmp_path, step=0)
    append_log(tmp_path, {"kind": "step", "step": 1, "text": 100 * "x"})
    with file_size_limit(100):
        with pytest.raises(VggjaxError, match="log of .* cannot be written: File too large"):
            append_log(tmp_path, {"kind": "step", "step": 2})
        with pytest.raises(VggjaxError, match="log of .* cannot be written: File too large"):
            Log(tmp_path, step=2)
    shutil.rmtree(tmp_path)
    with pytest.raises(VggjaxError, match="was deleted while"):
        append_log(tmp_path, {"kind": "step", "step": 1})


def test_a_failed_write_names_its_file(tmp_path):
    with file_size_limit(100), pytest.raises(OSError, match="File too large") as caught:
        write_text(tmp_path / "a.txt", 200 * "x")
    assert caught.value.filename == str(tmp_path / "a.txt") and not list(tmp_path.iterdir())


def test_a_report_that_cannot_be_written_is_no_bug(tmp_path, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(api, "write_pages", fail)
    with pytest.raises(VggjaxError, match="report of .*No space left .* model .* saved"):
        api._write_report(SimpleNamespace(workdir=tmp_path), {})
    assert capsys.readouterr().err == ""


def test_the_reason_of_a_failed_checkpoint_is_the_systems():
    text = "RESOURCE_EXHAUSTED: Error writing \"x\": Failed to write [os_error_code='28']"
    assert checkpoint._reason(ValueError(text)) == "No space left on device"
    assert checkpoint._reason(ValueError("one\ntwo")) == "one"
    assert checkpoint._reason(RuntimeError()) == "RuntimeError"
