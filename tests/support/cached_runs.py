"""Runs that cache features in both of their stages, and runs that collapse on purpose."""

import jax
import jax.numpy as jnp
from flax import nnx

from support.tiny_run import make_images
from support.training_runs import make_config, pretend_pretrained
from vggjax.models.arch import ARCHS
from vggjax.training import prepare, stage_loop
from vggjax.training.cache.features import CachedFeatures, FeatureCache
from vggjax.training.freezing import trainable
from vggjax.training.run_dir.folder import make_workdir
from vggjax.training.signals import Stop

FILE = {"feature_cache_mb": 0}
"""Settings with which all features go to files."""

HEAD = {"unfreeze": "none", "head_epochs": None, "epochs": 2}
"""Settings of a run with one stage, which trains the head."""

FLIPS = {"horizontal_flip": True, "vertical_flip": True}
"""Settings that give each image four views."""

AUGMENTED = {"brightness_range": (0.5, 1.5), "cached_views": 2}


def make_config_of(tmp_path, *, each=10):
    """Return a function of a run's name and settings that returns its config.

    The runs train the head for two epochs and block5 for two more, on 60 % of three classes with
    `each` images, from a weight file that counts as pretrained.
    """
    images = make_images(tmp_path / "images", ("a", "b", "c"), each=each)
    fixed = dict(
        weights=str(pretend_pretrained(tmp_path, ARCHS["tiny"])), unfreeze="block5", epochs=4,
        head_epochs=2, augment="none", duplicates="ignore",
    )  # fmt: skip
    return lambda name, **settings: make_config(images, tmp_path / name, **fixed | settings)


def spoil_weights(monkeypatch, *, step, above, value=0.0):
    """Set the weights that train and their moments to `value` before each step from `step` on.

    Runs whose learning rates have a factor of at most `above` are left alone. With 0 a network of
    two layers or more stays at chance: its gradients are 0, except those of the last bias.
    """
    make = stage_loop.make_train_step

    def spoil(leaf):
        return jnp.full_like(leaf, value) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    def make_train_step(model, tx, labels, **kwargs):
        train_step = make(model, tx, labels, **kwargs)

        def spoiled(state, batch):
            if int(state.step) + 1 >= step and float(state.factor) > above:
                training = nnx.filter_state(state.params, trainable(labels))
                with jax.transfer_guard("allow"):
                    training, opt_state = jax.tree.map(spoil, (training, state.opt_state))
                params = nnx.merge_state(state.params, training)
                state = state._replace(params=params, opt_state=opt_state)
            return train_step(state, batch)

        return spoiled

    monkeypatch.setattr(stage_loop, "make_train_step", make_train_step)


class QuietConsole:
    """A console that shows nothing."""

    def begin(self, *_, **__):
        pass

    advance = print = begin


def fill(config, *, stage=0):
    """Return the cached features of a stage of a new run, {split: CachedFeatures}, and the run."""
    run = prepare.prepare_run(config)
    make_workdir(run.workdir, run.config, run.source, run.splits)
    with FeatureCache(run, QuietConsole(), Stop()).of(run.stages[stage]) as (cached, cut):
        assert cut == run.feature_plans[run.stages[stage].name].cut
    return cached.loaders, run


def rows_of(cached: CachedFeatures, **options):
    return list(cached.batches(4, **options))
