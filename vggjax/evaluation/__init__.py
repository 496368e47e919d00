"""Metrics, predictions and what explains them."""
