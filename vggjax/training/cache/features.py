"""The outputs of the frozen layers, computed once for each image and cached while a stage lasts.

`CachedFeatures` takes the place of a `SplitLoader`: it yields the same batches with `features`
(B, ...) instead of `images`, so the stage learns what it would have learned. plan.py decides what
is cached and where, store.py keeps it. Rows are computed in batches of the training's size.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import jax
import numpy as np
from flax import nnx

from vggjax.data.augment.settings import is_on
from vggjax.data.loader import Batch, SplitLoader, epoch_order, pad_rows, prefetch
from vggjax.models.params import extract
from vggjax.training.cache.plan import FeaturePlan, megabytes, view_of
from vggjax.training.cache.store import FileStore, Store
from vggjax.training.config import Stage
from vggjax.training.console import ProgressConsole
from vggjax.training.prepare import RunContext
from vggjax.training.progress import CompiledStep, Throughput
from vggjax.training.signals import Stop
from vggjax.training.step import make_feature_step

FORMAT = "1"
"""Version of the values and files; raise it when their meaning changes."""


class CachedFeatures:
    """The features of one split, in batches.

    Args:
        loader: the split's images.
        views: the rows (N, ...) of each cached view, in the split's order.
        masked: positions of unreadable images.
        cached_views: the number of views that take turns from pass to pass; 0 for plain images.
    """

    def __init__(
        self, loader: SplitLoader, views: dict[int, np.ndarray], masked: set[int], cached_views: int
    ):
        self._loader, self._views, self._cached_views = loader, views, cached_views
        self._mask = np.isin(np.arange(len(loader)), list(masked), invert=True).astype(np.float32)

    def __len__(self) -> int:
        return len(self._loader)

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
        """Yield the batches of `SplitLoader.batches`, with `features` instead of `images`."""
        order = epoch_order(len(self), seed=seed, epoch=epoch, shuffle=shuffle)
        which, processes = process
        rows = batch_size // processes
        view = self._views[view_of(epoch, self._cached_views)]
        for offset in range(start * batch_size, len(self), batch_size):
            positions = order[offset + which * rows : offset + (which + 1) * rows]
            features = np.zeros((rows, *view.shape[1:]), view.dtype)
            features[: len(positions)] = view[positions]
            labels, index = self._loader.labels[positions], self._loader.indices[positions]
            yield {"features": features} | pad_rows(labels, self._mask[positions], index, rows)


@contextmanager
def cached_features(
    run: RunContext, stage: Stage, console: ProgressConsole, stop: Stop
) -> Iterator[tuple[RunContext, str | None]]:
    """Yield the run with cached features as its loaders, and the layer after which to continue.

    A stage that caches nothing yields the run itself and None. Files are deleted when the stage
    ends, since only this run can use them; an interrupted run keeps them and continues from them.

    Raises:
        Interrupted: a signal arrived; features in files were saved.
    """
    plan = run.feature_plans.get(stage.name)
    if plan is None or plan.where == "nowhere":
        yield run, None
        return
    stores: list[Store] = []
    try:
        loaders: Any = _fill_stores(run, plan, stores, console, stop)
        yield dataclasses.replace(run, loaders=loaders), plan.cut
    except BaseException:
        for store in stores:
            store.close()
        raise
    for store in stores:
        store.discard()


def _fill_stores(
    run: RunContext, plan: FeaturePlan, stores: list[Store], console: ProgressConsole, stop: Stop
) -> dict[str, CachedFeatures]:
    """Compute the missing features of all splits; append every opened store to `stores`."""
    make_step = functools.cache(functools.partial(_make_step, run, plan, console))
    params, batch_stats = nnx.state(run.model, nnx.Param, nnx.BatchStat)
    model_state = run.placement.put_state((params, batch_stats))
    cached = {}
    for split, loader in run.loaders.items():
        is_train = split == "train"
        step = make_step(is_train and is_on(run.config.augmentation))
        throughput, num_stored = Throughput(step), 0
        views: dict[int, np.ndarray] = {}
        masked: set[int] = set()
        numbers = plan.views if is_train else (0,)
        for number in numbers:
            store = _open_store(run, plan, split, number)
            stores.append(store)
            num_stored += store.done
            throughput.add(len(loader) - store.done)
            count = f", view {len(views) + 1} of {len(numbers)}" if len(numbers) > 1 else ""
            console.begin(f"features of {split}{count}", len(loader), done=store.done)
            loader.unreadable.update(store.unreadable)
            if not store.is_complete:
                state = (*model_state, run.placement.put_state(np.int32(number)))
                _fill(store, run, loader, functools.partial(step, state), console, stop)
            views[number] = store.rows()
            masked |= store.masked
        cached_views = run.config.cached_views if is_train else 0
        cached[split] = CachedFeatures(loader, views, masked, cached_views)
        num_images = len(numbers) * len(loader)
        rate = f" ({throughput.images_per_s():.0f} images/s)" if num_images > num_stored else ""
        earlier = f", {num_stored:,} of them by an earlier process" if num_stored else ""
        size = megabytes(sum(view.nbytes for view in views.values()))
        console.print(
            f"features of {split}: {num_images:,} in {throughput.seconds():.0f} s{rate}{earlier}, "
            f"{size}"
        )
    return cached


def _fill(
    store: Store,
    run: RunContext,
    loader: SplitLoader,
    compute: Callable[..., Any],
    console: ProgressConsole,
    stop: Stop,
) -> None:
    """Compute the rows that `store` lacks; where a signal arrived, save it and raise."""
    placement = run.placement

    def append(outputs: dict[str, jax.Array]) -> None:
        rows: dict[str, np.ndarray] = placement.fetch(outputs)
        count = min(len(rows["mask"]), len(loader) - store.done)
        masked = store.done + np.flatnonzero(rows["mask"][:count] == 0)
        store.append(rows["features"][:count], masked.tolist(), dict(loader.unreadable))
        console.advance(store.done)
        if stop.signum:
            store.save()
            stop.check(run.workdir)

    batches = loader.batches(
        run.batch_size, start=store.done // run.batch_size, process=placement.process
    )
    pending = None
    with closing(prefetch(batches, placement.put_batch)) as device_batches:
        for batch in device_batches:
            outputs = compute(batch)
            if pending is not None:
                append(pending)  # while the devices compute the next batch
            pending = outputs
    if pending is not None:
        append(pending)


def _make_step(
    run: RunContext, plan: FeaturePlan, console: ProgressConsole, is_augmented: bool
) -> CompiledStep:
    step = make_feature_step(
        run.model,
        plan.cut,
        placement=run.placement,
        mode=run.config.preprocessing.mode,
        augmentation=run.config.augmentation if is_augmented else None,
        seed=run.config.seed,
        dtype=plan.dtype,
    )
    return CompiledStep(step, lambda text: console.print(f"features up to {plan.cut}: {text}"))


def _open_store(run: RunContext, plan: FeaturePlan, split: str, view: int) -> Store:
    shape = (len(run.loaders[split]), *plan.shape)
    if plan.where == "memory":
        return Store(shape, plan.dtype)
    which, processes = run.placement.process
    suffix = f"-{which}" if processes > 1 else ""  # each process has its own copy
    path = run.workdir / "features" / f"{feature_key(run, plan, split, view)}{suffix}.npy"
    return FileStore(path, shape, plan.dtype)


def feature_key(run: RunContext, plan: FeaturePlan, split: str, view: int) -> str:
    """Return the name of the features of one split and view: a SHA-256 of all they depend on.

    An image file is identified by its size and modification time.
    """
    config, layers, source = run.config, run.model.layers, run.source
    arch: Any = run.model.arch
    prefix = layers[: layers.index(plan.cut) + 1]
    settings: dict[str, Any] = {
        "model": dataclasses.asdict(arch),
        "cut": plan.cut,
        "layers": prefix,
        "convolution": config.convolution,
        "dtypes": (config.dtype, plan.dtype),
        "batch_size": run.batch_size,
        "preprocessing": config.preprocessing.to_json(),
    }
    if split == "train" and is_on(config.augmentation):
        augmentation = dataclasses.asdict(config.augmentation)
        settings |= {"augmentation": augmentation, "view": view, "seed": config.seed}
    indices = np.asarray(run.loaders[split].indices)
    digest = hashlib.sha256(f"{FORMAT} {source.fingerprint}\0".encode())
    digest.update(indices.astype("<i8").tobytes())
    for path in map(source.path, indices.tolist()):
        if path is not None and path.exists():
            stat = path.stat()
            digest.update(f"{stat.st_size} {stat.st_mtime_ns}\0".encode())
    weights = extract(run.model)
    for layer in filter(weights.__contains__, prefix):
        for name, array in weights[layer].items():
            digest.update(f"{layer}/{name} {array.shape} {array.dtype}\0".encode())
            digest.update(np.ascontiguousarray(array).data)
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()
