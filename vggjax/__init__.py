"""VGG transfer learning in JAX."""
