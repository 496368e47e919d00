"""The outputs of the frozen layers, computed once for each view of an image and cached.

`CachedFeatures` takes the place of a `SplitLoader`: it yields the same batches with `features`
(B, ...) instead of `images`, so a stage learns what it would have learned. plan.py decides what
is cached and where, store.py keeps it, `FeatureCache` fills it. Rows are computed in batches of the
training's size, and from the features of a later stage where those are kept: in a run of a head and
block5, each view goes through blocks 1 to 4 once. So does the test split, with the last stage's
features: its labels are looked at after the training.
"""

import dataclasses
import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vggjax.data.loader import ALONE, Batch, Process, SplitLoader, epoch_order, pad_rows, prefetch
from vggjax.models.network import Network
from vggjax.models.params import extract
from vggjax.training.cache.exchange import Exchange, Parts, own_positions
from vggjax.training.cache.plan import FeaturePlan, megabytes
from vggjax.training.cache.store import FileStore, Store
from vggjax.training.console import ProgressConsole
from vggjax.training.devices.processes import max_over_processes, union_over_processes
from vggjax.training.prepare import RunContext
from vggjax.training.progress import CompiledStep, Throughput
from vggjax.training.run_dir.run_result import SplitPredictions
from vggjax.training.settings.stages import Stage
from vggjax.training.signals import Stop
from vggjax.training.step import draw_views, make_feature_step, make_predict_step

FORMAT = "1"
"""Version of the values and files; raise it when their meaning changes."""

Choose = Callable[[int, int], np.ndarray]
"""(pass, batch size) -> the view of every row of the pass, (batches, B)."""


class CachedFeatures:
    """The features of one split, in batches.

    Args:
        loader: the split's images.
        views: the rows of each cached view, in the split's order: (N, ...), or of several processes
            those of `own_positions`.
        masked: positions of unreadable images.
        choose: which view the rows of a pass have; not called if there is only one.
    """

    def __init__(
        self,
        loader: SplitLoader,
        views: dict[int, np.ndarray],
        masked: set[int],
        choose: Choose,
    ):
        self._loader, self._views, self._masked, self._choose = loader, views, masked, choose
        self._places: np.ndarray | None = None
        self._mask = np.isin(np.arange(len(loader)), list(masked), invert=True).astype(np.float32)
        self.unreadable = loader.unreadable

    def __len__(self) -> int:
        return len(self._loader)

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the features (V*N, ...) of every view of all readable images, and their labels."""
        keep = self._mask > 0
        features = np.concatenate([view[keep] for view in self._views.values()])
        return features, np.tile(self._loader.labels[keep], len(self._views))

    def of_view(self, view: int) -> "CachedFeatures":
        """Return the features of one view alone."""
        return CachedFeatures(self._loader, {view: self._views[view]}, self._masked, self._choose)

    def batches(
        self,
        batch_size: int,
        *,
        seed: int = 0,
        epoch: int = 0,
        shuffle: bool = False,
        start: int = 0,
        process: Process = ALONE,
    ) -> Iterator[Batch]:
        """Yield the batches of `SplitLoader.batches`, with `features` instead of `images`."""
        order = epoch_order(len(self), seed=seed, epoch=epoch, shuffle=shuffle)
        rows = len(process.rows(batch_size))
        first, *others = self._views
        chosen = self._choose(epoch, batch_size).ravel() if others else np.full(len(self), first)
        views = np.empty(len(self), np.int64)
        views[order] = chosen[: len(self)]
        exchange = self._exchanged(order, batch_size, process) if shuffle else None
        for offset in range(0, len(self), batch_size):
            parts = next(exchange) if exchange else None
            if offset < start * batch_size:
                continue
            positions = order[process.part(offset, batch_size)]
            if parts is None:
                wanted = np.pad(positions, (0, rows - len(positions)), constant_values=-1)
                batch = {"features": self._rows_at(wanted, views, batch_size, process)}
            else:
                sent = self._rows_at(parts.send.ravel(), views, batch_size, process)
                batch = {"sent": sent.reshape(*parts.send.shape, *sent.shape[1:])}
                batch["take"] = parts.take
            labels, index = self._loader.labels[positions], self._loader.indices[positions]
            yield batch | pad_rows(labels, self._mask[positions], index, rows)

    def _exchanged(
        self, order: np.ndarray, batch_size: int, process: Process
    ) -> Iterator[Parts] | None:
        """Return what each batch sends and takes; None for a process alone, which has all rows."""
        if process.count == 1:
            return None
        return Exchange(len(self), batch_size, process).parts(order)

    def _rows_at(
        self, positions: np.ndarray, views: np.ndarray, batch_size: int, process: Process
    ) -> np.ndarray:
        """Return the rows (n, ...) of positions of this process, each of its view; 0 at -1."""
        if self._places is None:
            own = own_positions(len(self), batch_size, process)
            self._places = np.full(len(self), -1, np.int64)
            self._places[own] = np.arange(len(own))
        kept = next(iter(self._views.values()))
        features = np.zeros((len(positions), *kept.shape[1:]), kept.dtype)
        present = np.flatnonzero(positions >= 0)
        places, wanted = self._places[positions[present]], views[positions[present]]
        for view in np.unique(wanted).tolist():
            is_of_view = wanted == view
            features[present[is_of_view]] = self._views[view][places[is_of_view]]
        return features


class FeatureCache:
    """The cached features of a run's stages, filled when the first stage needs them.

    Args:
        run: what is trained.
        console: shows the progress.
        stop: asked after each batch.
        with_test: compute the test split's features with the others, for `predict`.
    """

    def __init__(
        self, run: RunContext, console: ProgressConsole, stop: Stop, *, with_test: bool = False
    ):
        self._run, self._console, self._stop = run, console, stop
        self._images: dict[str, SplitLoader] = dict(run.loaders)
        last = run.feature_plans.get(run.stages[-1].name)
        self._last = last if last and last.where != "nowhere" else None
        plans = run.feature_plans.values()
        if with_test and any(plan.holds_test and plan.where != "nowhere" for plan in plans):
            self._images["test"] = _open_test(run)
        self._kept: dict[str, dict[str, CachedFeatures]] = {}
        """Cut -> split -> features."""
        self._stores: dict[str, list[Store]] = {}
        """Cut -> what was opened."""

    @contextmanager
    def of(self, stage: Stage) -> Iterator[tuple[RunContext, str | None]]:
        """Yield the run with a stage's features as its loaders, and the layer after which to go on.

        A stage that caches nothing yields the run itself and None. Features are deleted when the
        last stage that uses them ends, those of the last stage by `discard`, since only this run
        can use them; an interrupted run keeps its files and continues from them.

        Raises:
            Interrupted: a signal arrived; features in files were saved.
        """
        run = self._run
        plan = run.feature_plans.get(stage.name)
        if plan is None or plan.where == "nowhere":
            yield run, None
            return
        names = [stage.name for stage in run.stages[run.stages.index(stage) + 1 :]]
        later = [run.feature_plans[name] for name in names if name in run.feature_plans]
        try:
            loaders: Any = self._fill([plan, *later])
            own = {split: loaders[split] for split in run.loaders}
            yield dataclasses.replace(run, loaders=own), plan.cut
        except BaseException:
            for store in sum(self._stores.values(), []):
                store.close()
            raise
        self._discard_all_but({plan.cut for plan in (*later, self._last) if plan})

    def predict(self, model: Network) -> dict[str, tuple[SplitPredictions, dict[int, str]]]:
        """Predict val and test with the best weights, from the features of the last stage.

        Return also the unreadable images of each split, index into the source -> reason. Nothing is
        returned if the last stage keeps no test features, or trained in an earlier process.
        """
        kept = self._kept.get(self._last.cut, {}) if self._last else {}
        run = self._run
        # The final evaluation is of the model as it will be used, not of rounded features.
        if self._last is None or "test" not in kept or self._last.dtype != run.config.dtype:
            return {}
        cut = self._last.cut
        mode, multilabel = run.config.preprocessing.mode, run.is_multilabel
        step = make_predict_step(model, mode, multilabel=multilabel, after=cut)
        predictions = {}
        for split in ("val", "test"):
            parts = []
            for batch in kept[split].batches(run.batch_size):
                rows = batch["index"], batch["label"], np.asarray(step(batch["features"]))
                parts.append([part[batch["mask"] > 0] for part in rows])
            joined = SplitPredictions(*map(np.concatenate, zip(*parts, strict=True)))
            predictions[split] = joined, kept[split].unreadable
        return predictions

    def of_splits(self, cut: str) -> dict[str, CachedFeatures]:
        """Return the features of a layer, as long as a stage uses them: split -> features."""
        return self._kept[cut]

    def discard(self) -> None:
        """Delete all files at the end of the run, also of a stage that was stopped at its end."""
        self._discard_all_but(set())
        shutil.rmtree(self._run.workdir / "features", ignore_errors=True)

    def _discard_all_but(self, cuts: set[str]) -> None:
        for cut in self._stores.keys() - cuts:
            self._kept.pop(cut)
            for store in self._stores.pop(cut):
                store.discard()

    def _fill(self, plans: list[FeaturePlan]) -> dict[str, CachedFeatures]:
        """Return the features of the first plan, computed from those of the others, last first."""
        loaders: dict[str, Any] = self._images
        after = None
        for plan in reversed(plans):
            if plan.where == "nowhere":
                continue
            if plan.cut not in self._kept:
                filling = _Filling(self._run, plan, after, self._console, self._stop)
                stores = self._stores.setdefault(plan.cut, [])
                self._kept[plan.cut] = {
                    split: filling.fill(split, loader, stores, images=self._images[split])
                    for split, loader in loaders.items()
                    if split != "test" or plan.holds_test
                }
            loaders, after = self._kept[plan.cut], plan.cut
        return loaders


class _Filling:
    """Computes the features of a plan, from images or from the features of the layer `after`."""

    def __init__(
        self,
        run: RunContext,
        plan: FeaturePlan,
        after: str | None,
        console: ProgressConsole,
        stop: Stop,
    ):
        self._run, self._plan, self._after = run, plan, after
        self._console, self._stop = console, stop
        self._make_step = functools.cache(self._make_step_once)
        params, batch_stats = nnx.state(run.model, nnx.Param, nnx.BatchStat)
        self._model_state = run.placement.put_state((params, batch_stats))

    def fill(
        self, split: str, loader: Any, stores: list[Store], *, images: SplitLoader
    ) -> CachedFeatures:
        """Compute the missing features of a split; append every opened store to `stores`.

        `loader` is the split's `images`, or its `CachedFeatures` of the layer `after`.
        """
        run, plan, console = self._run, self._plan, self._console
        is_train = split == "train"
        step = self._make_step(is_train and plan.is_drawn and self._after is None)
        title, throughput, num_stored = f"features of {split} up to {plan.cut}", Throughput(step), 0
        views: dict[int, np.ndarray] = {}
        masked: set[int] = set()
        numbers, own = plan.views if is_train else (0,), self._own(loader)
        for number in numbers:
            store = self._open_store(split, number, num_rows=len(own))
            stores.append(store)
            num_stored += store.done
            throughput.add(len(own) - store.done)
            count = f", view {len(views) + 1} of {len(numbers)}" if len(numbers) > 1 else ""
            console.begin(f"{title}{count}", len(own), done=store.done, lines=True)
            loader.unreadable.update(store.unreadable)
            state = (*self._model_state, run.placement.put_state(np.int32(number)))
            inputs = loader.of_view(number) if self._after else loader
            self._compute(store, inputs, functools.partial(step, state))
            views[number] = store.rows()
            masked |= {int(own[place]) for place in store.masked}
        masked = set(union_over_processes(dict.fromkeys(masked, True)))
        loader.unreadable.update(union_over_processes(dict(loader.unreadable)))
        num_images = len(numbers) * len(own)
        seconds, rate = throughput.seconds(), ""
        if num_images > num_stored and seconds >= 0.5:  # less says nothing of the images to come
            rate = f" ({throughput.images_per_s():.0f} images/s)"
        earlier = f", {num_stored:,} of them by an earlier process" if num_stored else ""
        size = megabytes(sum(view.nbytes for view in views.values()))
        console.print(f"{title}: {num_images:,} in {seconds:.0f} s{rate}{earlier}, {size}")
        return CachedFeatures(images, views, masked, functools.partial(_choose, run))

    def _compute(self, store: Store, loader: Any, compute: Callable[..., Any]) -> None:
        """Compute the rows that `store` lacks; where a signal arrived, save it and raise."""
        run, placement = self._run, self._run.placement
        ends = np.searchsorted(self._own(loader), _batch_ends(len(loader), run.batch_size))
        # Of several processes each has saved its own files when it was killed.
        start = -max_over_processes(-int(np.searchsorted(ends, store.done, side="right")))

        def append(number: int, outputs: dict[str, jax.Array]) -> None:
            rows: dict[str, np.ndarray] = placement.fetch_rows(outputs)
            count = int(ends[number]) - store.done
            if count > 0:
                masked = store.done + np.flatnonzero(rows["mask"][:count] == 0)
                store.append(rows["features"][:count], masked.tolist(), dict(loader.unreadable))
            self._console.advance(store.done)
            self._stop.agree()
            if self._stop.signum:
                store.save()
                self._stop.check(run.workdir)

        batches = loader.batches(run.batch_size, start=start, process=placement.process)
        pending = None
        with closing(prefetch(batches, placement.put_batch)) as device_batches:
            for number, batch in enumerate(device_batches, start):
                outputs = compute(batch)
                if pending is not None:
                    append(*pending)  # while the devices compute the next batch
                pending = number, outputs
        if pending is not None:
            append(*pending)

    def _own(self, loader: Any) -> np.ndarray:
        """Return the positions of a split that this process keeps."""
        return own_positions(len(loader), self._run.batch_size, self._run.placement.process)

    def _make_step_once(self, is_drawn: bool) -> CompiledStep:
        run, plan = self._run, self._plan
        step = make_feature_step(
            run.model,
            plan.cut,
            placement=run.placement,
            mode=run.config.preprocessing.mode,
            augmentation=run.config.augmentation if is_drawn else None,
            seed=run.config.seed,
            dtype=plan.dtype,
            after=self._after,
        )
        title = f"features up to {plan.cut}"
        return CompiledStep(step, lambda text: self._console.print(f"{title}: {text}"))

    def _open_store(self, split: str, view: int, *, num_rows: int) -> Store:
        run, plan = self._run, self._plan
        shape = (num_rows, *plan.shape)
        if plan.where == "memory":
            return Store(shape, plan.dtype)
        process = run.placement.process
        suffix = ""
        if process.count > 1:  # the rows of a process depend on these
            suffix = f"-{process.index}-{process.count}-{run.batch_size}"
        key = feature_key(run, plan, split, view, after=self._after)
        return FileStore(run.workdir / "features" / f"{key}{suffix}.npy", shape, plan.dtype)


def _batch_ends(length: int, batch_size: int) -> np.ndarray:
    """Return the position after each batch of a split."""
    return np.minimum(np.arange(batch_size, length + batch_size, batch_size), length)


def _choose(run: RunContext, number: int, batch_size: int) -> np.ndarray:
    """Return the view of every row of a pass, (batches, B): what a run without a cache draws."""
    config, steps = run.config, run.loaders["train"].num_batches(batch_size)
    if config.cached_views:
        return np.full((steps, batch_size), number % config.cached_views)
    views = draw_views(
        jnp.int32(number * steps),
        augmentation=config.augmentation,
        seed=config.seed,
        steps=steps,
        rows=batch_size,
    )
    return np.asarray(views)


def _open_test(run: RunContext) -> SplitLoader:
    """Return the images of the test split: any number of them may be unreadable."""
    return SplitLoader(
        run.source,
        run.splits["test"],
        run.config.preprocessing,
        cache_mb=0,  # a single pass
        num_threads=run.config.num_threads,
        max_unreadable=None,  # each is named; the figures are of the others
    )


def feature_key(
    run: RunContext, plan: FeaturePlan, split: str, view: int, *, after: str | None = None
) -> str:
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
    if split == "train" and plan.is_drawn:
        augmentation = dataclasses.asdict(config.augmentation)
        settings |= {"augmentation": augmentation, "view": view, "seed": config.seed}
    elif view:
        settings["flip"] = view
    if after:
        settings["after"] = after
    indices = np.asarray(run.splits[split])
    digest = hashlib.sha256(f"{FORMAT} {source.fingerprint}\0".encode())
    digest.update(indices.astype("<i8").tobytes())
    for path in map(source.path, indices.tolist()):
        if path is not None:
            with suppress(OSError, ValueError):  # gone, which is named where it is read
                stat = path.stat()
                digest.update(f"{stat.st_size} {stat.st_mtime_ns}\0".encode())
    weights = extract(run.model)
    for layer in filter(weights.__contains__, prefix):
        for name, array in weights[layer].items():
            digest.update(f"{layer}/{name} {array.shape} {array.dtype}\0".encode())
            digest.update(np.ascontiguousarray(array).data)
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()
