"""The run folder: settings, checkpoints, saved model, log."""
