"""A head learns on frozen VGG16: our epochs on kept features against Keras-TF's.

    python -m benchmarks.train_head [--photographs 200] [--batch-size 16] [--rounds 5]

Keras recomputes the base at every step, as `fit` on such a model does. Ours computes it once; the
first epoch holds that and the later ones do not. Compilation is left out on both sides.
"""

from benchmarks.stages import compare, parse

if __name__ == "__main__":
    compare(parse(__doc__), unfreeze="none")
