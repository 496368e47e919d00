"""The settings of devices and the memory that a step takes of them."""
