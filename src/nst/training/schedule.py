"""Learning rate as a function of the step: nothing to save, nothing to resume."""

import math
from bisect import bisect_right

from nst.config import OptimConfig


def learning_rate(optim: OptimConfig, step: int, steps: int) -> float:
    """The rate for step `step` (0-based) of a run of `steps` steps.

    `step`: `lr · gamma^(milestones passed)`; `cosine`: half a cosine from `lr` to 0; `onecycle`: linear up to `lr` at
    `warmup`, linear down to 0 at the end. With `step` and `cosine`, `warmup` is a linear rise in front.
    """
    done = step / steps
    if done < optim.warmup:
        return optim.lr * (step + 1) / (math.ceil(optim.warmup * steps) + 1)
    if optim.schedule == "step":
        return optim.lr * optim.gamma ** bisect_right(sorted(optim.milestones), done)
    rest = (done - optim.warmup) / (1 - optim.warmup)
    if optim.schedule == "cosine":
        return optim.lr * 0.5 * (1 + math.cos(math.pi * rest))
    return optim.lr * (1 - rest)
