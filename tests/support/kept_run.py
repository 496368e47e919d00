"""A tiny run that keeps features in both of its stages, and what its tests share."""

from support.tiny_run import make_images
from support.training_runs import interrupt_at as interrupt_at
from support.training_runs import make_config, pretend_pretrained
from vggjax.training import prepare
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
    weights = str(pretend_pretrained(tmp_path, tiny_arch))
    fixed = dict(
        weights=weights, unfreeze="block5", epochs=4, head_epochs=2, augment="none",
        duplicates="ignore",
    )  # fmt: skip

    def make(name, **settings):
        return make_config(images, tmp_path / name, **fixed | settings)

    return make


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
