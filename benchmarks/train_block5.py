"""Block5 and a head learn: our first and later epochs on kept features against the peers' steps.

    python -m benchmarks.train_block5 [--photographs 100] [--batch-size 16] [--rounds 5]

The peers run blocks 1 to 4 forward at every step. Ours runs them once; the first epoch holds that
and the later ones do not.
"""

from functools import partial

from benchmarks import stages

measure = partial(stages.measure, unfreeze="block5", aims=(0.65, 0.15))

if __name__ == "__main__":
    stages.run(__doc__, measure)
