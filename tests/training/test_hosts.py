"""A run of several processes: the files and weights of one process, whatever becomes of them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.processes import finish, start, wait_for_epochs
from support.training_runs import (
    assert_same_log,
    make_three_classes,
    pretend_pretrained,
    weights_of,
)

from vggjax.api import fit
from vggjax.cli import launch
from vggjax.errors import ConfigError
from vggjax.training.config import Config
from vggjax.training.devices.processes import find_processes, join_processes, on_first
from vggjax.training.settings.devices import ProcessSettings


def words(data: Path, workdir: Path, *more: str, epochs: int = 3) -> list[str]:
    settings = (
        f"--dataset {data} --workdir {workdir} --model tiny --weights none --image-size 32 "
        f"--unfreeze all --head gap-8-0.5-classes --batch-size 8 --epochs {epochs} "
        "--optimizer sgd --learning-rate 0.05 --split 0.6,0.2,0.2 --checkpoint-minutes 1000"
    )
    return [*settings.split(), *more]


def files(workdir: Path) -> set[str]:
    """Return the files of a run, but those inside of checkpoints, whose names are random."""
    found = {path.relative_to(workdir) for path in workdir.rglob("*") if path.is_file()}
    return {str(path) for path in found if path.parts[0] != "checkpoints"}


def assert_equal_weights(workdir: Path, other: Path) -> None:
    """Check that two runs differ by no more than the order of their sums.

    With SGD: Adam divides a gradient by its own size, so of a tiny one the rounding counts whole.
    """
    expected, received = weights_of(workdir), weights_of(other)
    assert expected.keys() == received.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(received[name], array, rtol=0, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_three_classes(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory) -> Path:
    """Return the run of one process with four devices."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    ((code, _, errors),) = finish(start(1, words(data, workdir), devices=4))
    assert code == 0, errors
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "settings"),
    [(2, "--parallel jit"), (4, "--parallel jit"), (2, "--parallel pmap"), (2, "--shard-fc 2")],
)
def test_several_processes_make_the_run_of_one(count, settings, data, alone, tmp_path):
    together = tmp_path / "run"
    arguments = words(data, together, *settings.split())
    ended = finish(start(count, arguments, devices=4 // count))
    assert [code for code, _, _ in ended] == [0] * count, ended
    assert "Report" in ended[0][1] and not any(out for _, out, _ in ended[1:])
    assert_equal_weights(alone, together)
    assert_same_log(alone, together)
    assert files(together) == files(alone)
    lines = (together / "predictions.csv").read_text().splitlines()
    assert sorted(lines) == sorted((alone / "predictions.csv").read_text().splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("how", ["--parallel jit", "--parallel pmap", "--shard-fc 2"])
@pytest.mark.parametrize("memory", ["4096", "0"])
def test_cached_features_are_shared_among_the_processes(how, memory, data, tiny_arch, tmp_path):
    base = pretend_pretrained(tmp_path, tiny_arch)
    settings = f"--weights {base} --preprocess torch --unfreeze block5 --epochs 4 --head-epochs 2"
    settings += f" --augment flip {how} --feature-cache-mb {memory} --batch-size 5"
    runs = [tmp_path / "alone", tmp_path / "together"]
    outputs = []
    for count, workdir in zip((1, 2), runs, strict=True):
        arguments = words(data, workdir, *settings.split())
        outputs.append(finish(start(count, arguments, devices=4 // count)))
        assert [code for code, _, _ in outputs[-1]] == [0] * count, outputs[-1]
    assert all("features of train up to block4_pool: " in ended[0][1] for ended in outputs)
    assert_equal_weights(*runs)
    assert_same_log(*runs)
    assert files(runs[0]) == files(runs[1])


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_the_others_end_with_a_killed_process_and_the_same_command_goes_on(
    lost, data, alone, tmp_path
):
    workdir = tmp_path / "run"
    processes = start(2, words(data, workdir), devices=2)
    wait_for_epochs(workdir, 1, processes)
    processes[lost].kill()
    ended = finish(processes)
    assert ended[1 - lost][0] not in (0, None)
    ended = finish(start(2, words(data, workdir), devices=2))
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert_equal_weights(alone, workdir)


@pytest.mark.slow
def test_a_signal_to_one_process_saves_and_ends_all(data, alone, tmp_path):
    workdir = tmp_path / "run"
    processes = start(2, words(data, workdir), devices=2)
    wait_for_epochs(workdir, 1, processes)
    processes[1].terminate()
    assert [code for code, _, _ in finish(processes)] == [143, 143]
    assert not (workdir / "model.json").exists()
    ended = finish(start(2, words(data, workdir), devices=2))
    assert "Resuming from step" in ended[0][1]
    assert_equal_weights(alone, workdir)


@pytest.mark.slow
def test_an_error_of_the_first_process_ends_all_and_is_printed_once(data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "letter.txt").write_text("not a run")
    ended = finish(start(2, words(data, tmp_path / "run")))
    assert [code for code, _, _ in ended] == [2, 2]
    assert "holds files but no run" in ended[0][2] and "letter" not in ended[1][2]
    assert "vggjax: error" not in ended[1][2]


@pytest.mark.slow
def test_processes_with_other_settings_make_no_run(data, tmp_path):
    ended = finish(start(2, words(data, tmp_path / "run"), last=["--seed", "1"]))
    assert all(code not in (0, None) for code, _, _ in ended), ended
    assert "`seed`" in ended[1][2] or "--seed is 0 in the first" in ended[1][2]
    assert not (tmp_path / "run").exists()


def test_a_process_alone_joins_no_others():
    config = Config()
    assert join_processes(config, environ={}) == config
    assert on_first(lambda: 3) == 3


SLURM = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}
AT = "host:1234"


@pytest.mark.parametrize(
    ("settings", "environ", "expected"),
    [
        ({}, {}, None),
        ({}, {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
        ({}, SLURM, {}),
        ({"num_processes": 1}, SLURM, None),
        ({}, {"TPU_WORKER_HOSTNAMES": "a,b"}, {}),
        ({}, {"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"coordinator": "auto"}, {}, {}),
        ({"coordinator": AT}, SLURM, (AT, 4, 3)),
        ({"coordinator": AT, "num_processes": 2}, {"JOB_COMPLETION_INDEX": "1"}, (AT, 2, 1)),
        ({"coordinator": AT, "num_processes": 9, "process_id": 8}, SLURM, (AT, 9, 8)),
    ],
)  # fmt: skip
def test_the_processes_are_those_of_the_settings_then_of_the_launcher(settings, environ, expected):
    if isinstance(expected, tuple):
        names = ("coordinator_address", "num_processes", "process_id")
        expected = dict(zip(names, expected, strict=True))
    assert find_processes(ProcessSettings(**settings), environ) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_processes": 2}, "`num_processes` 2 needs `coordinator`"),
        ({"process_id": 0}, "`process_id` 0 needs `coordinator`"),
        ({"coordinator": "host"}, "HOST:PORT"),
        ({"coordinator": ":80"}, "HOST:PORT"),
        ({"coordinator": AT}, "needs `num_processes`"),
        ({"coordinator": AT, "num_processes": 2}, "needs `process_id`"),
        ({"coordinator": AT, "num_processes": 2, "process_id": 2}, "below `num_processes`, 2"),
    ],
)
def test_settings_that_make_no_run_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        find_processes(ProcessSettings(**settings), {})


def test_where_the_processes_are_is_no_part_of_a_run():
    settings = {"coordinator": AT, "num_processes": 1, "process_id": 0}
    assert not Config().differences(Config(**settings))


def test_launch_ends_the_others_when_one_fails(monkeypatch):
    monkeypatch.setattr(launch, "GRACE_S", 0.0)
    codes = ["import time; time.sleep(600)", "raise SystemExit(7)"]
    processes = [subprocess.Popen([sys.executable, "-c", code]) for code in codes]
    try:
        assert launch._wait(processes) == 7
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_launch_needs_a_training():
    with pytest.raises(ConfigError, match="train and its flags"):
        launch.split_words(["--processes", "2"])
    own, training = launch.split_words(["--processes", "2", "train", "--epochs", "3"])
    assert (own, training) == (["--processes", "2"], ["--epochs", "3"])


@pytest.mark.parametrize("name", ["cross_validate", "lr_find"])
def test_what_only_one_process_can_do_is_refused(name, monkeypatch):
    monkeypatch.setattr("vggjax.api.num_processes", lambda: 2)
    with pytest.raises(ConfigError, match=f"`{name}` .* single process"):
        fit(Config(**{name: 3 if name == "cross_validate" else True}))
