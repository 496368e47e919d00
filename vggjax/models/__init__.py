"""The networks: tables of layers, the module that runs them, and their kernels."""
