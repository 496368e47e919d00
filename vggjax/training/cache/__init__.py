"""Compute the frozen prefix once and keep its outputs."""
