"""Datasets: folder, CSV, tfds, digits."""
