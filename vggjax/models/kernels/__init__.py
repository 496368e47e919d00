"""The convolution for CPUs: the choice among its paths, Winograd, and the compiled kernels."""
