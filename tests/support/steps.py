"""Train steps of tiny networks on random batches.

`PLAIN` and `BN` have one convolution per block, which compiles fastest. Steps on `features` of the
layer `gap` run the head alone and compile in a fraction of a second.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vggjax.data.augment.settings import PRESETS, Augmentation
from vggjax.models.arch import Arch
from vggjax.models.head import Head
from vggjax.models.network import VGG
from vggjax.training.config import Config
from vggjax.training.freezing import label_layers, make_optimizer, make_schedules, plan_stages
from vggjax.training.parallel import Placement
from vggjax.training.step import TrainState, make_state, make_train_step

PLAIN = Arch("plain", (1, 1, 1, 1, 1), (4, 4, 8, 8, 8))
BN = Arch("plain_bn", PLAIN.convs, PLAIN.widths, batch_norm=True)


def make_batch(rows: int = 8, *, masked: int = 0, seed: int = 0) -> dict[str, np.ndarray]:
    """Return a batch of three classes, of which the last `masked` rows are padding."""
    rng = np.random.default_rng(seed)
    mask = (np.arange(rows) < rows - masked).astype(np.float32)
    return {
        "images": rng.integers(0, 256, (rows, 32, 32, 3), dtype=np.uint8),
        "label": (np.arange(rows) % 3).astype(np.int32),
        "mask": mask,
        "index": np.where(mask > 0, np.arange(rows), -1),
    }


def make_feature_batch(rows: int = 8, *, masked: int = 0, seed: int = 0) -> dict[str, np.ndarray]:
    """Return `make_batch` with the features of `gap`, (rows, 8), instead of images."""
    batch = make_batch(rows, masked=masked, seed=seed)
    del batch["images"]
    rng = np.random.default_rng(seed + 1)
    return batch | {"features": rng.normal(0, 1, (rows, 8)).astype(np.float32)}


class Step(NamedTuple):
    """A compiled step and what it was made of."""

    run: Callable
    state: TrainState
    model: VGG
    placement: Placement
    is_stacked: bool

    def __call__(self, state, batch):
        """Run the step on a copy of the state, which can be used again."""
        state = jax.tree.map(jnp.copy, state)  # the step reuses its memory
        return self.run(state, self.placement.put_batch(batch, stack_batches=self.is_stacked))


def losses_of(
    kind: str, devices: int, shard_fc: int = 1, *, steps: int = 20, arch: Arch = PLAIN
) -> list[float]:
    """Return the losses of the first steps of a network with fc1, fc2 and fc3."""
    placement = Placement(kind, num_devices=devices, shard_fc=shard_fc)
    rates = {"learning_rate": 0.05, "backbone_learning_rate": 0.05}
    step = make_step(
        arch, "flatten-16-8-16-0.5-3", placement=placement, optimizer="sgd", clip_norm=1.0, **rates
    )
    state, losses = step.state, []
    for seed in range(steps):
        batch = make_batch(masked=3 * (seed % 2), seed=seed)
        state, metrics = step(state, batch)
        sums = placement.fetch(metrics)
        losses.append(float(sums["loss"] / sums["count"]))
    return losses


def make_step(
    arch: Arch = PLAIN,
    head: str = "gap-16-0.5-3",
    *,
    placement: Placement | None = None,
    augmentation: Augmentation = PRESETS["none"],
    class_weights: np.ndarray | None = None,
    after: str | None = None,
    stack_batches: bool = False,
    remat: bool = False,
    dtype: str = "float32",
    **settings,
) -> Step:
    """Return the step of a run's last stage, at a constant rate."""
    placement = placement or Placement(num_devices=1)
    model = VGG(arch, head=Head.parse(head), image_size=32, dtype=dtype, rngs=nnx.Rngs(0))
    settings = {"weights": "none", "unfreeze": "all", "warmup_epochs": 0} | settings
    config = Config(**{"schedule": "constant"} | settings)
    labels = label_layers(model, config.unfreeze, by_block=config.layer_decay != 1)
    tx = make_optimizer(config, labels, make_schedules(config, plan_stages(config)[-1], 10))
    run = make_train_step(
        model,
        tx,
        labels,
        placement=placement,
        mode="torch",
        augmentation=augmentation,
        class_weights=class_weights,
        label_smoothing=config.label_smoothing,
        ema=config.ema,
        seed=5,
        after=after,
        stack_batches=stack_batches,
        remat=remat,
    )
    state = placement.put_state(make_state(model, tx, labels, ema=config.ema))
    return Step(run, state, model, placement, stack_batches)
