"""Read, check, convert and write weight files, without jax (except load.py).

Functions that read a file raise `WeightsError` for whatever they refuse. weight_file.py puts the
file's path in front of the message.
"""
