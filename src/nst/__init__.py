"""Distil small vision networks from large ones: NST, KD, AT and FitNet as summaries of a teacher."""

__version__ = "0.1.0"
