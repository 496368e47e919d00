"""The command line, killed with SIGKILL in the middle of an epoch and run again."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.tiny_run import make_images
from support.training_runs import assert_same_weights

from vggjax.training.run_dir.log import read_log

ROOT = Path(__file__).parents[2]


def command(images, workdir):
    return [
        sys.executable, str(ROOT / "train.py"),
        "--dataset", str(images), "--workdir", str(workdir),
        "--model", "cnn-8-bn-pool-8-bn-pool", "--weights", "none", "--unfreeze", "all",
        "--image-size", "32", "--epochs", "3", "--batch-size", "4", "--log-every-steps", "1",
        "--split", "0.6,0.2,0.2",
    ]  # fmt: skip


def run(images, workdir, *, kill_at_step=None):
    """Run the command; return its exit code and output."""
    with subprocess.Popen(
        command(images, workdir), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        while kill_at_step and process.poll() is None:
            saved = (workdir / "checkpoints" / "6").exists()
            if saved and any(line["step"] >= kill_at_step for line in read_log(workdir)):
                process.kill()
            time.sleep(0.02)
        output = process.communicate()[0]
    return process.returncode, output


@pytest.mark.slow
def test_a_run_killed_in_its_second_epoch_ends_with_the_weights_of_one_never_killed(tmp_path):
    images = make_images(tmp_path / "images", ("a", "b"), each=20)
    code, output = run(images, tmp_path / "whole")
    assert code == 0, output
    code, _ = run(images, tmp_path / "killed", kill_at_step=9)  # 6 steps an epoch
    assert code == -9
    assert not (tmp_path / "killed" / "model.json").exists()
    code, output = run(images, tmp_path / "killed")
    assert code == 0, output
    assert "Resuming from step 6" in output
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")
