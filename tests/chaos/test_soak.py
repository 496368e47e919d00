"""Long work in one process: memory and open files stay flat, and kills at any time lose nothing."""

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from support.chaos import IS_FULL
from support.training_runs import assert_same_log, assert_same_weights, epochs_of

import vggjax

PREDICTIONS = 100_000 if IS_FULL else 20_000
EPOCHS = 200 if IS_FULL else 50
FULL_ONLY = pytest.mark.skipif(not IS_FULL, reason="ten minutes of kills: VGGJAX_CHAOS=full")


def usage(process="self"):
    """Return the resident memory in MiB and the number of open files of a process."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    files = len(os.listdir(f"/proc/{process}/fd"))
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, files


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_many_predictions_take_no_more_memory(place, table):
    classifier = vggjax.load_run(place.whole)
    images = list(np.random.default_rng(0).integers(0, 255, (100, 40, 48, 3)).astype(np.uint8))
    expected, usages = classifier.predict(images).probs, []
    for number in range(PREDICTIONS // 100):
        received = classifier.predict(images).probs
        if number % (PREDICTIONS // 1000) == 0:
            assert np.array_equal(received, expected)
            usages.append(usage())
    first, last = usages[1], usages[-1]
    table.add(f"{PREDICTIONS:,} predictions", describe(first, last))
    assert last[0] - first[0] < 20 and last[1] <= first[1]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_many_epochs_with_a_checkpoint_each_take_no_more_memory(place, table):
    command = place.train("long", "--epochs", str(EPOCHS))
    started = place.server.start(command, limit_s=3000)
    usages, log = {}, place.folder / "long" / "log.jsonl"
    while "report.html" not in os.listdir(log.parent) if log.exists() else True:
        text = log.read_text() if log.exists() else ""
        epoch = text.count('"kind": "epoch"')
        try:
            now = usage(started.process)
            usages[epoch] = tuple(map(min, now, usages.get(epoch, now)))
        except (OSError, IndexError):
            break
        time.sleep(0.1)
    outcome = place.server.wait(started)
    assert outcome.code == 0, outcome.output
    # While a checkpoint is written there are more; the least of several epochs is between two.
    epochs = sorted(epoch for epoch in usages if EPOCHS // 5 <= epoch < EPOCHS)
    some = len(epochs) // 3
    first, last = (
        tuple(map(min, *(usages[epoch] for epoch in part)))
        for part in (epochs[:some], epochs[-some:])
    )
    table.add(f"epochs {epochs[0]} to {epochs[-1]} of a training", describe(first, last))
    assert last[0] - first[0] < 40 and last[1] <= first[1] + 5


@FULL_ONLY
def test_a_kill_every_20_s_for_ten_minutes_loses_nothing(place, table):
    flags, rng = ("--epochs", "2000"), random.Random(0)
    steady = place.server.start(place.train("steady", *flags), limit_s=6000)
    kills, end_s = 0, time.monotonic() + 600
    while time.monotonic() < end_s:
        started = place.server.start(place.train("beaten", *flags), limit_s=6000)
        time.sleep(20 + rng.random())
        os.kill(started.process, signal.SIGKILL)
        outcome = place.server.wait(started)
        kills += outcome.code == -9
        if outcome.code == 0:
            break
    done = max(epoch["epoch"] for epoch in epochs_of(place.folder / "beaten"))
    assert place.run("beaten", *flags, limit_s=6000).code == 0
    assert place.server.wait(steady).code == 0
    assert_same_weights(place.folder / "steady", place.folder / "beaten")
    assert_same_log(place.folder / "steady", place.folder / "beaten")
    kept = len(list((place.folder / "beaten" / "checkpoints").iterdir()))
    table.add(
        f"{kills} kills, one every 20 s, in epochs 1 to {done:,} of a training of 2,000",
        f"weights and log the same, {kept} checkpoints",
    )


def describe(first, last):
    return f"memory {first[0]:.0f} -> {last[0]:.0f} MiB, open files {first[1]} -> {last[1]}"
