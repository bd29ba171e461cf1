"""What a run keeps on disk: its folder, checkpoints, metrics and trackers."""
