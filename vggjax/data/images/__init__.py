"""Decode, resize and preprocess images."""
