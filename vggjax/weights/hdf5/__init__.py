"""Read HDF5 in a sandboxed process; write it."""
