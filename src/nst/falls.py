"""When a run's accuracy has collapsed: one rule for the run's warning and for the tables."""

LEAD = 5.0  # points above chance; losing half of less may be noise


def has_fallen(top1: float, best: float, chance: float) -> bool:
    """Whether an evaluation lost more than half of the best accuracy above chance, if that was `LEAD` points or more.

    Args:
        top1: of this evaluation, in percent.
        best: of the evaluations before it.
        chance: chance-level accuracy.
    """
    gain = best - chance
    return gain >= LEAD and top1 - chance < gain / 2
