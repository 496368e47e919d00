"""Solve a run's head on the features that it cached, in place of an epoch of steps."""

import jax.numpy as jnp
import numpy as np

from vggjax.models.network import Network
from vggjax.training.linear_probe.fit import LinearFit, fit_linear, score
from vggjax.training.prepare import RunContext

Rows = tuple[np.ndarray, np.ndarray]
"""Features float32 (N, D), and labels int (N,)."""


def fit_head(run: RunContext, train: Rows, val: Rows) -> LinearFit:
    """Fit a linear head for the classes of a run, with its class weights and label smoothing."""
    return fit_linear(
        *train,
        *val,
        num_classes=len(run.source.class_names),
        class_weights=run.class_weights,
        label_smoothing=run.config.label_smoothing,
        widths=part_widths(run.model),
    )


def part_widths(model: Network) -> tuple[int, ...]:
    """Return the widths of the vectors that `convs2` and `convs3` join; () of other heads."""
    channels = model.arch.conv_channels()
    names = [name.replace("_bn", "_conv") for name in model.pooled_layers]
    return tuple(channels[name][1] for name in names for _ in ("mean", "maximum"))


def solve_head(run: RunContext) -> tuple[dict[str, float], str]:
    """Put the solved head into the run's model; return its training sums, and a line of text.

    `run` has `CachedFeatures` of the layer before the dense one as its loaders. The sums are those
    of `MetricAccumulator`, over every view.
    """
    loaders: dict = dict(run.loaders)
    (rows, labels), (val_rows, val_labels) = loaders["train"].rows(), loaders["val"].rows()
    rows, val_rows = np.asarray(rows, np.float32), np.asarray(val_rows, np.float32)
    fit = fit_head(run, (rows, labels), (val_rows, val_labels))
    dense = run.model.predictions
    assert dense.bias is not None
    dense.kernel.set_value(jnp.asarray(fit.weights))
    dense.bias.set_value(jnp.asarray(fit.bias))
    loss, accuracy = score(fit.logits(rows), labels)
    count = float(len(labels))
    sums = {"loss": loss * count, "correct": accuracy * count, "count": count}
    text = (
        f"solved by L-BFGS in {fit.steps} steps on {len(labels):,} rows of {rows.shape[1]:,} "
        f"features; of the penalties {fit.strength:g} has the lowest val loss"
    )
    return sums, text
