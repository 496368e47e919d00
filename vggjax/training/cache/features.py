"""The frozen layers' outputs, computed once for each image and kept while a stage lasts.

`Features` stands where `SplitLoader` stood: its batches are those that the images would have come
in, with "features" (B, ...) in place of "images", so that a stage learns what it would have
learned. Rows are computed by batches of the training's size. What is kept, and where, is decided in
feature_plan.py; feature_store.py keeps it.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import jax
import numpy as np
from flax import nnx

from vggjax.data.augment.settings import is_on
from vggjax.data.loader import Batch, SplitLoader, epoch_order, prefetch
from vggjax.models.params import extract
from vggjax.training.cache.plan import FeaturePlan, megabytes, view_of
from vggjax.training.cache.store import FileStore, MemoryStore, Store, make_key
from vggjax.training.console import ProgressConsole
from vggjax.training.forward import make_feature_step
from vggjax.training.prepare import RunContext
from vggjax.training.progress import Program
from vggjax.training.signals import Stop
from vggjax.training.stages import Stage


class Features:
    """One split's features, in batches.

    Args:
        examples: the split whose images they are of.
        views: for each drawn version that is kept its rows (N, ...), in the split's order.
        masked: the positions of images that cannot be read.
        cached_views: how many versions take turns from pass to pass; 0 where nothing is drawn.
    """

    def __init__(
        self,
        examples: SplitLoader,
        views: dict[int, np.ndarray],
        masked: Sequence[int],
        *,
        cached_views: int = 0,
    ):
        self._examples, self._views, self._cached_views = examples, views, cached_views
        self._mask = np.ones(len(examples), np.float32)
        self._mask[list(masked)] = 0

    def __len__(self) -> int:
        return len(self._examples)

    def batches(
        self,
        batch_size: int,
        *,
        seed: int = 0,
        epoch: int = 0,
        shuffle: bool = False,
        start: int = 0,
        process: tuple[int, int] = (0, 1),
    ) -> Iterator[Batch]:
        """Yields what `SplitLoader.batches` does, with "features" in place of "images"."""
        order = epoch_order(len(self), seed=seed, epoch=epoch, shuffle=shuffle)
        which, processes = process
        rows = batch_size // processes
        view = self._views[view_of(epoch, self._cached_views)]
        for at in range(start * batch_size, len(self), batch_size):
            positions = order[at + which * rows : at + (which + 1) * rows]
            padding = (0, rows - len(positions))
            features = np.empty((rows, *view.shape[1:]), view.dtype)
            features[: len(positions)] = view[positions]
            features[len(positions) :] = 0
            index = self._examples.indices[positions]
            yield {
                "features": features,
                "label": np.pad(self._examples.labels[positions], padding),
                "mask": np.pad(self._mask[positions], padding),
                "index": np.pad(index, padding, constant_values=-1),
            }


@contextmanager
def cached_features(
    run: RunContext, stage: Stage, screen: ProgressConsole, stop: Stop
) -> Iterator[tuple[RunContext, str | None]]:
    """Gives the run with features in place of its examples, and the layer to go on after.

    Where nothing is kept, the run as it is and None. A file is deleted when the stage has ended:
    nothing else can use it, since what it depends on is this run's alone, and it may be larger than
    the dataset. It stays where the run is interrupted, which then goes on with it.

    Raises:
        Interrupted: a signal came; the features in a file are kept.
    """
    plan = run.feature_plans.get(stage.name)
    if plan is None or plan.where == "nowhere":
        yield run, None
        return
    stores: list[Store] = []
    try:
        yield (
            dataclasses.replace(run, loaders=_fill_all(run, plan, stores, screen, stop)),
            plan.cut,
        )
    except BaseException:
        for store in stores:
            store.close()
        raise
    for store in stores:
        store.discard()


def _fill_all(
    run: RunContext, plan: FeaturePlan, stores: list[Store], screen: ProgressConsole, stop: Stop
) -> dict[str, Features]:
    """Computes what is lacking of `train` and `val`; adds the stores that it opens to `stores`."""
    compute, kept = _Prefix(run, plan, screen), {}
    for split, examples in run.loaders.items():
        views, masked, stored = {}, set(), 0
        begin_s = time.monotonic() - compute.compile_s
        numbers = plan.views if split == "train" else (0,)
        for view in numbers:
            store = _open_store(run, plan, split, view)
            stores.append(store)
            stored += store.done
            which = f", version {len(views) + 1} of {len(numbers)}" if len(numbers) > 1 else ""
            screen.begin(f"features of {split}{which}", len(examples), done=store.done)
            compute.fill(store, split, view, stop, screen.advance)
            views[view] = store.rows()
            masked |= store.masked
        cached_views = run.config.cached_views if split == "train" else 0
        kept[split] = Features(examples, views, sorted(masked), cached_views=cached_views)
        seconds = time.monotonic() - begin_s - compute.compile_s
        screen.say(_told(split, len(numbers) * len(examples), stored, seconds, views))
    return kept


class _Prefix:
    """The frozen layers, compiled; `compile_s` is what that took so far."""

    def __init__(self, run: RunContext, plan: FeaturePlan, screen: ProgressConsole):
        self._run, self._plan, self._screen = run, plan, screen
        _, params, batch_stats = nnx.split(run.model, nnx.Param, nnx.BatchStat)
        self._state = run.placement.put_state((params, batch_stats))
        self._steps: dict[bool, Program] = {}

    @property
    def compile_s(self) -> float:
        return sum(step.compile_s or 0.0 for step in self._steps.values())

    def fill(
        self, store: Store, split: str, view: int, stop: Stop, advance: Callable[[int], None]
    ) -> None:
        """Computes the rows that a store lacks."""
        run, placement, examples = self._run, self._run.placement, self._run.loaders[split]
        examples.unreadable.update(store.unreadable)
        if store.is_complete:
            return
        draws = split == "train" and is_on(run.config.augmentation)
        step = self._step(draws)
        state = (*self._state, placement.put_state(np.int32(view)))
        batches = examples.batches(
            run.batch_size, start=store.done // run.batch_size, process=placement.process
        )

        def keep(outputs: dict[str, jax.Array]) -> None:
            outputs = placement.fetch(outputs)
            count = min(len(outputs["mask"]), len(examples) - store.done)
            masked = store.done + np.flatnonzero(outputs["mask"][:count] == 0)
            store.append(outputs["features"][:count], masked.tolist(), dict(examples.unreadable))
            advance(store.done)

        pending = None
        with closing(prefetch(batches, placement.put_batch)) as batches:
            for batch in batches:
                outputs = step(state, batch)
                if pending is not None:
                    keep(pending)  # while the devices are busy with the next
                pending = outputs
                if stop.signum:
                    keep(pending)
                    store.pause()
                    stop.check(run.workdir)
        keep(pending)

    def _step(self, draws: bool) -> Program:
        if draws not in self._steps:
            config = self._run.config
            step = make_feature_step(
                self._run.model,
                self._plan.cut,
                placement=self._run.placement,
                mode=config.preprocessing.mode,
                augmentation=config.augmentation if draws else None,
                seed=config.seed,
                dtype=self._plan.dtype,
            )
            name = f"features up to {self._plan.cut}"
            self._steps[draws] = Program(step, lambda said: self._screen.say(f"{name}: {said}"))
        return self._steps[draws]


def _open_store(run: RunContext, plan: FeaturePlan, split: str, view: int) -> Store:
    examples = run.loaders[split]
    shape = (len(examples), *plan.shape)
    if plan.where == "memory":
        return MemoryStore(shape, plan.dtype)
    which, processes = run.placement.process
    part = f"-{which}" if processes > 1 else ""  # each process keeps a copy of its own
    return FileStore(
        run.workdir / "features" / f"{feature_key(run, plan, split, view)}{part}.npy",
        shape,
        plan.dtype,
    )


def feature_key(run: RunContext, plan: FeaturePlan, split: str, view: int) -> str:
    """Gives the name of the features of one split and version: a hash of all they depend on."""
    config, layers = run.config, run.model.layers
    before = layers[: layers.index(plan.cut) + 1]
    weights = {name: arrays for name, arrays in extract(run.model).items() if name in before}
    settings: dict[str, Any] = {
        "model": dataclasses.asdict(run.model.arch),
        "cut": plan.cut,
        "layers": before,
        "convolution": config.convolution,
        "dtypes": (config.dtype, plan.dtype),
        "batch_size": run.batch_size,
        "preprocessing": config.preprocessing.to_json(),
    }
    if split == "train" and is_on(config.augmentation):
        drawn = dataclasses.asdict(config.augmentation)
        settings |= {"augmentation": drawn, "view": view, "seed": config.seed}
    settings = json.loads(json.dumps(settings))
    return make_key(run.source, run.loaders[split].indices, weights, settings)


def _told(
    split: str, images: int, stored: int, seconds: float, views: dict[int, np.ndarray]
) -> str:
    found = f", {stored:,} of them before" if stored else ""
    rate = f" ({(images - stored) / seconds:.0f} images/s)" if images > stored else ""
    size = megabytes(sum(view.nbytes for view in views.values()))
    return f"features of {split}: {images:,} in {seconds:.0f} s{rate}{found}, {size}"
