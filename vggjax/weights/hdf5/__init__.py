"""Find arrays in untrusted HDF5 files, unpack them, and write new files."""
