"""The commands, one function each: its parameters are the flags, its result is the exit code.

A function's docstring is its --help. What a command needs is imported inside it, so that --help
starts at once.
"""
