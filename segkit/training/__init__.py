"""Training: frames, augmentation, trainer, run folder, several processes."""
