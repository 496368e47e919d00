"""Which layers' outputs a stage keeps, how large they are and where they go; nothing is computed.

The cut is the deepest layer up to which everything is frozen and nothing is random: those layers
give the same numbers for an image whenever they run, so they need run only once. Each stage has
its own cut: the head alone is cut behind the head's pooling, block5 with it behind block4_pool.
"""

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
from vggjax.training.config import Config
from vggjax.training.freezing import Labels, label_layers
from vggjax.training.stages import Stage

SPARE_BYTES = 2**30
"""Left free on the disk that a file of features goes to: checkpoints want room too."""


@dataclass(frozen=True)
class FeaturePlan:
    """What a stage keeps of the splits `train` and `val`."""

    cut: str
    shape: tuple[int, ...]
    """Of one image's features."""
    dtype: str
    views: tuple[int, ...]
    """The drawn versions of each training image that the stage's passes need; (0,) is the plain
    image where nothing is drawn."""
    size_bytes: int
    where: Literal["memory", "file", "nowhere"]

    def __str__(self) -> str:
        """Says it in one line, for the first screen."""
        views = f", {len(self.views)} drawn versions of each training image"
        kept = {"memory": "in memory", "file": "in a file in the run folder"}.get(self.where)
        size = f"{self.cut}{views if len(self.views) > 1 else ''}, {megabytes(self.size_bytes)}"
        if kept is None:
            return f"not kept: {size}, more than --feature-cache-mb and than the disk has room for"
        return f"computed once up to {size} {kept}"


def megabytes(size_bytes: int) -> str:
    """Writes a size for people: `37 MB`."""
    return f"{math.ceil(size_bytes / 2**20):,} MB"


def find_cut(model: Network, labels: Labels) -> str | None:
    """Finds the deepest layer that depends on frozen layers alone, None where the first trains."""
    cut = None
    for name in model.layers:
        trains = labels.get(name, "frozen") != "frozen"
        if trains or name in model.dropout_rates:
            break
        if name in labels or cut:  # what has no parameters in front is not worth keeping
            cut = name
    return cut


def plan_features(
    config: Config,
    model: Network,
    stages: Sequence[Stage],
    counts: Mapping[str, int],
    workdir: Path,
    *,
    steps_per_epoch: int = 1,
    steps_per_pass: int = 1,
) -> dict[str, FeaturePlan]:
    """Plans what each stage keeps, {stage's name: plan}; a stage that keeps nothing has no entry.

    `counts` are the images of `train` and `val`. Where nothing is drawn, features are kept by
    themselves if the stage goes through the images more than once; drawn versions only on
    request.

    Raises:
        ConfigError: what was asked for cannot be kept.
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
        size = config.image_size
        images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        shape = jax.eval_shape(lambda x, cut=cut: model(x, until=cut), images).shape[1:]
        num_images = counts["train"] * len(views) + counts["val"]
        size_bytes = num_images * math.prod(shape) * jnp.dtype(dtype).itemsize
        where = _find_room(size_bytes, config.feature_cache_mb, workdir)
        plan = FeaturePlan(cut, shape, dtype, views, size_bytes, where)
        if where == "nowhere" and (config.cached_views or config.feature_dtype):
            raise ConfigError(_no_room(config, plan))
        plans[stage.name] = plan
    if config.cached_views and not plans:
        raise ConfigError(
            f"--cached-views {config.cached_views} needs frozen layers before the first that "
            f"trains; got --unfreeze {' '.join(config.unfrozen)}. Leave it out: "
            f"{describe(config.augmentation)} is then drawn anew at every step."
        )
    return plans


def view_of(number: int, cached_views: int) -> int:
    """Says which of the drawn versions a pass through the images uses: they take turns."""
    return number % max(cached_views, 1)


def _find_room(
    size_bytes: int, memory_mb: int, workdir: Path
) -> Literal["memory", "file", "nowhere"]:
    if size_bytes <= memory_mb * 2**20:
        return "memory"
    here = workdir.absolute()
    there = next(path for path in (here, *here.parents) if path.exists())
    free = shutil.disk_usage(there).free
    # What an interrupted run has written already needs no more room.
    free += sum(path.stat().st_size for path in (here / "features").glob("*.npy"))
    return "file" if size_bytes + SPARE_BYTES <= free else "nowhere"


def _no_room(config: Config, plan: FeaturePlan) -> str:
    fixes = ["Raise --feature-cache-mb", "make room on the disk"]
    if plan.dtype == "float32":
        fixes.append("use --feature-dtype bfloat16")
    if config.cached_views:
        fixes.append("fewer --cached-views")
    return (
        f"The features up to {plan.cut} take {megabytes(plan.size_bytes)}, more than "
        f"--feature-cache-mb {config.feature_cache_mb} and than the disk of the run folder has "
        f"room for. {', '.join(fixes[:-1])} or {fixes[-1]}."
    )
