"""Random augmentation on the device."""
