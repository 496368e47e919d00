"""TensorBoard's event files have the values of log.jsonl, also for a resumed run."""

import builtins
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from vggjax.cli.main import main
from vggjax.training.run_dir.log import EventFile, Log, read_log


def read_events(workdir) -> list[Event]:
    """Read the records of all files: length, its checksum, data, its checksum."""
    events = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack_from("<Q", data)
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[12 + length + 4 :]
    return events


def read_points(workdir) -> list[tuple[str, int, float]]:
    return [
        (value.tag, event.step, value.simple_value)
        for event in read_events(workdir)
        for value in event.summary.value
    ]


def expected_points(lines) -> list[tuple[str, int, float]]:
    points = []
    for line in lines:
        for name, value in line.items():
            is_epoch, is_rate = line["kind"] == "epoch", name.startswith("learning_rate")
            if isinstance(value, float) and not (is_epoch and is_rate):
                name = name.replace("train/", "train/epoch_") if is_epoch else name
                name = name if "/" in name else f"speed/{name}"
                points.append((name, line["step"], pytest.approx(value, rel=1e-6)))
    return points


def write_lines(log, steps):
    for step in steps:
        rates = {"learning_rate/head": 1e-3 / step}
        log.write("step", step, epoch=1, stage="head", **{"train/loss": 2.0 / step}, **rates)
        if step % 4 == 0:
            values = {"train/loss": 1.5, "val/accuracy": step / 10, "seconds": 3.0}
            log.write("epoch", step, epoch=1, stage="head", **values, **rates)


def test_every_number_of_the_log_is_a_point_once(tmp_path):
    with Log(tmp_path, step=0, tensorboard=True) as log:
        write_lines(log, range(1, 9))
    points = read_points(tmp_path)
    assert points == expected_points(read_log(tmp_path))
    assert len({(name, step) for name, step, _ in points}) == len(points)
    assert {name for name, _, _ in points} == {
        "train/loss", "train/epoch_loss", "val/accuracy", "learning_rate/head", "speed/seconds",
    }  # fmt: skip


def test_a_resumed_log_has_no_duplicate_and_no_orphaned_points(tmp_path):
    with Log(tmp_path, step=0, tensorboard=True) as log:
        write_lines(log, range(1, 8))
    with Log(tmp_path, step=4, tensorboard=True) as log:
        assert max(step for _, step, _ in expected_points(read_log(tmp_path))) == 4
        write_lines(log, range(5, 7))
    points = read_points(tmp_path)
    assert points == expected_points(read_log(tmp_path))
    assert max(step for _, step, _ in points) == 6
    starts = [e for e in read_events(tmp_path) if e.session_log.status == SessionLog.START]
    assert [event.step for event in starts] == [0]  # what a TensorBoard shows by now is dropped


def test_points_after_the_step_that_a_run_goes_back_to_are_dropped(tmp_path):
    with Log(tmp_path, step=0, tensorboard=True) as log:
        write_lines(log, range(1, 8))
        log.go_back(4, 1, reason="", advice="", action="recover")
        write_lines(log, range(5, 6))
    assert read_points(tmp_path) == expected_points(read_log(tmp_path))
    assert max(step for _, step, _ in read_points(tmp_path)) == 5


def test_a_recovery_that_a_kill_repeats_is_logged_once(tmp_path):
    with Log(tmp_path, step=0) as log:
        write_lines(log, range(1, 8))
        log.go_back(4, 1, epoch=1, reason="once", advice="", action="recover")
    with Log(tmp_path, step=4, recoveries=0) as log:  # killed before the next checkpoint
        write_lines(log, range(5, 8))
        log.go_back(4, 1, epoch=1, reason="once", advice="", action="recover")
        write_lines(log, range(5, 9))
    with Log(tmp_path, step=8, recoveries=1) as log:  # and after it
        lines = read_log(tmp_path)
    assert [line["reason"] for line in lines if line["kind"] == "collapse"] == ["once"]
    steps = [line["step"] for line in lines if line["kind"] == "step"]
    assert steps == list(range(1, 9))


def test_two_event_files_of_the_same_second_are_two_files(tmp_path):
    for step in (1, 2):
        events = EventFile(tmp_path, None if step == 2 else [])
        events.write({"kind": "test", "step": step, "test/accuracy": 0.5})
        events.close()
    assert [step for _, step, _ in read_points(tmp_path)] == [1, 2]


def test_a_missing_tensorboardX_is_reported_before_training(tmp_path, monkeypatch, capsys):
    import_module = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "tensorboardX":
            raise ImportError(name)
        return import_module(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert main(["train", "--tensorboard", "--workdir", str(tmp_path / "run")]) == 2
    stderr = capsys.readouterr().err
    assert 'pip install "vggjax[tensorboard]"' in stderr and stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
