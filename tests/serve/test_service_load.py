"""`vggjax serve` in a process of its own, as a supervisor starts it, loads it and stops it."""

import subprocess
import sys

import pytest

pytest.importorskip("benchmarks", reason="the tests are not run from the repository's folder")
from support.tiny_run import make_images, make_run

from benchmarks.serve import load, noise


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    images = make_images(root / "images", each=4)
    return make_run(root / "run", images, split="0.5,0.25,0.25", model="vgg11")


@pytest.mark.slow
def test_a_load_loses_no_request_keeps_memory_flat_and_a_signal_ends_it_in_order(run):
    result = load(run, rate=100, seconds=8, image=noise())
    assert result.statuses == {200: 800}
    assert result.exit_code == 0
    memory = result.resident_mb  # empty where there is no /proc
    if len(memory) >= 4:
        assert max(memory) - memory[len(memory) // 4] < 40


@pytest.mark.slow
def test_mistakes_in_the_command_are_one_line(run, tmp_path):
    for options, line in (
        (["--host", "0.0.0.0"], "requests need a token: set VGGJAX_TOKEN or give --token-file"),
        (["--max-queue", "1"], "--max-queue must be at least --max-files, 32; got 1"),
        (["--port", "99999"], "--port must be from 0 to 65535; got 99999"),
    ):
        command = [sys.executable, "-m", "vggjax", "serve", str(run), *options]
        process = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert process.returncode == 2 and line in process.stderr
        assert process.stderr.count("\n") == 1 and not process.stdout
