"""Data sets, their splits, and loaders in which an image's augmentation is a number: `view = f(seed, epoch, index)`."""
