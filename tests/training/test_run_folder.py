"""The run folder: one run at a time, no file of another overwritten, a log that survives kills."""

import dataclasses
import json
import subprocess
import sys

import pytest
from support.training_runs import make_config, make_three_classes

from vggjax.api import find_learning_rate, fit
from vggjax.errors import ConfigError, DataError
from vggjax.training.config import Config, read_config
from vggjax.training.prepare import prepare_run
from vggjax.training.run_dir.folder import find_workdir, lock_workdir, make_workdir
from vggjax.training.run_dir.log import Log, append_log, read_log
from vggjax.training.run_dir.run_result import load_run_result

HOLD_LOCK = """
import sys
from pathlib import Path
from vggjax.training.run_dir.folder import lock_workdir

with lock_workdir(Path(sys.argv[1]), "a test"):
    print("locked", flush=True)
    sys.stdin.read()
"""


def contents(folder):
    """Return every file with its bytes and its time."""
    return {
        path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture
def images(tmp_path):
    return make_three_classes(tmp_path)


def prepare(images, workdir, **settings):
    return prepare_run(make_config(images, workdir, duplicates="ignore", **settings))


def test_a_run_whose_data_has_moved_goes_on_and_changed_data_is_refused(images, tmp_path):
    def start(dataset):
        run = prepare(dataset, tmp_path / "run")
        make_workdir(run.workdir, run.config, run.source, run.splits)
        return read_config(run.workdir).dataset

    assert start(images) == str(images)
    moved = images.rename(tmp_path / "moved")
    assert start(moved) == str(moved)  # for the commands that follow
    next(moved.rglob("*.png")).unlink()
    with pytest.raises(DataError, match="moved is not the one that .* was trained on: gone: "):
        start(moved)


def test_the_lock_ends_with_its_block(tmp_path):
    for _ in range(2):
        with lock_workdir(tmp_path, "a test"):
            with (
                pytest.raises(ConfigError, match="is in use by a test"),
                lock_workdir(tmp_path, "a test"),
            ):
                pass


def test_the_lock_ends_with_its_process_even_if_killed(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "locked\n"
        with (
            pytest.raises(ConfigError, match="is in use by a test"),
            lock_workdir(tmp_path, "a test"),
        ):
            pass
        process.kill()
    with lock_workdir(tmp_path, "a test"):
        pass


@pytest.mark.parametrize(
    "name",
    [".contents.json.12-34.part", "plots/.lr-find.png.12-34.part", "fold-1/.splits.csv.12-34.part"],
)
def test_what_a_killed_start_left_is_no_other_run_and_is_deleted(images, tmp_path, name):
    workdir = tmp_path / "run"
    (workdir / name).parent.mkdir(parents=True)
    (workdir / name).write_text("half")
    prepared = prepare(images, workdir)
    make_workdir(prepared.workdir, prepared.config, prepared.source, prepared.splits)
    assert not (workdir / name).exists()


def test_a_folder_with_another_file_below_is_no_killed_start(images, tmp_path):
    (tmp_path / "run" / "plots").mkdir(parents=True)
    (tmp_path / "run" / "plots" / "mine.png").write_text("precious")
    with pytest.raises(ConfigError, match="holds files but no run"):
        find_workdir(make_config(images, tmp_path / "run"))


@pytest.mark.parametrize("name", [".lock", "log.jsonl", "plots", "plots/lr-find.png"])
def test_a_link_in_the_run_folder_is_refused_and_where_it_leads_is_not_written(
    images, tmp_path, name
):
    workdir, victim = tmp_path / "run", tmp_path / "victim"
    victim.write_text("precious")
    (workdir / name).parent.mkdir(parents=True)
    (workdir / name).symlink_to(victim)
    with (
        pytest.raises(ConfigError, match=f"{name} is a link to {victim}"),
        lock_workdir(workdir, "a test"),
    ):
        pass
    with pytest.raises(ConfigError, match=f"{name} is a link to {victim}"):
        find_workdir(make_config(images, workdir))
    with pytest.raises(ConfigError, match=f"{name} is a link to {victim}"):
        load_run_result(workdir)
    assert victim.read_text() == "precious"
    link = tmp_path / "link"
    (tmp_path / "whole").mkdir()
    link.symlink_to(tmp_path / "whole")  # the folder itself may be one
    with lock_workdir(find_workdir(make_config(images, link)), "a test"):
        pass


@pytest.mark.parametrize(
    ("start", "changes"),
    [
        (fit, {"log_every_steps": 3}),
        (find_learning_rate, {"num_threads": 1}),
        (fit, {"cross_validate": 3, "num_threads": 1}),
    ],
    ids=["train", "lr-find", "cross-validate"],
)
def test_a_second_start_leaves_every_file_of_the_running_one_alone(
    images, tmp_path, start, changes
):
    workdir, folds = tmp_path / "run", changes.get("cross_validate", 0)
    running = prepare(images, workdir)
    config = dataclasses.replace(running.config, cross_validate=folds)
    with lock_workdir(workdir, "a test"):
        make_workdir(workdir, config, running.source, running.splits)
        before = contents(workdir)
        with pytest.raises(ConfigError, match="is in use by a test"):
            start(make_config(images, workdir, duplicates="ignore", **changes))
        assert contents(workdir) == before


def test_a_run_that_was_prepared_before_another_began_does_not_overwrite_it(images, tmp_path):
    workdir = tmp_path / "run"
    late, first = prepare(images, workdir, seed=1), prepare(images, workdir, seed=2)
    make_workdir(workdir, first.config, first.source, first.splits)
    before = contents(workdir)
    with pytest.raises(ConfigError, match="`seed` was 2, now 1"):
        make_workdir(workdir, late.config, late.source, late.splits)
    assert contents(workdir) == before


def test_a_resumed_run_updates_the_settings_that_may_differ_and_nothing_else(images, tmp_path):
    workdir = tmp_path / "run"
    for threads in (1, 2):
        run = prepare(images, workdir, num_threads=threads, devices=threads)
        make_workdir(workdir, run.config, run.source, run.splits)
        settings = json.loads((workdir / "config.json").read_text())
        assert settings["num_threads"] == settings["devices"] == threads
    before = contents(workdir)
    make_workdir(workdir, run.config, run.source, run.splits)
    for name, entry in contents(workdir).items():
        assert entry == before[name] or name.name == "config.json"


def test_a_folder_of_other_files_is_not_used(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match="holds files but no run"):
        find_workdir(Config(workdir=str(tmp_path / "home")))


def test_a_resumed_log_drops_the_lines_after_its_checkpoint(tmp_path):
    for step in (2, 4, 6):
        append_log(tmp_path, {"kind": "step", "step": step})
    Log(tmp_path, step=4).write("step", 6, **{"train/loss": 1.0})
    assert read_log(tmp_path) == [
        {"kind": "step", "step": 2},
        {"kind": "step", "step": 4},
        {"kind": "resume", "step": 4},
        {"kind": "step", "step": 6, "train/loss": 1.0},
    ]


BAD_LINES = [
    b'{"kind": "st',
    b"\xff",
    b"3",
    b"[" * 100_000,
    b'{"kind": "step"}',
    b'{"kind": "stop", "step": 3}',
    b'{"kind": ["step"], "step": 3}',
    b'{"kind": "step", "step": 3, "val/loss": "0.5"}',
    b'{"kind": "epoch", "step": 3, "epoch": 1}',
    b'{"kind": "epoch", "step": 3, "epoch": 1, "stage": "head", "seconds": NaN}',
]


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: line.decode(errors="replace")[:50])
def test_a_line_that_is_no_record_is_left_out(tmp_path, line):
    append_log(tmp_path, {"kind": "step", "step": 2})
    with (tmp_path / "log.jsonl").open("ab") as file:
        file.write(line)
    assert read_log(tmp_path) == [{"kind": "step", "step": 2}]
