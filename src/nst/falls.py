"""When a run has fallen back: one rule for what the run says and for what the tables count."""

LEAD = 5.0  # points over chance: from there on, losing half of them is more than noise


def has_fallen(top1: float, best: float, chance: float) -> bool:
    """Whether an evaluation lost more than half of what was won over chance, from a lead of `LEAD` points on.

    Args:
        top1: of this evaluation, in percent.
        best: of the evaluations before it.
        chance: accuracy of guessing.
    """
    won = best - chance
    return won >= LEAD and top1 - chance < won / 2
