"""The run folder's own laws: one run at a time, and a log that a kill cannot spoil."""

import pytest

from vggjax.errors import ConfigError
from vggjax.training.run_dir.folder import lock_workdir
from vggjax.training.run_dir.log import Log, append_log, read_log


def test_a_second_run_in_the_same_folder_is_refused_until_the_first_ends(tmp_path):
    with lock_workdir(tmp_path):
        with pytest.raises(ConfigError, match="Another run uses"):
            with lock_workdir(tmp_path):
                pass
    with lock_workdir(tmp_path):
        pass


def test_a_resumed_log_drops_what_lies_behind_its_checkpoint(tmp_path):
    for step in (2, 4, 6):
        append_log(tmp_path, {"kind": "step", "step": step})
    Log(tmp_path, step=4).write("step", 6, **{"train/loss": 1.0})
    assert read_log(tmp_path) == [
        {"kind": "step", "step": 2},
        {"kind": "step", "step": 4},
        {"kind": "resume", "step": 4},
        {"kind": "step", "step": 6, "train/loss": 1.0},
    ]


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path):
    append_log(tmp_path, {"kind": "step", "step": 2})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "st')
    assert read_log(tmp_path) == [{"kind": "step", "step": 2}]
