"""A tiny run that keeps features in both of its stages, and what its tests share."""

import os
import signal

from test_loop import make_config
from test_loop import pretend_pretrained as pretrained

from support.tiny_run import make_images
from vggjax.training import prepare, trainer
from vggjax.training.cache.features import CachedFeatures, cached_features
from vggjax.training.run_dir.folder import make_workdir
from vggjax.training.signals import Stop

FILE = {"feature_cache_mb": 0}
"""Every feature then goes to a file."""

HEAD = {"unfreeze": "none", "head_epochs": None, "epochs": 2}

DRAWN = {"brightness_range": (0.5, 1.5), "cached_views": 2}


def make_config_of(tmp_path, monkeypatch, tiny_arch):
    """Makes configs of a run that keeps features in both of its stages, two epochs each."""
    images = make_images(tmp_path / "images", ("a", "b", "c"), each=10)
    weights = str(pretrained(tmp_path, tiny_arch))
    fixed = dict(
        weights=weights, unfreeze="block5", epochs=4, head_epochs=2, augment="none",
        duplicates="ignore",
    )  # fmt: skip

    def make(name, **settings):
        return make_config(images, tmp_path / name, **fixed | settings)

    return make


def interrupt_at(monkeypatch, step):
    """Sends this process SIGTERM when the given step is reached, also in the middle of a chunk."""
    make = trainer.make_train_step

    def make_train_step(*args, **kwargs):
        train_step = make(*args, **kwargs)

        def interrupted(state, batch):
            if int(state.step) >= step - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return train_step(state, batch)

        return interrupted

    monkeypatch.setattr(trainer, "make_train_step", make_train_step)


class Quiet:
    """A screen that shows nothing."""

    def begin(self, *_, **__):
        pass

    advance = print = begin


def fill(config, *, stage=0):
    """Gives the features of a stage of a new run: {split: CachedFeatures}, and its set-up."""
    run = prepare.prepare_run(config)
    make_workdir(run.workdir, config, run.source, run.splits)
    with cached_features(run, run.stages[stage], Quiet(), Stop()) as (kept, cut):
        assert cut == run.feature_plans[run.stages[stage].name].cut
    return kept.loaders, run


def rows_of(kept: CachedFeatures, **options):
    return [batch for batch in kept.batches(4, **options)]
