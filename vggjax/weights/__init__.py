"""Where numbers come from and go to; readers and writers, no jax in them."""
