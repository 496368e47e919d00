"""Read and write the files of PyTorch."""
