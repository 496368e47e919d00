"""A head learns on frozen VGG16: our epochs on kept features against the peers' steps.

    python -m benchmarks.train_head [--photographs 100] [--batch-size 16] [--rounds 5]

The peers recompute the base at every step, as `fit` on such a model does. Ours computes it once;
the first epoch holds that and the later ones do not.
"""

from functools import partial

from benchmarks import stages

measure = partial(stages.measure, unfreeze="none", aims=(None, 0.02))

if __name__ == "__main__":
    stages.run(__doc__, measure)
