"""Fit the temperature of a finished run on its validation split, and keep it where it helps.

It divides the logits, so that the probabilities become those of a calibrated model as far as one
number can; the order of the classes, and with it every prediction and the accuracy, stays the same.
`model.json` keeps it, and whatever uses the model applies it. The mathematics is in calibration.py.
"""

from dataclasses import replace

import numpy as np
from rich.console import Console

from vggjax.evaluation.calibration import at_temperature, choose_temperature
from vggjax.evaluation.evaluate import predict_split
from vggjax.training.run_dir.run_result import ModelInfo, RunResult, read_info, write_info


def calibrate(run: RunResult, console: Console | None = None) -> RunResult:
    """Return the run with the temperature of its model, fitted and saved if it has none yet.

    This process has locked the run folder. Predictions that the run keeps in memory are changed
    alike, and so are the thresholds of several labels per image. A cross-validation, which has no
    model, is returned as it is.

    Raises:
        DataError: too many images cannot be read, or the model's outputs are not finite.
    """
    if run.info is None or run.info.temperature is not None:
        return run
    val = predict_split(run, "val")
    fitted = _at(choose_temperature(val[0].probs, val[0].labels), run.info)
    info = read_info(run.workdir)
    if info.temperature is None:  # else the same command, running beside this, was first
        info = replace(info, temperature=fitted.temperature, thresholds=fitted.thresholds)
        for path in run.workdir.glob("probabilities*.npz"):  # which are those without it
            path.unlink()
        write_info(run.workdir, info)
    assert info.temperature is not None
    if console is not None:
        text = _describe(info.temperature, len(val[0].labels))
        console.print(text, highlight=False, soft_wrap=True)
    changed = {
        split: (part._replace(probs=_scaled(part.probs, info)), unreadable)
        for split, (part, unreadable) in (run.predictions | {"val": val}).items()
    }
    return replace(run, info=info, predictions=changed)


def _at(temperature: float, info: ModelInfo) -> ModelInfo:
    """Return the info with a temperature, and with thresholds that predict the same labels."""
    thresholds = at_temperature(np.array(info.thresholds), temperature, multilabel=True)
    return replace(info, temperature=temperature, thresholds=tuple(thresholds.tolist()))


def _scaled(probs: np.ndarray, info: ModelInfo) -> np.ndarray:
    if info.temperature in (None, 1):
        return probs
    scaled = at_temperature(probs, float(info.temperature), multilabel=info.is_multilabel)
    return scaled.astype(np.float32)


def _describe(temperature: float, num_val: int) -> str:
    fitted = f"on {num_val:,} validation images"
    if temperature == 1:
        return f"Probabilities are the network's own: no temperature helps {fitted}."
    return f"Probabilities are calibrated: temperature {temperature:.2f}, fitted {fitted}."
