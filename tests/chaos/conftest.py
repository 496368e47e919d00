"""What the tests share: data, weights, commands in processes of their own, and the table."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from support.chaos import CommandServer, Outcome, Table
from support.tiny_run import make_images
from support.training_runs import assert_same_log, assert_same_weights, pretend_pretrained

from vggjax.models.convnets import find_arch
from vggjax.training.run_dir.checked_json import read_json

NETWORK = "cnn-8-pool-8-pool"


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(3600))


@dataclass(frozen=True)
class Place:
    """A folder with a dataset, weights, and a run that nothing disturbed."""

    folder: Path
    server: CommandServer

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def whole(self) -> Path:
        return self.folder / "whole"

    def train(self, name: str, *flags: str, images: Path | None = None) -> list[str]:
        """Return a command with two stages, each of which caches its features in files."""
        weights = self.folder / f"{NETWORK}.safetensors"
        return [
            "train", "--dataset", str(images or self.images), "--workdir", str(self.folder / name),
            "--model", NETWORK, "--weights", str(weights), "--preprocess", "torch",
            "--head-epochs", "2", "--unfreeze", "block2", "--epochs", "4", "--image-size", "16",
            "--batch-size", "4", "--log-every-steps", "1", "--split", "0.6,0.2,0.2",
            "--augment", "none", "--feature-cache-mb", "0", "--parallel", "jit", *flags,
        ]  # fmt: skip

    def run(self, name: str, *flags: str, **options) -> Outcome:
        return self.server.run(self.train(name, *flags), **options)

    def check_as_undisturbed(self, name: str) -> None:
        """Check that a run ended as the undisturbed one: weights, log, figures, tidy folder."""
        run = self.folder / name
        assert_same_weights(self.whole, run)
        assert_same_log(self.whole, run)
        self.check_figures(name)
        steps = [path.name for path in (run / "checkpoints").iterdir()]
        assert len(steps) <= 3 and all(step.isdecimal() for step in steps), steps
        assert not (run / "features").exists()

    def check_figures(self, name: str) -> None:
        """Check that a run has the figures and predictions of the undisturbed one."""
        run, file = self.folder / name, "predictions.csv"
        assert figures(run) == figures(self.whole)
        assert (run / file).read_bytes() == (self.whole / file).read_bytes()


def figures(run: Path) -> dict:
    """Return eval.json without what differs from run to run."""
    times = ("seconds", "evaluated_at")
    return {k: v for k, v in read_json(run / "eval.json").items() if k not in times}


@pytest.fixture(scope="module")
def table():
    """Return the table that is printed when the module's tests are done (`-s` shows it)."""
    made = Table()
    yield made
    print(f"\n{made}" if made.rows else "")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chaos")
    make_images(folder / "images", ("a", "b"), each=20)
    pretend_pretrained(folder, find_arch(NETWORK))
    with CommandServer(folder) as server:
        made = Place(folder, server)
        outcome = made.run("whole")
        assert outcome.code == 0, outcome.output
        yield made
