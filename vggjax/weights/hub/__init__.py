"""Weights and runs from a model hub."""
