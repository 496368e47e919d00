"""Read and write the files of Keras."""
