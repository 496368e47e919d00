"""What follows a training: callbacks, and the loggers that are callbacks."""
