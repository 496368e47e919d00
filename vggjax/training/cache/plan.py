"""The plan of a stage's feature cache: which layer's outputs, how large, and where to keep them.

The cut is the deepest layer up to which everything is frozen and deterministic: up to there an
image's outputs never change, so they are computed once. Every stage has its own cut: with only the
head training it is the head's pooling, with block5 it is block4_pool.
"""

import functools
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp

from vggjax.data.augment.settings import describe, is_on
from vggjax.errors import ConfigError
from vggjax.models.network import Network
from vggjax.training.config import Config, Stage
from vggjax.training.freezing import Labels, label_layers

SPARE_BYTES = 2**30
"""Left free on the disk of a feature file, for the checkpoints."""

Storage = Literal["memory", "file", "nowhere"]


@dataclass(frozen=True)
class FeaturePlan:
    """The cached features of one stage, for the splits `train` and `val`."""

    cut: str
    shape: tuple[int, ...]
    """Of one image's features."""
    dtype: str
    views: tuple[int, ...]
    """The augmented versions of each training image that the stage uses; (0,), the image itself,
    without augmentation."""
    size_bytes: int
    where: Storage

    def __str__(self) -> str:
        """Return one line for the run's summary."""
        views = f", {len(self.views)} augmented views of each training image"
        size = f"{self.cut}{views if len(self.views) > 1 else ''}, {megabytes(self.size_bytes)}"
        if self.where == "nowhere":
            return f"not cached: {size} exceeds `feature_cache_mb` and the free disk space"
        storage = "memory" if self.where == "memory" else "a file in the run folder"
        return f"cached up to {size} in {storage}"


def megabytes(size_bytes: int) -> str:
    """Return a size for people, rounded up: `37 MB`."""
    return f"{math.ceil(size_bytes / 2**20):,} MB"


def find_cut(model: Network, labels: Labels) -> str | None:
    """Return the deepest layer that depends on frozen layers only; None if the first one trains."""
    cut = None
    for name in model.layers:
        trains = labels.get(name, "frozen") != "frozen"
        if trains or name in model.dropout_rates:
            break
        if name in labels or cut:  # leading layers without parameters are not worth caching
            cut = name
    return cut


def plan_features(
    config: Config,
    model: Network,
    stages: Sequence[Stage],
    counts: Mapping[str, int],
    workdir: Path,
    *,
    steps_per_epoch: int,
    steps_per_pass: int,
) -> dict[str, FeaturePlan]:
    """Return the plan of each stage that caches features, {stage's name: plan}.

    `counts` holds the number of images of `train` and `val`. Without augmentation a stage caches
    features if it visits the images more than once; augmented views are cached on request only.

    Raises:
        ConfigError: requested features cannot be cached.
    """
    if config.cache_features == "off" or (is_on(config.augmentation) and not config.cached_views):
        return {}
    plans = {}
    for stage in stages:
        cut = find_cut(model, label_layers(model, stage.unfreeze))
        steps = stage.epochs * steps_per_epoch
        if cut is None or (steps <= steps_per_pass and not config.cached_views):
            continue
        first = stage.first_epoch * steps_per_epoch
        passes = range(first // steps_per_pass, (first + steps - 1) // steps_per_pass + 1)
        views = tuple(sorted({view_of(number, config.cached_views) for number in passes}))
        dtype = config.feature_dtype or config.dtype
        image = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
        prefix = functools.partial(model, until=cut)
        shape = jax.eval_shape(prefix, image).shape[1:]
        num_images = counts["train"] * len(views) + counts["val"]
        size_bytes = num_images * math.prod(shape) * jnp.dtype(dtype).itemsize
        where = _choose_storage(size_bytes, config.feature_cache_mb, workdir)
        plan = FeaturePlan(cut, shape, dtype, views, size_bytes, where)
        if where == "nowhere" and (config.cached_views or config.feature_dtype):
            raise ConfigError(_no_room_message(config, plan))
        plans[stage.name] = plan
    if config.cached_views and not plans:
        raise ConfigError(
            f"`cached_views` {config.cached_views} needs frozen layers before the first one that "
            f"trains; got `unfreeze` {' '.join(config.unfrozen)}. Leave `cached_views` out: then "
            f"{describe(config.augmentation)} is applied anew at every step."
        )
    return plans


def view_of(epoch: int, cached_views: int) -> int:
    """Return the number of the cached view that a pass uses: they take turns."""
    return epoch % max(cached_views, 1)


def _choose_storage(size_bytes: int, memory_mb: int, workdir: Path) -> Storage:
    if size_bytes <= memory_mb * 2**20:
        return "memory"
    workdir = workdir.absolute()
    existing = next(path for path in (workdir, *workdir.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    # The files of an interrupted run already have their room.
    free += sum(path.stat().st_size for path in (workdir / "features").glob("*.npy"))
    return "file" if size_bytes + SPARE_BYTES <= free else "nowhere"


def _no_room_message(config: Config, plan: FeaturePlan) -> str:
    fixes = ["Raise `feature_cache_mb`", "make room on the disk"]
    if plan.dtype == "float32":
        fixes.append("set `feature_dtype` to bfloat16")
    if config.cached_views:
        fixes.append("lower `cached_views`")
    return (
        f"The features up to {plan.cut} take {megabytes(plan.size_bytes)}, which exceeds "
        f"`feature_cache_mb` {config.feature_cache_mb} and the free disk space of the run folder. "
        f"{', '.join(fixes[:-1])} or {fixes[-1]}."
    )
