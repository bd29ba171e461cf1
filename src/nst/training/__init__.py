"""The training loop: steps, ranks, evaluation, compilation, signals."""
