"""Formats of plain arrays: NumPy's `.npz`, pickles of arrays, and the initializers of ONNX."""
