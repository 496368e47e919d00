"""The command line, killed with SIGKILL in the middle of an epoch and run again."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.tiny_run import make_images
from support.training_runs import assert_same_weights

ROOT = Path(__file__).parents[2]

KILLED = """
import os, runpy, signal, sys, time
from pathlib import Path
from vggjax.training.progress import MetricAccumulator

add, calls = MetricAccumulator.add, []
saved = Path(sys.argv[sys.argv.index("--workdir") + 1], "checkpoints", "6", "manifest.json")

def add_or_die(*args):
    calls.append(1)
    if len(calls) == 9:
        while not saved.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    add(*args)

MetricAccumulator.add = add_or_die
sys.argv[0] = {path!r}
runpy.run_path({path!r}, run_name="__main__")
"""
"""Dies in its ninth step, when the checkpoint of the first epoch, of 6 steps, is complete."""


def run(images, workdir, *, is_killed=False):
    """Run the command; return its exit code and output."""
    path = str(ROOT / "train.py")
    program = ["-c", KILLED.format(path=path)] if is_killed else [path]
    flags = [
        "--dataset", str(images), "--workdir", str(workdir),
        "--model", "cnn-8-bn-pool-8-bn-pool", "--weights", "none", "--unfreeze", "all",
        "--image-size", "32", "--epochs", "3", "--batch-size", "4", "--log-every-steps", "1",
        "--split", "0.6,0.2,0.2",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, *program, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )
    return done.returncode, done.stdout


@pytest.mark.slow
def test_a_run_killed_in_its_second_epoch_ends_with_the_weights_of_one_never_killed(tmp_path):
    images = make_images(tmp_path / "images", ("a", "b"), each=20)
    code, output = run(images, tmp_path / "whole")
    assert code == 0, output
    code, output = run(images, tmp_path / "killed", is_killed=True)
    assert code == -9, output
    assert not (tmp_path / "killed" / "model.json").exists()
    code, output = run(images, tmp_path / "killed")
    assert code == 0, output
    assert "Resuming from step 6" in output
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")
