"""The checkpoints of a running training, by Orbax.

`<workdir>/checkpoints/<step>` holds the latest one, to resume from, and the one with the best
weights. They are written while training continues; leaving the `with` block waits for the last one.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from vggjax.errors import VggjaxError
from vggjax.models.network import Network
from vggjax.training.progress import TrainProgress
from vggjax.training.step import TrainState


class Checkpoints:
    """Saves and restores the checkpoints of one run; use it as a context manager."""

    def __init__(self, workdir: str | Path):
        policies = ocp.checkpoint_managers
        best = policies.BestN(get_metric_fn=lambda metrics: metrics["rank"], n=1)
        keep = policies.AnyPreservationPolicy([policies.LatestN(1), best])
        self._manager = ocp.CheckpointManager(
            Path(workdir).absolute() / "checkpoints",
            options=ocp.CheckpointManagerOptions(preservation_policy=keep),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        with self._writing():
            self._manager.close()  # waits for the last save

    @contextmanager
    def _writing(self) -> Iterator[None]:
        # A full disk surfaces in a later call than the save's, as tensorstore's own ValueError.
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise VggjaxError(
                f"The checkpoint in {self._manager.directory} cannot be written: {reason}. If "
                "the disk is full, make room; the same command resumes from the last one."
            ) from error

    def save(self, state: TrainState, progress: TrainProgress, *, is_best: bool) -> None:
        """Start writing a checkpoint; `state` has numpy arrays that nothing modifies later."""
        step = int(state.step)
        # Each best one ranks above all before it, so Orbax keeps the last of them.
        rank = float(step) if is_best else -1.0
        items = {
            "model": ocp.args.StandardSave(_model_tree(*state.eval_params)),
            "optimizer": ocp.args.StandardSave(_flatten(state.opt_state)),
            "progress": ocp.args.JsonSave(dataclasses.asdict(progress)),
        }
        if state.averages is not None:  # the model has the averages; training continues from these
            items["learning"] = ocp.args.StandardSave(_flatten(_averaged_part(state)))
        with self._writing():
            self._manager.save(step, args=ocp.args.Composite(**items), metrics={"rank": rank})

    def latest_progress(self) -> TrainProgress:
        """Read the latest progress; before the first checkpoint, that of a new run."""
        step = self._manager.latest_step()
        return TrainProgress() if step is None else self.progress(step)

    def progress(self, step: int) -> TrainProgress:
        """Read the progress at a checkpoint."""
        args = ocp.args.Composite(progress=ocp.args.JsonRestore())
        return TrainProgress(**self._manager.restore(step, args=args)["progress"])

    def forget(self, step: int) -> None:
        """Delete the checkpoints after a step, which the run goes back to."""
        with self._writing():
            self._manager.wait_until_finished()
            for later in [saved for saved in self._manager.all_steps() if saved > step]:
                self._manager.delete(later)

    def restore_model(self, model: Network, step: int) -> None:
        """Load a checkpoint's parameters and running statistics into the model."""
        params, batch_stats = nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat)
        template = _abstract(_model_tree(params, batch_stats))
        args = ocp.args.Composite(model=ocp.args.StandardRestore(template))
        tree = self._manager.restore(step, args=args)["model"]
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

    def _restore_like(self, tree: Any, item: str, step: int) -> Any:
        template = _abstract(_flatten(tree))
        args = ocp.args.Composite(**{item: ocp.args.StandardRestore(template)})
        leaves = self._manager.restore(step, args=args)[item]
        return jax.tree.unflatten(jax.tree.structure(tree), [leaves[name] for name in template])


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
