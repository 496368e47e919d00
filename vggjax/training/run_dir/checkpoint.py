"""The checkpoints of a running training, by Orbax.

`<workdir>/checkpoints/<step>` holds the latest one, to resume from, the one before it, and the one
with the best weights. They are written while training continues; leaving the `with` block waits for
the last one. Each ends with a manifest (see manifest.py). A checkpoint that does not match its own
is moved to `<workdir>/damaged-checkpoints` when the run is opened, and the run resumes from the
latest intact one.

Of several processes the first one alone reads and writes them; the others get what it reads.
"""

import dataclasses
import functools
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from vggjax.errors import VggjaxError, join_names, printable
from vggjax.models.network import Network
from vggjax.training.devices.processes import is_first, num_processes, on_first
from vggjax.training.progress import TrainProgress
from vggjax.training.run_dir.manifest import MANIFEST, find_damage, write_manifest
from vggjax.training.step import TrainState

# A failed write is raised in `Checkpoints`; the thread that it happened in prints it, too.
logging.getLogger("absl").addFilter(
    lambda record: not (record.exc_info and "orbax" in record.pathname)
)


_DELETED = "deleted"
"""The folder, beside the checkpoints, of those that are being deleted."""


class Checkpoints:
    """Saves and restores the checkpoints of one run; use it as a context manager.

    Args:
        workdir: the run's folder, locked by this process.
        strict: refuse damaged checkpoints instead of setting them aside.

    Raises:
        VggjaxError: with `strict`, if a checkpoint is damaged.
    """

    def __init__(self, workdir: str | Path, *, strict: bool = False):
        self._folder = Path(workdir).absolute() / "checkpoints"
        _drop_late_tracebacks()
        self.notes: list[str] = []
        """What was set aside, one sentence each."""
        self._verified: set[int] = set()
        self._best_step = 0
        self._thread = ThreadPoolExecutor(1, "manifest")
        self._pending: Future[None] | None = None
        self._is_writer = is_first()
        on_first(lambda: self._open(strict=strict))

    def _open(self, *, strict: bool) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        self._set_damaged_aside(self._folder, strict=strict)
        alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_Keep(self),
                # Deleting takes a while. A process that is killed meanwhile would leave a part of
                # a checkpoint under its name; a name is changed at once.
                todelete_subdir=_DELETED,
                cleanup_tmp_directories=True,
                create=False,  # which several processes would have to do together
                **({"multiprocessing_options": alone} if num_processes() > 1 else {}),
            ),
        )
        self._identity = _identity(self._folder)

    def _set_damaged_aside(self, folder: Path, *, strict: bool) -> None:
        steps = [path for path in folder.glob("*") if path.name.isdecimal()]
        damaged = {path: damage for path in steps if (damage := find_damage(path))}
        if damaged and strict:
            reasons = join_names([f"{path.name} ({damage})" for path, damage in damaged.items()])
            raise VggjaxError(
                f"Damaged checkpoints in {folder}: {reasons}. Leave `strict_resume` out to resume "
                "from the latest intact one."
            )
        for path, damage in damaged.items():
            aside = folder.parent / "damaged-checkpoints"
            aside.mkdir(exist_ok=True)
            path.rename(aside / f"{path.name}-{time.time_ns()}")
            self.notes.append(f"Set aside the checkpoint of step {path.name}: {damage}.")
        intact = [path for path in steps if path not in damaged]
        newest = max(intact, key=lambda path: int(path.name), default=None)
        if newest and not (newest / MANIFEST).exists():  # damage in it would not be noticed
            if any((path / MANIFEST).exists() for path in intact):
                shutil.rmtree(newest)
                intact.remove(newest)
                self.notes.append(
                    f"Deleted the checkpoint of step {newest.name}, whose process was killed "
                    "before its check sums were written: the one before it is used."
                )
        self._verified = {int(path.name) for path in intact}

    def _finish(self, step: int) -> None:
        """Wait until a checkpoint is complete and has its name, and write its manifest."""
        self._manager.wait_until_finished()
        write_manifest(self._folder / str(step))
        self._sweep()

    def _sweep(self) -> None:
        """Delete the checkpoints that Orbax has moved away."""
        shutil.rmtree(self._folder / _DELETED, ignore_errors=True)

    def _wait(self) -> None:
        """Wait for the checkpoint that is being written, if any."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_writer:
            return
        with self._writing():
            self._wait()
            self._manager.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        # A full disk surfaces in a later call than the save's, as tensorstore's own ValueError.
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            raise VggjaxError(
                f"The checkpoint in {printable(self._folder)} cannot be written: "
                f"{_reason(error)}. If the disk is full, make room; the same command resumes from "
                "the last one."
            ) from error

    def save(self, state: TrainState, progress: TrainProgress) -> None:
        """Start writing a checkpoint; `state` has numpy arrays that nothing modifies later."""
        if not self._is_writer:
            return
        step = int(state.step)
        items = {
            "model": ocp.args.StandardSave(_model_tree(*state.eval_params)),
            "optimizer": ocp.args.StandardSave(_flatten(state.opt_state)),
            "progress": ocp.args.JsonSave(dataclasses.asdict(progress)),
        }
        if state.averages is not None:  # the model has the averages; training continues from these
            items["learning"] = ocp.args.StandardSave(_flatten(_averaged_part(state)))
        if _identity(self._folder) != self._identity:  # Orbax would make it anew
            raise VggjaxError(
                f"The run folder {printable(self._folder.parent)} was deleted or replaced while "
                "this run used it, and what was in it is lost."
            )
        with self._writing():
            self._wait()
            self._best_step = progress.best_step
            self._manager.save(step, args=ocp.args.Composite(**items))
            self._pending = self._thread.submit(self._finish, step)

    def latest_progress(self) -> TrainProgress:
        """Read the latest progress; before the first checkpoint, that of a new run.

        Without an intact checkpoint of the best weights, the next epoch's become the best.
        """
        return on_first(self._latest_progress)

    def _latest_progress(self) -> TrainProgress:
        step = self._manager.latest_step()
        if step is None:
            return TrainProgress()
        progress = self._progress(step)
        if progress.best_step and progress.best_step not in self._manager.all_steps():
            self.notes.append(
                f"The best weights, of step {progress.best_step:,}, are lost; those of step "
                f"{step:,} take their place until an epoch ends."
            )
            progress.best_step, progress.best_value = step, None
            progress.good_step = 0
        self._best_step = progress.best_step
        return progress

    def progress(self, step: int) -> TrainProgress:
        """Read the progress at a checkpoint."""
        return on_first(lambda: self._progress(step))

    def _progress(self, step: int) -> TrainProgress:
        with self._writing():
            self._wait()  # for the step itself, perhaps
        args = ocp.args.Composite(progress=ocp.args.JsonRestore())
        return TrainProgress(**self._manager.restore(step, args=args)["progress"])

    def forget(self, step: int) -> None:
        """Delete the checkpoints after a step, which the run goes back to."""
        if not self._is_writer:
            return
        with self._writing():
            self._wait()
            for later in [saved for saved in self._manager.all_steps() if saved > step]:
                self._manager.delete(later)
            self._sweep()

    def restore_model(self, model: Network, step: int) -> None:
        """Load a checkpoint's parameters and running statistics into the model.

        Raises:
            VggjaxError: it was damaged since it was written.
        """
        params, batch_stats = nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat)
        template = _abstract(_model_tree(params, batch_stats))
        tree = on_first(lambda: self._restore(template, "model", step))
        nnx.replace_by_pure_dict(params, tree["params"])
        nnx.replace_by_pure_dict(batch_stats, tree["batch_stats"])
        nnx.update(model, params, batch_stats)

    def restore_optimizer(self, state: TrainState, step: int) -> TrainState:
        """Return a stage's state, made from the restored model, with the rest of the checkpoint."""
        state = state._replace(
            opt_state=self._restore_like(state.opt_state, "optimizer", step),
            step=jnp.asarray(step, jnp.int32),
        )
        if state.averages is None:
            return state
        training, batch_stats = self._restore_like(_averaged_part(state), "learning", step)
        params = nnx.merge_state(state.params, training)
        return state._replace(params=params, batch_stats=batch_stats)

    def _restore(self, template: Any, item: str, step: int) -> Any:
        """Return an item of an intact checkpoint."""
        with self._writing():
            self._wait()  # for the step itself, perhaps
        damage = None if step in self._verified else find_damage(self._folder / str(step))
        if damage:
            raise VggjaxError(
                f"The checkpoint {self._folder / str(step)} cannot be used: {damage}. The same "
                "command resumes from an intact one."
            )
        args = ocp.args.Composite(**{item: ocp.args.StandardRestore(template)})
        return self._manager.restore(step, args=args)[item]

    def _restore_like(self, tree: Any, item: str, step: int) -> Any:
        template = _abstract(_flatten(tree))
        leaves = on_first(lambda: self._restore(template, item, step))
        return jax.tree.unflatten(jax.tree.structure(tree), [leaves[name] for name in template])


def _reason(error: Exception) -> str:
    """Return the system's words in an error of the writing library, or its first line."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    system = re.search(r"os_error_code='(\d+)'|OS error (\d+):", str(error))
    return os.strerror(int(system[1] or system[2])) if system else text


@functools.cache
def _drop_late_tracebacks() -> None:
    """Print no error of the threads that were still writing when a checkpoint failed."""
    print_unraisable = sys.unraisablehook

    def print_unless_late(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            print_unraisable(unraisable)

    sys.unraisablehook = print_unless_late


def _identity(folder: Path) -> tuple[int, int] | None:
    """Return what tells a folder from a later one of the same name; None if it is gone."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def check_room(workdir: Path, size_bytes: int) -> None:
    """Check that the disk has room for two checkpoints and 10 % more, with those that are there.

    Raises:
        VggjaxError: it has not.
    """
    needed = int(2.2 * size_bytes)
    free = shutil.disk_usage(workdir).free
    # The one of the stage before is perhaps being written: files and folders come and go.
    for folder, _, names in os.walk(workdir / "checkpoints"):
        for name in names:
            with suppress(FileNotFoundError):
                free += os.lstat(os.path.join(folder, name)).st_size
    if free < needed:
        raise VggjaxError(
            f"The disk of {printable(workdir)} has {free / 1e6:,.1f} MB free; two checkpoints need "
            f"{needed / 1e6:,.1f} MB. Make room, or give a `workdir` on another disk."
        )


class _Keep:
    """Orbax's preservation policy: the latest two, and the one with the best weights.

    Orbax's own `BestN` needs metrics that it does not read again after a restart.
    """

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Return whether to keep each checkpoint; they are ordered by their steps."""
        last = len(checkpoints) - 2
        best_step = self._checkpoints._best_step
        return [i >= last or info.step == best_step for i, info in enumerate(checkpoints)]


def is_finite(state: TrainState) -> bool:
    """Return whether all numbers of a state, as numpy arrays, are finite."""
    # A sum of float32 in float64 overflows only if a term is not finite.
    return all(
        np.isfinite(np.sum(leaf, dtype=np.float64))
        for leaf in jax.tree.leaves(state)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    )


def _model_tree(params: nnx.State, batch_stats: nnx.State) -> dict[str, Any]:
    return {"params": nnx.to_pure_dict(params), "batch_stats": nnx.to_pure_dict(batch_stats)}


def _averaged_part(state: TrainState) -> tuple[nnx.State, nnx.State]:
    """Return the parameters and statistics that the averages follow."""
    assert state.averages is not None
    params = nnx.State({layer: state.params[layer] for layer in state.averages[0]})
    return params, state.batch_stats


def _flatten(tree: Any) -> dict[str, np.ndarray]:
    # By paths, so that a checkpoint does not depend on the classes of optax's nested tuples.
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
