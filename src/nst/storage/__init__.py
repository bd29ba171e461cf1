"""What a run keeps on disk: its folder, checkpoints, metrics and trackers."""

LEAD = 5.0  # points above chance; losing half of less may be noise


def has_collapsed(top1: float, best: float, chance: float) -> bool:
    """Whether an evaluation lost more than half of the best accuracy above chance, if that was `LEAD` points or more.

    Args:
        top1: of this evaluation, in percent.
        best: of the evaluations before it.
        chance: chance-level accuracy.
    """
    gain = best - chance
    return gain >= LEAD and top1 - chance < gain / 2
