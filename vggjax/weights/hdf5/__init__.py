"""Find arrays in untrusted HDF5 files, and unpack them."""
