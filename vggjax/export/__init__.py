"""A run's classifier as one file for other runtimes: ONNX, StableHLO, Keras, LiteRT, torch."""
