"""The plan of a stage's feature cache: which layer's outputs, of which views, and where to keep it.

The cut is the deepest layer up to which everything is frozen: up to there an image's outputs never
change, so they are computed once. Every stage has its own cut: with only the head training it is
the head's pooling, with block5 it is block4_pool.

Views are the versions of a training image. Without augmentation there is one, with flips there are
two or four: a step takes the one that it draws, so the run is that without a cache. Other
augmentation has no end of them; of those, `cached_views` are drawn once and take turns.

Features lie in memory up to `feature_cache_mb`, else in files, which leave half of the free disk to
others. What exceeds that is kept as bfloat16, which halves it and moves no figure of a run beyond
chance ; where that is too much as well, nothing is kept, and the run says so.
"""

import functools
import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp

from vggjax.data.augment.settings import describe, finite_views
from vggjax.errors import ConfigError
from vggjax.models.network import Network
from vggjax.training.cache.store import is_bfloat16
from vggjax.training.config import Config
from vggjax.training.devices.processes import num_processes
from vggjax.training.freezing import Labels, label_layers, solves_head
from vggjax.training.settings.stages import Stage

SPARE_BYTES = 2**30
"""Left free on the disk of the feature files, for the checkpoints."""

DISK_SHARE = 0.5
"""Of the free disk, what the feature files may take."""

Storage = Literal["memory", "file", "nowhere"]

_TOO_MUCH = "exceeds `feature_cache_mb` and half of the free disk space"

_VIEWS = {
    (0, 1): "each training image and its mirror image",
    (0, 2): "each training image upright and upside down",
    (0, 1, 2, 3): "the 4 flips of each training image",
}


@dataclass(frozen=True)
class FeaturePlan:
    """The cached features of one stage, for the splits `train`, `val` and, of the last, `test`."""

    cut: str
    shape: tuple[int, ...]
    """Of one image's features."""
    dtype: str
    views: tuple[int, ...]
    """Of each training image: the flips of `finite_views`, or the numbers of draws."""
    is_drawn: bool
    """Whether the views are draws, which take turns; val always has the plain images."""
    size_bytes: int
    where: Storage
    holds_test: bool = False
    """Whether the test split's features are kept as well, for the final evaluation."""
    is_rounded: bool = False
    """Whether `dtype` is bfloat16 for want of room."""

    def __str__(self) -> str:
        """Return one line for the run's summary."""
        draws = f"{len(self.views)} augmented views of each training image"
        views = draws if self.is_drawn else _VIEWS.get(self.views)
        size = ", ".join(filter(None, (self.cut, views, megabytes(self.size_bytes))))
        if self.where == "nowhere":
            return f"not cached, so the frozen layers run at every step: {size} {_TOO_MUCH}"
        storage = "memory" if self.where == "memory" else "files in the run folder"
        rounded = f", as bfloat16 because float32 {_TOO_MUCH}" if self.is_rounded else ""
        return f"cached up to {size} in {storage}{rounded}"


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
        if name in model.uncut_layers:  # the head needs the layers before it as well
            continue
        if name in labels or cut:  # leading layers without parameters are not worth caching
            cut = name
    return cut


class _Room:
    """The bytes that features may still take, in memory and in files."""

    def __init__(self, config: Config, workdir: Path):
        folder, workdir = workdir / "features", workdir.absolute()
        files = list(folder.glob("*.npy"))
        existing = next(path for path in (workdir, *workdir.parents) if path.exists())
        # The files of an interrupted run have their room already.
        taken = 0
        for path in files:
            with suppress(FileNotFoundError):  # the owner of the folder deletes it just now
                taken += path.stat().st_size
        free = shutil.disk_usage(existing).free + taken
        file_bytes = min(int(free * DISK_SHARE), free - SPARE_BYTES)
        self._free: dict[Storage, int] = {
            "memory": config.feature_cache_mb * 2**20,
            "file": file_bytes,
        }
        self.has_rounded = any(map(is_bfloat16, files))
        """Whether an interrupted run has rounded features, with which it has to go on."""

    def take(self, size_bytes: int) -> Storage:
        """Return where features of this size lie, and take their bytes."""
        for name, free in self._free.items():
            if size_bytes <= free:
                self._free[name] -= size_bytes
                return name
        return "nowhere"


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

    `counts` holds the number of images of each split. A stage caches features if the run up
    to its end visits the images more often than they have views. The stages before it have deeper
    cuts: they compute their features from its own, which then lie there until its end.

    Raises:
        ConfigError: requested features cannot be cached.
    """
    flips, requested = finite_views(config.augmentation), config.cached_views
    if config.baselines:
        _check_baselines(config, model, stages[0])
    if config.cache_features == "off" or not (flips or requested):
        return {}
    plans: dict[str, FeaturePlan] = {}
    room = _Room(config, workdir)
    # Steps draw one view of each image per pass; a solver has all of them at once.
    is_any_solved = any(solves_head(config, stage) for stage in stages)
    source: FeaturePlan | None = None
    for stage in reversed(stages):
        cut = find_cut(model, label_layers(model, stage.unfreeze))
        steps = (stage.first_epoch + stage.epochs) * steps_per_epoch
        views = flips
        if requested:
            drawn = requested if is_any_solved else math.ceil(steps / steps_per_pass)
            views = tuple(range(min(requested, drawn)))
        is_solved = solves_head(config, stage)
        has_baselines = config.baselines and stage is stages[0]
        is_needed = requested or is_solved or has_baselines
        is_worth_it = is_needed or source or steps > len(views) * steps_per_pass
        if cut is None or not is_worth_it:
            continue
        shared = source if source and source.cut == cut else None
        with_test = has_baselines or stage is stages[-1]
        own = {split: counts[split] for split in counts if split != "test" or with_test}
        plan = shared or _plan_cut(config, model, cut, views, own, room)
        if plan.where == "nowhere" and (is_needed or config.feature_dtype):
            raise ConfigError(_no_room_message(config, plan))
        plans[stage.name] = plan
        source = plan if plan.where != "nowhere" else None
    if requested and not plans:
        raise ConfigError(
            f"`cached_views` {requested} needs frozen layers before the first one that trains; got "
            f"`unfreeze` {' '.join(config.unfrozen)}. Leave `cached_views` out: then "
            f"{describe(config.augmentation)} is applied anew at every step."
        )
    return dict(reversed(plans.items()))


def _plan_cut(
    config: Config,
    model: Network,
    cut: str,
    views: tuple[int, ...],
    counts: Mapping[str, int],
    room: _Room,
) -> FeaturePlan:
    """Return the plan of a cut for the splits in `counts`; take its bytes from the room."""
    image = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    shape = jax.eval_shape(functools.partial(model, until=cut), image).shape[1:]
    given = str(config.feature_dtype or config.dtype)
    may_round = config.feature_dtype is None and given == "float32"
    dtypes = ["bfloat16"] if may_round and room.has_rounded else [given]
    dtypes += ["bfloat16"] * (may_round and not room.has_rounded)
    for dtype in dtypes:
        # Rounded features are for the baselines alone: see FeatureCache.predict.
        holds_test = "test" in counts and (dtype == config.dtype or config.baselines)
        num_images = counts["train"] * len(views) + counts["val"]
        num_images += counts["test"] if holds_test else 0
        num_images = math.ceil(num_images / num_processes())  # each keeps its part
        size_bytes = num_images * math.prod(shape) * jnp.dtype(dtype).itemsize
        where = room.take(size_bytes)
        if where != "nowhere":
            break
    return FeaturePlan(
        cut,
        shape,
        dtype,
        views,
        is_drawn=bool(config.cached_views),
        size_bytes=size_bytes,
        where=where,
        holds_test=holds_test,
        is_rounded=dtype != given,
    )


def _check_baselines(config: Config, model: Network, stage: Stage) -> None:
    """Raise ConfigError unless the first stage keeps the features of all frozen layers."""
    way_out = ""
    if stage.unfreeze != ("none",):
        way_out = "`unfreeze` none, or `head_epochs` above 0"
    elif config.cache_features == "off":
        way_out = "`cache_features` auto"
    elif not (finite_views(config.augmentation) or config.cached_views):
        way_out = "`augment` flip or none, or give `cached_views`"
    elif find_cut(model, label_layers(model, stage.unfreeze)) is None:
        way_out = "a network with frozen layers"
    if way_out:
        raise ConfigError(
            f"`baselines` needs a first stage that trains the head alone, on kept features. Have "
            f"{way_out}, or leave it out."
        )


def uncached_note(config: Config, model: Network, stages: Sequence[Stage]) -> str:
    """Return what it costs that augmentation forbids a cache, and the way out; "" if it does not.

    `stages` are the run's.
    """
    a = config.augmentation
    if config.cache_features == "off" or config.cached_views or finite_views(a):
        return ""
    frozen = [s for s in stages if find_cut(model, label_layers(model, s.unfreeze))]
    epochs = sum(stage.epochs for stage in frozen)
    if not epochs:
        return ""
    cost = (
        f"not kept: augmentation ({describe(a)}) draws anew at every step, so the frozen layers "
        f"run for each image of all {epochs} epochs"
    )
    views = 4 if epochs >= 8 else 2
    if a.mixup or a.cutmix or config.epoch_images or epochs <= views:
        return cost
    return (
        f"{cost}. With `cached_views` {views} they run {views} times: for {views} versions of "
        "each image, drawn once for all, which take turns."
    )


def _no_room_message(config: Config, plan: FeaturePlan) -> str:
    fixes = ["Raise `feature_cache_mb`", "make room on the disk"]
    if plan.dtype == "float32":
        fixes.append("set `feature_dtype` to bfloat16")
    if config.cached_views:
        fixes.append("lower `cached_views`")
    return (
        f"The features up to {plan.cut} take {megabytes(plan.size_bytes)}, which exceeds "
        f"`feature_cache_mb` {config.feature_cache_mb} and half of the disk space that is free. "
        f"{', '.join(fixes[:-1])} or {fixes[-1]}."
    )
