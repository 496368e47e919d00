"""A full disk, several writers, changed data, other devices: refused in one line, or the same."""

import os
import shutil
import signal

import numpy as np
import pytest
from PIL import Image
from support.chaos import IS_FULL, Fault
from support.training_runs import weights_of

STEP = "vggjax.training.progress.MetricAccumulator.add"
SIZES = (2_000, 5_000, 10_000, 20_000, 40_000, 60_000, 100_000)


def last_words(place, outcome):
    """Return what a command ended with, without the folders of this test."""
    text = outcome.last_line.replace(str(place.folder), "").removeprefix("vggjax: error: ")
    return f"exit {outcome.code}: {text}" if outcome.code else "exit 0"


@pytest.mark.parametrize("file_bytes", SIZES if IS_FULL else SIZES[1::3])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(place, table, file_bytes):
    name = f"full-{file_bytes}"
    outcome = place.run(name, file_bytes=file_bytes)
    assert outcome.is_orderly, outcome.output
    table.add(f"no file beyond {file_bytes:,} bytes", last_words(place, outcome))
    assert place.run(name).code == 0
    place.check_as_undisturbed(name)


@pytest.mark.parametrize("count", [2, 3])
def test_of_several_writers_one_trains_and_the_others_are_refused(place, table, count):
    name = f"writers-{count}"
    started = [place.server.start(place.train(name)) for _ in range(count)]
    outcomes = [place.server.wait(command) for command in started]
    assert all(outcome.is_orderly for outcome in outcomes), [o.output for o in outcomes]
    codes = sorted(outcome.code for outcome in outcomes)
    assert set(codes) <= {0, 2} and 0 in codes
    place.check_as_undisturbed(name)
    table.add(f"{count} starts at once", f"exits {codes}, weights, log and figures the same")


def test_a_writer_with_other_settings_leaves_the_owner_alone(place, table):
    name = "owner"
    owner = place.server.start(place.train(name), fault=Fault(STEP, 1, 0, signal.SIGSTOP))
    owner.wait_until_stopped()
    other = place.run(name, "--seed", "7")
    assert other.code == 2 and other.is_orderly, other.output
    os.kill(owner.process, signal.SIGCONT)
    assert place.server.wait(owner).code == 0
    place.check_as_undisturbed(name)
    table.add("a start with another seed beside it", last_words(place, other))


def write_noise(path):
    size, pixels = path.stat().st_size, np.random.default_rng(0).integers(0, 255, (40, 48, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return size


def same_size(path):
    """Change one pixel's worth of an image file and keep its size and its modification time."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES = {
    "an image is written anew": write_noise,
    "a bit of an image changes, its size and time do not": same_size,
    "an image vanishes": lambda path: path.unlink(),
    "an image is added": lambda path: shutil.copy(path, path.with_name("new.png")),
    "an image is renamed": lambda path: path.rename(path.with_name("other.png")),
    "an image moves to the other class": lambda path: path.rename(
        path.parent.parent / "b" / "moved.png"
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_data_that_changed_between_a_kill_and_the_next_start_is_named(place, table, what, tmp_path):
    images = shutil.copytree(place.images, tmp_path / "images")
    command = place.train(f"changed-{list(CHANGES).index(what)}", images=images)
    assert place.server.run(command, fault=Fault(STEP, 9)).code == -9
    CHANGES[what](images / "a" / "03.png")
    outcome = place.server.run(command)
    assert outcome.code in (2, 3) and outcome.is_orderly, outcome.output
    assert any(name in outcome.output for name in ("03.png", "new.png")), outcome.output
    words = last_words(place, outcome).replace(str(tmp_path), "")
    table.add(f"{what} while the run is stopped", words if outcome.code == 2 else "exit 3, named")


def test_images_that_vanish_during_a_run_are_named(place, table, tmp_path):
    images = shutil.copytree(place.images, tmp_path / "images")
    flags = ("--cache-features", "off", "--cache-mb", "0", "--max-unreadable", "0.5")
    command = place.train("vanished", *flags, images=images)
    started = place.server.start(command, fault=Fault(STEP, 1, 0, signal.SIGSTOP))
    started.wait_until_stopped()
    for number in range(3):
        (images / "a" / f"{number:02}.png").unlink()
    os.kill(started.process, signal.SIGCONT)
    outcome = place.server.wait(started)
    assert outcome.code == 3 and outcome.is_orderly, outcome.output
    table.add("three images vanish during a run", "exit 3, each named")


def test_a_clock_set_back_changes_nothing(place, table):
    """Files of the run and of the dataset are from the future, and in the wrong order."""
    assert place.run("clock", fault=Fault(STEP, 15)).code == -9
    for number, path in enumerate(sorted((place.folder / "clock").rglob("*"), reverse=True)):
        os.utime(path, (4e9 + 100 * number,) * 2)
    outcome = place.run("clock")
    assert outcome.code == 0, outcome.output
    place.check_as_undisturbed("clock")
    table.add("a clock set back by 70 years", "weights, log and figures the same")


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (4, 1)])
def test_a_run_resumes_on_other_numbers_of_devices(place, table, before, after):
    """Sums over other numbers of devices round differently, in the last bits."""
    name = f"devices-{before}-{after}"
    assert place.run(name, devices=before, fault=Fault(STEP, 9)).code == -9
    outcome = place.run(name, devices=after)
    assert outcome.code == 0, outcome.output
    expected, received = weights_of(place.whole), weights_of(place.folder / name)
    largest = max(np.abs(received[key] - array).max() for key, array in expected.items())
    assert largest < 1e-5
    done = f"begun on {before} device(s), ended on {after}"
    table.add(done, f"weights within {largest:.0e}" if largest else "weights the same")
