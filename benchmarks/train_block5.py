"""Block5 and a head learn: our first and later epochs on kept features against Keras-TF's.

    python -m benchmarks.train_block5 [--photographs 100] [--batch-size 16] [--rounds 5]

Keras runs blocks 1 to 4 forward at every step. Ours runs them once; the first epoch holds that
and the later ones do not. Compilation is left out on both sides.
"""

from benchmarks.stages import compare, parse

if __name__ == "__main__":
    compare(parse(__doc__), unfreeze="block5")
