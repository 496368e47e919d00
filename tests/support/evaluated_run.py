"""Write what training and evaluation leave in a run folder, without training or predicting."""

import dataclasses
import json

import numpy as np

from vggjax.data.sources.open import open_source
from vggjax.data.splits.splits import make_splits, parse_split
from vggjax.evaluation import metrics
from vggjax.evaluation.evaluate import SplitPredictions, pool_folds, predictions_csv
from vggjax.training.config import Config
from vggjax.training.run_dir.folder import fold_folders, make_workdir
from vggjax.training.run_dir.run_result import ModelInfo


def epochs_log(count):
    rows = [
        {"kind": "epoch", "step": 5 * e, "epoch": e, "stage": "head" if e < 3 else "head+block5"}
        | {"train/loss": 1 / e, "val/loss": 1.1 / e, "train/accuracy": 1 - 0.5 / e}
        | {"val/accuracy": 1 - 0.6 / e, "images_per_s": 100.0, "seconds": 40.0}
        for e in range(1, count + 1)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def evaluated(
    workdir, dataset, *, share_wrong=0.5, epochs=4, unreadable=(), duplicates=None, **settings
):
    """Write an evaluated run with invented probabilities; return its folder."""
    config, source = _config(dataset, settings), open_source(str(dataset))
    splits = make_splits(source, parse_split(config.split), config.seed)
    make_workdir(workdir, config, source, splits, duplicates)
    (workdir / "log.jsonl").write_text(epochs_log(epochs))
    names = source.class_names
    info = ModelInfo(
        "vgg16", f"gap-{len(names)}", names, config.preprocessing, provenance={"a": "1"}
    )
    (workdir / "model.json").write_text(json.dumps(dataclasses.asdict(info)))

    rng, indices = np.random.default_rng(0), splits["test"]
    labels = source.labels[indices]
    guesses = (labels + (np.arange(len(labels)) < share_wrong * len(labels))) % len(names)
    probs = rng.uniform(0, 0.4, (len(labels), len(names)))
    probs[np.arange(len(labels)), guesses] = rng.uniform(0.5, 9, len(labels))
    probs /= probs.sum(1, keepdims=True)
    result = {
        "split": "test",
        **metrics.summarize(probs, labels, names),
        "class_names": list(names),
        "unreadable": dict(unreadable),
        "evaluated_at": "2026-01-02T03:04:05+00:00",
        "seconds": 1.5,
        "device": "1 x cpu (cpu)",
        "versions": {"jax": "0.0"},
    }
    (workdir / "eval.json").write_text(json.dumps(result))
    predictions = SplitPredictions(indices, labels, probs)
    text = predictions_csv(predictions, "test", ids=source.ids, class_names=names)
    (workdir / "predictions.csv").write_text(text, encoding="utf-8")
    return workdir


def cross_validated(workdir, dataset, *, folds=2, duplicates=None, **settings):
    """Write an evaluated cross-validation, its folds as `evaluated` writes them."""
    config, source = (
        _config(dataset, settings | {"cross_validate": folds}),
        open_source(str(dataset)),
    )
    folders = fold_folders(workdir, config)
    for seed, folder in enumerate(folders):
        evaluated(folder, dataset, seed=seed, epochs=2, **settings)
    make_workdir(workdir, config, source, {folder.name: [] for folder in folders}, duplicates)
    pool_folds(workdir, config)
    return workdir


def _config(dataset, settings):
    return Config(dataset=str(dataset), image_size=32, **{"split": "0.4,0.2,0.4"} | settings)
