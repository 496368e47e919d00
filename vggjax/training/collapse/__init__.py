"""Detect a training collapse and recover from it."""
