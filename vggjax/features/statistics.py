"""Means and covariances of features, streamed, and the Frechet distance between two of them.

    real, made = FeatureStatistics(), FeatureStatistics()
    for batch in batches:
        real.update(features(batch))  # (N, D)
    distance = frechet_distance(real, made)

Heusel et al. (arXiv:1706.08500) take Inception's features; with VGG's the distance ranks models as
well, but its values are no FID and compare only with each other. Everything is float64 in numpy.
"""

import numpy as np

from vggjax.errors import DataError


class FeatureStatistics:
    """The mean and covariance of feature vectors that arrive in batches.

    Batches are merged by the update of Chan et al. (1979), equation 2.1, which stays exact where
    the sum of squares less the squared sum cancels. The memory is that of one (D, D) matrix.
    """

    def __init__(self) -> None:
        self.count = 0
        """Number of vectors."""
        self._mean = np.zeros(0)
        self._scatter = np.zeros((0, 0))
        """The sum of the outer products of the deviations from the mean, (D, D)."""

    def update(self, features: np.ndarray) -> "FeatureStatistics":
        """Add vectors (N, D), and return self.

        Raises:
            DataError: they are not (N, D) with the D of those before, or not finite.
        """
        batch = np.asarray(features, np.float64)
        if batch.ndim != 2 or (self.count and batch.shape[1] != len(self._mean)):
            width = len(self._mean) if self.count else "D"
            raise DataError(f"Features must be (N, {width}); got {batch.shape}.")
        if not np.isfinite(batch).all():
            raise DataError("Features must be finite; got NaN or infinity.")
        if len(batch):
            mean = batch.mean(0)
            deviations = batch - mean
            self._merge(len(batch), mean, deviations.T @ deviations)
        return self

    def merge(self, other: "FeatureStatistics") -> "FeatureStatistics":
        """Add the vectors of other statistics, and return self.

        Raises:
            DataError: their vectors have another length.
        """
        if self.count and other.count and len(self._mean) != len(other._mean):
            raise DataError(
                f"Both need vectors of one length; got {len(self._mean)} and {len(other._mean)}."
            )
        if other.count:
            self._merge(other.count, other._mean, other._scatter)
        return self

    def _merge(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        if not self.count:
            self.count, self._mean, self._scatter = count, mean.copy(), scatter.copy()
            return
        total, shift = self.count + count, mean - self._mean
        self._scatter += scatter + np.outer(shift, shift) * (self.count * count / total)
        self._mean = self._mean + shift * (count / total)
        self.count = total

    @property
    def mean(self) -> np.ndarray:
        """The mean, float64 (D,).

        Raises:
            DataError: there are no vectors.
        """
        if not self.count:
            raise DataError("There are no features yet; call `update` first.")
        return self._mean

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased covariance, float64 (D, D), as `np.cov(features, rowvar=False)`.

        Raises:
            DataError: there are fewer than two vectors.
        """
        if self.count < 2:
            raise DataError(f"A covariance needs two or more features; got {self.count}.")
        return self._scatter / (self.count - 1)


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """Return the squared Frechet distance of two Gaussians with these means and covariances.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), Dowson and Landau (1982), equation 4. The trace of
    the root is the sum of the roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), a symmetric matrix,
    so that fewer vectors than dimensions need no regularization.

    Raises:
        DataError: one has fewer than two vectors, or their lengths differ.
    """
    if first.mean.shape != second.mean.shape:
        raise DataError(
            f"Both need vectors of one length; got {len(first.mean)} and {len(second.mean)}."
        )
    one, two = first.covariance, second.covariance
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    products = np.maximum(np.linalg.eigvalsh(root @ two @ root), 0)
    shift = first.mean - second.mean
    distance = shift @ shift + np.trace(one) + np.trace(two) - 2 * np.sqrt(products).sum()
    return float(max(distance, 0.0))
