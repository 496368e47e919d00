"""The Ray engine yields what the local one does, each image once, when a worker is lost too."""

import csv
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from support.tiny_run import make_images
from support.training_runs import make_config

from vggjax.data.stream.images import open_images
from vggjax.data.stream.options import StreamOptions
from vggjax.errors import ConfigError
from vggjax.evaluation import ray_engine
from vggjax.evaluation.predict_files import predict_command
from vggjax.evaluation.predict_options import PredictOptions
from vggjax.training.trainer import train


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder with 30 images in flowers/ and in flowers.tar."""
    monkeypatch.chdir(tmp_path)
    make_images(Path("flowers"))
    with tarfile.open("flowers.tar", "w") as archive:
        archive.add("flowers")
    return tmp_path


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_work_is_shared_by_files_and_by_shards(folder, monkeypatch):
    monkeypatch.setattr(ray_engine, "UNIT_FILES", 8)
    units = list(ray_engine._units(["flowers", "flowers.tar", "flowers/daisy/00.png", "gone.jpg"]))
    assert [len(unit) for unit in units] == [8, 8, 8, 6, 1, 1]
    assert [unit[0].is_shard for unit in units] == [False] * 4 + [True, False]
    assert sum(units[:4], []) == list(open_images(["flowers"]))


def test_names_on_the_standard_input_are_refused_and_so_are_workers_without_ray():
    pytest.importorskip("ray")
    with pytest.raises(ConfigError, match="give a list"):
        next(ray_engine.ray_outputs(["-"], StreamOptions(engine="ray"), lambda: None))


def test_workers_need_the_engine():
    with pytest.raises(ConfigError, match="`workers` needs `engine` ray; got 2"):
        StreamOptions(workers=2)


@pytest.mark.slow
def test_two_workers_write_the_rows_of_one_process_though_one_is_killed(folder):
    pytest.importorskip("ray")
    images = ["flowers", "flowers.tar"]
    settings = {"model": "cnn-4-pool-4", "head": "gap-classes", "epochs": 1, "split": "0.6,0.2,0.2"}
    train(make_config(Path("flowers"), Path("trained"), **settings))
    assert predict_command(images, PredictOptions(workdir="trained", csv="local.csv")) == 0
    command = [sys.executable, "-m", "vggjax", "predict", *images, "--workdir", "trained"]
    command += ["--csv", "ray.csv", "--engine", "ray", "--workers", "2"]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not (workers := workers_of(process.pid)):
            time.sleep(0.1)
        os.kill(workers[0], signal.SIGKILL)
        assert process.wait() == 0
    local, ray = read_csv("local.csv"), read_csv("ray.csv")
    assert [row[:2] for row in ray] == [row[:2] for row in local]


def workers_of(parent):
    """Return the actors below a process, as Ray names them."""
    psutil = pytest.importorskip("psutil")
    below = psutil.Process(parent).children(recursive=True)
    return [process.pid for process in below if "_Worker" in " ".join(process.cmdline()[:1])]
