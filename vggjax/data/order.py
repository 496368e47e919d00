"""The order in which an epoch goes through a split: a function of (seed, epoch) alone."""

import numpy as np


def epoch_order(length: int, *, seed: int = 0, epoch: int = 0, shuffle: bool = False) -> np.ndarray:
    """Gives the positions (length,) int64 in the order in which they come."""
    if not shuffle:
        return np.arange(length)
    return np.random.default_rng((seed, epoch)).permutation(length)
