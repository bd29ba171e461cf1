"""Means of named values between two log lines, summed on the device: adding never makes the host wait."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nst.dist import Dist

# The fields before the values; "skipped" counts skipped steps, the other two the rest.
COUNTS = ("steps", "images", "skipped")


class Meter:
    """Sums since the last `read`, over the images (`per_image`) or the steps (`per_step`) of this rank."""

    def __init__(self, ranks: Dist) -> None:
        self.ranks = ranks
        self.per_step: tuple[str, ...] = ()
        self.per_image: tuple[str, ...] = ()
        self.sums = torch.zeros(len(COUNTS), device=ranks.device, dtype=torch.float64)
        self.first_bad = torch.zeros(1, device=ranks.device, dtype=torch.float64)  # the step's number, then its values

    def add(
        self,
        step: int,
        images: int,
        per_step: Mapping[str, Tensor],
        per_image: Mapping[str, Tensor],
        bad: Tensor,
        normal: Tensor,
    ) -> None:
        """Add a step, or count it as skipped; the values of the first one that should not have been skipped are kept.

        Args:
            step: its number, from 1.
            images: of this rank.
            per_image: sums over these images.
            bad: bool scalar, whether the step is skipped.
            normal: bool scalar, whether skipping it is no fault: the gradient scaler is still lowering its scale.
        """
        values = [v.detach().double() for v in (*per_step.values(), *per_image.values())]
        if not self.per_image:
            self.per_step, self.per_image = tuple(per_step), tuple(per_image)
            self.sums = torch.cat([self.sums, torch.zeros_like(self.sums[:1]).expand(len(values))])
            self.first_bad = torch.cat([self.first_bad, torch.zeros_like(self.first_bad).expand(len(values))])
        one = torch.ones_like(self.first_bad[0])
        zero = torch.zeros_like(one)
        row = torch.stack([one, one * images, zero, *values])
        skipped = torch.stack([zero, zero, one, *(zero for _ in values)])
        self.sums = self.sums + torch.where(bad, skipped, row)
        first = bad & ~normal & (self.first_bad[0] == 0)
        self.first_bad = torch.where(first, torch.stack([one * step, *values]), self.first_bad)

    def read(self) -> tuple[dict[str, float], dict[str, float]]:
        """Counts and means over all ranks since the last call; resets the sums. A host sync."""
        steps, images, skipped, *sums = self.ranks.sum(self.sums).tolist()
        self.sums = torch.zeros_like(self.sums)
        over = [max(steps, 1.0)] * len(self.per_step) + [max(images, 1.0)] * len(self.per_image)
        names = (*self.per_step, *self.per_image)
        means = {name: value / count for name, value, count in zip(names, sums, over, strict=True)}
        return {"steps": steps, "images": images, "skipped": round(skipped / self.ranks.world)}, means

    def any_fault(self) -> bool:
        """Whether a step was skipped since `forget` that should not have been. A host sync."""
        return bool(self.first_bad[0].item())

    def fault(self) -> tuple[int, list[str]]:
        """The number of the first faulty step since `forget`, and which values were not finite then, on any rank."""
        bad = self.ranks.sum((~torch.isfinite(self.first_bad[1:])).double()).tolist()
        names = (*self.per_step, *self.per_image)
        return int(self.first_bad[0]), [name for name, b in zip(names, bad, strict=True) if b]

    def forget(self) -> None:
        """Forget the faulty step."""
        self.first_bad = torch.zeros_like(self.first_bad)

    def state(self) -> dict[str, Any]:
        """The sums of all ranks, the same on each."""
        mine = torch.cat([self.sums, self.first_bad])
        return {"per_step": self.per_step, "per_image": self.per_image, "sums": self.ranks.stack(mine)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state()` of as many ranks."""
        self.per_step, self.per_image = tuple(state["per_step"]), tuple(state["per_image"])
        mine = state["sums"][self.ranks.rank].to(self.ranks.device)
        count = len(COUNTS) + len(self.per_step) + len(self.per_image)
        if len(mine) != 2 * count - 2:  # both vectors hold the values; the first also three counts, the second the step
            raise ValueError(f"{len(mine)} sums for {count - len(COUNTS)} values")
        self.sums, self.first_bad = mine[:count].clone(), mine[count:].clone()
